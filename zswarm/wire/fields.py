"""Checks of every field of a message, made from the annotations of its dataclass.

A dataclass yields two functions, made on first use and kept:

    reader(cls)(mapping) -> cls         every field present, of its type, in its range
    writer(cls)(instance) -> mapping    the same checks on our own values

    annotation                              accepts
    Annotated[int, Range(low, high)]        int, not bool, low <= value <= high
    Annotated[float, Range(low, high)]      float, finite, low <= value <= high (a writer takes an int too)
    bool                                    bool
    Annotated[str | bytes, Length(most)]    at most that many characters or bytes
    an enum                                 one of its values, of the value's own type
    Annotated[tuple[T, ...], Length(most)]  at most that many elements, each a T
    a dataclass                             a mapping of its fields by name
    T | None                                either

A number, text, blob or tuple without a bound is refused when the function is made: a message that
bounds nothing cannot be written by mistake. Unknown keys are ignored, and a key whose field has a
default may be missing; so peers one version apart understand each other.
"""

from __future__ import annotations

import dataclasses
import functools
import reprlib
import sys
from collections.abc import Callable
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Protocol, Union, get_args, get_origin, get_type_hints

from zswarm.messages import Length, Range

Check = Callable[[Any], Any]
"""Returns the checked value in the form of its side, message or wire; raises `FieldFault`."""


class FieldFault(Exception):
    """A value that its field's annotation does not allow; the text names field, value and bound."""


class _Nested(Protocol):
    """How one side, reader or writer, treats the types whose form differs between message and wire."""

    def number(self, bounds: Range) -> Check: ...
    def enum(self, cls: type[Enum]) -> Check: ...
    def structure(self, cls: type) -> Check: ...


@functools.cache
def reader(cls: type) -> Check:
    """Return the function from a mapping, as msgpack gave it, to an instance of the dataclass `cls`."""
    checks = dict(_checks(cls, _Reader()))
    defaulted = {field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING}
    optional = tuple((name, checks.pop(name)) for name in defaulted)
    # Most fields are integers: checked in line they cost half of what a call each would.
    integers = tuple((name, check.low, check.high) for name, check in checks.items() if isinstance(check, _Integer))
    others = tuple((name, check) for name, check in checks.items() if not isinstance(check, _Integer))

    def read(mapping: Any) -> Any:
        if type(mapping) is not dict:
            raise FieldFault(f"{cls.__name__} is {_shown(mapping)}, not a mapping")
        values = {}
        name = ""
        try:
            for name, low, high in integers:
                value = mapping[name]
                if type(value) is not int or not low <= value <= high:
                    raise _not_an_integer(value, low, high)
                values[name] = value
            for name, check in others:
                values[name] = check(mapping[name])
            for name, check in optional:
                if name in mapping:
                    values[name] = check(mapping[name])
        except KeyError:
            raise FieldFault(f"{cls.__name__}.{name} is missing") from None
        except FieldFault as fault:
            raise FieldFault(f"{cls.__name__}.{name}: {fault}") from None
        return cls(**values)

    return read


@functools.cache
def writer(cls: type) -> Check:
    """Return the function from an instance of the dataclass `cls` to the mapping that msgpack packs."""
    fields = _checks(cls, _Writer())

    def write(instance: Any) -> Any:
        if type(instance) is not cls:
            raise FieldFault(f"{_shown(instance)} is not a {cls.__name__}")
        mapping = {}
        name = ""
        try:
            for name, check in fields:
                mapping[name] = check(getattr(instance, name))
        except FieldFault as fault:
            raise FieldFault(f"{cls.__name__}.{name}: {fault}") from None
        return mapping

    return write


def _checks(cls: type, side: _Nested) -> tuple[tuple[str, Check], ...]:
    hints = get_type_hints(cls, include_extras=True)
    return tuple((field.name, _check(hints[field.name], side)) for field in dataclasses.fields(cls))


