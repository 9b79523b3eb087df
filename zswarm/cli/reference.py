"""`zswarm reference`: the same run in one process, with the same run folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save

from stages.devices import device_named
from stages.exact_reference import exact_reference
from stages.reference import ReferenceStep, reference
from zswarm.cli.planning import prepare_run
from zswarm.config import RunConfig
from zswarm.errors import RunFailed, ZswarmError
from zswarm.ids import Step
from zswarm.trainer.progress import Progress
from zswarm.trainer.report import Report
from zswarm.trainer.run_folder import open_run_folder, write_whole
from zswarm.trainer.settings import EvaluationDone, StepDone


def run_reference_command(
    config: RunConfig, *, run_file: Path, out: Path | None, device: str, threads: int, begun_s: float
) -> None:
    """Train, and leave `summary.json`, `metrics.jsonl` and `model.safetensors` in the run folder.

    A plain PyTorch loop; with `accumulation = "exact"` the arithmetic of a swarm, stage after stage.

    Raises:
        UserError: the model, the data, the run folder or the device is not what the run file or the command line says.
        RunFailed: a layer raised.

    """
    torch.set_num_threads(threads)
    on = device_named(device)
    _, source = prepare_run(config, run_file)  # what a swarm would refuse is refused here
    progress = Progress(config.run.name, steps=config.run.steps)
    with open_run_folder(config, out=out, run_file=run_file) as folder, progress:
        print(f"zswarm: {folder.path}", file=sys.stderr)
        report = Report(config, folder=folder, progress=progress, begun_s=begun_s)
        try:
            train = exact_reference if config.batch.accumulation == "exact" else reference
            result = train(config, source, lambda done: report.step_done(_step_done(done)), on)
            report.evaluation_done(EvaluationDone(step=Step(0), loss=result.held_out_loss_before))
            report.evaluation_done(EvaluationDone(step=Step(config.run.steps), loss=result.held_out_loss))
        except ZswarmError:
            raise
        except Exception as error:
            raise RunFailed(f"the model raised {type(error).__name__}: {error}") from error
        finally:
            report.write_summary(wire_bytes=0, stages=1, workers=1)
        state = {name: tensor.contiguous() for name, tensor in result.state.items()}
        write_whole(folder.model_path, save(state, metadata={"format": "pt"}))


def _step_done(done: ReferenceStep) -> StepDone:
    return StepDone(
        step=Step(done.step),
        loss=done.loss,
        lr=done.lr,
        grad_norm=done.gradient_norm,
        num_in_flight=1,
        workers=(1,),
    )
