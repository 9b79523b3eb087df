"""The trainer at the end of a run."""

from __future__ import annotations

from zswarm.ids import Address, Microbatch, NodeId, Purpose, Role, Step
from zswarm.machine import Exit, Received, Tick
from zswarm.messages import Credit, Register, Room
from zswarm.simulation.schedule import make_schedule
from zswarm.simulation.symbols import load
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.settings import Interrupted, Sampled


def test_a_closing_trainer_does_not_wake_up_for_outputs_that_it_no_longer_repeats() -> None:
    """It had the deadline of an unacknowledged Forward, did nothing about it, and spun until it left."""
    settings = make_schedule(0).settings()
    coordinator = Coordinator(settings, random=lambda: 0.0)
    header = {"run": settings.run, "generation": settings.generation}
    addresses = (Address("control"), Address("work"))
    register = Register(**header, session=0, node=NodeId("broker"), boot_nonce=1, role=Role.BROKER, addresses=addresses)
    coordinator.handle(Received(peer=Address("broker"), message=register), 0.0)
    room = Room(granted_bytes=10_000, free_bytes=10_000, depth=0, response_s=0.0)
    coordinator.handle(Received(peer=Address("work"), message=Credit(**header, session=1, room=room)), 0.0)
    sampled = Sampled(purpose=Purpose.TRAIN, step=Step(0), microbatch=Microbatch(0), load=load("tokens", 1000))
    coordinator.handle(sampled, 0.0)
    assert coordinator.outbox.next_deadline_s() is not None
    coordinator.handle(Interrupted(), 0.1)
    now = 0.1
    num_ticks = 0
    while not any(isinstance(command, Exit) for command in coordinator.handle(Tick(), now)):
        later = coordinator.next_deadline_s()
        assert later > now
        now, num_ticks = later, num_ticks + 1
    assert 1 <= num_ticks < 20
