"""What an annotation may say, and what it may not leave open."""

from __future__ import annotations

from dataclasses import make_dataclass
from enum import Enum
from typing import Annotated, Any

import pytest

from zswarm.messages import Length, Range
from zswarm.wire.fields import reader, writer


class Plain(Enum):
    """An enum that msgpack does not know."""

    A = object()


@pytest.mark.parametrize(
    "annotation",
    [
        int,
        float,
        str,
        bytes,
        tuple[int, ...],
        Annotated[tuple[int, ...], Length(3)],
        Annotated[tuple[str, ...], Length(3)],
        Annotated[int, Length(3)],
        Annotated[str, Range(0, 1)],
        Annotated[bool, Range(0, 1)],
        int | str,
        list[int],
        object,
        dict,
    ],
)
@pytest.mark.parametrize("side", [reader, writer])
def test_a_field_without_a_bound_is_refused(side: Any, annotation: Any) -> None:
    """Nobody adds an unbounded field to a message by mistake."""
    with pytest.raises(TypeError, match="a field of a message cannot be"):
        side(make_dataclass("Careless", [("field", annotation)]))


def test_an_enum_without_wire_values_is_refused() -> None:
    """Only values that msgpack packs can travel."""
    with pytest.raises(TypeError, match="IntEnum or a StrEnum"):
        writer(make_dataclass("Careless", [("field", Plain)]))


def test_a_class_that_does_more_than_keep_its_fields_is_refused() -> None:
    """A reader fills the slots itself: what `__init__` or `__post_init__` would do beside that would be left out."""
    fields = [("field", Annotated[int, Range(0, 1)])]
    with pytest.raises(TypeError, match="slots"):
        reader(make_dataclass("Loose", fields))
    with pytest.raises(TypeError, match="slots"):
        reader(make_dataclass("Busy", fields, slots=True, namespace={"__post_init__": lambda _: None}))
