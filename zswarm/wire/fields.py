"""Checks of every field of a message, made from the annotations of its dataclass.

A dataclass yields two functions, written out as source and compiled on first use, as `dataclasses` makes `__init__`:

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

Every message of every process passes through here, and a loop over checks that call each other took a quarter of a
broker's time. What the source of the reader of a class with one integer looks like:

    def read(mapping):
        if type(mapping) is not dict: raise fault('Drained', mapping, 'a mapping')
        try:
            v_worker = mapping['worker']
        except KeyError as missing: raise lacking('Drained', missing) from None
        if type(v_worker) is not int or not 0 <= v_worker <= 18446744073709551615:
            raise fault('Drained.worker', v_worker, 'an integer in 0..18446744073709551615')
        instance = new(cls)
        set_worker(instance, v_worker)
        return instance
"""

from __future__ import annotations

import dataclasses
import functools
import reprlib
import sys
from collections.abc import Callable
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from zswarm.messages import Length, Range

Check = Callable[[Any], Any]
"""Returns the checked value in the form of its side, message or wire; raises `FieldFault`."""


class FieldFault(Exception):
    """A value that its field's annotation does not allow; the text names field, value and bound."""


@functools.cache
def reader(cls: type) -> Check:
    """Return the function from a mapping, as msgpack gave it, to an instance of the dataclass `cls`."""
    return _Reader(cls).function()


@functools.cache
def writer(cls: type) -> Check:
    """Return the function from an instance of the dataclass `cls` to the mapping that msgpack packs."""
    return _Writer(cls).function()


def _fault(place: str, value: object, expected: str) -> FieldFault:
    return FieldFault(f"{place}: {_shown(value)} is not {expected}")


def _lacking(place: str, missing: KeyError) -> FieldFault:
    return FieldFault(f"{place}.{missing.args[0]} is missing")


def _within(place: str, fault: FieldFault) -> FieldFault:
    return FieldFault(f"{place}: {fault}")


def _shown(value: object) -> str:
    """Return a short text for a value that may be as long as a header."""
    return reprlib.repr(value)


Lines = list[str]
"""Of source, indented as they stand to each other."""


def _indented(lines: Lines) -> Lines:
    return ["    " + line for line in lines]


class _Maker:
    """Writes one function: how the value of a variable is checked, and replaced by its form on the other side.

    Only names and bounds of our own annotations get into the source; every other object gets there by a name.
    """

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.place = cls.__name__
        self.fields = dataclasses.fields(cls)
        self.hints = get_type_hints(cls, include_extras=True)
        self.names: dict[str, Any] = {
            "cls": cls,
            "fault": _fault,
            "lacking": _lacking,
            "within": _within,
            "FieldFault": FieldFault,
        }

    def function(self) -> Check:
        """Return the function, compiled."""
        name, lines = self.source()
        code = compile("\n".join(lines), f"<{name} of {self.place}>", "exec")
        exec(code, self.names)  # noqa: S102 - the source is made of the annotations of our own classes
        made: Check = self.names[name]
        return made

    def source(self) -> tuple[str, Lines]:
        """Return the name and the source of the function."""
        raise NotImplementedError

    # How one side treats the types whose form differs between message and wire.

    def number(self, variable: str, bounds: Range, place: str) -> Lines:
        raise NotImplementedError

    def enum(self, variable: str, cls: type[Enum], place: str) -> Lines:
        raise NotImplementedError

    def structure(self, cls: type) -> Check:
        raise NotImplementedError

    def field(self, field: dataclasses.Field[Any]) -> Lines:
        """Return the check of a field that is in the variable of its name."""
        return self.check(f"v_{field.name}", self.hints[field.name], f"{self.place}.{field.name}")

    def named(self, value: Any) -> str:
        """Return the name by which the source knows an object."""
        name = f"o_{len(self.names)}"
        self.names[name] = value
        return name

    def check(self, variable: str, annotation: Any, place: str) -> Lines:
        """Return the check of a variable by its annotation; `place` is what a fault says."""
        if get_origin(annotation) in (Union, UnionType):
            some, none = get_args(annotation)
            if none is not NoneType:
                raise TypeError(f"a field of a message cannot be {annotation!r}")
            return [f"if {variable} is not None:", *_indented(self.check(variable, some, place))]
        bounds: Any = None
        if get_origin(annotation) is Annotated:
            annotation, bounds = get_args(annotation)
        annotation = getattr(annotation, "__supertype__", annotation)
        match annotation, bounds:
            case _, Length(most=most) if get_origin(annotation) is tuple:
                return self.sequence(variable, get_args(annotation)[0], most, place)
            case type(), Length(most=most) if annotation in (str, bytes):
                wrong = f"type({variable}) is not {annotation.__name__} or len({variable}) > {most}"
                return _refuse(wrong, variable, place, f"{annotation.__name__} of at most {most}")
            case type(), Range(low=low, high=high) if annotation is int:
                wrong = f"type({variable}) is not int or not {int(low)} <= {variable} <= {int(high)}"
                return _refuse(wrong, variable, place, f"an integer in {int(low)}..{int(high)}")
            case type(), Range() if annotation is float:
                return self.number(variable, bounds, place)
            case type(), None if annotation is bool:
                return _refuse(f"type({variable}) is not bool", variable, place, "a boolean")
            case type(), None if issubclass(annotation, Enum):
                return self.enum(variable, annotation, place)
            case type(), None if dataclasses.is_dataclass(annotation):
                convert = self.named(self.structure(annotation))
                return [
                    "try:",
                    f"    {variable} = {convert}({variable})",
                    "except FieldFault as inner:",
                    f"    raise within({place!r}, inner) from None",
                ]
        raise TypeError(f"a field of a message cannot be {annotation!r} with bounds {bounds!r}")

    def sequence(self, variable: str, element: Any, most: int, place: str) -> Lines:
        """Return the check of a tuple, element by element."""
        wrong = f"type({variable}) is not tuple or len({variable}) > {most}"
        item, items = f"{variable}_item", f"{variable}_items"
        return [
            *_refuse(wrong, variable, place, f"a sequence of at most {most}"),
            f"{items} = []",
            f"for {item} in {variable}:",
            *_indented(self.check(item, element, place)),
            f"    {items}.append({item})",
            f"{variable} = tuple({items})",
        ]


