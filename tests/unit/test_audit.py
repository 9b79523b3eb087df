from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zswarm.audit import Audit, audit
from zswarm.errors import UserError
from zswarm.json_lines import Line

STAGES, MICROBATCHES, STEPS = 2, 4, 3
ROUND = 1 << 32
"""The rounds of generation 1 come after it."""


def good_log():
    """A run of 3 steps, 2 stages x 2 workers, where a worker leaves and another one replaces it."""
    log = [{"event": "join", "node": "broker-0", "role": "broker", "session": 1, "stage": 0}]
    log += [
        {"event": "join", "node": f"worker-{session}", "role": "worker", "session": session, "stage": session // 20}
        for session in (10, 11, 20, 21)
    ]
    log.append(
        {
            "event": "start",
            "run": "000000000000004d",
            "generation": 1,
            "stages": STAGES,
            "workers": [2, 2],
            "split": [1, 1],
            "steps": STEPS,
            "num_microbatches": MICROBATCHES,
        }
    )
    owners = {0: ("10", "11"), 1: ("20", "21")}
    for step in range(STEPS):
        if step == 2:
            log.append({"event": "abort", "stage": 1, "round": ROUND + 90, "reason": "a participant left"})
            log.append({"event": "leave", "node": "worker-21", "session": 21, "reason": "silent"})
            log.append({"event": "join", "node": "worker-22", "role": "worker", "session": 22, "stage": 1})
            owners[1] = ("20", "22")
        log.append(
            {
                "event": "commit",
                "branch": 0,
                "step": step,
                "loss": 5.5,
                "lr": 0.1,
                "scale": 1.0,
                "apply": True,
                "grad_norm": 2.0,
                "stages": [
                    {
                        "stage": stage,
                        "round": ROUND + 10 * step + stage + 1,
                        "digest": 2**63 + step,
                        "contributions": {owners[stage][0]: [0, 3], owners[stage][1]: [2, 1]},
                    }
                    for stage in range(STAGES)
                ],
            }
        )
    log.append({"event": "finish", "steps": STEPS, "reason": "all steps done"})
    return [{**record, "time_s": index / 10} for index, record in enumerate(log)]


def verdict(log, *, torn_bytes=0):
    lines = [Line(number=number, record=record) for number, record in enumerate(log, 1)]
    return {check.name: check for check in Audit(lines, torn_bytes=torn_bytes).checks}


def failed(log):
    return {name for name, check in verdict(log).items() if not check.is_passed}


def commits(log):
    return [record for record in log if record["event"] == "commit"]


def test_a_good_log_passes_every_check_with_its_numbers():
    checks = verdict(good_log())
    assert all(check.is_passed for check in checks.values())
    assert "3 of 3 committed: 0 to 2, each once, in order, on branch 0" in str(checks["steps"])
    assert "24 contributions = 3 steps x 2 stages x 4 microbatches" in str(checks["ledgers"])
    assert "5 workers contributed, 6 processes joined" in str(checks["sessions"])
    assert "finished with 3 steps" in str(checks["end"])


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (130, "interrupted after 2 of 3 steps"),
        (1, "ended with code 1 after 2 of 3 steps"),
        (None, "ended after 2 of 3 steps"),
    ],
)
def test_a_run_that_ends_early_is_clean_and_is_told_from_a_whole_one(code, says):
    """Of a run that was interrupted it said "finished with 2 steps"."""
    log = good_log()
    del log[-2]
    log[-1].update(steps=2, code=code)
    check = verdict(log)["end"]
    assert check.is_passed
    assert check.found == says


def counted_twice(log):
    commits(log)[1]["stages"][0]["contributions"]["11"].append(0)
    return "ledgers", "step 1, stage 0: microbatch 0 is counted 2 times, by sessions 10, 11"


def counted_twice_by_one(log):
    commits(log)[1]["stages"][0]["contributions"]["11"] = [2, 1, 1]
    return "ledgers", "step 1, stage 0: microbatch 1 is counted 2 times, by sessions 11"


def missing(log):
    commits(log)[2]["stages"][1]["contributions"]["22"].remove(2)
    return "ledgers", "step 2, stage 1: microbatch 2 is missing"


def one_too_many(log):
    commits(log)[0]["stages"][0]["contributions"]["10"].append(4)
    return "ledgers", "step 0, stage 0: microbatch 4, and a step has 4"


def moved_between_stages(log):
    contributions = commits(log)[0]["stages"][0]["contributions"]
    contributions["20"] = contributions.pop("10")
    return "sessions", "step 0, stage 0: session 20 belongs to stage 1"


def unknown_session(log):
    contributions = commits(log)[0]["stages"][0]["contributions"]
    contributions["12"] = contributions.pop("10")
    return "sessions", "session 12 has not joined"


def joined_later(log):
    contributions = commits(log)[0]["stages"][1]["contributions"]
    contributions["22"] = contributions.pop("21")
    return "sessions", "session 22 has not joined"


def broker_contributes(log):
    contributions = commits(log)[0]["stages"][0]["contributions"]
    contributions["1"] = contributions.pop("10")
    return "sessions", "session 1 is a broker"


