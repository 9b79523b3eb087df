"""Getting a stage's state from those who have it, layer by layer, from several at once, while steps go on.

    a layer   NOTHING --PARAMETERS, OPTIMIZER, of one version--> of that version --GRADIENT--> of the next --> ...
    all layers of the newest version that has been heard of, and the layers are built: Adopt

Each file comes in ranges: Pull, repeated --State--> Import --> the next range. A layer is begun at whatever version is
present when its turn comes, and its donor gives it to the end (`donor.py`); then it takes the steps that the swarm has
taken meanwhile, before any further layer is begun, so that no donor has to keep many steps. In this way whoever gets more
than a gradient's bytes in the time of a step catches up, unless a single layer takes longer than MAX_GRADIENTS steps.

Several layers are asked of each donor at a time, one range of each: a range waits there until the job in work has ended. How
many they are is bound by their bytes, which leaves the donor its uplink for the step in work. A donor that
does not have what it is asked for any more answers with the beginning of the layer as it is now; any other State that is
not the one asked for is a duplicate. One that does not answer is given up as long as there is another, who gives its
layers, and steps, from their beginning: no version of a layer, and no step, is put together of what two gave.

What comes faster than the device takes it would fill this process's memory: nothing more is asked for while that much
waits to be taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stages.tasks import Adopt, Task, import_of
from zswarm import limits
from zswarm.ids import TRAINER, Peer, Session, StatePart, Step, Version
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Load, Pull, Restore, State
from zswarm.patience import patience

PATIENCE = 2.0
"""Times the longest that a range has taken, before one is asked for again: on a slow link none is lost yet."""


@dataclass(slots=True)
class Fetch:
    """A layer's file that a donor is giving."""

    donor: Session
    layer: int
    part: StatePart
    version: Version
    """Of the file; of a GRADIENT, the one from which it leads on."""
    offset_bytes: int = 0
    num_asked: int = 0
    asked_at_s: float = 0.0
    resend_at_s: float = 0.0
    waits: bool = False
    """Nobody has been asked for its next range yet."""


@dataclass(slots=True)
class Importing:
    """Ranges that the compute thread has been given and has not taken; of loads that were given up, too."""

    num_ranges: int = 0

    @property
    def is_full(self) -> bool:
        """Are they as many as may be?"""
        return self.num_ranges >= limits.MAX_IMPORTING


