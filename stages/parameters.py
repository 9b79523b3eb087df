"""How a worker comes by the parameters of its stage, and which ones it holds.

    NONE --Welcome: Build--> BUILDING --Built--> READY (a new run) or OUTDATED (the swarm is further)
                                 ^                 |        |
                                 +- Restore, step 0+--------+-- Restore --> LOADING --Adopt--> ADOPTING --Adopted--> READY
                                                                 steps only, if what it holds is of the same branch

Where the swarm is further, LOADING begins with BUILDING: what comes meanwhile waits for the compute thread behind Build. Adopt
waits for Built, so that of two cuts that are built in a row each gets its own.

READY means that the parameters are those of `StepState.version`; only Apply moves them on (`participant.py`). A
new life of the process changes none of this, unless it is given another stage; only a load that is not
complete is given up. While ADOPTING every Restore is ignored, while BUILDING one of step 0, and any where the swarm is no further: it is repeated. What is held is given to
whoever asks (`donor.py`).
"""

from __future__ import annotations

from stages.donor import Donor
from stages.loader import Importing, Loader
from stages.participant import StepState
from stages.tasks import Adopted, Applied, Apply, Build, Built, Exported, Task
from zswarm import limits
from zswarm.ids import Branch, Peer, RunId, Stage, Step, Version
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Commit, Load, Pull, Restore, State

Cut = tuple[RunId, Stage, int, bytes]
"""Run, stage, number of stages and configuration: what layers these are, and how they compute."""


class Parameters:
    """See the module. Methods return the Sends and tasks that follow."""

    def __init__(self, membership: Membership, state: StepState) -> None:
        self._me = membership
        self._state = state
        self.is_built = False
        """The stage's layers exist."""
        self.is_ready = False
        """The parameters are those of the state's version."""
        self.digest = 0
        self._cut: Cut | None = None
        self._num_builds = 0
        """In work; the outcome of the last one counts."""
        self._fresh: Version | None = None
        """The version that fresh parameters are of; None if they are of no use."""
        self._loader: Loader | None = None
        self._importing = Importing()
        self._donor = Donor(membership, state)

    # -- fresh ones ----------------------------------------------------------------------------------

    def welcomed(self, configuration: bytes) -> list[Task]:
        """Build the stage, unless it is the one that exists."""
        me = self._me
        cut = (me.run, me.stage, me.num_stages, configuration)
        if cut == self._cut:
            return []
        self._cut = cut
        self._state.become((me.branch, Step(0)) if me.step == 0 else (Branch(0), Step(0)))
        return [self._build(self._state.version if me.step == 0 else None)]

    def _build(self, fresh: Version | None) -> Build:
        assert self._cut is not None
        _, stage, num_stages, configuration = self._cut
        self.is_built = self.is_ready = False
        self._loader = self._donor.kept_version = None
        self._donor.forget()
        self._fresh = fresh
        self._num_builds += 1
        return Build(stage=stage, num_stages=num_stages, configuration=configuration)

    def built(self, outcome: Built) -> list[Task]:
        """The layers exist, with fresh parameters."""
        self._num_builds -= 1
        if self._num_builds:
            return []
        self.is_built = True
        self.digest = outcome.parameter_digest
        if self._fresh is not None:
            self._state.become(self._fresh)
            self.is_ready = True
        return self._loader.built() if self._loader is not None else []

    # -- those of somebody else ----------------------------------------------------------------------

    def wants(self, message: Restore) -> bool:
        """Does this begin something? What is on its way is brought up to a later step of its branch."""
        if not self.is_built and (self._fresh is not None or message.step == 0):
            return False
        if self._loader is not None and self._loader.is_adopting:
            return False
        version = (message.branch, message.step)
        if self._loader is not None:
            return message.branch > self._loader.version[0]
        return version > self._state.version if self.is_ready else True

    def follow(self, message: Restore, now: float) -> list[Send | Task]:
        """Go on getting what is on its way, up to the step and from the donors that are named now."""
        loader = self._loader
        if loader is None or loader.is_adopting or message.branch != loader.version[0]:
            return []
        return loader.follow(message, now)

    def restore(self, message: Restore, now: float) -> list[Send | Task]:
        """Begin to get another version; what the worker has counted must be void already."""
        is_behind = self.is_ready and message.branch == self._state.branch
        self.is_ready = False
        if message.step == 0:
            return [self._build((message.branch, message.step))]
        self._donor.forget()
        self._loader = Loader(
            self._me,
            message,
            layers=self._me.layers,
            held=self._state.version if is_behind else None,
            resend_s=limits.RESEND_HEARTBEATS * self._me.heartbeat_s,
            importing=self._importing,
        )
        self._loader.is_built = self.is_built
        return self._loader.start(now)

    def received(self, message: State, load: Load, now: float) -> list[Send | Task]:
        """Take what has been asked for."""
        return self._loader.received(message, load, now) if self._loader is not None else []

    def imported(self, now: float) -> list[Send | Task]:
        """The compute thread has taken a range: go on, if that was waited for."""
        self._importing.num_ranges -= 1
        return self._loader.imported(now) if self._loader is not None else []

    def adopted(self, outcome: Adopted) -> None:
        """What was loaded is in place; ignored if the stage is another one by now."""
        if self._loader is None or not self._loader.is_adopting:
            return
        self._state.become(self._loader.version)
        self._loader = None
        self.is_ready, self.digest = True, outcome.parameter_digest

    def stop_loading(self) -> None:
        """Give up a load that is not complete."""
        if self._loader is not None and not self._loader.is_adopting:
            self._loader = None

    def resend_due(self, now: float) -> list[Send | Task]:
        """Ask again for what has not come in time."""
        return self._loader.resend_due(now) if self._loader is not None else []

    def next_deadline_s(self) -> float | None:
        """Return when `resend_due` has something to do."""
        return self._loader.next_deadline_s() if self._loader is not None else None

    # -- commits, and giving -------------------------------------------------------------------------

    def will_move(self, apply: Apply, now: float) -> Apply:
        """Return what is asked of the compute thread: the step, and what donors keep of the version that ends with it."""
        if apply.snapshot:
            self._donor.kept_version = None
        return self._donor.keep(apply, self._state.version, now)

    def moved(self, outcome: Applied, commit: Commit) -> None:
        """The parameters, and the state's version, are those after this commit."""
        self.digest = outcome.parameter_digest
        self._donor.forget_share()
        if commit.snapshot:
            self._donor.kept_version = self._state.version

    def forget_share(self) -> None:
        """What has been counted is void, or in a step."""
        self._donor.forget_share()

    def pull(self, message: Pull, peer: Peer, *, is_applying: bool, shares: bool, now: float) -> list[Send | Task]:
        """Give a range of what is held, if it is that; while a step is applied, of what it leads to.

        `shares`: of what has been counted, too, which a step that is applied ends.
        """
        branch, step = self._state.version
        present = (branch, Step(step + is_applying)) if self.is_ready else None
        return self._donor.pull(
            message, peer, layers=self._me.layers, present=present, shares=shares and not is_applying, now=now
        )

    def exported(self, outcome: Exported) -> list[Send | Task]:
        """Send a range to whoever asked for it."""
        return self._donor.exported(outcome)
