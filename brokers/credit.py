"""Flow control of a broker: who may send how much, so that its memory has a bound.

Accepting a Forward of A bytes reserves 2A: room for the input now and for the output's gradient later,
so that a Backward is never refused and forward and backward cannot block each other. A producer's
*credit* is what it may still send; for every producer `granted` and `received` are cumulative.

    reserved + 2 * sum(granted - received)  <=  max(capacity, 2 * unit * CREDIT_UNITS * number of producers)

Each producer is first given one unit (the size of one microbatch here), then more up to
`CREDIT_UNITS`, round by round. The right-hand side lets everybody have that many however small the
capacity, without which the credit of idle producers could starve a busy one for ever. When producers
leave, nothing is granted until the inequality holds again.
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
        self._accounts: dict[Session, Account] = {}
        self._short: dict[Session, Account] = {}
        """The accounts that lack a unit or more, longest first: the only ones that a grant looks at."""
        self._promised_bytes = 0
        self.bound_bytes = capacity_bytes
        """The most that may be reserved or promised."""
        self.reserved_bytes = 0

    @property
    def free_bytes(self) -> int:
        """What is neither reserved nor promised."""
        return max(0, self.bound_bytes - self.reserved_bytes - 2 * self._promised_bytes)

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

    def take(self, producer: Session, size_bytes: int) -> bool:
        """Receive `size_bytes` from a producer, reserving twice that; False if it had no credit."""
        account = self._accounts.get(producer)
        if account is None or account.credit_bytes < size_bytes:
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

    def _lacks(self, account: Account) -> bool:
        return account.credit_bytes <= (limits.CREDIT_UNITS - 1) * self._unit_bytes

    def grant(self) -> list[Session]:
        """Promise what is free; returns the producers whose grant has changed."""
        unit_bytes = self._unit_bytes
        free_bytes = self.free_bytes
        if not self._short or free_bytes < 2 * unit_bytes:
            return []
        changed: dict[Session, None] = {}
        for units in range(limits.CREDIT_UNITS):
            for producer, account in self._short.items():
                while account.credit_bytes <= units * unit_bytes and free_bytes >= 2 * unit_bytes:
                    account.granted_bytes += unit_bytes
                    self._promised_bytes += unit_bytes
                    free_bytes -= 2 * unit_bytes
                    changed[producer] = None
        if changed:
            self._short = {producer: account for producer, account in self._short.items() if self._lacks(account)}
        return list(changed)
