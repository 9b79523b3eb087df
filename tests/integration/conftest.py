"""The fixture of all tests of real runs."""

from __future__ import annotations

from tests.integration.commands import zswarm

__all__ = ["zswarm"]
