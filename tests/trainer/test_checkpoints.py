from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from zswarm import limits, wire
from zswarm.errors import RunFailed
from zswarm.ids import STATE_FILES, StatePart
from zswarm.messages import Pull
from zswarm.trainer.checkpoints import Checkpoints, file_name
from zswarm.trainer.model_file import write_model
from zswarm.trainer.settings import Read, Store

RUN = 0x4D
LAYERS = 2
NAMES = {file_name(layer, part) for layer in range(LAYERS) for part in STATE_FILES}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoints"


def opened(path, **changes):
    return Checkpoints(path, **{"run": RUN, "num_layers": LAYERS, "keep": 2, **changes})


def content(layer, part, version=(0, 4)):
    """A file that says whose it is, longer for later layers."""
    return save({"weight": np.full(5 + layer, 100 * version[1] + 10 * layer + part, dtype=np.float32)})


def ranges(version, layer, part, *, whole=None, cut=40):
    whole = content(layer, part, version) if whole is None else whole
    for offset in range(0, len(whole), cut):
        yield Store(
            branch=version[0],
            step=version[1],
            part=part,
            layer=layer,
            offset_bytes=offset,
            total_bytes=len(whole),
            load=wire.parcelled(whole[offset : offset + cut], ()),
        )


def store_all(checkpoints, version=(0, 4), *, but=()):
    for layer in range(LAYERS):
        for part in STATE_FILES:
            if (layer, part) not in but:
                for command in ranges(version, layer, part):
                    checkpoints.store(command)


def complete(checkpoints, version=(0, 4)):
    store_all(checkpoints, version)
    sealed = checkpoints.seal(version)
    assert (sealed.branch, sealed.step, sealed.problem) == (*version, "")
    checkpoints.tidy(None)


def never(_version):
    return False


def read(checkpoints, version=(0, 4), *, layer=0, part=StatePart.PARAMETERS, offset=0):
    pull = Pull(
        run=RUN, generation=1, session=7, branch=1, step=version[1], part=part, layer=layer, offset_bytes=offset
    )
    return checkpoints.read(Read(peer=b"peer", pull=pull, checkpoint=version))


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_a_sealed_checkpoint_is_a_folder_of_files_and_a_manifest(path):
    checkpoints = opened(path)
    complete(checkpoints)
    assert names(path) == ["branch-0-step-4"]
    assert set(names(path / "branch-0-step-4")) == NAMES | {"manifest.json"}
    manifest = json.loads((path / "branch-0-step-4" / "manifest.json").read_text())
    assert (manifest["run"], manifest["branch"], manifest["step"], manifest["layers"]) == (f"{RUN:016x}", 0, 4, 2)
    assert set(manifest["files"]) == NAMES
    for layer in range(LAYERS):
        for part in STATE_FILES:
            name = file_name(layer, part)
            assert (path / "branch-0-step-4" / name).read_bytes() == content(layer, part)
            assert manifest["files"][name]["size_bytes"] == len(content(layer, part))
    assert opened(path).newest(never, with_hashes=True) == (0, 4)


def test_everything_is_on_the_disk_before_the_folder_has_its_name(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(str(Path(f"/proc/self/fd/{file}").readlink())))
    checkpoints = opened(path)
    store_all(checkpoints)
    assert synced == []
    checkpoints.seal((0, 4))
    hidden = path / ".branch-0-step-4.new"
    assert synced[-3:] == [str(hidden / "manifest.json"), str(hidden), str(path)]
    assert set(synced[:-3]) == {str(hidden / name) for name in NAMES}


def test_a_range_at_offset_0_begins_the_file_anew(path):
    """Its worker was given up, and another one gives the layer from the start."""
    checkpoints = opened(path)
    first, *_ = ranges((0, 4), 0, StatePart.PARAMETERS, whole=b"what somebody else had" * 9, cut=20)
    checkpoints.store(first)
    complete(checkpoints)
    assert (path / "branch-0-step-4" / "layer-0.safetensors").read_bytes() == content(0, StatePart.PARAMETERS)


@pytest.mark.parametrize("missing", [(1, StatePart.OPTIMIZER), (0, StatePart.PARAMETERS)])
def test_what_has_not_come_whole_is_no_checkpoint(path, missing):
    checkpoints = opened(path)
    complete(checkpoints)
    store_all(checkpoints, (0, 8), but={missing})
    checkpoints.store(next(ranges((0, 8), *missing)))
    assert f"{file_name(*missing)} has not come whole" in checkpoints.seal((0, 8)).problem
    assert names(path) == ["branch-0-step-4"]


