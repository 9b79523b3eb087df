from __future__ import annotations

import os

import pytest

from zswarm.benchmarks.children import Children
from zswarm.errors import RunFailed

ECHO = ("-c", "import sys; print(sys.stdin.readline().strip() + sys.argv[1], flush=True)")
DEAF = ("-c", "import sys; print('ready', flush=True); sys.stdin.read()")


def test_children_hear_a_line_and_answer():
    """What is written goes to each, what each says is kept apart."""
    with Children([(*ECHO, " one"), (*ECHO, " two")], deadline_s=60) as children:
        children.write_line("go")
        assert children.read_lines() == ["go one", "go two"]
        assert children.wait(0) == ""


def test_a_failure_is_told_in_the_child_s_words():
    """The reader of a child that failed gets its exit code and what it said last."""
    with (
        Children([("-c", "raise SystemExit('no such model')")], deadline_s=60) as children,
        pytest.raises(RunFailed, match=r"(?s)ended with exit code 1.*no such model"),
    ):
        children.read_line(0)


def test_whoever_outlives_the_deadline_is_killed():
    """A child that hangs ends the benchmark with a message instead of hanging it."""
    with Children([DEAF], deadline_s=0.5) as children, pytest.raises(RunFailed, match="was killed after"):
        children.wait(0)


def test_leaving_kills_who_is_left():
    """No process outlives its measurement."""
    with Children([DEAF], deadline_s=60) as children:
        children.read_line(0)
        pid = children.pid(0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes")
def test_a_child_can_be_pinned():
    """It runs on its core alone, and its parent goes on where it was."""
    before = os.sched_getaffinity(0)
    core = max(before)
    with Children([("-c", "import os; print(*os.sched_getaffinity(0))")], deadline_s=60, cores=[core]) as children:
        assert children.read_line(0) == str(core)
    assert os.sched_getaffinity(0) == before
