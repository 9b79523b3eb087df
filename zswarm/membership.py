r"""How a process takes part: it registers until it is welcomed, then heartbeats for ever.

    NEW --Register, repeated--> WELCOMED --View--> sees the swarm
     ^               \--Reject--> out |
     +------- Fence: a new life ------+

Shared by broker and worker. Repeating Register with the same boot nonce gets the same session again. A
trainer that has started again goes on with the sessions of its log: its first View says the new generation.
"""

from __future__ import annotations

from typing import TypedDict

from zswarm import limits
from zswarm.bequests import Left, unpacked
from zswarm.ids import TRAINER, Address, Branch, Generation, NodeId, Peer, Role, RunId, Session, Stage, Step, Version
from zswarm.machine import Send
from zswarm.messages import Fence, Member, Message, Register, Reject, View, Welcome


class Header(TypedDict):
    """The fields that every message has."""

    run: RunId
    generation: Generation
    session: Session


RUNLESS: Header = {"run": RunId(0), "generation": Generation(0), "session": TRAINER}
"""The header of a message that is about no run, or not yet."""


class Membership:
    """What a process knows of its own place in the swarm."""

    def __init__(
        self, *, node: NodeId, boot_nonce: int, role: Role, addresses: tuple[Address, ...], coordinator: Address
    ) -> None:
        self.node = node
        self.role = role
        self.coordinator = coordinator
        self._boot_nonce = boot_nonce
        self._addresses = addresses
        self.run = RunId(0)
        self.generation = Generation(0)
        self.session = Session(0)
        self.stage = Stage(0)
        self.num_stages = 1
        self.layers = range(0)
        """Of the stage."""
        self.branch = Branch(0)
        self.step = Step(0)
        self.heartbeat_s = limits.HEARTBEAT_S
        self.unit_bytes = 1
        self.wiring = "queue"
        self.has_place = False
        """It has been welcomed once: `stage` is a place that it asks for again."""
        self.is_welcome = False
        self.view = 0
        self.members: tuple[Member, ...] = ()
        self.bequests: dict[Session, Left] = {}
        """By leaver, whose what of its count is by now, in the step of the view."""
        self.heard_at_s: float | None = None
        """When the trainer last said something."""

    def silent_s(self, now: float) -> float:
        """Return how long the trainer has not been heard; from the first question on, if it never was."""
        if self.heard_at_s is None:
            self.heard_at_s = now
        return now - self.heard_at_s

    def is_deaf(self, now: float, *, is_loading: bool = False) -> bool:
        """Has the trainer not been heard for so long that something is in the way?"""
        limit = limits.DEAF_LOADING_HEARTBEATS if is_loading else limits.DEAF_HEARTBEATS
        return self.silent_s(now) > limit * self.heartbeat_s

    def excuse(self, now: float, stall_s: float) -> None:
        """This process itself was not running for so long."""
        if self.heard_at_s is not None:
            self.heard_at_s = min(now, self.heard_at_s + stall_s)

    def header(self) -> Header:
        """Return the fields that start every message of this process."""
        return {"run": self.run, "generation": self.generation, "session": self.session}

    def describe(self, version: Version) -> str:
        """Say in a line what place this process has, and which version it is at."""
        if not self.is_welcome:
            return f"waiting for a place in the run of {self.coordinator}"
        return f"stage {self.stage} of {self.num_stages}, step {version[1]}"

    def register(self) -> Send:
        """Ask to take part; to be repeated until welcomed."""
        message = Register(
            **self.header(),
            node=self.node,
            boot_nonce=self._boot_nonce,
            role=self.role,
            addresses=self._addresses,
            stage=self.stage if self.has_place else None,
        )
        return Send(peer=self.coordinator, message=message)

    def is_fenced(self, message: Fence) -> bool:
        """Is it this life's session that is void?"""
        return self.is_welcome and message.fenced == self.session and not self.is_foreign(message)

    def begin_new_life(self) -> None:
        """Give up the session: from here on this process asks for another one, for the place that it had."""
        self._boot_nonce = (self._boot_nonce + 1) % 2**64
        self.is_welcome = False
        self.view, self.members, self.bequests = 0, (), {}

    def welcome(self, message: Welcome) -> bool:
        """Take the place that the coordinator gives; False if it is not news, or meant for an earlier life."""
        if self.is_welcome or message.generation < self.generation or message.boot_nonce != self._boot_nonce:
            return False
        self.run, self.generation, self.session = message.run, message.generation, message.yours
        self.stage, self.num_stages = message.stage, message.num_stages
        self.layers = range(message.first_layer, message.first_layer + message.num_layers)
        self.branch, self.step = message.branch, message.step
        self.has_place = True
        self.heartbeat_s = message.heartbeat_s
        self.unit_bytes, self.wiring = message.unit_bytes, message.wiring
        self.is_welcome = True
        return True

    def is_refused(self, message: Reject, peer: Peer) -> bool:
        """Must this process go? Only the coordinator says so, over the connection that this process has dialled.

        A Reject of another run, or of a passed generation, is not about its place here. One without a run comes from the
        own transport: the coordinator speaks another version.
        """
        if peer != self.coordinator:
            return False
        return not self.is_welcome or message.run == 0 or not self.is_foreign(message)

    def is_foreign(self, message: Message) -> bool:
        """Is this message of another run, or of a generation of the trainer that has passed?"""
        return message.run != self.run or message.generation < self.generation

    def see(self, message: View, members: tuple[Member, ...]) -> bool:
        """Adopt a view; False if a newer one is known."""
        if (message.generation, message.view) <= (self.generation, self.view):
            return False
        self.generation, self.view, self.members = message.generation, message.view, members
        self.bequests = unpacked(message)
        return True

    def brokers(self, stage: int) -> dict[Session, tuple[Address, ...]]:
        """Return session -> (control, work) addresses of a stage's brokers in the view."""
        return {m.member: m.addresses for m in self.members if m.role is Role.BROKER and m.stage == stage}

    def peers(self) -> dict[Session, Address]:
        """Return session -> peer address of the workers of the own stage in the view, this one included."""
        return {m.member: m.addresses[0] for m in self.members if m.role is Role.WORKER and m.stage == self.stage}
