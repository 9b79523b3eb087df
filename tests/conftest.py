"""No test is held to a time: the machine may be busy with something else. None writes its log where another one did."""

from __future__ import annotations

import gc

import pytest
import structlog
from hypothesis import settings

settings.register_profile("untimed", settings.default, deadline=None)
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """Leave thousands of collected tests out of every later look for garbage: each took half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_log():
    """Forget where a test has had the log written: its captured stderr is closed by then."""
    yield
    structlog.reset_defaults()
