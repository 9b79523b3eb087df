"""Switchboards that must be closed, and strangers that go when the test does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.transport.boards import Stranger
from zswarm.ids import Address
from zswarm.transport import Switchboard

ANY_PORT = Address("tcp://127.0.0.1:*")


@pytest.fixture
def here() -> Iterator[Switchboard]:
    """Return a switchboard; a context that does not terminate hangs the test into its time-out."""
    with Switchboard() as board:
        yield board


@pytest.fixture
def there() -> Iterator[Switchboard]:
    """Return another one."""
    with Switchboard() as board:
        yield board


@pytest.fixture
def any_port() -> Address:
    """Return the address that stands for a free port."""
    return ANY_PORT


@pytest.fixture
def stranger() -> Iterator[Callable[[str], Stranger]]:
    """Return a maker of strangers."""
    made: list[Stranger] = []

    def make(address: str) -> Stranger:
        made.append(Stranger(address))
        return made[-1]

    yield make
    for one in made:
        one.close()