def test_ranges_that_do_not_fit_together_are_no_file(path):
    checkpoints = opened(path)
    first, _, third, *_ = ranges((0, 4), 0, StatePart.PARAMETERS)
    store_all(checkpoints)
    checkpoints.store(first)
    checkpoints.store(third)
    sealed = checkpoints.seal((0, 4))
    assert (sealed.problem, sealed.lacks_room) == ("layer 0 came in pieces that do not fit together", False)
    assert names(path) == []


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_costs_the_attempt_and_nothing_else(path, monkeypatch):
    """It fails while ranges are written, or while they are synced; the last good one stays, and the next one works."""
    checkpoints = opened(path)
    complete(checkpoints)
    for place in ("zswarm.trainer.checkpoints.Path.open", "zswarm.trainer.checkpoints.sync"):
        with monkeypatch.context() as patched:
            patched.setattr(place, full_disk)
            store_all(checkpoints, (0, 8))
            sealed = checkpoints.seal((0, 8))
        assert "No space left on device" in sealed.problem
        assert sealed.lacks_room
        assert names(path) == ["branch-0-step-4"]
    complete(checkpoints, (0, 12))
    assert checkpoints.newest(never, with_hashes=True) == (0, 12)


@pytest.mark.parametrize(("number", "lacks_room"), [(errno.EDQUOT, True), (errno.EIO, False), (errno.EROFS, False)])
@pytest.mark.parametrize("place", ["zswarm.trainer.checkpoints.Path.open", "zswarm.trainer.checkpoints.sync"])
def test_a_disk_on_which_room_is_no_help_is_told_from_a_full_one(path, monkeypatch, place, number, lacks_room):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    checkpoints = opened(path)
    monkeypatch.setattr(place, refuse)
    store_all(checkpoints)
    sealed = checkpoints.seal((0, 4))
    assert (bool(sealed.problem), sealed.lacks_room) == (True, lacks_room)


def test_a_checkpoint_that_is_forsaken_leaves_nothing(path):
    checkpoints = opened(path)
    store_all(checkpoints)
    checkpoints.forsake((0, 2))
    assert names(path) == [".branch-0-step-4.new"]
    checkpoints.forsake((0, 4))
    assert names(path) == []
    assert checkpoints.seal((0, 4)).problem


def test_the_newest_are_kept(path):
    checkpoints = opened(path, keep=2)
    for version in ((0, 4), (0, 8), (1, 6)):
        complete(checkpoints, version)
    assert names(path) == ["branch-0-step-8", "branch-1-step-6"]


def test_nothing_is_removed_before_the_log_knows_of_a_newer_one(path):
    """The swarm went back to a checkpoint that had just been removed in favour of one that had become void."""
    checkpoints = opened(path, keep=1)
    complete(checkpoints, (0, 4))
    store_all(checkpoints, (0, 8))
    checkpoints.seal((0, 8))
    assert names(path) == ["branch-0-step-4", "branch-0-step-8"]
    checkpoints.tidy((1, 4))
    assert names(path) == ["branch-0-step-4"]


def test_what_was_never_completed_is_removed_when_the_run_goes_on(path):
    store_all(opened(path))
    assert names(path) == [".branch-0-step-4.new"]
    opened(path)
    assert names(path) == []


def truncate(folder):
    os.truncate(folder / "layer-1.safetensors", 10)


def remove(folder):
    (folder / "layer-1.optimizer.safetensors").unlink()


def spoil_manifest(folder):
    (folder / "manifest.json").write_text("{}")


def lose_manifest(folder):
    (folder / "manifest.json").unlink()


def flip(folder):
    whole = bytearray((folder / "layer-1.safetensors").read_bytes())
    whole[-1] ^= 1
    (folder / "layer-1.safetensors").write_bytes(whole)


@pytest.mark.parametrize("damage", [truncate, remove, spoil_manifest, lose_manifest])
@pytest.mark.parametrize("with_hashes", [True, False])
def test_a_damaged_checkpoint_is_skipped_for_an_older_one(path, capsys, damage, with_hashes):
    checkpoints = opened(path)
    complete(checkpoints, (0, 4))
    complete(checkpoints, (0, 8))
    damage(path / "branch-0-step-8")
    assert opened(path).newest(never, with_hashes=with_hashes) == (0, 4)
    assert "checkpoint skipped" in capsys.readouterr().out


