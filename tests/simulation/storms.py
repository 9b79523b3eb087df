"""Schedules in which much goes wrong at once: small swarms, late and repeated messages, and everybody dies or freezes.

What a mutant breaks may need three coincidences; here they are more frequent than among the schedules that are
meant to find what nobody has thought of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from zswarm.simulation.faults import HOOKS, LASTS_S, Fault, Strike
from zswarm.simulation.network import Weather
from zswarm.simulation.poison import Poison
from zswarm.simulation.schedule import Schedule
from zswarm.simulation.symbolic import Pace

STRUCK = (
    *(Fault.KILL_WORKER, Fault.KILL_WORKER, Fault.KILL_BROKER, Fault.KILL_TRAINER, Fault.KILL_TRAINER),
    *(Fault.FREEZE, Fault.FREEZE, Fault.PARTITION, Fault.RESET, Fault.WIPE_STAGE, Fault.HANG),
)
CALM_FROM_S = 9.0
STEPS = 3


def storm(seed: int) -> Schedule:
    """Draw one."""
    random = Random(f"storm {seed}")
    strikes = []
    for _ in range(random.randint(2, 6)):
        fault = random.choice(STRUCK)
        low_s, high_s = LASTS_S[fault]
        strikes.append(
            Strike(
                fault=fault,
                at_s=round(random.uniform(0.8, 5.0), 3),
                lasts_s=round(random.uniform(low_s, min(4.5, high_s)), 3),
                salt=random.getrandbits(32),
                hook=random.choice(HOOKS[fault]) if fault in HOOKS and random.random() < 0.5 else "",
            )
        )
    stages, workers, microbatches = random.choice((1, 2, 2, 3)), random.choice((1, 2, 2, 3)), random.choice((2, 4, 6))
    poison = Poison(
        step=random.randrange(STEPS),
        microbatch=random.randrange(microbatches),
        stage=random.randrange(stages),
        num_workers=1,
    )
    return Schedule(
        seed=seed,
        faults=frozenset({strike.fault for strike in strikes} | {Fault.DISK, Fault.STRAGGLING, Fault.DUPLICATION}),
        num_stages=stages,
        brokers_per_stage=random.choice((1, 2, 2)),
        workers_per_stage=workers,
        late_brokers=0,
        late_workers=0,
        num_microbatches=microbatches,
        steps=STEPS,
        num_held_out=0,
        grad_clip=1.0,
        wiring="uniform",
        window=0,
        capacity_bytes=random.choice((6000, 100_000)),
        weather=Weather(
            latency_high_s=0.1,
            jitter=1.0,
            loss=random.choice((0.0, 0.05, 0.2)),
            duplication=0.3,
            straggling=random.choice((0.05, 0.2)),
            straggle_s=random.choice((0.5, 2.0, 6.0)),
            in_order=False,
            fair_from_s=CALM_FROM_S,
        ),
        pace=Pace(forward_s=random.choice((0.05, 0.1, 0.2)), jitter=1.0, keep=0.5, evict=0.2),
        slowness=random.choice((1.0, 3.0)),
        drains=False,
        interrupted_at_s=None,
        codec_one_in=50,
        layers_per_stage=(),
        checkpoint_every=random.choice((0, 1)),
        poisons=(poison,) if workers > 1 else (),
        strikes=tuple(strikes),
        calm_from_s=CALM_FROM_S,
    )


CALM = replace(
    storm(0),
    faults=frozenset(),
    strikes=(),
    poisons=(),
    num_stages=2,
    brokers_per_stage=2,
    workers_per_stage=2,
    num_microbatches=6,
    capacity_bytes=100_000,
    weather=Weather(),
    pace=Pace(forward_s=0.1),
    slowness=1.0,
    checkpoint_every=1,
)


def _strike(fault: Fault, at_s: float, lasts_s: float, salt: int, hook: str = "") -> Strike:
    return Strike(fault=fault, at_s=at_s, lasts_s=lasts_s, salt=salt, hook=hook)


def _forwards_sent_on(seed: int) -> Schedule:
    """Workers die between sending a forward on and telling their broker that it is done."""
    strikes = tuple(_strike(Fault.KILL_WORKER, 1.2 + 0.4 * turn, 0.5, seed, "after Forward") for turn in range(3))
    return replace(CALM, seed=seed, strikes=strikes)


def _leave_forgotten(seed: int) -> Schedule:
    """The trainer's machine loses power right after everybody has heard that a frozen worker was given up."""
    strikes = (
        _strike(Fault.FREEZE, 3.0, 5.0, seed, "on Job"),
        _strike(Fault.KILL_TRAINER, 6.0 + 0.03 * (seed % 20), 0.1, seed, "after sends"),
    )
    pace, faults = Pace(forward_s=0.3), frozenset({Fault.DISK})
    return replace(CALM, seed=seed, faults=faults, num_microbatches=16, pace=pace, calm_from_s=14.0, strikes=strikes)


