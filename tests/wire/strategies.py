"""Hypothesis strategies for every kind of message, made from the annotations that the codec reads."""

from __future__ import annotations

import dataclasses
import math
import sys
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from zswarm import limits
from zswarm.kinds import KINDS
from zswarm.messages import Length, Message, Parcel, Range, TensorSpec, View, Welcome
from zswarm.wire.payload import ITEM_BYTES

SMALL_BYTES = 4096
"""Size of a payload in most examples; frames of the full size are tested by hand."""


@st.composite
def tensor_specs(draw: st.DrawFn) -> TensorSpec:
    """Draw a tensor that a parcel may hold."""
    codec = draw(st.sampled_from(["none", "bf16", "int8", "bnb8"]))
    dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=limits.MAX_DIMENSIONS)))
    num_items = math.prod(shape)
    least_bytes = -(-num_items // 2)
    size_bytes = num_items * ITEM_BYTES[dtype] if codec == "none" else draw(st.integers(least_bytes, SMALL_BYTES))
    return TensorSpec(codec=codec, dtype=dtype, shape=shape, size_bytes=size_bytes)


@st.composite
def parcels(draw: st.DrawFn) -> Parcel:
    """Draw a parcel whose tensors add up to its size."""
    tensors = tuple(draw(st.lists(tensor_specs(), min_size=1, max_size=limits.MAX_TENSORS)))
    size_bytes = sum(spec.size_bytes for spec in tensors)
    if size_bytes == 0:
        tensors = (TensorSpec(codec="none", dtype="uint8", shape=(1,), size_bytes=1), *tensors[1:])
        size_bytes = 1
    return Parcel(tensors=tensors, size_bytes=size_bytes, crc=draw(st.integers(0, 2**32 - 1)))


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for the values that an annotation of `zswarm.messages` allows."""
    if get_origin(annotation) in (Union, UnionType):
        return st.one_of([st.none() if arm is type(None) else values(arm) for arm in get_args(annotation)])
    bounds: Any = None
    if get_origin(annotation) is Annotated:
        annotation, bounds = get_args(annotation)
    annotation = getattr(annotation, "__supertype__", annotation)
    if annotation is Parcel:
        return parcels()
    match annotation, bounds:
        case _, Length(most=most) if get_origin(annotation) is tuple:
            return st.lists(values(get_args(annotation)[0]), max_size=min(most, 8)).map(tuple)
        case type(), Length(most=most) if annotation is str:
            return st.text(max_size=min(most, 40))
        case type(), Length(most=most):
            return st.binary(max_size=min(most, 40))
        case type(), Range(low=low, high=high) if annotation is int:
            low, high = int(low), int(high)
            return st.one_of(st.integers(low, high), st.sampled_from([low, high]))
        case type(), Range(low=low, high=high):
            most_finite = sys.float_info.max
            return st.floats(max(low, -most_finite), min(high, most_finite))
        case type(), None if annotation is bool:
            return st.booleans()
        case type(), None if issubclass(annotation, Enum):
            return st.sampled_from(list(annotation))
        case _:
            return structures(annotation)


def structures(cls: type) -> st.SearchStrategy[Any]:
    """Return a strategy for instances of a dataclass of `zswarm.messages`."""
    hints = get_type_hints(cls, include_extras=True)
    fields = {field.name: values(hints[field.name]) for field in dataclasses.fields(cls)}
    if cls in (Welcome, View):
        fields["size_bytes"] = st.integers(0, SMALL_BYTES)
    return st.builds(cls, **fields)


def messages() -> st.SearchStrategy[Message]:
    """Return a strategy for messages of every kind."""
    return st.one_of([structures(cls) for cls in KINDS.values()])


def longest(annotation: Any) -> Any:
    """Return the value of an annotation of `zswarm.messages` that takes most bytes on the wire, texts in ASCII."""
    if get_origin(annotation) in (Union, UnionType):
        return longest(get_args(annotation)[0])
    bounds: Any = None
    if get_origin(annotation) is Annotated:
        annotation, bounds = get_args(annotation)
    annotation = getattr(annotation, "__supertype__", annotation)
    match annotation, bounds:
        case _, Length(most=most) if get_origin(annotation) is tuple:
            return (longest(get_args(annotation)[0]),) * most
        case type(), Length(most=most):
            return most * ("x" if annotation is str else b"\xff")
        case type(), Range(high=high):
            return annotation(min(high, sys.float_info.max))
        case type(), None if annotation is bool:
            return True
        case type(), None if issubclass(annotation, Enum):
            return max(annotation, key=lambda member: len(str(member.value)))
        case _:
            hints = get_type_hints(annotation, include_extras=True)
            return annotation(**{field.name: longest(hints[field.name]) for field in dataclasses.fields(annotation)})
