from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.numpy import save_file

from zswarm.chaos.command import check_reference
from zswarm.chaos.equal import differences
from zswarm.chaos.faults import FREEZE_LEAST_S, FREEZE_MOST_S, Fault, Kind, Planned, choose, draw, of_roles
from zswarm.chaos.figures import figures, percentile
from zswarm.chaos.history import History, Tail
from zswarm.chaos.table import cost_table, fault_table
from zswarm.cli.chaos import KINDS
from zswarm.config import load_run_file
from zswarm.errors import RunFailed, UserError


def planned(chance):
    return Planned(wait_s=1.0, kind=Kind.KILL, freeze_s=1.0, chance=chance)


def test_faults_follow_from_the_seed_alone():
    assert draw(50, seed=3, mean_wait_s=2.0) == draw(50, seed=3, mean_wait_s=2.0)
    assert draw(50, seed=3, mean_wait_s=2.0) != draw(50, seed=4, mean_wait_s=2.0)
    assert draw(50, seed=3, mean_wait_s=2.0)[:20] == draw(20, seed=3, mean_wait_s=2.0)


def test_faults_are_of_both_kinds_at_the_rate_that_was_asked_for():
    faults = draw(2000, seed=0, mean_wait_s=3.0)
    assert sum(fault.wait_s for fault in faults) / 2000 == pytest.approx(3.0, rel=0.1)
    assert sum(fault.kind is Kind.KILL for fault in faults) / 2000 == pytest.approx(0.5, abs=0.05)
    assert all(FREEZE_LEAST_S <= fault.freeze_s <= FREEZE_MOST_S for fault in faults)


def test_the_command_line_has_the_same_kinds():
    """It was `stop` there, and a freeze everywhere else; the command's own list is there so that its help is quick."""
    assert tuple(Kind) == KINDS


@pytest.mark.parametrize("kind", list(Kind))
def test_faults_may_be_of_one_kind(kind):
    assert {fault.kind for fault in draw(50, seed=0, mean_wait_s=1.0, kinds=(kind,))} == {kind}


def test_whoever_lives_may_be_chosen_whatever_order_they_are_listed_in():
    names = ["worker-0", "worker-1", "broker-0", "trainer"]
    chosen = [choose(planned(chance), names) for chance in (0.0, 0.25, 0.5, 0.999)]
    assert chosen == ["broker-0", "trainer", "worker-0", "worker-1"]
    assert [choose(planned(chance), names[::-1]) for chance in (0.0, 0.25, 0.5, 0.999)] == chosen
    assert choose(planned(0.5), []) is None


@given(chance=st.floats(min_value=0, max_value=1, exclude_max=True), names=st.sets(st.text(), min_size=1))
def test_the_chosen_one_is_always_one_of_them(chance, names):
    assert choose(planned(chance), names) in names


def test_roles_are_told_by_name():
    names = {"worker-0", "worker-12", "broker-0", "trainer"}
    assert of_roles(names, ("worker",)) == {"worker-0", "worker-12"}
    assert of_roles(names, ("trainer", "broker")) == {"broker-0", "trainer"}


def join(session, name, stage=0):
    return {"event": "join", "session": session, "node": name, "role": name.split("-")[0], "stage": stage}


def leave(session):
    return {"event": "leave", "session": session, "reason": "silent"}


def commit(step, *sessions):
    contributions = {str(session): [index] for index, session in enumerate(sessions)}
    return {"event": "commit", "step": step, "stages": [{"stage": 0, "contributions": contributions}]}


def history(*timed):
    """Each is (time, record)."""
    found = History()
    for at_s, record in timed:
        found.add([record], at_s)
    return found


def test_a_process_has_the_session_under_which_it_is_in():
    log = history((1, join(7, "worker-1")))
    assert log.session_of("worker-1") == 7
    assert log.session_of("worker-2") is None
    log.add([leave(7)], 2)
    assert log.session_of("worker-1") is None
    log.add([join(9, "worker-1")], 3)
    assert log.session_of("worker-1") == 9


