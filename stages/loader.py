"""Getting a stage's state from those who have it, layer by layer, from several at once, while steps go on.

    a layer   NOTHING --PARAMETERS, OPTIMIZER, of one version--> of that version --UPDATE--> of the next --> ...
    all layers of the newest version that has been heard of: Adopt

Each file comes in ranges: Pull, repeated --State--> Import --> the next range. A layer is begun at whatever version is
present when its turn comes, and its donor gives it to the end (`donor.py`); then it takes the steps that the swarm has
taken meanwhile, before any further layer is begun, so that no donor has to keep many steps. In this way whoever gets more than
a gradient's bytes in the time of a step catches up, however short the steps.

One range at a time is asked of each donor, which leaves it its time and its uplink for the step in work. A donor that
does not have what it is asked for any more answers with the beginning of the layer as it is now; any other State that is
not the one asked for is a duplicate. One that does not answer is given up as long as there is another, who gives that file
from its beginning: no file, and no version of a layer, is put together of what two gave.
"""

from __future__ import annotations

from dataclasses import dataclass

from stages.tasks import Adopt, Import, Task
from zswarm import limits
from zswarm.ids import TRAINER, Peer, Session, StatePart, Step, Version
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Load, Pull, Restore, State
from zswarm.patience import patience


@dataclass(slots=True)
class Fetch:
    """A layer's file that a donor is giving."""

    layer: int
    part: StatePart
    version: Version
    """Of the file; of an UPDATE, the one from which it leads on."""
    offset_bytes: int = 0
    num_asked: int = 0
    resend_at_s: float = 0.0


@dataclass(slots=True)
class Lane:
    """A donor, and what it is giving at present."""

    peer: Peer
    fetch: Fetch | None = None


class Loader:
    """See the module. `held` is the version of which all layers are here already, if any. Methods return what follows."""

    def __init__(
        self, membership: Membership, order: Restore, *, layers: range, held: Version | None, resend_s: float
    ) -> None:
        self._me = membership
        self.version: Version = (order.branch, order.step)
        """The newest that has been heard of: what all layers are brought to."""
        self.is_adopting = False
        """Is everything here, and being put in place? Then there is no way back."""
        self._resend_s = resend_s
        self._layers: dict[int, Version | None] = dict.fromkeys(layers, held)
        self._lanes: dict[Session, Lane] = {}
        self._silent: set[Session] = set()
        """Donors that did not answer while others did."""
        self._take_lanes(order)

    def start(self, now: float) -> list[Send | Task]:
        """Ask every donor for a file."""
        return [*self._ask_idle(now)]

    def follow(self, order: Restore, now: float) -> list[Send | Task]:
        """Go on with the donors of this order: without those that it does not name, with those that are new."""
        version = (order.branch, order.step)
        if version < self.version:
            return []
        self.version = version
        self._take_lanes(order)
        return [*self._ask_idle(now)]

    def _take_lanes(self, order: Restore) -> None:
        sources = {order.donor: order.address, **{source.donor: source.address for source in order.others}}
        peers = {s: self._me.coordinator if s == TRAINER else address for s, address in sources.items()}
        for session in [session for session, lane in self._lanes.items() if peers.get(session) != lane.peer]:
            del self._lanes[session]
        if self._silent.issuperset(peers):
            self._silent.clear()
        for session, peer in peers.items():
            if session not in self._silent:
                self._lanes.setdefault(session, Lane(peer))

    def received(self, message: State, load: Load, now: float) -> list[Send | Task]:
        """Take a range and ask for the next."""
        lane = self._lanes.get(message.session)
        fetch = lane.fetch if lane is not None else None
        version = (message.branch, message.step)
        if lane is None or fetch is None or message.layer != fetch.layer or version[0] != self.version[0]:
            return []
        if version > fetch.version and (message.part, message.offset_bytes) == (StatePart.PARAMETERS, 0):
            fetch = lane.fetch = Fetch(message.layer, StatePart.PARAMETERS, version)
            self._layers[fetch.layer] = None
            self.version = max(self.version, version)
        if (message.part, version, message.offset_bytes) != (fetch.part, fetch.version, fetch.offset_bytes):
            return []
        task = Import(
            part=fetch.part,
            layer=fetch.layer,
            offset_bytes=fetch.offset_bytes,
            total_bytes=message.total_bytes,
            load=load,
        )
        fetch.num_asked = 0
        fetch.offset_bytes += message.parcel.size_bytes
        if fetch.offset_bytes < message.total_bytes:
            return [task, self._ask(lane.peer, fetch, now)]
        if fetch.part is StatePart.PARAMETERS:
            lane.fetch = Fetch(fetch.layer, StatePart.OPTIMIZER, version)
            return [task, self._ask(lane.peer, lane.fetch, now)]
        lane.fetch = None
        branch, step = version
        self._layers[fetch.layer] = (branch, Step(step + 1)) if fetch.part is StatePart.UPDATE else version
        self.is_adopting = all(held == self.version for held in self._layers.values())
        return [task, Adopt()] if self.is_adopting else [task, *self._ask_idle(now)]

    def resend_due(self, now: float) -> list[Send | Task]:
        """Ask again for what has not come in time, in the end another donor."""
        sends: list[Send | Task] = []
        for session, lane in list(self._lanes.items()):
            fetch = lane.fetch
            if fetch is None or fetch.resend_at_s > now:
                continue
            if fetch.num_asked >= limits.MAX_ASKED_OF_ONE and len(self._lanes) > 1:
                del self._lanes[session]
                self._silent.add(session)
            else:
                sends.append(self._ask(lane.peer, fetch, now))
        return [*sends, *self._ask_idle(now)]

    def next_deadline_s(self) -> float | None:
        """Return when `resend_due` has something to do."""
        fetches = [lane.fetch for lane in self._lanes.values() if lane.fetch is not None]
        return min((fetch.resend_at_s for fetch in fetches), default=None)

    def _ask_idle(self, now: float) -> list[Send]:
        """Ask whoever has nothing to give for the next file: a step that a layer lacks, before a layer that is not here."""
        busy = {lane.fetch.layer for lane in self._lanes.values() if lane.fetch is not None}
        waiting = [layer for layer, held in self._layers.items() if held != self.version and layer not in busy]
        waiting.sort(key=lambda layer: self._layers[layer] is None)
        sends = []
        for lane in self._lanes.values():
            if lane.fetch is None and waiting:
                layer = waiting.pop(0)
                held = self._layers[layer]
                part, version = (StatePart.PARAMETERS, self.version) if held is None else (StatePart.UPDATE, held)
                lane.fetch = Fetch(layer, part, version)
                sends.append(self._ask(lane.peer, lane.fetch, now))
        return sends

    def _ask(self, peer: Peer, fetch: Fetch, now: float) -> Send:
        fetch.num_asked += 1
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
        return Send(peer=peer, message=message)
