"""The limit of open files."""

from __future__ import annotations

import resource

import pytest

from zswarm import open_files

INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("before", "after", "is_told"),
    [
        ((1024, 1_048_576), (65_536, 1_048_576), False),
        ((256, 4096), (4096, 4096), False),
        ((256, 256), (256, 256), True),
        ((1024, INFINITE), (65_536, INFINITE), False),
        ((100_000, 1_048_576), (100_000, 1_048_576), False),
        ((INFINITE, INFINITE), (INFINITE, INFINITE), False),
    ],
)
def test_as_many_as_are_allowed_and_of_use(monkeypatch, before, after, is_told):
    """It is never lowered, and what cannot be mended here is said."""
    limits = [before]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    text = open_files.raise_limit()
    assert limits[-1] == after
    assert bool(text) is is_told
    assert not text or ("256 open files" in text and "LimitNOFILE" in text)


def test_a_system_that_refuses_is_lived_with(monkeypatch):
    """A hard limit is reported that the system, such as macOS, does not grant."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, INFINITE))

    def refuse(*_):
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert "256 open files" in open_files.raise_limit()
