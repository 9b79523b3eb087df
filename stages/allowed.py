"""Whose model code a machine runs: that of the modules which its operator has named, and what zswarm brings along.

The run's configuration names a function, and comes from whoever runs the trainer. Without this a member of the swarm
could have any function of any installed module called, with arguments of his choice.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zswarm.errors import UserError


class NotHere(UserError):
    """This machine, of all machines, cannot build the model, or may not; the run can go on with others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Names of modules; each stands for the modules inside it, too. None stands for all."""

    modules: frozenset[str] | None
    command: tuple[str, ...] = ()
    """What has started this process, for telling how to allow a module."""

    def check(self, factory: str, module: str) -> None:
        """Raise NotHere unless code of this module may be run here."""
        if self.modules is None:
            return
        parents = [module.rsplit(".", levels)[0] for levels in range(module.count(".") + 1)]
        if not self.modules.intersection(parents):
            command = shlex.join([*self.command, "--allow", module])
            raise NotHere(
                f"model.factory = {factory!r} is code of the module {module}, which this machine's operator does not "
                f"allow: nothing of it was run; who trusts it starts this worker by `{command}`"
            )

    def check_function(self, factory: str, function: Callable[..., Any]) -> None:
        """Raise NotHere if a function is of another module, which the one that may be run has only imported."""
        while isinstance(function, functools.partial):
            function = function.func
        self.check(factory, getattr(function, "__module__", None) or type(function).__module__)


EVERYTHING = Allowed(modules=None)
"""For the user's own run file, on his own machine."""