def _pull_lost(seed: int) -> Schedule:
    """Nobody but the checkpoint has a stage's state, and a message in fifteen is lost."""
    return replace(
        CALM,
        seed=seed,
        brokers_per_stage=1,
        workers_per_stage=1,
        num_microbatches=3,
        steps=6,
        layers_per_stage=(2, 2),
        pace=Pace(forward_s=0.2),
        weather=Weather(loss=0.06, fair_from_s=14.0),
        calm_from_s=14.0,
        strikes=(_strike(Fault.WIPE_STAGE, 7.0 + 0.2 * (seed % 15), 0.3, seed),),
    )


def _jobs_come_late(seed: int) -> Schedule:
    """Workers begin new lives all the time, and every other message comes once more, late."""
    poisons = tuple(
        Poison(step=step, microbatch=microbatch, stage=1, num_workers=1)
        for step in range(STEPS)
        for microbatch in range(0, 12, 3)
    )
    return replace(
        CALM,
        seed=seed,
        workers_per_stage=3,
        num_microbatches=12,
        weather=Weather(duplication=0.5, straggle_s=1.5, in_order=False, fair_from_s=30.0),
        poisons=poisons,
    )


def _voided_on_the_way(seed: int) -> Schedule:
    """A trainer that is started again finds in nobody's report what is on its way over slow links, and brokers are full."""
    random = Random(f"voided {seed}")
    drawn = storm(seed)
    return replace(
        drawn,
        faults=frozenset({Fault.KILL_TRAINER, Fault.STRAGGLING, Fault.DUPLICATION}),
        strikes=tuple(
            _strike(
                Fault.KILL_TRAINER,
                round(random.uniform(0.8, 6.0), 3),
                round(random.uniform(0.05, 0.5), 3),
                random.getrandbits(32),
            )
            for _ in range(6)
        ),
        poisons=(),
        num_stages=2,
        brokers_per_stage=2,
        workers_per_stage=3,
        num_microbatches=6,
        steps=5,
        capacity_bytes=6000,
        weather=replace(
            drawn.weather,
            latency_high_s=random.choice((0.05, 0.1, 0.2)),
            payload_factor=random.choice((3.0, 6.0, 10.0)),
            jitter=random.choice((0.1, 1.0)),
            loss=0.0,
            straggling=random.choice((0.0, 0.0, 0.3)),
            straggle_s=random.choice((1.0, 3.0)),
        ),
        pace=replace(drawn.pace, forward_s=random.choice((0.05, 0.2, 0.5))),
        slowness=random.choice((1.0, 3.0)),
    )


def _leave_on_purpose(seed: int) -> Schedule:
    """Nothing goes wrong but that links are slow: processes leave one after the other in the middle of steps."""
    random = Random(f"leaves {seed}")
    strikes = [
        _strike(
            random.choice((Fault.LEAVE_WORKER, Fault.LEAVE_WORKER, Fault.LEAVE_BROKER)),
            round(random.uniform(2.0, 8.0), 3),
            0.5,
            4 * random.getrandbits(30) + 1,
        )
        for _ in range(random.randint(2, 6))
    ]
    return replace(
        CALM,
        seed=seed,
        workers_per_stage=random.choice((2, 3)),
        num_microbatches=12,
        checkpoint_every=0,
        weather=Weather(latency_high_s=random.choice((0.02, 0.1)), jitter=1.0, in_order=False),
        pace=Pace(forward_s=random.choice((0.05, 0.1))),
        calm_from_s=9.0,
        steps=6,
        strikes=tuple(sorted(strikes, key=lambda strike: strike.at_s)),
    )


def _brokers_leave_between_steps(seed: int) -> Schedule:
    """Brokers are asked to leave when they hear of a new step, which is when they are empty."""
    schedule = _leave_on_purpose(seed)
    strikes = tuple(
        replace(_strike(Fault.LEAVE_BROKER, 2.0 + 1.2 * turn, 0.5, 4 * seed + 1, "on Ready"), node=f"broker-{turn}")
        for turn in range(4)
    )
    return replace(schedule, strikes=strikes, weather=replace(schedule.weather, latency_high_s=0.1))


