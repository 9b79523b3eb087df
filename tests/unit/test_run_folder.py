from __future__ import annotations

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zswarm import json_lines
from zswarm.config import RunConfig
from zswarm.errors import NotYet, RunFailed, UserError
from zswarm.json_lines import JsonLinesWriter, encode, read_json_lines
from zswarm.trainer import run_folder
from zswarm.trainer.run_folder import RunFolder, open_run_folder, write_processes

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
    with JsonLinesWriter(tmp_path / "a.jsonl") as writer:
        monkeypatch.setattr(json_lines.os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
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


@pytest.mark.parametrize(
    "torn", ['{"number"', "x" * 200_000, "\0" * 70_000 + '": 9}\n{"number": 9}\n', '{"num' + "\0" * 3], ids=len
)
def test_a_torn_line_is_cut_off_before_the_next_one_is_written(tmp_path, torn):
    """A trainer was killed in the middle of a line: what its successor wrote was part of that line.

    A power cut may leave a hole, with later blocks behind it.
    """
    with JsonLinesWriter(tmp_path / "a.jsonl") as writer:
        writer.append({"number": 0})
    for number in (1, 2):
        with (tmp_path / "a.jsonl").open("a") as file:
            file.write(torn)
        before, torn_bytes = read_json_lines(tmp_path / "a.jsonl", to_hole=True)
        assert (len(before), torn_bytes) == (number, len(torn))
        with JsonLinesWriter(tmp_path / "a.jsonl") as writer:
            writer.append({"number": number})
    lines, torn_bytes = read_json_lines(tmp_path / "a.jsonl")
    assert [line.record for line in lines] == [{"number": number} for number in range(3)]
    assert torn_bytes == 0


@pytest.mark.parametrize("taken", [0, 5])
def test_a_record_that_the_disk_did_not_take_can_be_appended_again(tmp_path, monkeypatch, taken):
    """Half of the line may have been written, or all of it and not synced."""
    with JsonLinesWriter(tmp_path / "a.jsonl") as writer:
        writer.append({"number": 0})
        for place in ("write", "fsync"):
            with monkeypatch.context() as patched:
                write = os.write
                pieces = [taken]

                def write_some(file, buffer, *, write=write, pieces=pieces):
                    if not pieces:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    return write(file, bytes(buffer[: pieces.pop()]))

                patched.setattr(json_lines.os, place, write_some if place == "write" else refuse)
                with pytest.raises(RunFailed, match="cannot write: No space left"):
                    writer.append({"place": place, "again": False}, durable=True)
            writer.append({"place": place, "again": True}, durable=True)
    lines, torn_bytes = read_json_lines(tmp_path / "a.jsonl")
    assert [line.record for line in lines[1:]] == [{"place": place, "again": True} for place in ("write", "fsync")]
    assert torn_bytes == 0


def refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_the_run_with_its_reason(tmp_path, monkeypatch):
    writer = JsonLinesWriter(tmp_path / "a.jsonl")
    with writer, open_run_folder(CONFIG, out=tmp_path / "out") as folder:
        monkeypatch.setattr(json_lines.os, "write", refuse)
        with pytest.raises(RunFailed, match=r"a\.jsonl: cannot write: No space left"):
            writer.append({})
        monkeypatch.setattr(run_folder.os, "fsync", refuse)
        with pytest.raises(RunFailed, match=r"summary\.json: cannot write: No space left"):
            folder.write_summary({})


def test_a_file_that_cannot_be_opened_is_the_users_to_mend(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(UserError, match=r"a\.jsonl: cannot open the file: Is a directory"):
        JsonLinesWriter(tmp_path / "a.jsonl")


def test_a_summary_is_replaced_as_a_whole(tmp_path):
    with open_run_folder(CONFIG, out=tmp_path / "out") as folder:
        folder.write_summary({"steps": 1, "loss": [float("nan")]})
        folder.write_summary({"steps": 2})
        assert json.loads((folder.path / "summary.json").read_text()) == {"steps": 2}
        assert sorted(path.name for path in folder.path.iterdir()) == ["lock", "run.json", "summary.json"]


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_may_mend_itself(begun, monkeypatch, number):
    """It had the exit code of what only the user can mend, and systemd left the run alone."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    out = begun(START)
    before = (out / "run.json").read_bytes()
    monkeypatch.setattr(run_folder.os, "fsync", refuse)
    with pytest.raises(NotYet, match=rf"run\.json: cannot write: {os.strerror(number)}: make room there, or .* --out"):
        open_run_folder(changed("run", steps=2), out=out, resume=True)
    assert (out / "run.json").read_bytes() == before


# -- a run that goes on ------------------------------------------------------------------------------------

START = {"event": "start", "run": "4d", "generation": 1, "stages": 1, "split": [3], "steps": 1, "num_microbatches": 2}
JOIN = {
    "event": "join",
    "node": "w",
    "role": "worker",
    "session": 5,
    "stage": 0,
    "boot_nonce": 9,
    "addresses": ["tcp://127.0.0.1:1"],
}
COMMIT = {"event": "commit", "branch": 0, "step": 0, "loss": 5.5, "lr": 0.1, "scale": 1.0, "apply": True}
COMMIT["stages"] = [{"stage": 0, "round": 1, "digest": 3, "contributions": {"5": [0, 1]}}]
FINISH = {"event": "finish", "steps": 1, "code": 0, "reason": "all steps are done"}


def changed(section, **keys):
    tree = json.loads(CONFIG.canonical_json())
    tree[section].update(keys)
    return RunConfig.from_json_untrusted(json.dumps(tree).encode())


@pytest.fixture
def begun(tmp_path):
    """A run folder with a log that can be continued."""

    def write(*records, torn=""):
        with open_run_folder(CONFIG, out=tmp_path / "out") as folder:
            for record in records:
                folder.events.append(record)
        with (folder.path / "events.jsonl").open("a") as file:
            file.write(torn)
        return folder.path

    return write


def test_an_unfinished_run_goes_on_in_its_folder(begun):
    out = begun(START, JOIN, torn='{"event":"comm')
    with open_run_folder(CONFIG, out=out, resume=True) as folder:
        found = folder.recover()
        assert (found.run, found.generation, found.step) == (0x4D, 2, 0)
        folder.events.append(COMMIT)
        assert folder.recover().step == 1


def test_a_run_goes_on_on_a_full_disk(tmp_path, monkeypatch):
    """What the folder says of the run was written again at each start, before the run could wait for its disk."""
    (tmp_path / "mine.toml").write_text("# as it was written\n")
    again = {"out": tmp_path / "out", "run_file": tmp_path / "mine.toml", "resume": True}
    open_run_folder(CONFIG, **again).close()
    monkeypatch.setattr(run_folder, "replace_whole", refuse)
    open_run_folder(CONFIG, **again).close()
    (tmp_path / "mine.toml").write_text("# as it is written now\n")
    with pytest.raises(UserError):
        open_run_folder(CONFIG, **again)


def test_a_folder_that_was_made_and_no_more_is_a_new_run(tmp_path):
    """The trainer was killed before its first word."""
    open_run_folder(CONFIG, out=tmp_path / "out").close()
    with open_run_folder(CONFIG, out=tmp_path / "out", resume=True) as folder:
        assert folder.recover() is None


def test_only_who_can_go_on_with_a_run_may_open_its_folder_again(begun):
    """`zswarm reference --out` on a swarm's folder."""
    with pytest.raises(UserError, match="the folder is not empty"):
        open_run_folder(CONFIG, out=begun(START))


@pytest.mark.parametrize("names", [["run.toml"], ["events.jsonl"], ["run.json", "metrics.jsonl"], ["thesis.tex"]])
def test_a_folder_of_something_else_is_left_alone(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="the folder is not empty, and a run never writes over another"):
        open_run_folder(CONFIG, out=tmp_path, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.mark.parametrize(
    ("section", "keys", "says"),
    [
        ("model", {"d_model": 16}, "model.d_model = null, not 16"),
        ("data", {"held_out": 0.5}, "data.held_out = 0.05, not 0.5"),
        ("batch", {"microbatch": 2}, "batch.microbatch = 4, not 2"),
        ("optimizer", {"lr": 0.5}, "optimizer.lr = 0.001, not 0.5"),
        ("run", {"seed": 5}, "run.seed = 0, not 5"),
    ],
)
def test_a_run_keeps_what_decides_its_parameters(begun, section, keys, says):
    out = begun(START)
    before = (out / "run.json").read_bytes()
    with pytest.raises(UserError) as raised:
        open_run_folder(changed(section, **keys), out=out, resume=True)
    assert says in str(raised.value)
    assert (out / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ("run", {"steps": 50}),
        ("run", {"name": "other"}),
        ("pipeline", {"stages": 3}),
        ("wire", {"codec": "none"}),
        ("checkpoint", {"every": 3}),
    ],
)
def test_the_rest_may_change_and_is_written_down(begun, section, keys):
    config = changed(section, **keys)
    out = begun(START, COMMIT, FINISH)
    with open_run_folder(config, out=out, resume=True) as folder:
        assert RunConfig.from_json_untrusted((folder.path / "run.json").read_bytes()) == config


def test_a_run_that_is_done_is_not_begun_again(begun):
    out = begun(START, JOIN, COMMIT, FINISH)
    (out / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is done, with 1 steps"):
        open_run_folder(CONFIG, out=out, resume=True)
    with open_run_folder(changed("run", steps=2), out=out, resume=True) as folder:
        assert folder.recover().step == 1


def test_a_run_that_lacks_its_model_only_goes_on(begun):
    """The trainer was killed between its last line and the model."""
    with open_run_folder(CONFIG, out=begun(START, JOIN, COMMIT, FINISH), resume=True) as folder:
        assert folder.recover().is_done(1)


def test_steps_cannot_be_taken_back(begun):
    out = begun(START, COMMIT, COMMIT | {"step": 1})
    with pytest.raises(UserError, match=r"has committed 2 steps already: write run\.steps = 2 or more"):
        open_run_folder(CONFIG, out=out, resume=True)


@pytest.mark.parametrize(
    ("line", "says"),
    [("nonsense", "line 2: not a JSON object"), (json.dumps(COMMIT | {"step": 7}), "line 2: step 7 is committed")],
)
def test_a_damaged_log_is_not_gone_on_with(begun, line, says):
    out = begun(START, torn=line + "\n")
    with pytest.raises(UserError, match=rf"events\.jsonl: {says}.*the log of this run is damaged"):
        open_run_folder(CONFIG, out=out, resume=True)


def test_a_run_folder_has_one_owner_at_a_time(tmp_path):
    with open_run_folder(CONFIG, out=tmp_path / "out") as folder:
        for _ in range(2):
            with pytest.raises(UserError, match=rf"out: process {os.getpid()} is at work on the run in this folder"):
                open_run_folder(CONFIG, out=tmp_path / "out", resume=True)
        with pytest.raises(UserError, match="at work"):
            RunFolder(folder.path)
    RunFolder(folder.path).close()
    open_run_folder(CONFIG, out=tmp_path / "out", resume=True).close()


def test_the_process_ids_are_written_whole_and_a_full_disk_does_not_matter(tmp_path, monkeypatch):
    write_processes(tmp_path, {"trainer": 7})
    monkeypatch.setattr(json_lines.os, "fsync", refuse)
    write_processes(tmp_path, {"trainer": 8})
    assert json.loads((tmp_path / "processes.json").read_text()) == {"trainer": 7}
