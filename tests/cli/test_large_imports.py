from __future__ import annotations

import gc

import pytest

from zswarm.cli.large_imports import large_imports


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()


def test_nothing_is_looked_through_within_nor_what_came_of_it_later():
    before = gc.get_freeze_count()
    with large_imports():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)


def test_a_failed_import_changes_nothing():
    @large_imports()
    def load():
        raise ImportError

    before = gc.get_freeze_count()
    with pytest.raises(ImportError):
        load()
    assert gc.isenabled()
    assert gc.get_freeze_count() == before
