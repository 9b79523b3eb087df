"""A worker that cannot build its stage on its machine, or may not: the run goes on without it."""

from __future__ import annotations

from dataclasses import replace

from tests.letters import header, of_type
from tests.trainer.swarm import WORKERS, Trainer, to, written
from zswarm.audit import Audit
from zswarm.ids import RejectCode
from zswarm.json_lines import Line
from zswarm.machine import Exit
from zswarm.messages import Fence, Reject, Welcome
from zswarm.trainer.recovery import recover
from zswarm.trainer.sentences import Narrator

TEXT = "model.factory = 'lab:build' is code of the module lab, which ... `zswarm worker --allow lab`"


def resigns(trainer: Trainer, session: int) -> list:
    """Let a worker say that it is unfit."""
    of = {"generation": trainer.settings.generation}
    return trainer.get(Reject(**header(session, **of), code=RejectCode.UNFIT, text=TEXT))


def test_it_leaves_with_its_own_words_and_the_run_waits_for_another_one():
    """Nothing else happens: one bad machine does not end a run."""
    trainer = Trainer()
    trainer.enroll()
    commands = resigns(trainer, WORKERS[0])
    (leave,) = [record for record in written(commands) if record["event"] == "leave"]
    assert (leave["session"], leave["node"]) == (WORKERS[0], "w0")
    assert TEXT in leave["reason"]
    assert WORKERS[0] not in trainer.machine.roster.records
    assert not of_type(trainer.live(30.0), Exit)
    assert of_type(trainer.join("w9"), Welcome)


def test_its_user_reads_machine_and_cure():
    """One line, before the run has begun, too."""
    trainer = Trainer()
    trainer.enroll()
    (leave,) = [record for record in written(resigns(trainer, WORKERS[0])) if record["event"] == "leave"]
    sentence = Narrator().sentence(leave)
    assert sentence.startswith("w0 (stage 0) is gone: it takes no part: model.factory")
    assert sentence.endswith("`zswarm worker --allow lab`")


def test_the_run_goes_on_to_its_end_and_passes_the_audit():
    """Somebody new is unfit in the middle of it; log and audit take it as a leave."""
    trainer = Trainer()
    trainer.gather()
    trainer.join("w9")
    (newest,) = set(trainer.machine.roster.records) - {1, 2, 3, 4}
    resigns(trainer, newest)
    trainer.train()
    trainer.collect()
    assert of_type(trainer.log, Exit) or of_type(trainer.live(5.0), Exit)
    log = written(trainer.log)
    assert recover(log).step == trainer.settings.steps
    lines = [Line(number=number, record=record) for number, record in enumerate(log, 1)]
    assert [str(check) for check in Audit(lines, torn_bytes=0).checks if not check.is_passed] == []


def test_who_is_unfit_and_was_given_up_meanwhile_is_only_fenced():
    """Its session says nothing any more."""
    trainer = Trainer()
    trainer.enroll()
    resigns(trainer, WORKERS[0])
    again = resigns(trainer, WORKERS[0])
    assert (written(again), to(again, Fence)) == ([], ["sim://1"])


def test_a_word_of_another_run_is_nobodys():
    """Sessions begin with 1 in every run."""
    trainer = Trainer()
    trainer.enroll()
    message = Reject(**header(WORKERS[0]), code=RejectCode.UNFIT, text=TEXT)
    assert trainer.get(replace(message, run=message.run + 1)) == []
    assert WORKERS[0] in trainer.machine.roster.records