class Loader:
    """See the module. `held` is the version of which all layers are here already, if any. Methods return what follows."""

    def __init__(
        self,
        membership: Membership,
        order: Restore,
        *,
        layers: range,
        held: Version | None,
        resend_s: float,
        importing: Importing,
    ) -> None:
        self._me = membership
        self._importing = importing
        self.version: Version = (order.branch, order.step)
        """The newest that has been heard of: what all layers are brought to, and none later once they are adopted."""
        self.is_built = True
        """Do the layers exist that this is the state of? Nothing is put in place before."""
        self.is_adopting = False
        """Is everything here, and being put in place? Then there is no way back."""
        self._resend_s = resend_s
        self._layers: dict[int, Version | None] = dict.fromkeys(layers, held)
        self._givers: dict[int, Session] = {}
        """Who has given each layer, and keeps the steps after it."""
        self._file_bytes: dict[int, int] = {}
        """Of the largest file of each layer that is known."""
        self._donors: dict[Session, Peer] = {}
        self._silent: set[Session] = set()
        """Donors that did not answer while others did."""
        self._fetches: dict[int, Fetch] = {}
        """By layer."""
        self._take_donors(order)

    def start(self, now: float) -> list[Send | Task]:
        """Ask every donor."""
        return [*self._ask_idle(now)]

    def follow(self, order: Restore, now: float) -> list[Send | Task]:
        """Go on with the donors of this order: without those that it does not name, with those that are new."""
        version = (order.branch, order.step)
        if version < self.version:
            return []
        self.version = version
        self._take_donors(order)
        return [*self._ask_idle(now)]

    def _take_donors(self, order: Restore) -> None:
        sources = {order.donor: order.address, **{source.donor: source.address for source in order.others}}
        peers = {s: self._me.coordinator if s == TRAINER else address for s, address in sources.items()}
        for session in [session for session, peer in self._donors.items() if peers.get(session) != peer]:
            self._give_up(session)
        for fetch in [f for f in self._fetches.values() if f.donor == TRAINER and f.version != self.version]:
            # A checkpoint is of one step; it has been asked for an earlier one.
            del self._fetches[fetch.layer]
        if self._silent.issuperset(peers):
            self._silent.clear()
        self._donors.update((session, peer) for session, peer in peers.items() if session not in self._silent)

    def _give_up(self, donor: Session) -> None:
        del self._donors[donor]
        self._fetches = {layer: fetch for layer, fetch in self._fetches.items() if fetch.donor != donor}

    def received(self, message: State, load: Load, now: float) -> list[Send | Task]:
        """Take a range and ask for the next."""
        fetch = self._fetches.get(message.layer)
        version = (message.branch, message.step)
        if fetch is None or fetch.donor != message.session or version[0] != self.version[0]:
            return []
        if version > fetch.version and (message.part, message.offset_bytes) == (StatePart.PARAMETERS, 0):
            fetch = self._fetches[fetch.layer] = Fetch(fetch.donor, fetch.layer, StatePart.PARAMETERS, version)
            self._layers[fetch.layer] = None
            self.version = max(self.version, version)
        if (message.part, version, message.offset_bytes) != (fetch.part, fetch.version, fetch.offset_bytes):
            return []
        task = import_of(message, load)
        self._importing.num_ranges += 1
        self._file_bytes[fetch.layer] = max(self._file_bytes.get(fetch.layer, 0), message.total_bytes)
        if fetch.num_asked == 1:
            self._resend_s = max(self._resend_s, PATIENCE * (now - fetch.asked_at_s))
        fetch.num_asked = 0
        fetch.offset_bytes += message.parcel.size_bytes
        if fetch.offset_bytes < message.total_bytes:
            return [task, *self._ask_on(fetch, now), *self._ask_idle(now)]
        if fetch.part is StatePart.PARAMETERS:
            fetch = self._fetches[fetch.layer] = Fetch(fetch.donor, fetch.layer, StatePart.OPTIMIZER, version)
            return [task, *self._ask_on(fetch, now), *self._ask_idle(now)]
        del self._fetches[fetch.layer]
        branch, step = version
        self._layers[fetch.layer] = (branch, Step(step + 1)) if fetch.part is StatePart.GRADIENT else version
        self._givers[fetch.layer] = fetch.donor
        return [task, *self._adopt(), *self._ask_idle(now)]

    def built(self) -> list[Task]:
        """From now on the layers exist."""
        self.is_built = True
        return self._adopt()

    def _adopt(self) -> list[Task]:
        """Put all in place as soon as all is here: until the layers exist the swarm may go on, and so does this."""
        self.is_adopting = self.is_built and all(held == self.version for held in self._layers.values())
        return [Adopt()] if self.is_adopting else []

    def imported(self, now: float) -> list[Send | Task]:
        """There is room for more: go on where that was lacking."""
        if self._importing.is_full or self.is_adopting:
            return []
        waiting = next((fetch for fetch in self._fetches.values() if fetch.waits), None)
        return [self._ask(waiting, now)] if waiting is not None else [*self._ask_idle(now)]

    def _ask_on(self, fetch: Fetch, now: float) -> list[Send]:
        """Ask for the next range of a file, as soon as there is room for it."""
        if not self._importing.is_full:
            return [self._ask(fetch, now)]
        fetch.waits, fetch.resend_at_s = True, float("inf")
        return []

    def resend_due(self, now: float) -> list[Send | Task]:
        """Ask again for what has not come in time, in the end another donor."""
        due = [fetch for fetch in self._fetches.values() if fetch.resend_at_s <= now]
        for donor in {fetch.donor: None for fetch in due if fetch.num_asked >= limits.MAX_ASKED_OF_ONE}:
            if len(self._donors) > 1:
                self._give_up(donor)
                self._silent.add(donor)
            else:
                # Whoever was silent before may answer by now: the next order names them.
                self._silent.clear()
        sends = [self._ask(fetch, now) for fetch in due if fetch.donor in self._donors]
        return [*sends, *self._ask_idle(now)]

    def next_deadline_s(self) -> float | None:
        """Return when `resend_due` has something to do."""
        return min((fetch.resend_at_s for fetch in self._fetches.values()), default=None)

    def _ask_idle(self, now: float) -> list[Send]:
        """Ask whoever has room for the next file: a step that a layer lacks, before a layer that is not here."""
        waiting = [layer for layer, held in self._layers.items() if held != self.version and layer not in self._fetches]
        waiting.sort(key=lambda layer: self._layers[layer] is None)
        sends: list[Send] = []
        if self._importing.is_full:
            return sends
        has_asked = True
        while waiting and has_asked:
            # In turns, so that all have something to give.
            has_asked = False
            for donor in self._donors:
                fetch = self._next(donor, waiting) if self._has_room(donor) else None
                if fetch is not None:
                    waiting.remove(fetch.layer)
                    self._fetches[fetch.layer] = fetch
                    sends.append(self._ask(fetch, now))
                    has_asked = True
        return sends

    def _has_room(self, donor: Session) -> bool:
        """May one more range be asked of a donor? One always, more if all of them are small."""
        under_way = [fetch.layer for fetch in self._fetches.values() if fetch.donor == donor]
        range_bytes = limits.STATE_RANGE_BYTES
        size_bytes = sum(min(self._file_bytes.get(layer, range_bytes), range_bytes) for layer in under_way)
        return len(under_way) < limits.PULLS_OF_ONE and size_bytes < limits.PULLED_BYTES

    def _next(self, donor: Session, waiting: Sequence[int]) -> Fetch | None:
        """Return what a donor is asked for: steps only if it has given the layer, or nobody has who is still asked."""
        for layer in waiting:
            held, giver = self._layers[layer], self._givers.get(layer)
            if held is None or donor == TRAINER:
                # A checkpoint is of one step, and knows nothing of others.
                return Fetch(donor, layer, StatePart.PARAMETERS, self.version)
            if giver == donor or giver not in self._donors:
                return Fetch(donor, layer, StatePart.GRADIENT, held)
        return None

    def _ask(self, fetch: Fetch, now: float) -> Send:
        fetch.num_asked, fetch.asked_at_s, fetch.waits = fetch.num_asked + 1, now, False
        fetch.resend_at_s = now + patience(self._resend_s, fetch.num_asked)
        branch, step = fetch.version
        message = Pull(
            **self._me.header(),
            branch=branch,
            step=step,
            part=fetch.part,
            layer=fetch.layer,
            offset_bytes=fetch.offset_bytes,
        )
        return Send(peer=self._donors[fetch.donor], message=message)
