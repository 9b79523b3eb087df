"""What a user is told when his process does not get through to the first address of all, the trainer's.

ZeroMQ says little of it: it goes on trying, or falls silent for ever, whether the key is wrong, the port is that of a
web server, or the trainer hangs. So whoever listens there is asked once more, by other means (probe.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from zswarm.errors import UserError
from zswarm.ids import Address
from zswarm.transport.handshake import HandshakeWatch, Outcome
from zswarm.transport.probe import Answer, Kind, probe

SILENCE_S = 4.0
"""After a connection that leads to no handshake: ZeroMQ gives one 3 s, and some peers for ever."""
ASK_AGAIN_S = 60.0
"""As long as nothing changes, what is wrong is said once a minute."""


_FINAL = frozenset({Outcome.MISMATCHED, Outcome.REFUSED})
"""After these ZeroMQ does not try again."""


class FirstContact:
    """Follows the handshakes with one address until one succeeds."""

    def __init__(
        self,
        address: Address,
        watch: HandshakeWatch,
        *,
        has_key: bool,
        clock: Callable[[], float] = time.monotonic,
        ask: Callable[[Address], Answer] = probe,
    ) -> None:
        self.watch = watch
        self.is_made = False
        """A handshake has succeeded: there is nothing left to do."""
        self.address = address
        self._has_key = has_key
        self._clock = clock
        self._ask = ask
        self._look_at_s = float("inf")
        """When it is time to ask who listens there."""
        self._asked_at_s = float("-inf")

    def look(self) -> str:
        """Return what is to be told now; mostly nothing. May take the time of a probe, once a minute.

        Raises:
            UserError: who listens there is none that this process can ever talk to.

        """
        now, is_final = self._clock(), False
        for outcome in self.watch.outcomes():
            if outcome is Outcome.SUCCEEDED:
                self.is_made = True
                return ""
            is_final |= outcome in _FINAL
            wait_s = SILENCE_S if outcome is Outcome.CONNECTED else 0.0
            self._look_at_s = min(self._look_at_s, max(now + wait_s, self._asked_at_s + ASK_AGAIN_S))
        if now < self._look_at_s and not is_final:
            return ""
        answer = self._ask(self.address)
        self._look_at_s = float("inf")
        if answer.kind is not Kind.NOBODY:
            self._asked_at_s = now
        reason = _hopeless(answer, has_key=self._has_key)
        if is_final and not reason:
            rule = "a swarm key, and it needs the same one" if self._has_key else "no swarm key, nor may it"
            reason = f"this process has {rule} (--key)"
        if reason:
            raise UserError(f"{self.address}: no handshake with whoever listens there: {reason}")
        return _HOPES[answer.kind]


def _hopeless(answer: Answer, *, has_key: bool) -> str:
    """Return why there is no use in trying again; nothing if there may be."""
    if answer.kind is Kind.OTHER:
        words = f"which says {answer.words!r}" if answer.words else "which says what is no text"
        return f"it is no zswarm but another service, {words}; look up address and port of the trainer (--coordinator)"
    if answer.kind is Kind.CURVE and not has_key:
        return "it has a swarm key, and this process has no swarm key: give it a copy of the same one (--key)"
    if answer.kind is Kind.PLAIN and has_key:
        return (
            "it has no swarm key, and this process has one: give the trainer the same, or neither of them any (--key)"
        )
    return ""


_HOPES = {
    Kind.NOBODY: "",
    Kind.SILENT: "it takes connections and says nothing: either the trainer there hangs, or it is another service's port; "
    "look up address and port of the trainer (--coordinator)",
    Kind.ENDED: "it hangs up at once: either the trainer there is just ending, or it is another service's port; look up "
    "address and port of the trainer (--coordinator)",
    Kind.PLAIN: "it speaks ZeroMQ and breaks the handshake off: either the trainer there is just ending, or it is another "
    "program's port; look up address and port of the trainer (--coordinator)",
    Kind.CURVE: "it was broken off: is the swarm key there another one? Then copy the trainer's key file to this machine "
    "(--key); a trainer that is busy beginning, or just ending, looks the same",
    Kind.OTHER: "",
}
"""What may yet come right, so that ZeroMQ goes on trying: for the log."""