def _all_of_a_stage_leave(seed: int) -> Schedule:
    """Three of four workers are asked to leave, almost at once."""
    random = Random(f"three leave {seed}")
    at_s = random.uniform(3.5, 6.0)
    strikes = tuple(
        replace(
            _strike(Fault.LEAVE_WORKER, round(at_s + random.random(), 3), 2.0, 4 * seed + 1), node=f"worker-{index}"
        )
        for index in random.sample(range(4), 3)
    )
    return replace(_leave_on_purpose(seed), workers_per_stage=2, strikes=strikes)


def _moved_about(seed: int) -> Schedule:
    """Workers are moved again and again, and nothing goes wrong."""
    random = Random(f"moves {seed}")
    strikes = tuple(
        _strike(Fault.MOVE, round(random.uniform(2.0, 9.0), 3), 0.0, random.getrandbits(32))
        for _ in range(random.randint(3, 8))
    )
    return replace(_leave_on_purpose(seed), strikes=tuple(sorted(strikes, key=lambda strike: strike.at_s)))


def _frozen_while_it_loads(seed: int) -> Schedule:
    """Workers that come late are frozen in the middle of a load, while others take several steps."""
    strikes = []
    for turn in range(6):
        at_s = 1.5 + 3.0 * turn + 0.1 * (seed % 10)
        strikes.append(_strike(Fault.KILL_WORKER, at_s, 0.2, seed + turn))
        strikes.append(_strike(Fault.FREEZE, at_s + 0.3, 1.0 + 0.2 * (seed % 6), seed + turn, "on State"))
    return replace(
        CALM,
        seed=seed,
        workers_per_stage=3,
        num_microbatches=3,
        steps=60,
        checkpoint_every=0,
        layers_per_stage=(4, 4),
        pace=Pace(forward_s=0.02),
        strikes=tuple(strikes),
        calm_from_s=24.0,
    )


def _between_reports(seed: int) -> Schedule:
    """Nothing goes wrong, and jobs are short; but what is sent takes long, so that it is seldom in anybody's queue."""
    return replace(
        CALM,
        seed=seed,
        num_stages=4,
        brokers_per_stage=1,
        workers_per_stage=1,
        num_microbatches=4,
        capacity_bytes=2000,
        layers_per_stage=(),
        weather=Weather(latency_high_s=0.15, payload_factor=5.0, in_order=False),
        pace=Pace(forward_s=0.02, jitter=1.0),
    )


def _handed_over(seed: int) -> Schedule:
    """Workers leave in the middle of long steps, and hand over what they have counted while others, or the trainer, die."""
    random = Random(f"heirs {seed}")
    strikes = []
    for turn in range(random.randint(1, 4)):
        at_s = round(random.uniform(2.0, 12.0), 3)
        strikes.append(_strike(Fault.LEAVE_WORKER, at_s, random.choice((0.5, 3.0)), 4 * random.getrandbits(30) + 1))
        fault = random.choice((None, Fault.KILL_TRAINER, Fault.KILL_WORKER, Fault.KILL_BROKER, Fault.FREEZE))
        if fault is not None:
            hook = random.choice(("", "", "on State", "after Inherit", "after record", "after sends", "on Inherit"))
            is_known = hook in HOOKS[fault]
            after_s = round(at_s + random.uniform(0.0, 2.0), 3)
            strikes.append(_strike(fault, after_s, random.uniform(0.1, 2.0), seed + turn, hook if is_known else ""))
    return replace(
        CALM,
        seed=seed,
        faults=frozenset({strike.fault for strike in strikes}),
        workers_per_stage=random.choice((2, 3)),
        num_microbatches=random.choice((16, 24)),
        checkpoint_every=random.choice((0, 1)),
        weather=Weather(
            latency_high_s=random.choice((0.02, 0.1)),
            jitter=1.0,
            loss=random.choice((0.0, 0.0, 0.05)),
            duplication=random.choice((0.0, 0.2)),
            in_order=False,
            fair_from_s=16.0,
        ),
        pace=Pace(forward_s=random.choice((0.1, 0.2)), jitter=1.0),
        calm_from_s=16.0,
        strikes=tuple(sorted(strikes, key=lambda strike: strike.at_s)),
    )


