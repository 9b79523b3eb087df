from __future__ import annotations

import pytest

from zswarm.errors import UserError
from zswarm.simulation.churn.preemptions import Change, load_trace, parsed, shipped_trace

GOOD = "# a comment\n0,arrive,a\n\n1.5,arrive,b\n1.5,leave,a\n7,arrive,a\n"


def test_lines_are_changes(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text(GOOD)
    assert load_trace(file) == [
        Change(0.0, True, "a"),
        Change(1.5, True, "b"),
        Change(1.5, False, "a"),
        Change(7.0, True, "a"),
    ]


def test_what_is_written_is_read_again():
    changes = list(parsed(GOOD.splitlines(), "trace"))
    assert list(parsed([str(change) for change in changes], "again")) == changes


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("2,arrive,c", "time goes back from 7 s to 2 s"),
        ("8,arrive,b", "b arrives, but is there already"),
        ("8,leave,c", "c leaves, but is not there"),
        ("8,go,b", "neither arrive nor leave: 'go'"),
        ("-1,leave,b", "no time: '-1'"),
        ("nan,leave,b", "no time: 'nan'"),
        ("inf,leave,b", "no time: 'inf'"),
        ("soon,leave,b", "could not convert string to float: 'soon'"),
        ("8,leave,", "no worker's name: ''"),
        ("8,leave,b,c", "no worker's name: 'b,c'"),
        ("8", "neither arrive nor leave: ''"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(line, what):
    with pytest.raises(UserError) as refusal:
        list(parsed([*GOOD.splitlines(), line], "mine.csv"))
    assert str(refusal.value).startswith(f"mine.csv, line 7: {what}")


def test_a_trace_of_nobody_is_refused():
    with pytest.raises(UserError, match="nobody ever comes"):
        list(parsed(["# nothing"], "mine.csv"))


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    file = tmp_path / "trace.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"trace\.csv: cannot be read"):
        load_trace(file)


def test_the_shipped_trace_is_as_long_and_as_large_as_it_is_said_to_be():
    changes = shipped_trace()
    present, sizes = 0, []
    for change in changes:
        present += 1 if change.is_arrival else -1
        sizes.append(present)
    assert 31.9 < changes[-1].time_s / 3600.0 <= 32.0
    begun = sum(change.time_s == 0.0 for change in changes)
    assert begun > 300
    assert 150 < min(sizes[begun:]) < 200
    assert 350 < max(sizes) < 400
