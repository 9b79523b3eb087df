from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zswarm import data
from zswarm.config import RunConfig
from zswarm.data import Source, open_source
from zswarm.errors import UserError


def configuration(*, seed=0, microbatch=4, length=16, held_out=0.1, source="stdlib", num_held_out=5):
    return RunConfig.model_validate(
        {
            "run": {"steps": 1, "seed": seed},
            "model": {"sequence_length": length},
            "batch": {"global_batch": 16 * microbatch, "microbatch": microbatch},
            "data": {"source": source, "held_out": held_out, "held_out_microbatches": num_held_out},
        }
    )


def numbered(size):
    """A corpus whose windows say where they are: byte i is i in base 251, mixed with its position's high part."""
    indices = np.arange(size, dtype=np.int64)
    return ((indices % 251) ^ (indices // 251 % 256)).astype(np.uint8)


def test_a_corpus_is_told_from_another_one(monkeypatch):
    """By what its files hold and how long they are; of large ones, by their ends."""

    def digest(*pieces):
        return Source([np.frombuffer(piece, dtype=np.uint8) for piece in pieces], configuration()).digest()

    text = bytes(range(256)) * 20
    assert digest(text, text) == digest(text, text)
    others = [digest(text), digest(text, text[:-1]), digest(text, text[:-1] + b"x"), digest(text + text)]
    assert len({digest(text, text), *others}) == 5
    monkeypatch.setattr(data, "RESIDENT_BYTES", 1000)
    monkeypatch.setattr(data, "HASHED_BYTES", 100)
    assert len({digest(text), digest(b"x" + text[1:]), digest(text[:-1] + b"x")}) == 3
    assert digest(text) != digest(text[:-1])


@given(
    size=st.integers(400, 20_000),
    length=st.integers(1, 40),
    held_out=st.floats(0.02, 0.98),
)
def test_no_byte_is_both_trained_on_and_held_out(size, length, held_out):
    """The windows of both parts are disjoint, inside the corpus, and leave out less than a chunk's rounding."""
    try:
        source = Source([numbered(size)], configuration(length=length, held_out=held_out))
    except UserError:
        assert int(size * min(held_out, 1 - held_out)) < 2 * (length + 2)
        return
    covered = []
    for part in (source.trained, source.held_out_part):
        firsts = part.offsets(np.arange(part.num_windows))
        mask = np.zeros(size + length + 1, dtype=bool)
        for shift in range(length + 1):
            mask[firsts + shift] = True
        covered.append(mask)
    trained, held = covered
    assert not (trained & held).any()
    assert not (trained | held)[size:].any()
    assert (trained | held).sum() > size - data.MAX_CHUNKS
    num_chunks = len(source.trained.starts)
    assert abs(held.sum() - held_out * size) <= 2 * num_chunks


@given(step=st.integers(0, 2**32 - 2), seed=st.integers(0, 2**63 - 1), microbatch=st.integers(1, 9))
def test_samples_depend_on_seed_step_and_index_alone(step, seed, microbatch):
    """Whatever the size of a microbatch, sample i of a step is the same bytes."""
    corpus = [numbered(5000)]
    whole, _ = Source(corpus, configuration(seed=seed, microbatch=microbatch * 6)).samples(step, 1)
    small = Source(corpus, configuration(seed=seed, microbatch=microbatch))
    parts = [small.samples(step, index)[0] for index in reversed(range(6, 12))]
    np.testing.assert_array_equal(whole, np.concatenate(parts[::-1]))


def test_seed_step_and_index_each_change_the_samples():
    corpus = [numbered(100_000)]
    source = Source(corpus, configuration())
    other_seed = Source(corpus, configuration(seed=1))
    drawn = [source.samples(0, 0), source.samples(1, 0), source.samples(0, 1), other_seed.samples(0, 0)]
    assert len({tokens.tobytes() for tokens, _ in drawn}) == 4


def test_samples_are_those_of_every_earlier_version():
    """A resumed run must see the same bytes whatever zswarm or numpy it is resumed with."""
    source = Source([np.arange(256, dtype=np.uint8)], configuration(seed=7, length=3, held_out=0.5))
    tokens, labels = source.samples(5, 2)
    assert tokens[:, 0].tolist() == [129, 144, 18, 88]
    np.testing.assert_array_equal(labels, tokens + 1)


def test_labels_are_the_next_bytes():
    source = Source([numbered(5000)], configuration())
    for tokens, labels in (source.samples(0, 0), source.held_out(0)):
        assert tokens.shape == labels.shape == (4, 16)
        assert tokens.dtype == labels.dtype == np.uint8
        np.testing.assert_array_equal(tokens[:, 1:], labels[:, :-1])


def test_training_reaches_the_whole_trained_part():
    """Uniform draws: of 64 equal pieces of the trained part none is missed in 4000 samples."""
    source = Source([numbered(60_000)], configuration(microbatch=4000))
    seen = {tokens.tobytes() for tokens in source.samples(0, 0)[0]}
    corpus = numbered(60_000)
    hits = np.zeros(64, dtype=int)
    for window in range(source.trained.num_windows):
        offset = int(source.trained.offsets(np.array([window]))[0])
        if corpus[offset : offset + 16].tobytes() in seen:
            hits[window * 64 // source.trained.num_windows] += 1
    assert hits.min() > 20


def test_held_out_set_is_the_same_for_every_seed_and_spread_over_the_part():
    corpus = [numbered(20_000)]
    first, second = (Source(corpus, configuration(seed=seed)) for seed in (1, 2))
    sets = [[s.held_out(index)[0].tobytes() for index in range(s.num_held_out)] for s in (first, second)]
    assert sets[0] == sets[1]
    assert len(set(sets[0])) == 5
    with pytest.raises(IndexError):
        first.held_out(5)


@settings(max_examples=30)
@given(borders=st.lists(st.integers(0, 3000), max_size=8))
def test_files_follow_each_other_without_a_gap(borders):
    """A window that spans files, empty ones among them, reads as if they were one."""
    corpus = numbered(3000)
    pieces = np.split(corpus, sorted(borders))
    whole, cut = Source([corpus], configuration()), Source(pieces, configuration())
    np.testing.assert_array_equal(whole.samples(3, 0), cut.samples(3, 0))
    np.testing.assert_array_equal(whole.held_out(4), cut.held_out(4))


def test_large_files_are_mapped_and_read_the_same(tmp_path, monkeypatch):
    (tmp_path / "a.bin").write_bytes(numbered(3000).tobytes())
    config = configuration(source=str(tmp_path / "a.bin"))
    resident = open_source(config).samples(0, 0)
    monkeypatch.setattr(data, "RESIDENT_BYTES", 100)
    np.testing.assert_array_equal(open_source(config).samples(0, 0), resident)


def test_standard_library_is_read_in_full_and_without_other_packages():
    source = open_source(configuration())
    top = Path(sysconfig.get_path("stdlib"))
    assert source.size_bytes > 5_000_000
    paths = list(data._standard_library())
    assert top / "argparse.py" in paths
    assert top / "json" / "decoder.py" in paths
    assert paths == list(data._standard_library())
    assert not [path for path in paths if "site-packages" in path.parts or "test" in path.relative_to(top).parts]


def test_globs_and_paths_give_each_file_once_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(name * 50)
    (tmp_path / "d.txt").mkdir()
    found = list(data._files([str(tmp_path / "c.md"), str(tmp_path / "*.txt"), str(tmp_path / "a.txt")]))
    assert [path.name for path in found] == ["c.md", "a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("missing.txt", "no file at"),
        ("*.nothing", "no file at"),
        ("folder", "is a folder: write"),
        ("nul\0", "no file at"),
        ("x" * 300, "is no path"),
        ("small.txt", "too few to train on sequences of 16"),
        ("empty.txt", "0 bytes are too few"),
    ],
)
def test_every_bad_source_is_the_users_to_mend(tmp_path, source, says):
    (tmp_path / "folder").mkdir()
    (tmp_path / "small.txt").write_text("too small")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match=says) as raised:
        open_source(configuration(source=str(tmp_path / source)))
    assert str(raised.value).startswith("data.source: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("text")

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot read .*a\.txt: Permission denied: let this user read it"):
        open_source(configuration(source=str(path)))


@pytest.mark.parametrize("source", ["closed/a.txt", "closed/*.txt", "closed/deeper/a.txt"])
def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, source):
    """It was said that there is no such file, or that a path in it is none."""
    closed = tmp_path / "closed"
    closed.mkdir()
    exists, access = Path.exists, os.access

    def refuse(self):
        if closed in self.parents:
            raise PermissionError(13, "Permission denied", str(self))
        return exists(self)

    monkeypatch.setattr(Path, "exists", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and access(path, mode))
    with pytest.raises(UserError) as raised:
        open_source(configuration(source=str(tmp_path / source)))
    assert str(raised.value).startswith(f"data.source: cannot look into {closed} for {tmp_path / source}: ")


def test_the_least_size_that_the_message_asks_for_is_enough():
    config = configuration(length=16, held_out=0.1)
    with pytest.raises(UserError) as raised:
        Source([numbered(50)], config)
    least = int(str(raised.value).split("(about ")[1].split(" bytes")[0])
    Source([numbered(least)], config).samples(0, 0)