def _check(annotation: Any, side: _Nested) -> Check:
    """Return the check of one annotation, from the inside out."""
    if get_origin(annotation) in (Union, UnionType):
        return _optional(annotation, side)
    bounds: Any = None
    if get_origin(annotation) is Annotated:
        annotation, bounds = get_args(annotation)
    annotation = getattr(annotation, "__supertype__", annotation)
    match annotation, bounds:
        case _, Length(most=most) if get_origin(annotation) is tuple:
            return _sequence(_check(get_args(annotation)[0], side), most)
        case type(), Length(most=most) if annotation in (str, bytes):
            return _sized(annotation, most)
        case type(), Range(low=low, high=high) if annotation is int:
            return _Integer(int(low), int(high))
        case type(), Range() if annotation is float:
            return side.number(bounds)
        case type(), None if annotation is bool:
            return _boolean
        case type(), None if issubclass(annotation, Enum):
            return side.enum(annotation)
        case type(), None if dataclasses.is_dataclass(annotation):
            return side.structure(annotation)
    raise TypeError(f"a field of a message cannot be {annotation!r} with bounds {bounds!r}")


def _optional(annotation: Any, side: _Nested) -> Check:
    some, none = get_args(annotation)
    if none is not NoneType:
        raise TypeError(f"a field of a message cannot be {annotation!r}")
    check = _check(some, side)
    return lambda value: None if value is None else check(value)


@dataclasses.dataclass(frozen=True, slots=True)
class _Integer:
    """The check of an integer, with bounds to be read."""

    low: int
    high: int

    def __call__(self, value: Any) -> Any:
        if type(value) is int and self.low <= value <= self.high:
            return value
        raise _not_an_integer(value, self.low, self.high)


def _not_an_integer(value: object, low: int, high: int) -> FieldFault:
    return FieldFault(f"{_shown(value)} is not an integer in {low}..{high}")


def _boolean(value: Any) -> Any:
    if type(value) is bool:
        return value
    raise FieldFault(f"{_shown(value)} is not a boolean")


def _sized(kind: type[str | bytes], most: int) -> Check:
    def check(value: Any) -> Any:
        if type(value) is kind and len(value) <= most:
            return value
        raise FieldFault(f"{_shown(value)} is not {kind.__name__} of at most {most}")

    return check


def _sequence(element: Check, most: int) -> Check:
    low, high = (element.low, element.high) if isinstance(element, _Integer) else (0, -1)
    integers = isinstance(element, _Integer)

    def check(value: Any) -> Any:
        if type(value) is not tuple or len(value) > most:
            raise FieldFault(f"{_shown(value)} is not a sequence of at most {most}")
        if not integers:
            return tuple([element(item) for item in value])
        for item in value:
            if type(item) is not int or not low <= item <= high:
                raise _not_an_integer(item, low, high)
        return value

    return check


def _finite(bounds: Range, *kinds: type) -> Check:
    """Return the check of a float; a NaN fails every comparison, an infinity these bounds."""
    low = max(bounds.low, -sys.float_info.max)
    high = min(bounds.high, sys.float_info.max)

    def check(value: Any) -> Any:
        if type(value) in kinds and low <= value <= high:
            return float(value)
        raise FieldFault(f"{_shown(value)} is not a number in {low}..{high}")

    return check


class _Reader:
    """From the wire: enums by value, structures from mappings."""

    def number(self, bounds: Range) -> Check:
        return _finite(bounds, float)

    def enum(self, cls: type[Enum]) -> Check:
        members = {member.value: member for member in cls}
        (kind,) = {type(value) for value in members}

        def check(value: Any) -> Any:
            # The type comes first: True and 1.0 are equal to 1 and would be found.
            member = members.get(value) if type(value) is kind else None
            if member is None:
                raise FieldFault(f"{_shown(value)} is not a {cls.__name__}")
            return member

        return check

    def structure(self, cls: type) -> Check:
        return reader(cls)


class _Writer:
    """To the wire: enums as they are, since msgpack packs an int or str of any class; structures to mappings."""

    def number(self, bounds: Range) -> Check:
        return _finite(bounds, float, int)

    def enum(self, cls: type[Enum]) -> Check:
        if not issubclass(cls, (int, str)):
            raise TypeError(f"an enum in a message is an IntEnum or a StrEnum, not {cls!r}")

        def check(member: Any) -> Any:
            if type(member) is cls:
                return member
            raise FieldFault(f"{_shown(member)} is not a {cls.__name__}")

        return check

    def structure(self, cls: type) -> Check:
        return writer(cls)


def _shown(value: object) -> str:
    """Return a short text for a value that may be as long as a header."""
    return reprlib.repr(value)
