"""The fixtures of all tests of real runs."""

from __future__ import annotations

from tests.integration.commands import zswarm
from tests.integration.lan import lan

__all__ = ["lan", "zswarm"]
