"""A hostile network with a seed: it delays, loses, repeats and reorders messages, and never invents one.

A node owns sockets, each with an address. Sending to an `Address` dials: the first message from a node
to an address makes a connection, and the socket's owner sees its messages come from a `Link`, which it
may answer for as long as both ends live. The dialler sees the answers come from the address it dialled.
Every direction of every connection has a typical latency of its own.

Crashes and partitions have their place here: `detach` forgets a node with its connections, `reset` the
connections between two nodes, and `blocked` holds the pairs of nodes of which the first does not reach the second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import inf, log
from random import Random
from typing import NamedTuple

from zswarm.errors import LocalProtocolError
from zswarm.ids import Address, Link, Peer


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What the network does to messages. Rates are probabilities per message."""

    latency_low_s: float = 0.002
    latency_high_s: float = 0.02
    """The typical latency of a direction is drawn log-uniformly between the two."""
    jitter: float = 0.1
    """A delay is the typical latency times `1 + Exponential(jitter)`."""
    loss: float = 0.0
    corruption: float = 0.0
    """Rate of messages that are changed on the way: the receiver drops them, and the connection breaks."""
    duplication: float = 0.0
    """The second copy comes right after the first, or late by up to `straggle_s`, and keeps no order."""
    straggling: float = 0.0
    """Rate of messages that come late by up to `straggle_s`, long after their repetition."""
    straggle_s: float = 5.0
    in_order: bool = True
    """Messages of one direction keep their order, as TCP does; loss and duplication do not count as order."""
    payload_factor: float = 1.0
    """How many times longer a message with payload takes."""
    transmit_s: float = 0.0
    """How long a message with payload keeps its direction busy: the next one with payload waits until then."""
    fair_from_s: float = 0.0
    """From this time on nothing is lost, repeated or late any more."""

    @property
    def is_fair(self) -> bool:
        """Is nothing ever lost, repeated or late?"""
        return not (self.loss or self.corruption or self.duplication or self.straggling)


@dataclass(slots=True)
class Direction:
    """One way of one connection."""

    sender: int
    receiver: int
    seen_as: Peer
    latency_s: float
    free_at_s: float = 0.0
    busy_until_s: float = 0.0


class Delivery(NamedTuple):
    """One copy of a message arrives at `receiver` at `time_s`, who sees it come from `peer`."""

    time_s: float
    receiver: int
    peer: Peer


make_delivery: Callable[[tuple[float, int, Peer]], Delivery] = partial(tuple.__new__, Delivery)
"""Makes a delivery of its fields in half the time."""


class Network:
    """See the module. Nodes are numbers; what travels is none of the network's business."""

    def __init__(self, weather: Weather, random: Random) -> None:
        self.weather = weather
        self.counters: Counter[str] = Counter()
        self.blocked: dict[tuple[int, int], float] = {}
        """Until when messages wait that one sends to the other; infinity: they are lost."""
        self._draw = random.random
        self._owners: dict[Address, int] = {}
        self._dialled: dict[tuple[int, Address], Direction] = {}
        self._answers: dict[Link, Direction] = {}
        self._num_links = 0

    def attach(self, node: int, address: Address) -> None:
        """Let `node` own a socket at `address`."""
        if address in self._owners:
            raise LocalProtocolError(f"{address} is in use")
        self._owners[address] = node

    def detach(self, node: int) -> None:
        """Forget a node's sockets and every connection from and to it; what is under way still arrives."""
        self._owners = {address: owner for address, owner in self._owners.items() if owner != node}
        self._dialled = {key: way for key, way in self._dialled.items() if node not in {way.sender, way.receiver}}
        self._answers = {link: way for link, way in self._answers.items() if node not in {way.sender, way.receiver}}

    def reset(self, one: int, other: int) -> None:
        """Break every connection between two nodes; the next message makes a new one."""
        both = {one, other}
        self._dialled = {key: way for key, way in self._dialled.items() if {way.sender, way.receiver} != both}
        self._answers = {link: way for link, way in self._answers.items() if {way.sender, way.receiver} != both}

    def is_gone(self, peer: Peer) -> bool:
        """Is this the link of a connection that is no more?"""
        return isinstance(peer, bytes) and peer not in self._answers

    @property
    def latest_straggler_s(self) -> float:
        """How late a message may come that was sent before the network became fair."""
        return 0.0 if self.weather.is_fair else self.weather.straggle_s

    def make_fair(self, now_s: float) -> None:
        """Let nothing be lost, repeated or late from now on."""
        self.weather = replace(self.weather, fair_from_s=min(now_s, self.weather.fair_from_s))

    def send(self, sender: int, peer: Peer, now_s: float, *, has_payload: bool) -> list[Delivery]:
        """Decide what becomes of one message: none, one or several deliveries."""
        way = self._answers.get(peer) if isinstance(peer, bytes) else self._dial(sender, peer)
        if way is None:
            self.counters["unreachable"] += 1
            return []
        if way.sender != sender:
            raise LocalProtocolError(f"node {sender} answers a link that is node {way.sender}'s")
        waits_s = 0.0
        if self.blocked and (until_s := self.blocked.get((way.sender, way.receiver))) is not None:
            self.counters["blocked"] += 1
            if until_s == inf:
                return []
            waits_s = max(0.0, until_s - now_s)
        weather, random = self.weather, self._draw
        delay_s = way.latency_s * (1.0 - log(1.0 - random()) * weather.jitter)
        if has_payload:
            way.busy_until_s = max(way.busy_until_s, now_s) + weather.transmit_s
            delay_s = delay_s * weather.payload_factor + way.busy_until_s - now_s
        delay_s += waits_s
        if now_s >= weather.fair_from_s or weather.is_fair:
            return [make_delivery((self._arrival_s(way, now_s + delay_s), way.receiver, way.seen_as))]
        point = random()
        if point < weather.loss:
            self.counters["lost"] += 1
            return []
        if weather.corruption and random() < weather.corruption:
            self.counters["corrupted"] += 1
            self.reset(way.sender, way.receiver)
            return []
        if random() < weather.straggling:
            self.counters["straggling"] += 1
            delay_s += random() * weather.straggle_s
        deliveries = [make_delivery((self._arrival_s(way, now_s + delay_s), way.receiver, way.seen_as))]
        if point < weather.loss + weather.duplication:
            self.counters["duplicated"] += 1
            again_s = random() * weather.straggle_s if random() < 0.5 else -way.latency_s * log(1.0 - random())
            deliveries.append(Delivery(now_s + delay_s + again_s, way.receiver, way.seen_as))
        return deliveries

    def _arrival_s(self, way: Direction, time_s: float) -> float:
        if time_s < way.free_at_s:
            if self.weather.in_order:
                return way.free_at_s
            self.counters["reordered"] += 1
        else:
            way.free_at_s = time_s
        return time_s

    def _dial(self, sender: int, address: Address) -> Direction | None:
        way = self._dialled.get((sender, address))
        if way is not None:
            return way
        owner = self._owners.get(address)
        if owner is None:
            return None
        self._num_links += 1
        link = Link(b"link-%d" % self._num_links)
        way = Direction(sender, owner, link, self._latency_s())
        self._dialled[sender, address] = way
        self._answers[link] = Direction(owner, sender, address, self._latency_s())
        return way

    def _latency_s(self) -> float:
        low_s, high_s = self.weather.latency_low_s, self.weather.latency_high_s
        return float(low_s * (high_s / low_s) ** self._draw())
