"""Flow control of a broker: who may send how much, so that its memory has a bound.

Accepting a Forward of A bytes reserves 2A: room for the input now and for the output's gradient later,
so that a Backward is never refused and forward and backward cannot block each other. A producer's
*credit* is what it may still send; for every producer `granted` and `received` are cumulative, for as long as it
lives.

    reserved + kept + 2 * sum(granted - received)  <=  max(capacity, 2 * unit * CREDIT_UNITS * number of producers)

What is done stays charged like a reservation, but as *kept*: it counts as free, and what a grant needs of its room
is given up before anything else happens (`brokers.retention` does that, told by `excess_bytes`). Taking what was
granted needs no room, since it has been promised.

A Forward costs its size, or a unit where that is more: at stage 0 tokens come and the gradient of an activation.
Each producer is first given one unit (the size of one microbatch here), then more up to
`CREDIT_UNITS`, round by round. The right-hand side lets everybody have that many however small the
capacity, without which the credit of idle producers could starve a busy one for ever. When producers
leave, nothing is kept or granted until the inequality holds again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zswarm import limits
from zswarm.ids import Session


@dataclass(slots=True)
class Account:
    """What one producer may send, and has sent, in bytes since it came."""

    granted_bytes: int = 0
    received_bytes: int = 0

    @property
    def credit_bytes(self) -> int:
        """What it may still send."""
        return self.granted_bytes - self.received_bytes


class Credits:
    """See the module."""

    def __init__(self, *, capacity_bytes: int, unit_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._unit_bytes = unit_bytes
        self._rungs_bytes = tuple(units * unit_bytes for units in range(limits.CREDIT_UNITS))
        """Whoever may send no more than the first of these is granted another unit before all others, and so on."""
        self._accounts: dict[Session, Account] = {}
        self._short: dict[Session, Account] = {}
        """The accounts that lack a unit or more, longest first: the only ones that a grant looks at."""
        self._promised_bytes = 0
        self.bound_bytes = capacity_bytes
        """The most that may be reserved or promised."""
        self.reserved_bytes = 0
        self.kept_bytes = 0
        self.is_closed = False
        """Nothing is granted any more; what was granted still holds."""

    @property
    def free_bytes(self) -> int:
        """What is neither reserved nor promised; what is kept takes part of it."""
        free_bytes = self.bound_bytes - self.reserved_bytes - 2 * self._promised_bytes
        if free_bytes < 0:
            return 0
        return free_bytes

    @property
    def excess_bytes(self) -> int:
        """How much of what is kept must go, if there is so much."""
        excess_bytes = self.reserved_bytes + self.kept_bytes + 2 * self._promised_bytes - self.bound_bytes
        if excess_bytes < 0:
            return 0
        return excess_bytes

    @property
    def accounts(self) -> Mapping[Session, Account]:
        """The accounts of all producers, to be read only."""
        return self._accounts

    def account(self, producer: Session) -> Account | None:
        """Return the account of a producer, None for anybody else."""
        return self._accounts.get(producer)

    def set_producers(self, producers: Iterable[Session]) -> list[Session]:
        """Replace the set of producers; returns those whose grant has changed."""
        self._accounts = {p: self._accounts.get(p) or Account() for p in sorted(producers)}
        self._promised_bytes = sum(account.credit_bytes for account in self._accounts.values())
        least_bytes = 2 * self._unit_bytes * limits.CREDIT_UNITS * len(self._accounts)
        self.bound_bytes = max(self._capacity_bytes, least_bytes)
        self._short = {p: account for p, account in self._accounts.items() if self._lacks(account)}
        return self.grant()

    def begin_anew(self, producer: Session) -> None:
        """A producer has lost count of what it was granted and has sent: from here on both are counted from 0."""
        if (account := self._accounts.get(producer)) is not None:
            self._promised_bytes -= account.credit_bytes
            self._accounts[producer] = self._short[producer] = Account()

    def take(self, producer: Session, size_bytes: int) -> bool:
        """Receive `size_bytes` from a producer, reserving twice that; False if it had no credit."""
        account = self._accounts.get(producer)
        if account is None or account.granted_bytes - account.received_bytes < size_bytes:
            return False
        account.received_bytes += size_bytes
        self._promised_bytes -= size_bytes
        self.reserved_bytes += 2 * size_bytes
        if self._lacks(account):
            self._short[producer] = account
        return True

    def release(self, size_bytes: int) -> None:
        """Free what taking `size_bytes` reserved."""
        self.reserved_bytes -= 2 * size_bytes

    def keep(self, size_bytes: int) -> None:
        """Count what taking `size_bytes` reserved as kept."""
        self.reserved_bytes -= 2 * size_bytes
        self.kept_bytes += 2 * size_bytes

    def reserve_again(self, size_bytes: int) -> None:
        """Count what was kept of `size_bytes` as reserved: it is needed."""
        self.kept_bytes -= 2 * size_bytes
        self.reserved_bytes += 2 * size_bytes

    def give_up(self, size_bytes: int) -> None:
        """Free what was kept of `size_bytes`."""
        self.kept_bytes -= 2 * size_bytes

    def _lacks(self, account: Account) -> bool:
        return account.granted_bytes - account.received_bytes <= self._rungs_bytes[-1]

    def grant(self) -> list[Session]:
        """Promise what is free; returns the producers whose grant has changed."""
        if not self._short or self.is_closed:
            return []
        unit_bytes, free_bytes = self._unit_bytes, self.free_bytes
        if free_bytes < 2 * unit_bytes:
            return []
        changed: dict[Session, None] = {}
        for rung_bytes in self._rungs_bytes:
            for producer, account in self._short.items():
                while account.granted_bytes - account.received_bytes <= rung_bytes and free_bytes >= 2 * unit_bytes:
                    account.granted_bytes += unit_bytes
                    self._promised_bytes += unit_bytes
                    free_bytes -= 2 * unit_bytes
                    changed[producer] = None
        if changed:
            self._short = {producer: account for producer, account in self._short.items() if self._lacks(account)}
        return list(changed)