def fenced_contributes(log):
    """The session left before step 1 was committed: nothing of it may be in step 2."""
    leave = next(record for record in log if record["event"] == "leave")
    log.remove(leave)
    log.insert(log.index(commits(log)[1]), leave)
    contributions = commits(log)[2]["stages"][1]["contributions"]
    contributions["21"] = contributions.pop("22")
    return "sessions", "session 21 had left before this step began"


def joins_twice(log):
    log.insert(3, dict(log[2]))
    return "sessions", "session 11 joins a second time" if log[2]["session"] == 11 else "session 10 joins a second time"


def leaves_twice(log):
    leave = next(record for record in log if record["event"] == "leave")
    log.insert(log.index(leave), dict(leave))
    return "sessions", "session 21 leaves and is not there"


def step_skipped(log):
    log.remove(commits(log)[1])
    return "steps", "step 2: expected step 1"


def step_repeated(log):
    log.insert(log.index(commits(log)[1]), copy.deepcopy(commits(log)[1]))
    return "steps", "step 1: expected step 2"


def steps_swapped(log):
    first, second = (log.index(commit) for commit in commits(log)[:2])
    log[first], log[second] = log[second], log[first]
    return "steps", "step 1: expected step 0"


def another_branch(log):
    commits(log)[2]["branch"] = 1
    return "steps", "step 2: branch 1, it was 0"


def more_steps_than_the_run_has(log):
    next(record for record in log if record["event"] == "start")["steps"] = 2
    return "steps", "step 2: the run has 2 steps"


def stage_missing(log):
    del commits(log)[1]["stages"][1]
    return "stages", "step 1: stage 1 is there 0 times"


def stage_twice(log):
    commits(log)[1]["stages"].append(copy.deepcopy(commits(log)[1]["stages"][0]))
    return "stages", "step 1: stage 0 is there 2 times"


def stage_too_many(log):
    commits(log)[1]["stages"][1]["stage"] = 2
    return "stages", "step 1: stage 2, and the run has 2"


def round_used_twice(log):
    commits(log)[1]["stages"][0]["round"] = commits(log)[0]["stages"][0]["round"]
    return "stages", f"round {ROUND + 1} of stage 0 was committed in line 7, step 0"


def round_of_another_stage(log):
    stages = commits(log)[1]["stages"]
    stages[1]["round"] = stages[0]["round"]
    return "stages", f"round {ROUND + 11} of stage 1 was committed in line 8, step 1"


def aborted_round_committed(log):
    commits(log)[2]["stages"][1]["round"] = ROUND + 90
    return "stages", f"round {ROUND + 90} of stage 1 was aborted in line 9"


def digest_missing(log):
    del commits(log)[0]["stages"][0]["digest"]
    return "log", "line 7: commit.stages.0.digest: Field required"


def microbatch_is_text(log):
    commits(log)[0]["stages"][0]["contributions"]["10"] = ["0", "3"]
    return "log", "line 7: commit.stages.0.contributions.10.0"


def step_is_bool(log):
    commits(log)[0]["step"] = False
    return "log", "line 7: commit.step"


def not_an_object(log):
    log[8] = None
    return "log", "line 9: not a JSON object"


def no_kind(log):
    del log[8]["event"]
    return "log", "line 9: it has no text `event`"


def no_start(log):
    log.remove(next(record for record in log if record["event"] == "start"))
    return "log", "the log has no start of a run"


def started_again_as_another_run(log):
    start = next(record for record in log if record["event"] == "start")
    log.insert(8, {**start, "generation": 2, "run": "000000000000004e"})
    return "log", "line 9: started again with run 000000000000004e, it was 000000000000004d"


def started_again_with_an_old_generation(log):
    log.insert(8, dict(next(record for record in log if record["event"] == "start")))
    return "log", "line 9: started again with generation 1 after 1"


def finish_counts_wrong(log):
    log[-1]["steps"] = 2
    return "end", "finished with 2 steps, and 3 are committed"


def finished_too_early(log):
    """Whole lines were cut out before the last: what says that all is well speaks of fewer steps than the run has."""
    del log[-2]
    log[-1].update(steps=STEPS - 1, code=0)
    return "end", f"finished with code 0 after {STEPS - 1} of {STEPS} steps"


def commit_after_the_end(log):
    log.insert(-2, log.pop())
    return "end", "commit after the run has finished"


CORRUPTIONS = [
    counted_twice,
    counted_twice_by_one,
    missing,
    one_too_many,
    moved_between_stages,
    unknown_session,
    joined_later,
    broker_contributes,
    fenced_contributes,
    joins_twice,
    leaves_twice,
    step_skipped,
    step_repeated,
    steps_swapped,
    another_branch,
    more_steps_than_the_run_has,
    stage_missing,
    stage_twice,
    stage_too_many,
    round_used_twice,
    round_of_another_stage,
    aborted_round_committed,
    digest_missing,
    microbatch_is_text,
    step_is_bool,
    not_an_object,
    no_kind,
    no_start,
    started_again_as_another_run,
    started_again_with_an_old_generation,
    finish_counts_wrong,
    finished_too_early,
    commit_after_the_end,
]


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__)
def test_every_violation_is_found_and_told_with_its_place(corrupt):
    log = good_log()
    name, says = corrupt(log)
    assert name in failed(log)
    assert says in str(verdict(log)[name])