def _refuse(wrong: str, variable: str, place: str, expected: str) -> Lines:
    return [f"if {wrong}:", f"    raise fault({place!r}, {variable}, {expected!r})"]


def _finite(bounds: Range) -> tuple[float, float]:
    """Return bounds that an infinity is outside of, as a NaN is of any."""
    return max(bounds.low, -sys.float_info.max), min(bounds.high, sys.float_info.max)


class _Reader(_Maker):
    """From the wire: enums by value, structures from mappings."""

    def source(self) -> tuple[str, Lines]:
        needed = [field for field in self.fields if field.default is dataclasses.MISSING]
        defaulted = [field for field in self.fields if field.default is not dataclasses.MISSING]
        body = _refuse("type(mapping) is not dict", "mapping", self.place, "a mapping")
        if needed:
            body += [
                "try:",
                *[f"    v_{field.name} = mapping[{field.name!r}]" for field in needed],
                "except KeyError as missing:",
                f"    raise lacking({self.place!r}, missing) from None",
            ]
        for field in needed:
            body += self.field(field)
        for field in defaulted:
            body += [
                f"if {field.name!r} in mapping:",
                f"    v_{field.name} = mapping[{field.name!r}]",
                *_indented(self.field(field)),
                "else:",
                f"    v_{field.name} = {self.named(field.default)}",
            ]
        return "read", ["def read(mapping):", *_indented([*body, *self.construction()])]

    def construction(self) -> Lines:
        """Return what makes the instance: slot by slot, in half the time of the `__init__` of a frozen dataclass."""
        if "__slots__" not in vars(self.cls) or hasattr(self.cls, "__post_init__"):
            raise TypeError(f"{self.cls!r} is not made of slots alone")
        self.names["new"] = object.__new__
        lines = ["instance = new(cls)"]
        for field in self.fields:
            self.names[f"set_{field.name}"] = getattr(self.cls, field.name).__set__
            lines.append(f"set_{field.name}(instance, v_{field.name})")
        return [*lines, "return instance"]

    def number(self, variable: str, bounds: Range, place: str) -> Lines:
        low, high = _finite(bounds)
        wrong = f"type({variable}) is not float or not {low!r} <= {variable} <= {high!r}"
        return _refuse(wrong, variable, place, f"a number in {low}..{high}")

    def enum(self, variable: str, cls: type[Enum], place: str) -> Lines:
        values = {member.value: member for member in cls}
        (kind,) = {type(value) for value in values}
        # The type comes first: True and 1.0 are equal to 1 and would be found.
        return [
            f"member = {self.named(values)}.get({variable}) if type({variable}) is {self.named(kind)} else None",
            *_refuse("member is None", variable, place, f"a {cls.__name__}"),
            f"{variable} = member",
        ]

    def structure(self, cls: type) -> Check:
        return reader(cls)


class _Writer(_Maker):
    """To the wire: enums as they are, since msgpack packs an int or str of any class; structures to mappings."""

    def source(self) -> tuple[str, Lines]:
        body = _refuse("type(instance) is not cls", "instance", self.place, f"of the class {self.place}")
        for field in self.fields:
            body += [f"v_{field.name} = instance.{field.name}", *self.field(field)]
        pairs = ", ".join(f"{field.name!r}: v_{field.name}" for field in self.fields)
        return "write", ["def write(instance):", *_indented([*body, f"return {{{pairs}}}"])]

    def number(self, variable: str, bounds: Range, place: str) -> Lines:
        low, high = _finite(bounds)
        wrong = f"type({variable}) not in (float, int) or not {low!r} <= {variable} <= {high!r}"
        return [*_refuse(wrong, variable, place, f"a number in {low}..{high}"), f"{variable} = float({variable})"]

    def enum(self, variable: str, cls: type[Enum], place: str) -> Lines:
        if not issubclass(cls, (int, str)):
            raise TypeError(f"an enum in a message is an IntEnum or a StrEnum, not {cls!r}")
        return _refuse(f"type({variable}) is not {self.named(cls)}", variable, place, f"a {cls.__name__}")

    def structure(self, cls: type) -> Check:
        return writer(cls)
