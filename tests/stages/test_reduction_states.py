"""Rounds among several participants with symbols for gradients, on a network that keeps nothing.

A contribution is the name of its owner, a sum the names in the order in which they were added. Rounds
are opened, aborted and replaced while chunks, Prepares and Aborts of all of them are under way.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stages.participant import Participant, StepState
from stages.tasks import Assemble, Assembled, Discard, Snapshot, Snapshotted, Sum, Summed
from tests.letters import abort, commit, load, prepare, view, welcome, worker_at
from zswarm.ids import Address, Link, NodeId, Role
from zswarm.limits import REDUCE_WINDOW
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Abort, Chunk, ChunkAck, Load, Prepare, Prepared

FAIR_ROUNDS = 60
NATURE = st.integers(0, 2**32).map(Random)


def num_chunks(shard: int) -> int:
    """Some shards need more than the window."""
    return (1, 2, REDUCE_WINDOW + 3)[shard % 3]


def share(round_: int, owner: int, shard: int) -> tuple[Load, ...]:
    return tuple(load(("share", round_, owner, shard, index)) for index in range(num_chunks(shard)))


def total(round_: int, owners: tuple[int, ...], shard: int) -> tuple[Load, ...]:
    return tuple(load(("sum", round_, owners, shard, index)) for index in range(num_chunks(shard)))


@dataclass
class Host:
    """One participant: its machine and its compute thread, which takes one task at a time."""

    session: int
    membership: Membership
    part: Participant
    tasks: deque[Any]
    is_named: bool
    """Does its view name everybody?"""


class ReductionStates(RuleBasedStateMachine):
    @initialize(size=st.integers(1, 4), late=st.booleans())
    def begin(self, size, late):
        self.now_s = 0.0
        self.sessions = tuple(range(11, 11 + size))
        self.members = tuple(worker_at(session, 0) for session in self.sessions)
        self.mail: list[tuple[int, Any]] = []
        """(receiver, Send or message of the coordinator)"""
        self.hosts = {session: self.host(session, late=late) for session in self.sessions}
        self.round = 0
        self.results: dict[tuple[int, int], Prepared] = {}
        self.open_round()

    def host(self, session: int, *, late: bool) -> Host:
        me = Membership(
            node=NodeId(f"w{session}"),
            boot_nonce=1,
            role=Role.WORKER,
            addresses=(Address(f"sim://worker-{session}"),),
            coordinator=Address("sim://trainer"),
        )
        me.welcome(welcome(session))
        if not late:
            me.see(view(1), self.members)
        return Host(session, me, Participant(me, StepState(), list), deque(), not late)

    def do(self, host: Host, commands: list[Any]) -> None:
        for command in commands:
            if not isinstance(command, Send):
                host.tasks.append(command)
            elif isinstance(command.message, Prepared):
                message = command.message
                known = self.results.setdefault((message.round, host.session), message)
                assert known == message, "a result never changes"
            elif isinstance(command.peer, bytes):
                self.mail.append((int(command.peer), (host.session, command)))
            else:
                self.mail.append((int(command.peer.rpartition("-")[2]), (host.session, command)))

    # -- the compute threads ---------------------------------------------------------------------

    def compute(self, host: Host) -> None:
        task = host.tasks.popleft()
        owners = self.sessions
        match task:
            case Snapshot():
                assert task.num_shards == len(owners)
                shards = tuple(share(task.round, host.session, shard) for shard in range(task.num_shards))
                outcome: Any = Snapshotted(round=task.round, shards=shards)
            case Sum():
                assert owners[task.shard] == host.session, "everybody sums its own shard"
                expected = tuple(share(task.round, owner, task.shard) for owner in owners)
                assert task.contributions == expected
                outcome = Summed(round=task.round, shard=task.shard, chunks=total(task.round, owners, task.shard))
            case Assemble():
                assert task.shards == tuple(total(task.round, owners, shard) for shard in range(len(owners)))
                outcome = Assembled(round=task.round, digest=task.round, finite=True, square_norm=1.0)
            case Discard():
                return
        self.do(host, host.part.outcome(outcome, self.now_s))

    def reach(self, receiver: int, letter: tuple[int, Any]) -> None:
        host, (sender, content) = self.hosts[receiver], letter
        match content:
            case Prepare():
                commands = host.part.prepare(content, self.now_s)
            case Abort():
                commands = host.part.abort(content)
            case Send(message=Chunk() as message):
                frames = Load(parcel=message.parcel, frames=content.frames)
                commands = host.part.chunk(message, frames, Link(b"%d" % sender), self.now_s)
            case Send(message=ChunkAck() as message):
                commands = host.part.acknowledged(message, self.now_s)
        self.do(host, commands)

    # -- rules -----------------------------------------------------------------------------------

    def send_prepare(self) -> None:
        self.mail += [(session, (0, prepare(self.round, self.sessions))) for session in self.sessions]

    @rule()
    def open_round(self):
        """The coordinator gives up the round, if there is one, and opens the next."""
        if self.round:
            self.mail += [(session, (0, abort(self.round))) for session in self.sessions]
        self.round += 1
        self.send_prepare()

    @rule(nature=NATURE, loss=st.sampled_from([0.0, 0.0, 0.3]))
    def turn(self, nature, loss):
        self.now_s += nature.choice([0.1, 1.1])
        for host in self.hosts.values():
            self.do(host, host.part.repeat(self.now_s))
        if nature.random() < 0.3:
            self.send_prepare()
        letters, self.mail = self.mail, []
        nature.shuffle(letters)
        for letter in letters:
            if nature.random() < 0.15:
                self.mail.append(letter)
            if nature.random() >= loss:
                self.reach(*letter)
        for host in self.hosts.values():
            while host.tasks and nature.random() < 0.7:
                self.compute(host)

    @rule(data=st.data())
    def a_view_comes(self, data):
        self.show(self.hosts[data.draw(st.sampled_from(self.sessions))])

    def show(self, host: Host) -> None:
        host.is_named = True
        host.membership.see(view(host.membership.view + 1), self.members)
        self.do(host, host.part.view_changed(self.now_s))

    @invariant()
    def nobody_has_more_than_a_window_on_its_way(self):
        for host in self.hosts.values():
            if host.part._reduction is not None:
                assert all(len(flying) <= REDUCE_WINDOW for flying in host.part._reduction._flying.values())

    def teardown(self):
        if not hasattr(self, "hosts"):
            return
        for host in self.hosts.values():
            self.show(host)
        for _ in range(FAIR_ROUNDS):
            self.fair_turn()
            # A result may be everywhere while an acknowledgement is lost: that chunk is sent again, and not soon.
            is_known = all((self.round, session) in self.results for session in self.sessions)
            if is_known and not self.mail and all(h.part.next_deadline_s() is None for h in self.hosts.values()):
                break
        for session, host in self.hosts.items():
            assert self.results[self.round, session].digest == self.round
            assert host.part._reduction.is_delivered
            assert host.part.next_deadline_s() is None
        self.apply_everywhere()

    def fair_turn(self) -> None:
        self.now_s += 1.1
        self.send_prepare()
        for host in self.hosts.values():
            self.do(host, host.part.repeat(self.now_s))
        letters, self.mail = self.mail, []
        for letter in letters:
            self.reach(*letter)
        for host in self.hosts.values():
            while host.tasks:
                self.compute(host)

    def apply_everywhere(self) -> None:
        for host in self.hosts.values():
            assert host.part.commit(commit(self.round, digest=self.round)) is not None
            host.part.applied()
            assert host.part._inbox is None


TestReductionStates = ReductionStates.TestCase
TestReductionStates.settings = settings(derandomize=True, max_examples=40, stateful_step_count=25)