def _lost_with_copies(seed: int) -> Schedule:
    """Workers are lost in the middle of long steps, and others, or the trainer, while what there are copies of changes hands."""
    random = Random(f"copies {seed}")
    strikes = []
    for turn in range(random.randint(2, 5)):
        fault = random.choice((Fault.KILL_WORKER, Fault.KILL_WORKER, Fault.FREEZE, Fault.PARTITION, Fault.LEAVE_WORKER))
        at_s = round(random.uniform(2.0, 13.0), 3)
        hook = random.choice(("", "", "on State", "after Inherit")) if random.random() < 0.4 else ""
        is_known = hook in HOOKS.get(fault, ())
        strikes.append(_strike(fault, at_s, random.uniform(0.3, 4.0), seed + turn, hook if is_known else ""))
        after = random.choice((None, Fault.KILL_TRAINER, Fault.KILL_WORKER, Fault.KILL_BROKER, Fault.RESET))
        if after is not None:
            after_s = round(at_s + random.uniform(0.0, 4.0), 3)
            strikes.append(_strike(after, after_s, random.uniform(0.1, 2.0), seed - turn))
    return replace(
        CALM,
        seed=seed,
        faults=frozenset({strike.fault for strike in strikes}),
        workers_per_stage=random.choice((2, 2, 3)),
        brokers_per_stage=random.choice((1, 2)),
        num_microbatches=random.choice((16, 24)),
        checkpoint_every=1,
        backup_every_s=random.choice((0.0, 0.0, 1.5)),
        weather=Weather(
            latency_high_s=random.choice((0.02, 0.1, 0.3)),
            jitter=1.0,
            loss=random.choice((0.0, 0.05)),
            duplication=random.choice((0.0, 0.2)),
            straggling=random.choice((0.0, 0.05, 0.15)),
            straggle_s=random.choice((0.5, 1.0, 2.0)),
            in_order=False,
            fair_from_s=20.0,
        ),
        pace=Pace(forward_s=random.choice((0.1, 0.2)), jitter=1.0),
        calm_from_s=20.0,
        strikes=tuple(sorted(strikes, key=lambda strike: strike.at_s)),
    )


def _half_told_of_heirs(seed: int) -> Schedule:
    """The trainer dies while it tells who is whose heir, and knows of it only by its log."""
    random = Random(f"half told {seed}")
    strikes = []
    for turn in range(4):
        at_s = 2.0 + 2.5 * turn
        strikes.append(_strike(Fault.LEAVE_WORKER, at_s, 0.5, 4 * random.getrandbits(30) + 1))
        strikes.append(_strike(Fault.KILL_TRAINER, at_s + random.uniform(0.1, 1.5), 0.1, seed + turn, "amid sends"))
    return replace(
        CALM,
        seed=seed,
        workers_per_stage=3,
        num_microbatches=24,
        checkpoint_every=0,
        pace=Pace(forward_s=0.1),
        calm_from_s=16.0,
        strikes=tuple(sorted(strikes, key=lambda strike: strike.at_s)),
    )


AIMED: dict[str, Callable[[int], Schedule]] = {
    "forward-sent-on-again": _forwards_sent_on,
    "leave-not-durable": _leave_forgotten,
    "pulls-once": _pull_lost,
    "job-of-an-old-life": _jobs_come_late,
    "void-forgotten": _voided_on_the_way,
    "void-answered-in-a-job": _voided_on_the_way,
    "replay-unvoided": _voided_on_the_way,
    "leaver-takes-jobs": _leave_on_purpose,
    "idle-too-early": _leave_on_purpose,
    "reports-a-moment": _between_reports,
    "hasty": _between_reports,
    "leaver-goes-before-its-commit": _leave_on_purpose,
    "last-of-its-stage-goes": _all_of_a_stage_leave,
    "leaves-with-homes": _leave_on_purpose,
    "leaves-while-something-comes": _brokers_leave_between_steps,
    "view-tells-no-step": _leave_on_purpose,
    "one-step-is-all": _frozen_while_it_loads,
    "step-is-forgotten": _frozen_while_it_loads,
    "retained-is-the-present": _frozen_while_it_loads,
    "moves-amid-a-step": _moved_about,
    "moves-the-last": _moved_about,
    "moves-nowhere": _moved_about,
    "moves-without-fence": _moved_about,
    "heir-counts-at-once": _handed_over,
    "heirs-unknown": _handed_over,
    "heirs-forgotten": _half_told_of_heirs,
    "results-that-are-lost": _lost_with_copies,
    "ranges-say-the-present": _lost_with_copies,
}
"""Mutant -> schedules that come often to the moment that shows it."""
