"""What a worker tells the brokers of its own and of the next stage about itself.

Repeated once per interval: Attach to both, so that they keep the return address and tell the credit, and Ready to the
own ones, with the version, the leases that are held, and how many each may have out here. Ready at once
when one of these changes to the better, or when this worker leaves. Results go to the broker that has leased the job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from stages.departure import Departure
from stages.jobs import Jobs
from stages.participant import StepState
from zswarm import limits
from zswarm.ids import Address, JobStatus, Session, Version
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Attach, Job, Ready, Result
from zswarm.outbox import Outbox
from zswarm.slots import maker

make_attach, make_ready, make_send = maker(Attach), maker(Ready), maker(Send)


class Greetings:
    """See the module. `slots` says how many leases a broker may have out here."""

    def __init__(
        self,
        membership: Membership,
        state: StepState,
        jobs: Jobs,
        *,
        slots: Callable[[Session], int],
        departure: Departure,
    ) -> None:
        self._me = membership
        self._state = state
        self._jobs = jobs
        self._departure = departure
        self._slots = slots
        self._own: dict[Session, tuple[Address, ...]] = {}
        self._next: dict[Session, tuple[Address, ...]] = {}
        self._told_slots: dict[Session, int] = {}
        self._told_version: Version | None = None
        self._told_done: set[Session] = set()
        self._heard_at_s: dict[Session, float] = {}
        """When an own broker last answered, or was first greeted."""

    def see(self) -> None:
        """Learn from the view who the brokers of both stages are."""
        self._own, self._next = self._me.brokers(self._me.stage), self._me.brokers(self._me.stage + 1)
        self._told_slots = {broker: slots for broker, slots in self._told_slots.items() if broker in self._own}
        self._told_done.intersection_update(self._next)
        self._heard_at_s = {broker: at_s for broker, at_s in self._heard_at_s.items() if broker in self._own}

    def heard(self, broker: Session, now: float) -> None:
        """A broker has answered."""
        if broker in self._own:
            self._heard_at_s[broker] = now

    def silent(self, now: float, after_s: float) -> list[Session]:
        """Return the own brokers that were greeted, and have not answered for so long."""
        return [broker for broker, at_s in self._heard_at_s.items() if now - at_s > after_s]

    def slots(self, broker: Session) -> int:
        """Return how many leases a broker may have, which it is told with this message."""
        slots = self._told_slots[broker] = self._slots(broker)
        return slots

    def greet(self, outbox: Outbox, now: float) -> list[Send]:
        """Tell everybody concerned who we are, and those that close that nothing comes any more."""
        for broker in self._own:
            self._heard_at_s.setdefault(broker, now)
        attach = make_attach(**self._me.header())
        done = {broker: work for broker, (_, work) in self._next.items() if outbox.is_done_with(broker)}
        others = [*self._own.values(), *(both for broker, both in self._next.items() if broker not in done)]
        sends = [make_send(peer=work, message=attach) for _, work in others]
        return [*sends, *self._say_done(done), *self.ready(self._own)]

    def _say_done(self, brokers: dict[Session, Address]) -> list[Send]:
        self._told_done.update(brokers)
        attach = make_attach(**self._me.header(), is_done=True)
        return [make_send(peer=work, message=attach) for work in brokers.values()]

    def farewells(self, outbox: Outbox) -> list[Send]:
        """Tell a broker of the next stage that closes, as soon as it is so, that nothing comes any more."""
        news = outbox.closing - self._told_done
        done = sorted(broker for broker in news if broker in self._next and outbox.is_done_with(broker))
        return self._say_done({broker: self._next[broker][1] for broker in done})

    def news(self) -> list[Send]:
        """Tell of another version, or that there is room again."""
        if self._state.version != self._told_version:
            return self.ready(self._own)
        told = self._told_slots
        return self.ready([broker for broker in self._own if self._slots(broker) > told.get(broker, 0)])

    def ready(self, brokers: Iterable[Session]) -> list[Send]:
        """Tell these of the own brokers what we hold."""
        self._told_version = self._state.version
        me, state = self._me, self._state
        return [
            make_send(
                peer=self._own[broker][0],
                message=make_ready(
                    run=me.run,
                    generation=me.generation,
                    session=me.session,
                    branch=state.branch,
                    step=state.step,
                    slots=self.slots(broker),
                    held=self._jobs.of(broker)[: limits.MAX_LEASES_PER_WORKER],
                    leaves=self._departure.drains,
                ),
            )
            for broker in brokers
        ]

    def refusal(self, job: Job, status: JobStatus) -> Result:
        """Return the end of a job that is not begun; the step is our own, which is why a job may be refused."""
        return Result(
            **self._me.header(),
            branch=self._state.branch,
            step=self._state.step,
            lease=job.lease,
            status=status,
            kept=False,
            compute_s=0.0,
            slots=self.slots(job.session),
        )

    def tell(self, broker: Session, result: Result) -> list[Send]:
        """Send a result to the broker that waits for it; one that no view names asks again."""
        addresses = self._own.get(broker)
        return [Send(peer=addresses[0], message=result)] if addresses is not None else []
