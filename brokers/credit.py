"""Flow control of a broker: who may send how much, so that its memory has a bound.

Accepting a Forward of A bytes reserves 2A: room for the input now and for the output's gradient later,
so that a Backward is never refused and forward and backward cannot block each other. A producer's
*credit* is what it may still send; for every producer `granted` and `received` are cumulative.

    reserved + 2 * sum(granted - received)  <=  max(capacity, 2 * unit * number of producers)

Each producer is first given one unit (the size of one microbatch here), then more up to
`CREDIT_UNITS`, round by round. The right-hand side keeps one microbatch per producer possible however
small the capacity, without which an idle producer's credit could starve a busy one for ever.
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
        self.reserved_bytes = 0

    @property
    def bound_bytes(self) -> int:
        """The most that may be reserved or promised."""
        return max(self._capacity_bytes, 2 * self._unit_bytes * len(self._accounts))

    @property
    def free_bytes(self) -> int:
        """What is neither reserved nor promised."""
        promised = sum(account.credit_bytes for account in self._accounts.values())
        return max(0, self.bound_bytes - self.reserved_bytes - 2 * promised)

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
        return self.grant()

    def take(self, producer: Session, size_bytes: int) -> bool:
        """Receive `size_bytes` from a producer, reserving twice that; False if it had no credit."""
        account = self._accounts.get(producer)
        if account is None or account.credit_bytes < size_bytes:
            return False
        account.received_bytes += size_bytes
        self.reserved_bytes += 2 * size_bytes
        return True

    def release(self, size_bytes: int) -> list[Session]:
        """Free what taking `size_bytes` reserved; returns those whose grant has changed."""
        self.reserved_bytes -= 2 * size_bytes
        return self.grant()

    def grant(self) -> list[Session]:
        """Promise what is free; returns the producers whose grant has changed."""
        free = self.free_bytes
        unit = self._unit_bytes
        changed: dict[Session, None] = {}
        for units in range(1, limits.CREDIT_UNITS + 1):
            for producer, account in self._accounts.items():
                while account.credit_bytes <= (units - 1) * unit and free >= 2 * unit:
                    account.granted_bytes += unit
                    free -= 2 * unit
                    changed[producer] = None
        return list(changed)
