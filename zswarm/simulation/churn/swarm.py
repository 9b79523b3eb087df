"""A swarm under churn, from event to event, at the level of rates.

    trace       somebody comes, is placed, downloads its stage's state, computes; somebody is gone
    download    ends: its worker computes from now on
    step ends   when its microbatches are through; the planner is asked, and who is to move begins to download

Between two events nothing changes, and the pipeline does as many microbatches per second as its slowest stage. Who
downloads computes nothing; who gives computes as before. A stage in which nobody is ready stops the pipeline; then the
coordinator looks at the swarm again every EMPTY_STAGE_HEARTBEATS, and newcomers get the state from the trainer. That
such a swarm goes back to a checkpoint, what is done again after a loss, and the bubble at a step's end are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from random import Random
from typing import TypeVar

from zswarm import limits
from zswarm.ids import Session, Stage
from zswarm.planning.placement import place
from zswarm.planning.rates import optimal_throughput
from zswarm.planning.view import Move, SwarmView
from zswarm.simulation.churn.backlog import draw_backlog
from zswarm.simulation.churn.downloads import Downloads
from zswarm.simulation.churn.observer import Observer
from zswarm.simulation.churn.preemptions import Change
from zswarm.simulation.churn.setting import Leavers, Outcome, Placement, Policy, Setting

T = TypeVar("T")
JOBS_PER_MICROBATCH = 2


class Event(Enum):
    """What happens besides the trace and the ends of downloads."""

    STEP_ENDS = auto()
    STALLED = auto()
    """The coordinator looks at a swarm that does nothing."""
    PLAN = auto()
    """A planner's time has come that does not wait for the end of a step."""


@dataclass(slots=True)
class Machine:
    """A worker as it really is."""

    session: Session
    speed: float
    """Costs per second."""
    stage: Stage
    is_ready: bool = False
    is_mover: bool = False
    """It is not ready because it has moved."""


