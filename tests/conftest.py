"""No test is held to a time: the machine may be busy with something else. None writes its log where another one did."""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest
import structlog
from hypothesis import settings

settings.register_profile("untimed", settings.default, deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for garbage once, after collecting, and leave thousands of tests out of every later look: each took half a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _own_log():
    """Forget where a test has had the log written: its captured stderr is closed by then."""
    yield
    structlog.reset_defaults()
