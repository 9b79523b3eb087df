"""The ways in which things go wrong, told apart by who can mend them."""

from __future__ import annotations

INTERRUPTED = 130
"""Exit code of what the user has ended, as shells have it for Ctrl-C."""
REFUSED = 78
"""Exit code of a process that the run does not take, as `EX_CONFIG` of sysexits.h: starting it again is no use."""

TRY_LATER = 75
"""Exit code where something may mend itself, as `EX_TEMPFAIL` of sysexits.h: starting it again later may help."""

BROKEN = 70
"""Exit code of a worker whose device does not work, as `EX_SOFTWARE` of sysexits.h: starting it again may help."""
HANGS = 71
"""Exit code of a worker whose device does not answer, as `EX_OSERR` of sysexits.h: starting it again most often helps."""


class ZswarmError(Exception):
    """Base of all errors that zswarm raises on purpose."""


class LocalProtocolError(ZswarmError):
    """Our own code tried something that the protocol forbids: a bug of ours."""


class RemoteProtocolError(ZswarmError):
    """A peer sent something that the protocol forbids: drop it and keep running."""


class UserError(ZswarmError):
    """Something that the user can mend; its text says where, what, and what instead. Exit code 2."""


class NotYet(UserError):
    """Something that the user can mend and that time may mend, such as a network that is not up. Exit code 75."""


class RunFailed(ZswarmError):
    """The run cannot go on; its text says what happened and what it means. Exit code 1."""