def test_a_session_that_left_while_its_prepared_round_was_committed_is_no_violation():
    """A worker may die between its share of a finished all-reduce and the commit: the others hold the sum."""
    log = good_log()
    contributions = commits(log)[2]["stages"][1]["contributions"]
    contributions["21"] = contributions.pop("22")
    assert failed(log) == set()


def test_a_restarted_trainer_is_no_violation():
    log = good_log()
    start = next(record for record in log if record["event"] == "start")
    log.insert(8, {**start, "generation": 2})
    for record in log[9:]:
        for of in record.get("stages", [record]):
            if "round" in of:
                of["round"] += 1 << 32
    assert failed(log) == set()


def test_kinds_and_fields_of_newer_versions_are_ignored():
    log = good_log()
    log.insert(8, {"event": "rebalance", "from": 1})
    commits(log)[0]["weather"] = "fine"
    assert failed(log) == set()


def test_a_run_that_was_cut_short_is_valid_as_far_as_it_came():
    log = good_log()[:-2]
    assert failed(log) == set()
    assert "cut short" in str(verdict(log)["end"])
    started = [record for record in log if record["event"] in {"start", "join"}]
    assert failed(started) == set()
    assert "before the first step was committed: the run was cut short" in str(verdict(started)["end"])


def test_many_problems_are_counted_and_the_first_ones_told():
    log = good_log()
    for commit in commits(log):
        commit["stages"][0]["contributions"] = {}
    text = str(verdict(log)["ledgers"])
    assert text.startswith("FAIL  ledgers   12 problems\n")
    assert text.endswith("and 7 more")


def write(path, log):
    path.write_text("".join(json.dumps(record) + "\n" for record in log))


def test_a_torn_last_line_is_told_and_is_no_violation(tmp_path):
    """What a power cut leaves: every prefix of a good log, cut at any byte of its last line, is valid."""
    path = tmp_path / "events.jsonl"
    write(path, good_log()[:-1])
    whole = path.read_bytes()
    for cut in range(whole[:-1].rfind(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:cut])
        checks = audit(tmp_path)
        assert all(check.is_passed for check in checks), cut
    assert "bytes of a torn last line are not counted" in str(checks[0])


def test_garbage_in_the_middle_and_a_key_that_is_there_twice_are_violations(tmp_path):
    path = tmp_path / "events.jsonl"
    write(path, good_log())
    lines = path.read_bytes().split(b"\n")
    for bad in (b"\x00\xff", b'{"event":', b"[]", b"", b"[" * 100_000, lines[7].replace(b'"11"', b'"10"')):
        path.write_bytes(b"\n".join([*lines[:7], bad, *lines[8:]]))
        assert "line 8: not a JSON object" in str(audit(path)[0])


def test_what_cannot_be_read_is_the_users_to_mend(tmp_path):
    with pytest.raises(UserError, match=r"events\.jsonl: cannot read"):
        audit(tmp_path)
    with pytest.raises(UserError, match="cannot read"):
        audit(tmp_path / "missing")


@given(st.data())
def test_no_change_of_a_ledger_goes_unnoticed(data):
    """Adding, taking away or moving any microbatch of any contribution is a violation."""
    log = good_log()
    contributions = data.draw(
        st.sampled_from([stage["contributions"] for commit in commits(log) for stage in commit["stages"]])
    )
    session = data.draw(st.sampled_from(sorted(contributions)))
    match data.draw(st.sampled_from(["add", "remove", "replace"])):
        case "add":
            contributions[session].append(data.draw(st.integers(0, 8191)))
        case "remove":
            contributions[session].pop(data.draw(st.integers(0, 1)))
        case _:
            at = data.draw(st.integers(0, 1))
            contributions[session][at] = data.draw(
                st.integers(0, 8191).filter(lambda index: index != contributions[session][at])
            )
    assert failed(log) == {"ledgers"}


@given(order=st.permutations(range(len(good_log()))))
def test_no_order_of_commits_but_the_right_one_passes(order):
    log = good_log()
    shuffled = [log[index] for index in order]
    in_order = [record["step"] for record in shuffled if record["event"] == "commit"] == list(range(STEPS))
    assert in_order or failed(shuffled)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@given(st.data())
def test_whatever_a_field_becomes_the_audit_answers(data):
    """Any value in any field of any record gives verdicts, not an exception."""
    log = good_log()
    record = data.draw(st.sampled_from(log))
    if record["event"] == "commit" and data.draw(st.booleans()):
        record = data.draw(st.sampled_from(record["stages"]))
    record[data.draw(st.sampled_from(sorted(record)))] = data.draw(JSON)
    assert all(str(check) for check in verdict(log).values())