def test_a_flipped_bit_is_found_by_the_hash(path):
    checkpoints = opened(path)
    complete(checkpoints, (0, 4))
    complete(checkpoints, (0, 8))
    flip(path / "branch-0-step-8")
    assert opened(path).newest(never, with_hashes=True) == (0, 4)
    assert names(path) == ["branch-0-step-4", "damaged-branch-0-step-8"]
    complete(opened(path), (0, 12))
    assert names(path) == ["branch-0-step-12", "branch-0-step-4"]


def test_void_ones_and_those_of_another_run_are_not_gone_back_to(path):
    checkpoints = opened(path, keep=3)
    for version in ((0, 4), (0, 8)):
        complete(checkpoints, version)
    assert opened(path).newest(lambda version: version == (0, 8), with_hashes=False) == (0, 4)
    assert opened(path, run=RUN + 1).newest(never, with_hashes=False) is None
    assert opened(path / "new").newest(never, with_hashes=False) is None


def test_a_checkpoint_that_is_there_already_is_not_touched(path):
    """The trainer died after it was complete and before the log said so."""
    complete(opened(path))
    before = (path / "branch-0-step-4").stat().st_ino
    complete(opened(path))
    assert (path / "branch-0-step-4").stat().st_ino == before
    flip(path / "branch-0-step-4")
    complete(opened(path))
    assert opened(path).newest(never, with_hashes=True) == (0, 4)


def test_ranges_are_read_as_they_were_stored(path, monkeypatch):
    monkeypatch.setattr(limits, "STATE_RANGE_BYTES", 64)
    checkpoints = opened(path)
    complete(checkpoints)
    for layer in range(LAYERS):
        for part in STATE_FILES:
            found = b""
            while len(found) < len(content(layer, part)):
                was_read = read(checkpoints, layer=layer, part=part, offset=len(found))
                assert was_read.total_bytes == len(content(layer, part))
                assert was_read.load.parcel.size_bytes <= 64
                assert was_read.pull.offset_bytes == len(found)
                found += b"".join(was_read.load.frames)
            assert found == content(layer, part)


def test_nothing_is_given_away_of_a_file_whose_hash_is_wrong(path):
    complete(opened(path))
    flip(path / "branch-0-step-4")
    was_read = read(opened(path), layer=1)
    assert was_read.load is None
    assert "is damaged" in was_read.problem
    assert names(path) == ["damaged-branch-0-step-4"]


@pytest.mark.parametrize(
    ("asked", "says", "is_damaged"),
    [
        ({"layer": 2}, "it has 2 layers, and layer 2 was asked for", False),
        ({"offset": 10_000}, "byte 10000 was asked for", False),
        ({"version": (0, 5)}, "No such file", True),
    ],
)
def test_what_is_not_there_is_told(path, asked, says, is_damaged):
    checkpoints = opened(path)
    complete(checkpoints)
    was_read = read(checkpoints, **asked)
    assert was_read.load is None
    assert says in was_read.problem
    assert was_read.is_damaged is is_damaged


