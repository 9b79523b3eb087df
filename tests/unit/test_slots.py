from __future__ import annotations

from dataclasses import dataclass, field, fields

import pytest

from tests.letters import one_of_each
from zswarm.machine import Send
from zswarm.slots import maker


@pytest.mark.parametrize("message", one_of_each(1, step=3), ids=lambda message: type(message).__name__)
def test_a_maker_makes_what_the_class_makes(message):
    values = {f.name: getattr(message, f.name) for f in fields(message)}
    made = maker(type(message))(**values)
    assert type(made) is type(message)
    assert made == message
    assert hash(made) == hash(message)


def test_defaults_are_those_of_the_class():
    made = maker(Send)(peer=b"p", message=None)
    assert made == Send(peer=b"p", message=None)
    assert made.frames == ()


@pytest.mark.parametrize("values", [{"peer": b"p"}, {"peer": b"p", "message": None, "other": 1}])
def test_what_the_class_does_not_take_its_maker_does_not_take(values):
    with pytest.raises(TypeError, match="argument"):
        maker(Send)(**values)


@dataclass(slots=True)
class Positional:
    x: int


@dataclass(kw_only=True)
class WithoutSlots:
    x: int


@dataclass(slots=True, kw_only=True)
class WithFactory:
    x: list[int] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class DoesMore:
    x: int

    def __post_init__(self):
        self.x += 1


@pytest.mark.parametrize("cls", [Positional, WithoutSlots, WithFactory, DoesMore, int])
def test_other_classes_have_no_maker(cls):
    with pytest.raises(TypeError):
        maker(cls)
