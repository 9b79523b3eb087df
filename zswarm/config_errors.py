"""The words for what is wrong with a run file: where, what, and what instead."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text in quotes",
    "bool_type": "true or false",
}
BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def _meant(name: str, known: Iterable[str]) -> str:
    """Return a question after the nearest of `known`, and nothing if none is near."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _listed(names: Iterable[str], last: str) -> str:
    """Return "a, b or c", where "or" is the word before the last."""
    *others, end = sorted(names)
    return f"{', '.join(others)} {last} {end}" if others else end


def describe(
    error: ValidationError, *, schema: type[BaseModel], path: Path, origins: Mapping[tuple[str, str], str]
) -> str:
    """Return one message for all that is wrong.

    `origins` says for a (section, key) that does not come from the file where it comes from.
    """
    problems = [_place(details, origins) + _problem(details, schema) for details in error.errors()]
    if len(problems) == 1:
        return f"{path}: {problems[0]}"
    return "\n  ".join([f"{path}: {len(problems)} things are wrong:", *problems])


def _place(details: ErrorDetails, origins: Mapping[tuple[str, str], str]) -> str:
    section, key = ([str(part) for part in details["loc"]] + ["", ""])[:2]
    origin = origins.get((section, key))
    return f"{origin}: " if origin else ""


def _problem(details: ErrorDetails, schema: type[BaseModel]) -> str:
    location = [str(part) for part in details["loc"]]
    kind, context = details["type"], details.get("ctx", {})
    name = ".".join(location[:2])
    if kind == "value_error" and len(location) < 2:
        return str(context["error"])
    if kind == "missing":
        return _missing(location, schema)
    if kind == "extra_forbidden":
        return _unknown(location, schema)
    if kind in {"model_type", "dict_type", "model_attributes_type"}:
        return f"{name} must be a section: write [{name}] and its keys below it"
    given = f"{name} = {_show(details['input'])}"
    if kind == "value_error":
        return f"{given}: {context['error']}"
    if kind == "literal_error":
        choices = _choices(location, schema)
        quoted = _listed((f'"{choice}"' for choice in choices), "or")
        return f"{given}: must be {quoted}{_meant(str(details['input']), choices)}"
    if kind in BOUNDS:
        key, words = BOUNDS[kind]
        bound = context[key]
        return f"{given}: must be {words} {bound if isinstance(bound, int) else f'{bound:g}'}"
    if kind in TYPES:
        return f"{given}: must be {TYPES[kind]}, not {_type(details['input'])}"
    if kind == "finite_number":
        return f"{given}: must be a finite number"
    if location[:1] == ["model"]:
        return f"{given}: model arguments are texts, numbers, true, false, lists or tables"
    if kind == "string_pattern_mismatch":
        return f"{given}: must be 1 to 64 letters, digits, dots, dashes or underscores and begin with a letter or digit"
    return f"{given}: {details['msg']}"


def _missing(location: list[str], schema: type[BaseModel]) -> str:
    if len(location) == 1:
        section = schema.model_fields[location[0]].annotation
        required = [key for key, field in _fields(section).items() if field.is_required()]
        keys = f" with {', '.join(required)}" if required else ""
        return f"[{location[0]}] is missing: add the section{keys}"
    return f"{'.'.join(location)} is missing: add {location[1]} = ... to [{location[0]}]"


def _unknown(location: list[str], schema: type[BaseModel]) -> str:
    if len(location) == 1:
        known = schema.model_fields
        return f"[{location[0]}] is no section: there are {_listed(known, 'and')}{_meant(location[0], known)}"
    keys = _fields(schema.model_fields[location[0]].annotation)
    listed = f"[{location[0]}] has {_listed(keys, 'and')}"
    return f"{'.'.join(location)} is no key: {listed}{_meant(location[1], keys)}"


def _fields(section: Any) -> Mapping[str, Any]:
    return getattr(section, "model_fields", {})


def _choices(location: list[str], schema: type[BaseModel]) -> list[str]:
    section = schema.model_fields[location[0]].annotation
    annotation = _fields(section)[location[1]].annotation
    return [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []


def _show(value: object) -> str:
    text = "true" if value is True else "false" if value is False else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _type(value: object) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a fraction", str: "a text", list: "a list"}
    return names.get(type(value), "a section" if isinstance(value, dict) else type(value).__name__)