def test_the_new_life_counts_when_it_has_joined_before_the_old_one_is_said_to_have_left():
    log = history((1, join(7, "worker-1")), (2, join(9, "worker-1")))
    assert log.session_of("worker-1") == 9
    log.add([leave(7)], 3)
    assert log.session_of("worker-1") == 9


def test_the_step_is_the_next_to_be_committed():
    log = history()
    assert log.step == 0
    log.add([commit(0), commit(1)], 1)
    assert log.step == 2
    log.add([{"event": "rollback", "step": 1, "branch": 1}, leave(3)], 2)
    assert log.step == 1


STAGE = [(0, join(1, "worker-0")), (0, join(2, "worker-1")), (0, join(3, "broker-0")), (0, join(4, "worker-2", 1))]


@pytest.mark.parametrize(
    ("records", "down", "alone"),
    [
        ([], (), {"worker-2"}),
        ([], ("worker-0",), {"worker-1", "worker-2"}),
        ([], ("worker-2",), set()),
        ([leave(1)], (), {"worker-1", "worker-2"}),
        ([commit(0, 1, 2)], (), {"worker-2"}),
        ([commit(0, 1)], (), {"worker-0", "worker-2"}),
        ([commit(0, 1, 2), leave(1), join(8, "worker-0")], (), {"worker-1", "worker-2"}),
        ([commit(0, 1, 2), leave(1), join(8, "worker-0"), commit(1, 2, 8)], (), {"worker-2"}),
        ([commit(0, 1, 2)], ("worker-0", "worker-1"), {"worker-2"}),
        (
            [commit(0, 1, 2), leave(1), leave(2), join(8, "worker-1"), join(9, "worker-0")],
            (),
            {"worker-1", "worker-2"},
        ),
    ],
)
def test_the_last_who_surely_holds_the_parameters_of_a_stage_is_known(records, down, alone):
    """Of two workers one has just come back: only the other one, which has contributed, surely holds them. Of two
    who both have, the first: in long steps the second one was still getting them, and the swarm went back to its checkpoint."""
    assert history(*STAGE, *((1, record) for record in records)).last_of_their_stage(down) == alone


def test_a_file_is_read_as_it_grows_and_a_torn_line_only_when_it_is_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_bytes(b'{"event":"a"}\n{"event"')
    assert tail.read() == [{"event": "a"}]
    assert tail.read() == []
    path.write_bytes(b'{"event":"a"}\n{"event":"b"}\nnot JSON\n[]\n{}\n{"event":"c"}\n')
    assert tail.read() == [{"event": "b"}, {"event": "c"}]


def test_a_torn_line_that_is_cut_off_is_forgotten(tmp_path):
    """A trainer that starts again cuts a torn line off, and the file gets shorter than it was."""
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    path.write_bytes(b'{"event":"a"}\n{"event":"bbbbbbbbbbbbbb')
    assert tail.read() == [{"event": "a"}]
    path.write_bytes(b'{"event":"a"}\n')
    assert tail.read() == []
    path.write_bytes(b'{"event":"a"}\n{"event":"c"}\n')
    assert tail.read() == [{"event": "c"}]


def fault(at_s, name, *, session=None, until_s=None):
    kind = Kind.KILL if until_s is None else Kind.FREEZE
    return Fault(at_s=at_s, kind=kind, name=name, session=session, until_s=until_s)


START = (0.0, {"event": "start"})


def steady(first, last, *, begin_s):
    """One commit per second."""
    return [(begin_s + index, commit(step)) for index, step in enumerate(range(first, last))]