def without_entry(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["layer-1.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def lose_file(folder):
    (folder / "layer-1.safetensors").unlink()


@pytest.mark.parametrize("damage", [truncate, flip, lose_file, spoil_manifest, lose_manifest, without_entry])
def test_what_is_wrong_or_missing_is_damage_and_says_what_else_there_is(path, damage):
    """Also when it is asked again: a damaged one may have lost its name by then."""
    for version in ((0, 4), (1, 6), (1, 8)):
        complete(opened(path, keep=3), version)
    damage(path / "branch-1-step-8")
    checkpoints = opened(path, keep=3)
    for _ in range(2):
        was_read = read(checkpoints, (1, 8), layer=1)
        assert (was_read.load, was_read.is_damaged) == (None, True)
        assert sorted(was_read.left) == [(0, 4), (1, 6)]


def test_without_a_folder_no_checkpoint_is_left(path):
    checkpoints = opened(path)
    path.rmdir()
    was_read = read(checkpoints)
    assert (was_read.load, was_read.is_damaged, was_read.left) == (None, True, ())


@pytest.mark.parametrize(
    ("number", "is_damaged"), [(errno.EMFILE, False), (errno.ENOMEM, False), (errno.EACCES, False), (errno.EIO, True)]
)
def test_what_may_pass_is_no_damage(path, monkeypatch, number, is_damaged):
    """A checkpoint that was whole was given up since a file could not be opened for a moment."""
    checkpoints = opened(path)
    complete(checkpoints)

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr("zswarm.trainer.checkpoints.Path.open", refuse)
        was_read = read(checkpoints)
    assert (was_read.load, was_read.is_damaged) == (None, is_damaged)
    assert read(checkpoints).load is not None


def test_a_damaged_one_is_not_given_up_before_it_is_known_what_else_there_is(path, monkeypatch):
    checkpoints = opened(path)
    complete(checkpoints, (0, 4))
    complete(checkpoints, (0, 8))
    flip(path / "branch-0-step-8")

    def refuse(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    checkpoints = opened(path)
    with monkeypatch.context() as patched:
        patched.setattr("zswarm.trainer.checkpoints.Path.iterdir", refuse)
        assert not read(checkpoints, (0, 8), layer=1).is_damaged
    was_read = read(checkpoints, (0, 8), layer=1)
    assert (was_read.is_damaged, was_read.left) == (True, ((0, 4),))


def test_a_file_is_hashed_once(path, monkeypatch):
    complete(opened(path))
    checkpoints = opened(path)
    read(checkpoints)
    monkeypatch.setattr("zswarm.trainer.checkpoints._hash", lambda path: pytest.fail(f"{path} is hashed again"))
    assert read(checkpoints, offset=8).load is not None


# -- the trained model -----------------------------------------------------------------------------------


def test_the_model_is_all_layers_in_one_file(path, tmp_path):
    checkpoints = opened(path)
    complete(checkpoints)
    write_model(tmp_path / "model.safetensors", checkpoints.parameter_files((0, 4)))
    tensors = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        f"layers.{layer}.weight": [400 + 10 * layer] * (5 + layer) for layer in range(LAYERS)
    }
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "model.safetensors"]


def test_tensors_lie_where_their_items_can_be_read_in_place(tmp_path):
    """Layers of bytes, halves and doubles, empty ones and scalars: as the library writes them, the widest first."""
    layers = [
        {"flags": np.array([1, 0, 1], dtype=np.bool_), "half": np.arange(3, dtype=np.float16)},
        {},
        {"wide": np.arange(4, dtype=np.float64), "nothing": np.zeros((0, 3), dtype=np.float32)},
        {"one": np.full((), 2.5, dtype=np.float32), "byte": np.array([7], dtype=np.uint8)},
    ]
    for index, layer in enumerate(layers):
        (tmp_path / f"{index}").write_bytes(save(layer))
    write_model(tmp_path / "model", [tmp_path / f"{index}" for index in range(len(layers))])
    tensors = load_file(tmp_path / "model")
    expected = {f"layers.{i}.{name}": tensor for i, layer in enumerate(layers) for name, tensor in layer.items()}
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].tolist() == tensor.tolist()
    whole = (tmp_path / "model").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    assert length % 8 == 0
    for name, entry in json.loads(whole[8 : 8 + length]).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % expected[name].dtype.itemsize == 0


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"nonsense",
        (100).to_bytes(8, "little") + b"{}",
        (2**63).to_bytes(8, "little") + b"{}" * 50,
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"a": 12}',
        (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(60) + b"1234",
        (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":["b"],"data_offsets":[0,4]}}'.ljust(60) + b"1234",
    ],
)
def test_what_is_no_layer_ends_the_run_with_its_reason(tmp_path, nonsense):
    """It passed for a bug of zswarm."""
    (tmp_path / "layer").write_bytes(nonsense)
    with pytest.raises(RunFailed, match=r"layer: is no safetensors file"):
        write_model(tmp_path / "model.safetensors", [tmp_path / "layer"])
    assert not (tmp_path / "model.safetensors").exists()


def test_a_model_on_a_full_disk_is_told(path, tmp_path, monkeypatch):
    checkpoints = opened(path)
    complete(checkpoints)
    files = checkpoints.parameter_files((0, 4))
    monkeypatch.setattr("zswarm.trainer.run_folder.sync", full_disk)
    with pytest.raises(RunFailed, match=r"model\.safetensors: cannot write: No space left"):
        write_model(tmp_path / "model.safetensors", files)


def test_the_model_is_not_made_of_a_damaged_checkpoint(path):
    complete(opened(path))
    flip(path / "branch-0-step-4")
    with pytest.raises(RunFailed, match="is damaged"):
        opened(path).parameter_files((0, 4))
