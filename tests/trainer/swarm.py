"""A trainer's coordinator, its clock, and the processes of `settings()` that speak with it."""

from __future__ import annotations

from typing import Any, Self

from tests.letters import broker_heartbeat, heartbeat, load, of_type, prepared, register, state
from tests.trainer.settings import settings
from zswarm.ids import STATE_FILES, Address, Role
from zswarm.machine import Received, Send, Tick
from zswarm.messages import Prepare
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.recovery import recover
from zswarm.trainer.settings import Append, Sample, Sampled, Sealed

WORKERS = (1, 2)
BROKERS = (3, 4)
"""Of stages 0 and 1; sessions in the order of registering."""
FULL = 0b1111
HALF_S = 0.5
"""Half a heartbeat: how often the coordinator wants to do something."""


class Trainer:
    """See the module. `log` holds everything that the coordinator has ever asked for."""

    def __init__(self, **changes: Any) -> None:
        self.now_s = 0.0
        self.settings = settings(**changes)
        self.machine = Coordinator(self.settings, random=lambda: 0.0)
        self.log: list[Any] = []
        self.says: dict[int, dict[str, Any]] = {}
        """What each process has reported last, which it goes on to say."""
        self.num_reports = 0

    @classmethod
    def of_three(cls, **changes: Any) -> Self:
        """Return a run of two workers of stage 0 (sessions 1 and 5, nodes w0 and w2), one of stage 1 (2, w1), and a broker of each
        (3 and 4)."""
        trainer = cls(**changes)
        trainer.gather()
        trainer.join("w2")
        trainer.report(5)
        return trainer

    def do(self, event: Any) -> list[Any]:
        """Hand over an event; samples are drawn at once."""
        commands = self.machine.handle(event, self.now_s)
        self.log += commands
        for sample in of_type(commands, Sample):
            drawn = Sampled(purpose=sample.purpose, step=sample.step, microbatch=sample.microbatch, load=load("x"))
            commands = commands + self.do(drawn)
        return commands

    def get(self, message: Any, peer: str | None = None, frames: Any = ()) -> list[Any]:
        """Let a message come over the link of its sender."""
        return self.do(Received(peer=Address(peer or f"sim://{message.session}"), message=message, frames=frames))

    def tick(self, now_s: float) -> list[Any]:
        """Let the clock show this time."""
        self.now_s = now_s
        return self.do(Tick())

    def live(self, duration_s: float) -> list[Any]:
        """Let time pass while everybody who has reported says the same again each half heartbeat."""
        commands = []
        for _ in range(round(duration_s / HALF_S)):
            self.now_s += HALF_S
            for session in list(self.says):
                commands += self.report(session, **self.says[session])
            commands += self.do(Tick())
        return commands

    def dies(self, session: int) -> list[Any]:
        """Let a process fall silent and the others go on until it is given up."""
        del self.says[session]
        return self.live(5.0)

    # -- processes -----------------------------------------------------------------------------------

    def join(self, node: str, role: Role = Role.WORKER, **of: Any) -> list[Any]:
        """Let a process register."""
        return self.get(register(node, role=role, **of), peer=f"sim://{node}")

    def enroll(self) -> None:
        """Let everybody register."""
        for index in range(2):
            self.join(f"w{index}")
        for index in range(2):
            self.join(f"b{index}", Role.BROKER)

    def gather(self) -> list[Any]:
        """Let everybody register and be ready; returns what follows from the last report."""
        self.enroll()
        for session in BROKERS:
            self.report(session)
        return [command for session in WORKERS for command in self.report(session)]

    def report(self, session: int, counted: int | None = None, **of: Any) -> list[Any]:
        """Let a process report, with the present view unless another is given."""
        if counted is not None:
            of["counted"] = counted
        self.says[session] = of
        self.num_reports += 1
        record = self.machine.roster.records.get(session)
        make = broker_heartbeat if record is not None and record.role is Role.BROKER else heartbeat
        standard = {"view": self.machine.roster.view, "generation": self.settings.generation}
        return self.get(make(session, self.num_reports, **(standard | of)))

    def rounds(self) -> dict[int, int]:
        """Return the newest round that each process was asked to prepare."""
        sends = [command for command in self.log if isinstance(command, Send)]
        asked = [send.message for send in sends if isinstance(send.message, Prepare)]
        return {session: message.round for message in asked for session in message.participants}

    def count(self, step: int, **of: Any) -> list[Any]:
        """Let the first worker of each stage count everything."""
        return [command for session in WORKERS for command in self.report(session, FULL, step=step, **of)]

    def prepare(self, session: int, counted: int = FULL, *, step: int, **of: Any) -> list[Any]:
        """Let a worker hold the result of its newest round."""
        return self.get(prepared(session, self.rounds()[session], counted=counted, step=step, loss_sum=2.0, **of))

    def commit(self, step: int, **of: Any) -> list[Any]:
        """Let every stage count and prepare everything; returns what follows from the last Prepared."""
        self.count(step, **of)
        self.prepare(WORKERS[0], step=step, **of)
        return self.prepare(WORKERS[1], step=step, **of)

    def apply(self, step: int, **of: Any) -> list[Any]:
        """Let every worker say that it has applied the commit of the step before `step`."""
        return [command for session in WORKERS for command in self.report(session, step=step, **of)]

    def train(self, first: int = 0, **of: Any) -> None:
        """Take all steps from this one on."""
        for step in range(first, self.settings.steps):
            self.commit(step, **of)
            self.apply(step + 1, **of)

    def give_state(self, step: int, sessions: tuple[int, int] = WORKERS, **of: Any) -> list[Any]:
        """Let a worker of each stage send both parts of its layer; returns what follows from the last of it."""
        commands: list[Any] = []
        for layer, session in enumerate(sessions):
            for part in STATE_FILES:
                message = state(session, layer, 0, 10, 10, part=part, step=step, **of)
                commands = self.get(message, frames=(f"layer {layer}",))
        return commands

    def collect(self, *, branch: int = 0) -> list[Any]:
        """Let the last state come and be written, which ends the run."""
        self.live(1.0)
        self.give_state(self.settings.steps, branch=branch)
        return self.seal(self.settings.steps, branch=branch)

    def seal(self, step: int, *, branch: int = 0, problem: str = "") -> list[Any]:
        """Let the disk say what became of a checkpoint."""
        return self.do(Sealed(branch=branch, step=step, problem=problem))

    # -- another life of the trainer -----------------------------------------------------------------

    def again(self, *, num_commands: int | None = None, **changes: Any) -> Trainer:
        """Return the trainer that takes the run up, from the log as it was after so many commands."""
        records = [command.record for command in self.log[:num_commands] if isinstance(command, Append)]
        found = recover(records)
        assert found is not None
        of = {"generation": found.generation, "first_session": found.next_session, "checkpoint": found.checkpoint}
        after = Trainer(recovered=found, **(of | changes))
        after.num_reports = self.num_reports
        return after


def records(commands: list[Any]) -> list[str]:
    """Return what the commands write into the log, in one word each."""
    return [command.record["event"] for command in commands if isinstance(command, Append)]


def written(commands: list[Any]) -> list[dict[str, Any]]:
    """Return what the commands write into the log."""
    return [command.record for command in commands if isinstance(command, Append)]


def to(commands: list[Any], kind: type) -> list[str]:
    """Return to whom the commands send messages of a kind."""
    return [command.peer for command in commands if isinstance(command, Send) and isinstance(command.message, kind)]