def test_a_killed_worker_costs_what_was_not_done_until_it_was_back():
    """Six quiet steps of a second; killed in the seventh, which takes 5 s, and back in the one after that."""
    log = history(
        (0.0, join(1, "worker-0")),
        START,
        *steady(0, 6, begin_s=1.0),
        (10.0, leave(1)),
        (11.0, commit(6)),
        (11.5, join(2, "worker-0")),
        (13.0, commit(7)),
        *steady(8, 10, begin_s=14.0),
    )
    found = figures(log, [fault(6.5, "worker-0", session=1)])
    assert found.outcomes[0].detection_s == pytest.approx(3.5)
    assert found.outcomes[0].back_at_s == 11.5
    assert found.quiet_step_s == 1.0
    assert [(d.begin_s, d.end_s, d.num_steps) for d in found.disturbances] == [(6.0, 13.0, 2)]
    assert found.outcomes[0].lost_steps == pytest.approx(5.0)
    assert found.disturbed_steps_per_s == pytest.approx(2 / 7)
    assert found.num_steps == 10
    assert found.num_voided == 0


def test_faults_that_overlap_share_the_cost():
    log = history(
        (0.0, join(1, "worker-0")),
        START,
        *steady(0, 6, begin_s=1.0),
        (9.0, leave(1)),
        (9.5, join(2, "worker-0")),
        (12.0, commit(6)),
        *steady(7, 9, begin_s=13.0),
    )
    faults = [fault(6.5, "worker-0", session=1), fault(7.0, "broker-0", until_s=8.0)]
    found = figures(log, faults)
    assert len(found.disturbances) == 1
    assert [outcome.lost_steps for outcome in found.outcomes] == [pytest.approx(2.5), pytest.approx(2.5)]
    assert found.lost_steps_per_fault == pytest.approx(2.5)


def test_a_rollback_costs_the_steps_that_are_done_again():
    log = history(
        (0.0, join(1, "worker-0")),
        START,
        *steady(0, 8, begin_s=1.0),
        (9.0, leave(1)),
        (9.2, {"event": "rollback", "branch": 1, "step": 4}),
        (9.5, join(2, "worker-0")),
        *steady(4, 12, begin_s=10.0),
    )
    found = figures(log, [fault(8.5, "worker-0", session=1)])
    assert found.num_voided == 4
    assert found.counts["rollback"] == 1
    assert found.disturbances[0].num_steps == 5 - 8
    assert found.disturbed_steps_per_s == pytest.approx(-3 / 2)
    assert found.outcomes[0].lost_steps == pytest.approx(2.0 + 3.0)
    assert found.num_steps == 12


def test_a_killed_trainer_is_noticed_when_it_starts_again():
    log = history(START, *steady(0, 6, begin_s=1.0), (8.0, {"event": "start"}), *steady(6, 12, begin_s=9.0))
    found = figures(log, [fault(6.5, "trainer")])
    assert found.outcomes[0].detection_s == pytest.approx(1.5)
    assert found.outcomes[0].lost_steps == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("left_at_s", "detection_s", "back_at_s"),
    [
        (None, None, 9.0),
        (8.5, 2.0, 15.5),
        (14.0, None, 9.0),
    ],
    ids=["it comes back in time", "it is given up", "it leaves much later, for another reason"],
)
def test_a_frozen_process_is_noticed_if_it_is_given_up(left_at_s, detection_s, back_at_s):
    gone = [] if left_at_s is None else [(left_at_s, leave(1))]
    log = history((0.0, join(1, "worker-0")), START, *gone, (15.5, join(2, "worker-0")), (16.0, commit(0)))
    outcome = figures(log, [fault(6.5, "worker-0", session=1, until_s=9.0)]).outcomes[0]
    assert outcome.detection_s == detection_s
    assert outcome.back_at_s == back_at_s


def test_what_the_log_never_says_is_unknown():
    """Killed before it had joined, or so late that nobody noticed, and in a run that was too short to be quiet."""
    log = history((0.0, join(1, "worker-0")), START, *steady(0, 3, begin_s=1.0))
    found = figures(log, [fault(0.5, "worker-1"), fault(2.9, "worker-0", session=1), fault(3.5, "trainer")])
    assert [outcome.detection_s for outcome in found.outcomes] == [None, None, None]
    assert found.quiet_step_s is None
    assert found.lost_steps_per_fault is None
    assert figures(History(), [fault(0.5, "trainer")]).num_steps == 0


