"""What the coordinator says to processes about the swarm itself: Welcome, Reject, View, and that it is there.

Registering has no effect but on the roster: the same life gets the same session however often it asks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from zswarm import limits
from zswarm.bequests import packed
from zswarm.ids import TRAINER, Peer, RejectCode, Role
from zswarm.machine import Send
from zswarm.membership import Header
from zswarm.messages import (
    BrokerHeartbeat,
    HeartbeatAck,
    Message,
    Register,
    Reject,
    Stop,
    View,
    Welcome,
    WorkerHeartbeat,
)
from zswarm.slots import maker
from zswarm.trainer.commit import Committer
from zswarm.trainer.feuds import Feuds
from zswarm.trainer.roster import Record, Roster
from zswarm.trainer.settings import CoordinatorSettings

make_send, make_view, make_heartbeat_ack = maker(Send), maker(View), maker(HeartbeatAck)
Heartbeat = TypeVar("Heartbeat", WorkerHeartbeat, BrokerHeartbeat)


class Reception:
    """See the module."""

    def __init__(self, settings: CoordinatorSettings, roster: Roster, committer: Committer, header: Header) -> None:
        self._settings = settings
        self._roster = roster
        self._committer = committer
        self._header = header
        self._feuds = Feuds()

    def refusal(self, message: Register, now: float, *, is_over: bool) -> Reject | None:
        """Return why a process may not take part, None if it may."""
        code, text = self._reason(message, now, is_over=is_over)
        return self._reject(code, text) if code is not None else None

    def refuse_both(self, message: Register, peer: Peer, live: Record, now: float) -> tuple[str, list[Send]]:
        """Return why two processes of one name are let in no longer, if one has ended the other's life once too often,
        and what both are told; the text is empty as long as that is not so.
        """
        if not self._roster.is_comeback(message):
            return "", []
        text = self._feuds.came_back(message.node, (live.addresses[0], message.addresses[0]), now)
        reject = self._reject(RejectCode.DUPLICATE, text)
        return text, [Send(peer=to, message=reject) for to in (peer, live.peer)] if text else []

    def _reject(self, code: RejectCode, text: str) -> Reject:
        return Reject(**self._header, code=code, text=text[: limits.MAX_TEXT_CHARS])

    def _reason(self, message: Register, now: float, *, is_over: bool) -> tuple[RejectCode | None, str]:
        run = self._settings.run
        if message.run not in (0, run):
            return RejectCode.WRONG_RUN, f"this trainer runs {run:016x}, not {message.run:016x}"
        num_addresses = 1 if message.role is Role.WORKER else 2
        if len(message.addresses) != num_addresses:
            return RejectCode.WRONG_RUN, f"a {message.role.value} has {num_addresses} addresses"
        if is_over and self._roster.known(message) is None:
            return RejectCode.NOT_NEEDED, "the run is over"
        if self._roster.known(message) is None and (feud := self._feuds.refusal(message.node, now)):
            return RejectCode.DUPLICATE, feud
        if self._roster.life_of(message.node) is None and self._roster.is_full(message.role):
            text = f"the run has all the {message.role.value}s that it can have: {limits.MAX_PARTICIPANTS} per stage"
            return RejectCode.FULL, text
        return None, ""

    def welcome(self, record: Record, peer: Peer) -> Send:
        """Tell a process its session, its place and the run."""
        settings = self._settings
        welcome = Welcome(
            **self._header,
            branch=self._committer.branch,
            step=self._committer.step,
            boot_nonce=record.boot_nonce,
            yours=record.session,
            stage=record.stage,
            num_stages=settings.num_stages,
            first_layer=sum(settings.layers_per_stage[: record.stage]),
            num_layers=settings.layers_per_stage[record.stage],
            heartbeat_s=settings.heartbeat_s,
            unit_bytes=settings.unit_bytes[record.stage],
            wiring=settings.wiring,
            size_bytes=len(settings.configuration),
        )
        return Send(peer=peer, message=welcome, frames=(settings.configuration,))

    def answer(self, record: Record, view: int) -> list[Send]:
        """Answer a heartbeat of somebody who knows the view of that number: the newest one needs no answer but the pings."""
        return [self.view(record)] if view < self._roster.view else []

    def ping(self, record: Record) -> Send:
        """Say that we are there; if the connection is lost, this is how it shows."""
        return make_send(peer=record.peer, message=make_heartbeat_ack(**self._header, view=self._roster.view))

    def pings(self) -> list[Send]:
        """Say so to everybody who has spoken to this generation."""
        return [self.ping(record) for record in self._roster.records.values() if not record.is_silent]

    def view(self, record: Record) -> Send:
        """Tell somebody who is in the swarm."""
        bequests, left = packed(self._roster.bequests)
        message = make_view(
            **self._header,
            branch=self._committer.branch,
            step=self._committer.step,
            view=self._roster.view,
            size_bytes=0,
            bequests=bequests,
            left=left,
        )
        return make_send(peer=record.peer, message=message, frames=self._roster.members())

    def views(self) -> list[Send]:
        """Tell everybody who has spoken to this generation."""
        return [self.view(record) for record in self._roster.records.values() if not record.is_silent]

    def of_this_generation(self, message: Heartbeat) -> Heartbeat:
        """A view of an earlier generation is none of ours, whatever its number."""
        return message if message.generation == self._header["generation"] else replace(message, view=0)


def dismissal(message: Message, peer: Peer) -> list[Send]:
    """Tell whoever takes part in another run, whose trainer has been at this address, that it is over."""
    if not isinstance(message, (WorkerHeartbeat, BrokerHeartbeat)):
        return []
    return [Send(peer=peer, message=Stop(run=message.run, generation=message.generation, session=TRAINER))]


def join_record(record: Record) -> dict[str, Any]:
    """Return the line of the log that says who has joined: all that a later generation needs to go on with it."""
    return {
        "event": "join",
        "node": record.node,
        "role": record.role.value,
        "session": record.session,
        "stage": record.stage,
        "boot_nonce": record.boot_nonce,
        "addresses": list(record.addresses),
    }