class ChurningSwarm:
    """See the module; `run` may be called once."""

    def __init__(self, setting: Setting, policy: Policy, seed: int) -> None:
        self._setting = setting
        self._policy = policy
        self._seed = seed
        self._random = Random(f"churn {seed}")
        self._planner = policy.planner()
        self._observer = Observer(setting, self._random)
        self._machines: dict[Session, Machine] = {}
        self._named: dict[str, Session] = {}
        self._num_joins = 0
        self._stages = [Stage(stage) for stage in range(setting.num_stages)]
        self._num_ready = [0 for _ in self._stages]
        self._ready_speed = [0.0 for _ in self._stages]
        """Sum of the speeds of those who compute."""
        self._downloads = [Downloads(setting.state_bytes, setting.bandwidth_bytes_per_s) for _ in self._stages]
        self._optima: dict[int, float] = {}
        self._now = 0.0
        self._throughput = self._optimum = 0.0
        self._done = self._optimal = self._stalled_s = 0.0
        self._left_of_step = float(setting.num_microbatches)
        self._num_steps = self._num_moves = self._num_lost_moves = 0

    # -- time ----------------------------------------------------------------------------------------

    def run(self, trace: Sequence[Change]) -> Outcome:
        """Live through a trace."""
        for change in trace:
            while (event := self._next_event())[0] < change.time_s:
                self._pass(event[0])
                self._happen(event[1])
            self._pass(change.time_s)
            if change.is_arrival:
                self._join(change.worker)
            else:
                self._leave(change.worker)
            self._optimum = self._best_throughput()
            self._settle()
        return Outcome(
            policy=self._policy.name,
            seed=self._seed,
            duration_s=self._now,
            microbatches=self._done,
            optimal_microbatches=self._optimal,
            num_steps=self._num_steps,
            num_joins=self._num_joins,
            num_moves=self._num_moves,
            num_lost_moves=self._num_lost_moves,
            downloaded_bytes=sum(downloads.taken_bytes for downloads in self._downloads),
            stalled_s=self._stalled_s,
        )

    def _next_event(self) -> tuple[float, Event | Stage]:
        """Return when something happens next, and what; a stage stands for the end of a download there."""
        if self._throughput > 0.0:
            at_s, event = self._now + self._left_of_step / self._throughput, Event.STEP_ENDS
        else:
            at_s, event = self._now + limits.EMPTY_STAGE_HEARTBEATS * self._setting.heartbeat_s, Event.STALLED
        first: tuple[float, Event | Stage] = (at_s, event)
        if not self._setting.waits_for_steps and self._planner.next_plan_s < at_s:
            first = (max(self._planner.next_plan_s, self._now), Event.PLAN)
        for stage, downloads in zip(self._stages, self._downloads, strict=True):
            if (end_s := downloads.next_s()) < first[0]:
                first = (end_s, stage)
        return first

    def _pass(self, now: float) -> None:
        """Let time pass until now: nothing happens meanwhile."""
        span_s = now - self._now
        done = self._throughput * span_s
        self._done += done
        self._left_of_step = max(self._left_of_step - done, 0.0)
        self._optimal += self._optimum * span_s
        if self._throughput == 0.0:
            self._stalled_s += span_s
        for downloads in self._downloads:
            downloads.serve(now)
        self._now = now

    def _happen(self, event: Event | Stage) -> None:
        if event is Event.STEP_ENDS:
            self._num_steps += 1
            self._left_of_step = float(self._setting.num_microbatches)
        if isinstance(event, Event):
            self._plan()
        else:
            self._arrive(self._machines[self._downloads[event].end()])
        self._settle()

    def _settle(self) -> None:
        """Let everything follow from who is ready where."""
        self._throughput = min(self._rates())
        for downloads, num_ready in zip(self._downloads, self._num_ready, strict=True):
            downloads.num_givers = num_ready

    def _rates(self) -> list[float]:
        """Return the microbatches/s of each stage; exactly 0 where nobody is."""
        parts = zip(self._num_ready, self._ready_speed, self._setting.costs, strict=True)
        return [speed / cost if num_ready else 0.0 for num_ready, speed, cost in parts]

    def _best_throughput(self) -> float:
        speeds = [machine.speed for machine in self._machines.values()]
        if len(self._setting.speeds) > 1:
            return optimal_throughput(speeds, self._setting.costs)
        if len(speeds) not in self._optima:
            self._optima[len(speeds)] = optimal_throughput(speeds, self._setting.costs)
        return self._optima[len(speeds)]

    # -- workers -------------------------------------------------------------------------------------

    def _join(self, name: str) -> None:
        """Somebody comes; who is there from the beginning has fresh parameters, and is where it is needed."""
        relative = self._setting.speeds[self._num_joins % len(self._setting.speeds)]
        self._num_joins += 1
        session = Session(self._num_joins)
        is_first = self._now == 0.0
        machine = Machine(session, relative / self._setting.microbatch_s, self._place(is_first=is_first))
        self._machines[session] = machine
        self._named[name] = session
        self._observer.join(session, machine.stage, self._job_s(machine), self._now)
        if is_first:
            self._arrive(machine)
        else:
            self._downloads[machine.stage].begin(session)

    def _place(self, *, is_first: bool) -> Stage:
        if is_first:
            rates = self._rates()
            return Stage(rates.index(min(rates)))
        if self._policy.placement is Placement.RANDOM:
            return self._drawn(self._stages)
        return place(self._view())

    def _arrive(self, machine: Machine) -> None:
        """Its download has ended."""
        machine.is_ready, machine.is_mover = True, False
        self._num_ready[machine.stage] += 1
        self._ready_speed[machine.stage] += machine.speed
        self._observer.ready(machine.session, self._now)

    def _stop(self, machine: Machine) -> None:
        """It computes no more, nor downloads."""
        if machine.is_ready:
            self._num_ready[machine.stage] -= 1
            self._ready_speed[machine.stage] -= machine.speed
        else:
            self._downloads[machine.stage].give_up(machine.session)
        machine.is_ready = False

    def _leave(self, name: str) -> None:
        session = self._named.pop(name)
        if self._setting.leavers is Leavers.OF_ANY_STAGE:
            session = self._drawn_leaver()
        machine = self._machines.pop(session)
        self._num_lost_moves += machine.is_mover
        self._stop(machine)
        self._observer.leave(session, self._now)

    def _drawn_leaver(self) -> Session:
        present: dict[Stage, list[Session]] = {}
        for machine in self._machines.values():
            present.setdefault(machine.stage, []).append(machine.session)
        return self._drawn(present[self._drawn(sorted(present))])

    def _drawn(self, choices: Sequence[T]) -> T:
        return choices[int(self._random.random() * len(choices))]

    def _job_s(self, machine: Machine) -> float:
        return self._setting.costs[machine.stage] / (machine.speed * JOBS_PER_MICROBATCH)

    # -- the coordinator -----------------------------------------------------------------------------

    def _plan(self) -> None:
        """Ask the planner, if it wants to be asked, and carry out what it says."""
        if self._now < self._planner.next_plan_s:
            return
        rates = self._rates()
        self._observer.measure(self._now, [self._throughput / rate if rate > 0.0 else 0.0 for rate in rates])
        plan = self._planner.plan(self._view(), self._now)
        for move in plan if isinstance(plan, list) else []:
            machine = self._machines.get(move.session)
            if machine is not None:  # otherwise it is gone, and nobody has noticed yet
                self._move(machine, move)

    def _move(self, machine: Machine, move: Move) -> None:
        assert machine.is_ready
        assert machine.stage == move.source
        self._stop(machine)
        machine.stage, machine.is_mover = move.target, True
        self._num_moves += 1
        self._downloads[machine.stage].begin(machine.session)
        self._observer.move(machine.session, machine.stage, self._job_s(machine), self._now)

    def _view(self) -> SwarmView:
        rates = self._rates()
        num_computing = self._throughput * sum(n / rate for n, rate in zip(self._num_ready, rates, strict=True) if n)
        num_waiting = self._setting.window * len(self._machines) - round(num_computing)
        return self._observer.view(self._now, waiting=draw_backlog(rates, max(num_waiting, 0), self._random))
