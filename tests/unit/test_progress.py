from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys

from zswarm.trainer.progress import Progress, StepReport


class Terminal(io.StringIO):
    def isatty(self):
        return True


def report(step, **changed):
    fields = {
        "step": step,
        "loss": 5.5 - step,
        "lr": 0.001,
        "grad_norm": 2.0,
        "tokens_per_s": 12345.6,
        "num_in_flight": 16,
        "workers": (2, 2, 1),
        "time_left_s": 3700.2,
    }
    return StepReport(**{**fields, **changed})


def test_without_a_terminal_each_step_is_one_json_object_on_a_line(capsys):
    stream = io.StringIO()
    with Progress("tiny", steps=3, stream=stream) as progress:
        progress.say("held-out loss 5.5")
        progress.update(report(1))
        progress.update(report(2, loss=float("nan"), grad_norm=float("inf")))
    first, second = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert first == {
        "step": 1,
        "loss": 4.5,
        "lr": 0.001,
        "grad_norm": 2.0,
        "tokens_per_s": 12345.6,
        "num_in_flight": 16,
        "workers": [2, 2, 1],
        "time_left_s": 3700.2,
    }
    assert (second["loss"], second["grad_norm"]) == (None, None)
    assert capsys.readouterr().err == "held-out loss 5.5\n"


def test_lines_can_be_read_while_the_run_goes_on():
    """Every line is flushed: a reader at the other end of a pipe sees the step when it is committed."""
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stream, Progress("tiny", steps=3, stream=stream) as progress:
        progress.update(report(1))
        assert json.loads(os.read(read_end, 65536))["step"] == 1
    os.close(read_end)


def test_on_a_terminal_one_line_says_everything_and_the_cursor_comes_back(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress("tiny [/]", steps=3, stream=stream) as progress:
        progress.say("held-out loss [5.5]")
        progress.update(report(1))
        progress.update(report(2))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "held-out loss [5.5]" in shown
    last = shown.strip().splitlines()[-1]
    for part in ("tiny [/]", "3/3", "loss 3.5000", "12,346 tokens/s", "16 in flight", "workers 2/2/1", "1:01:40 left"):
        assert part in last
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1


def test_many_stages_are_summed_up(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    with Progress("wide", steps=3, stream=stream) as progress:
        progress.update(report(1, workers=(3, *[2] * 20), time_left_s=59.6))
    assert "workers 2..3 in 21 stages" in stream.getvalue()
    assert "1:00 left" in stream.getvalue()


def test_what_is_not_known_yet_is_left_out(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    with Progress("new", steps=3, stream=stream) as progress:
        progress.update(report(0, tokens_per_s=None, time_left_s=None))
    assert "loss 5.5000  16 in flight  workers 2/2/1" in stream.getvalue()
    assert "None" not in stream.getvalue()


def test_losing_the_reader_ends_the_output_and_not_the_run():
    """`zswarm local ... | head -1` trains to the end, exits with its own code, and prints no traceback."""
    script = (
        "from zswarm.trainer.progress import Progress, StepReport\n"
        "import sys\n"
        "sys.stdin.readline()\n"
        "with Progress('tiny', steps=3) as progress:\n"
        "    for step in range(3):\n"
        "        progress.update(StepReport(step=step, loss=1.0, lr=0.1, grad_norm=1.0, tokens_per_s=1.0,\n"
        "                                   num_in_flight=0, workers=(1,), time_left_s=1.0))\n"
        "sys.exit(7)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 7
