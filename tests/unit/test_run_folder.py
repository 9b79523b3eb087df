from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from zswarm import json_lines
from zswarm.config import RunConfig
from zswarm.errors import RunFailed, UserError
from zswarm.json_lines import JsonLinesWriter, encode, read_json_lines
from zswarm.trainer import run_folder
from zswarm.trainer.model_file import ModelFile
from zswarm.trainer.run_folder import open_run_folder
from zswarm.trainer.samples import pack
from zswarm.trainer.settings import Store

CONFIG = RunConfig.model_validate(
    {
        "run": {"steps": 1, "name": "tiny"},
        "model": {"sequence_length": 8},
        "batch": {"global_batch": 8, "microbatch": 4},
    }
)


def test_a_run_folder_holds_the_run_file_and_the_configuration_in_force(tmp_path):
    run_file = tmp_path / "mine.toml"
    run_file.write_text("# as it was written\n")
    with open_run_folder(CONFIG, out=tmp_path / "out", run_file=run_file) as folder:
        assert (folder.path / "run.toml").read_text() == "# as it was written\n"
        assert RunConfig.from_json_untrusted((folder.path / "run.json").read_bytes()) == CONFIG


def test_without_out_the_next_free_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for expected in ("tiny-1", "tiny-2", "tiny-3"):
        with open_run_folder(CONFIG) as folder:
            assert str(folder.path) == f"runs/{expected}"


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path):
    (tmp_path / "out").mkdir()
    open_run_folder(CONFIG, out=tmp_path / "out").close()
    with pytest.raises(UserError, match=r"--out .*out: the folder is not empty"):
        open_run_folder(CONFIG, out=tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="this is a file: name a folder"):
        open_run_folder(CONFIG, out=tmp_path / "file")
    with pytest.raises(UserError, match="cannot make the folder: Not a directory"):
        open_run_folder(CONFIG, out=tmp_path / "file" / "below")


def test_a_folder_that_cannot_be_written_in_is_the_users_to_mend(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file in the way")
    with pytest.raises(UserError, match="cannot make the run folder: Not a directory; name one with --out"):
        open_run_folder(CONFIG)


def test_records_come_back_as_they_were_appended(tmp_path):
    records = [{"event": "join", "session": 2**64 - 1}, {"text": "two\nlines, ü"}, {"list": [1, [2.5, None]]}]
    with JsonLinesWriter(tmp_path / "a.jsonl") as writer:
        for record in records:
            writer.append(record)
            assert read_json_lines(tmp_path / "a.jsonl")[0][-1].record == record
    lines, torn_bytes = read_json_lines(tmp_path / "a.jsonl")
    assert [(line.number, line.record) for line in lines] == list(enumerate(records, 1))
    assert torn_bytes == 0


@given(st.lists(st.dictionaries(st.text(max_size=3), st.one_of(st.text(), st.integers(), st.floats())), min_size=1))
def test_a_record_is_one_line_of_strict_json_whatever_it_says(records):
    for record in records:
        line = encode(record)
        assert b"\n" not in line
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_file_cut_anywhere_reads_as_its_complete_lines(tmp_path):
    with JsonLinesWriter(tmp_path / "a.jsonl") as writer:
        for number in range(5):
            writer.append({"number": number})
    whole = (tmp_path / "a.jsonl").read_bytes()
    for cut in range(len(whole) + 1):
        (tmp_path / "cut.jsonl").write_bytes(whole[:cut])
        lines, torn_bytes = read_json_lines(tmp_path / "cut.jsonl")
        assert [line.record for line in lines] == [{"number": number} for number in range(len(lines))]
        assert len(lines) == whole[:cut].count(b"\n")
        assert torn_bytes == cut - (whole[:cut].rfind(b"\n") + 1)


def test_a_durable_record_is_on_the_disk_before_append_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(json_lines.os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    with JsonLinesWriter(tmp_path / "a.jsonl") as writer:
        writer.append({"a": 1})
        assert synced == []
        writer.append({"a": 2}, durable=True)
    assert synced == [2 * len('{"a":1}\n')]


def test_a_write_that_is_taken_in_pieces_is_whole(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(json_lines.os, "write", lambda file, buffer: write(file, bytes(buffer[:3])))
    with JsonLinesWriter(tmp_path / "a.jsonl") as writer:
        writer.append({"text": "longer than three bytes"})
    assert read_json_lines(tmp_path / "a.jsonl")[0][0].record == {"text": "longer than three bytes"}


def test_a_full_disk_ends_the_run_with_its_reason(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = JsonLinesWriter(tmp_path / "a.jsonl")
    with writer, open_run_folder(CONFIG, out=tmp_path / "out") as folder:
        monkeypatch.setattr(json_lines.os, "write", refuse)
        with pytest.raises(RunFailed, match=r"a\.jsonl: cannot write: No space left"):
            writer.append({})
        monkeypatch.setattr(run_folder.os, "fsync", refuse)
        with pytest.raises(RunFailed, match=r"summary\.json: cannot write: No space left"):
            folder.write_summary({})


def test_a_writer_never_takes_over_a_file(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="File exists"):
        JsonLinesWriter(tmp_path / "a.jsonl")


def test_a_summary_is_replaced_as_a_whole(tmp_path):
    with open_run_folder(CONFIG, out=tmp_path / "out") as folder:
        folder.write_summary({"steps": 1, "loss": [float("nan")]})
        folder.write_summary({"steps": 2})
        assert json.loads((folder.path / "summary.json").read_text()) == {"steps": 2}
        assert sorted(path.name for path in folder.path.iterdir()) == ["run.json", "summary.json"]


def test_a_file_is_made_when_it_is_first_written_to(tmp_path):
    """A reference run has no event log, and an empty one would fail the audit."""
    with open_run_folder(CONFIG, out=tmp_path / "out") as folder:
        folder.metrics.append({"step": 0})
        folder.metrics.append({"step": 1})
        assert not (folder.path / "events.jsonl").exists()
        assert len(read_json_lines(folder.path / "metrics.jsonl")[0]) == 2


def test_a_folder_on_a_read_only_disk_is_the_users_to_mend(tmp_path, monkeypatch):
    """A run that never began ended with exit code 1, as if it had failed."""

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(run_folder.os, "fsync", refuse)
    with pytest.raises(UserError, match=r"out/run\.json: cannot write: Read-only file system: name a folder .* --out"):
        open_run_folder(CONFIG, out=tmp_path / "out")


def received(content):
    """Return a model file that has taken layer 0's bytes in two ranges, the second one twice."""
    model = ModelFile()
    for offset, part in ((0, content[:5]), (5, content[5:]), (5, content[5:])):
        load = pack(np.frombuffer(part, dtype=np.uint8))
        model.store(Store(layer=0, offset_bytes=offset, total_bytes=len(content), load=load))
    return model


def test_the_model_is_written_whole(tmp_path):
    path = tmp_path / "model.safetensors"
    received(save({"weight": np.array([1, 2], dtype=np.float32)})).write(path)
    assert load_file(path)["layers.0.weight"].tolist() == [1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_layer_ends_the_run_with_its_reason(tmp_path):
    """It passed for a bug of zswarm."""
    with pytest.raises(RunFailed, match="layer 0 came as what is no safetensors file"):
        received(b"nonsense").write(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
