"""The run as it would go without a swarm: what every committed step must equal."""

from __future__ import annotations

from dataclasses import dataclass

from zswarm.clipping import clip_scale
from zswarm.ids import Purpose, Stage, Step
from zswarm.simulation.symbols import (
    Contribution,
    initial_version,
    is_finite,
    loss_sum,
    next_version,
    square_norm,
)
from zswarm.trainer.settings import CoordinatorSettings


@dataclass(frozen=True, slots=True)
class ReferenceStep:
    """One optimizer step: the gradient of each stage, and the decision."""

    contributions: tuple[tuple[Contribution, ...], ...]
    """Per stage, sorted."""
    loss: float
    lr: float
    scale: float
    apply: bool


class Reference:
    """`versions[t][s]` are stage s's parameters before step t; `steps[t]` leads to `versions[t + 1]`."""

    def __init__(self, settings: CoordinatorSettings, *, seed: int) -> None:
        stages = range(settings.num_stages)
        self.versions = [tuple(initial_version(seed, Stage(stage)) for stage in stages)]
        self.steps: list[ReferenceStep] = []
        for index in range(settings.steps):
            path = self.versions[-1]
            step = _step(settings, Step(index), path, seed=seed)
            self.steps.append(step)
            self.versions.append(
                tuple(
                    next_version(path[stage], step.contributions[stage], step.scale, step.lr, apply=step.apply)
                    for stage in stages
                )
            )

    @staticmethod
    def held_out_loss(settings: CoordinatorSettings, step: Step) -> float:
        """Return the mean loss of an evaluation."""
        losses = [loss_sum(Purpose.EVALUATE, step, index) for index in range(settings.num_held_out)]
        return sum(losses) / len(losses)


def _step(settings: CoordinatorSettings, step: Step, path: tuple[int, ...], *, seed: int) -> ReferenceStep:
    indices = range(settings.num_microbatches)
    contributions = tuple(
        tuple(Contribution(step, index, path, tuple(reversed(path[stage:]))) for index in indices)
        for stage in range(settings.num_stages)
    )
    apply = all(is_finite(seed, Stage(stage), each) for stage, each in enumerate(contributions))
    norms = [square_norm(Stage(stage), each) for stage, each in enumerate(contributions)]
    scale = clip_scale(norms, settings.grad_clip)[0] if apply else 1.0
    return ReferenceStep(
        contributions=contributions,
        loss=sum(loss_sum(Purpose.TRAIN, step, index) for index in indices) / settings.num_targets,
        lr=settings.learning_rate(step),
        scale=scale,
        apply=apply,
    )