def test_percentiles_are_values_that_were_measured():
    assert percentile([], 50) is None
    assert percentile([3.0], 95) == 3.0
    assert percentile(range(1, 101), 95) == 95
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.0


def test_the_tables_and_the_file_tell_all(capsys):
    log = history((0.0, join(1, "worker-0")), START, *steady(0, 6, begin_s=1.0), (9.0, leave(1)), (10.0, commit(6)))
    found = figures(log, [fault(6.5, "worker-0", session=1), fault(8.0, "trainer", until_s=8.5)])
    console = Console(width=120)
    console.print(fault_table(found))
    console.print(cost_table(found))
    text = capsys.readouterr().out
    assert "worker" in text
    assert "2.50" in text
    assert "steps lost per fault" in text
    record = json.loads(json.dumps(found.as_json()))
    assert record["faults"][0]["detection_s"] == 2.5
    assert record["faults"][1]["fault"]["kind"] == "freeze"


RUN_FILE = """
[run]
steps = 4
[model]
sequence_length = 16
[batch]
global_batch = 2
microbatch = 1
"""


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ((), None),
        (("run.name=other", "pipeline.stages=3", "checkpoint.every=7"), None),
        (("run.steps=5",), "another run.steps"),
        (("model.sequence_length=8",), "another model.sequence_length"),
        (("model.d_model=8",), "another model.d_model"),
        (("optimizer.lr=0.5",), "another optimizer.lr"),
    ],
)
def test_a_reference_is_of_the_same_run_as_far_as_that_decides_its_parameters(tmp_path, overrides, says):
    run_file = tmp_path / "run.toml"
    run_file.write_text(RUN_FILE)
    (tmp_path / "run.json").write_bytes(load_run_file(run_file, overrides).canonical_json())
    (tmp_path / "model.safetensors").touch()
    config = load_run_file(run_file)
    if says is None:
        check_reference(tmp_path, config)
    else:
        with pytest.raises(UserError, match=says):
            check_reference(tmp_path, config)


def test_a_folder_without_a_model_is_no_reference(tmp_path):
    (tmp_path / "run.toml").write_text(RUN_FILE)
    config = load_run_file(tmp_path / "run.toml")
    with pytest.raises(UserError, match="not the folder of a run"):
        check_reference(tmp_path, config)
    (tmp_path / "run.json").write_bytes(config.canonical_json())
    with pytest.raises(UserError, match=r"it has no model\.safetensors"):
        check_reference(tmp_path, config)


def model(path, **tensors):
    save_file({name: np.asarray(tensor) for name, tensor in tensors.items()}, path)
    return path


def test_models_are_compared_to_the_bit(tmp_path):
    a = np.array([1.0, -0.0], dtype=np.float32)
    one = model(tmp_path / "one", a=a, b=np.zeros(3, dtype=np.float32))
    assert differences(one, model(tmp_path / "same", b=np.zeros(3, dtype=np.float32), a=a)) == []
    assert differences(one, model(tmp_path / "bit", a=np.array([1.0, 0.0], dtype=np.float32), b=np.zeros(3, "f4"))) == [
        "a"
    ]
    assert differences(one, model(tmp_path / "shape", a=a, b=np.zeros((3, 1), dtype=np.float32))) == ["b"]
    assert differences(one, model(tmp_path / "dtype", a=a, b=np.zeros(3, dtype=np.int32))) == ["b"]
    assert differences(one, model(tmp_path / "names", a=a, c=np.zeros(3, dtype=np.float32))) == ["b", "c"]


def test_a_model_that_cannot_be_read_is_said(tmp_path):
    whole = model(tmp_path / "whole", a=np.zeros(1))
    (tmp_path / "torn").write_bytes(whole.read_bytes()[:-3])
    with pytest.raises(RunFailed, match="torn: no model"):
        differences(whole, tmp_path / "torn")
    with pytest.raises(RunFailed, match="cannot read the model"):
        differences(tmp_path / "missing", whole)
