"""Instances of frozen dataclasses in half the time.

The `__init__` of a frozen dataclass looks up and calls `object.__setattr__` for each field. Of what a broker thinks
about a message, a third was that. A maker sets the slots themselves. Its source, for a class with the fields `peer` and
`frames`, the latter with a default:

    def make(*, peer, frames=default_frames):
        instance = new(cls)
        set_peer(instance, peer)
        set_frames(instance, frames)
        return instance
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


def maker(cls: Callable[P, T]) -> Callable[P, T]:
    """Return a function that makes what calling `cls` makes, a dataclass of slots with keyword-only fields.

    Raises:
        TypeError: `cls` is another kind of class, or does more when it is called than to set its fields.

    """
    made = cast("type", cls)
    fields = dataclasses.fields(made)
    is_plain = all(f.init and f.kw_only and f.default_factory is dataclasses.MISSING for f in fields)
    if not is_plain or "__slots__" not in vars(made) or hasattr(made, "__post_init__"):
        raise TypeError(f"{made!r} is not made of slots and keywords alone")
    names: dict[str, Any] = {"cls": made, "new": object.__new__}
    parameters, body = [], ["instance = new(cls)"]
    for field in fields:
        name = field.name
        names[f"set_{name}"] = getattr(made, name).__set__
        body.append(f"set_{name}(instance, {name})")
        if field.default is dataclasses.MISSING:
            parameters.append(name)
        else:
            names[f"default_{name}"] = field.default
            parameters.append(f"{name}=default_{name}")
    source = [f"def make(*, {', '.join(parameters)}):", *(f"    {line}" for line in (*body, "return instance"))]
    code = compile("\n".join(source), f"<maker of {made.__name__}>", "exec")
    exec(code, names)  # noqa: S102 - the source is made of the names of our own fields
    return cast("Callable[P, T]", names["make"])
