from __future__ import annotations

import io
import json
import threading

import pytest
import structlog

from zswarm.errors import UserError
from zswarm.logs import get_log, set_up_logs


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _defaults():
    yield
    structlog.reset_defaults()


def records(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_file_gets_one_json_object_per_line_with_the_node():
    stream = io.StringIO()
    set_up_logs("worker-3", stream=stream)
    get_log(stage=2).info("joined", session=17, digest=b"\xff")
    (record,) = records(stream)
    assert record.items() >= {"event": "joined", "node": "worker-3", "stage": 2, "session": 17, "level": "info"}.items()
    assert record["timestamp"].endswith("Z")


def test_records_of_every_thread_name_the_node():
    """Bound context variables are not seen by a thread that was started before or after."""
    stream = io.StringIO()
    set_up_logs("worker-3", stream=stream)
    thread = threading.Thread(target=lambda: get_log().warning("from the compute thread"))
    thread.start()
    thread.join()
    assert records(stream)[0]["node"] == "worker-3"


def test_a_terminal_gets_lines_for_people():
    stream = Terminal()
    set_up_logs("broker-1", stream=stream)
    get_log().warning("queue is full", depth=3)
    (line,) = stream.getvalue().splitlines()
    assert "queue is full" in line
    assert "broker-1" in line
    assert not line.startswith("{")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_a_traceback_shows_no_values_of_variables(stream):
    """A secret that is a local variable where an exception passes must not reach the log."""
    set_up_logs("worker-3", stream=stream)

    def fail(secret):
        raise ValueError("wrong")

    try:
        fail("hunter" + str(2))
    except ValueError:
        get_log().exception("failed")
    assert "ValueError" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_records_below_the_level_are_dropped():
    stream = io.StringIO()
    set_up_logs("trainer", level="warning", stream=stream)
    get_log().info("not this")
    get_log().error("but this")
    assert [record["event"] for record in records(stream)] == ["but this"]


def test_an_unknown_level_is_the_users_to_mend():
    with pytest.raises(UserError, match="'loud' is unknown: write one of debug, info, warning, error"):
        set_up_logs("trainer", level="loud")
