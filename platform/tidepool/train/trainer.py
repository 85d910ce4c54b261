"""A training run on Ray Train.

    claim the run -> its last checkpoint -> TorchTrainer: every worker goes through `loop.run` -> record it as complete

Ray Train starts workers, and all of them anew after a failure; where they go on, this module decides. Checkpoints are
written by `tidepool.checkpoint`, whole or not at all, and not handed to Ray: its own list of them is overwritten in
place, so a kill at the wrong moment would leave a run that can't be resumed.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidepool import checkpoint
from tidepool.checkpoint import Checkpoint
from tidepool.cluster.resources import accelerator_resource, reachable_resources
from tidepool.errors import ClusterError, TrainingError
from tidepool.spec import Spec
from tidepool.telemetry.progress import Progress, quiet
from tidepool.train import sampler, tracking
from tidepool.train.board import asker, claimed, relayed, teller
from tidepool.train.elastic import Live, Segments, Share
from tidepool.train.part import NICENESS, Part, failure

if TYPE_CHECKING:
    import torch

    from tidepool.data.preprocess import PreparedData
    from tidepool.train.loop import Step, Trainee
    from tidepool.train.strategies import Group

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """A complete run."""

    run_id: str
    checkpoint: Checkpoint
    step: int
    resumed_from: int | None
    """The step that this call went on from, if an earlier one had come that far."""
    metrics: dict[str, float]
    """`loss` of the last step, `samples_per_s` since the workers last started."""
    seconds: float


def fit(
    spec: Spec, data: PreparedData, runs: str, progress: Progress = quiet, share: Share | None = None
) -> TrainResult:
    """Train `spec` on prepared data, from the last checkpoint of an unfinished run of the same spec if there is one.

    With `share` the pool says how many workers it has, between the least and the most of `train.num_workers`; without,
    they are the most.

    Raises:
        TrainingError: workers failed more than `train.max_failures` times or twice for the same reason, or another
            driver trains the same run.
        ClusterError: the cluster has no such accelerator, or too few of them.
        StorageError: the run's folder can't be read or written.
    """
    began = time.monotonic()
    workers, resource = _workers(spec, elastic=share is not None)
    total = sampler.total_steps(data.rows["train"], spec.train.global_batch_size, spec.train.epochs)
    with claimed(f"train:{spec.name}:{tracking.run_digest(spec)[:16]}") as board:
        run = tracking.begin(runs, spec, data.uri, data.digest)
        start = checkpoint.latest(run.checkpoints)
        note = f"run {run.run_id}, {workers} workers on {resource}"
        if start:
            note = f"resuming {note}, from step {start.step} of {total}"
            log.warning(note)
        progress("train", start.step if start else 0, total, note)
        part = Part(spec, run, board)
        if share is None:
            with relayed(board, total, progress):
                _train(part, resource, 0, [None] * workers)
        elif spec.train.resize == "live":
            share(run.run_id, resource, Live(part, resource, total, progress))
        else:
            train = functools.partial(_train, part, resource)
            share(run.run_id, resource, Segments(train, board, run.checkpoints, total, progress))
        metrics = _metrics(board)
        final = checkpoint.latest(run.checkpoints)
        if final is None or final.step != total:
            seen = f"step {final.step}" if final else "no checkpoint"
            raise TrainingError(
                "the last checkpoint is not that of the last step", seen=seen, allowed=f"step {total}",
                remedy="train again: the run goes on from what is whole",
            )  # fmt: skip
        tracking.complete(run, final, metrics)
    seconds = time.monotonic() - began
    return TrainResult(run.run_id, final, final.step, start.step if start else None, metrics, seconds)


def _workers(spec: Spec, elastic: bool) -> tuple[int, str]:
    """How many workers, at least if their number is elastic; and the resource of which each holds one."""
    least, most = spec.train.num_workers
    workers, reachable = max(1, least) if elastic else most, reachable_resources()
    resource = accelerator_resource(spec.train.accelerator, reachable)
    if workers > reachable.get(resource, 0):
        raise ClusterError(
            f"the cluster can't hold {workers} train workers",
            seen=f"{reachable.get(resource, 0):g} {resource} in all",
            allowed="1 for each worker",
            remedy="lower train.num_workers, or start the cluster with more",
        )
    return workers, resource


def _train(part: Part, resource: str, segment: int, nodes: Sequence[str | None]) -> None:
    """Run the workers, one on each of the nodes (None: on any), to the end or until the segment is to end."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        functools.partial(_work, part, resource, segment),
        scaling_config=ScalingConfig(
            num_workers=len(nodes),
            use_gpu=resource == "GPU",
            resources_per_worker={resource: 1},
            label_selector=[{"ray.io/node-id": node} for node in nodes if node] or None,
        ),
        # For workers to find one another: on real GPUs they go on to NCCL. Ray would choose it for logical ones too.
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(
            name=f"attempt-{time.time_ns():x}",  # new to Ray, which would resume a name that it knows
            storage_path=f"{part.run.uri}/ray",
            failure_config=FailureConfig(max_failures=part.spec.train.max_failures),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _outcome(part.spec, error, ray.get(part.board.failure.remote())) from error
    if repeated := ray.get(part.board.repeated.remote()):
        raise repeated


def _metrics(board: Any) -> dict[str, float]:
    """Those of the last step."""
    import ray

    news, _ = ray.get(board.read.remote())
    return {"loss": news.loss, "samples_per_s": news.samples_per_s}


def _work(part: Part, resource: str, segment: int) -> None:
    """What runs in every train worker."""
    import ray

    from tidepool.train.strategies import from_first

    os.nice(NICENESS)  # of this thread and of those that it starts
    group, device = _group_and_device(resource)
    # Rank 0's answer counts for all: had they different ones, some would wait for the others for ever.
    repeated, noticed = ray.get([part.board.repeated.remote(), part.board.noticed.remote(segment)])
    if from_first({"give up": repeated is not None or noticed}, group, device)["give up"]:
        return
    trainee = None
    try:
        trainee = part.trainee(group, device)
        if trainee.parallel.rank == 0:
            part.restore(trainee)
            part.board.began.remote(trainee.number)
        trainee.synchronise(group)
        _go_through(trainee, part, segment)
    except Exception as error:
        step, rank = trainee.number if trainee else 0, group.rank() if group else 0
        ray.get(part.board.failed.remote(part.failure(rank, step, error)))
        raise


def _group_and_device(resource: str) -> tuple[Group | None, torch.device]:
    """The workers' process group, None for a worker by itself; and this one's GPU, if it was given a real one."""
    import ray.train
    import torch
    import torch.distributed as dist

    on_gpu = resource == "GPU" and torch.cuda.is_available()
    context = ray.train.get_context()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // context.get_local_world_size()))
    device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")
    if context.get_world_size() == 1:
        return None, device
    return dist.new_group(backend="nccl") if on_gpu else dist.group.WORLD, device


def _go_through(trainee: Trainee, part: Part, segment: int) -> None:
    """The steps that are left, or those until the segment is to end; a checkpoint of rank 0's now and then and last."""
    import ray.train

    from tidepool.train import loop

    def save(step: Step) -> None:
        if trainee.parallel.rank == 0:
            part.save(trainee, step.loss)
        ray.train.report({"step": step.number, "loss": step.loss})

    tell = teller(part.board, trainee.total_steps)
    every_s = part.spec.train.checkpoint_every_s
    loop.run(trainee, save=save, tell=tell, should_yield=asker(part.board, segment), checkpoint_every_s=every_s)


def _outcome(spec: Spec, error: Exception, raised: TrainingError | None) -> TrainingError:
    """The cause that a person can act on, of what Ray Train says and what a worker raised itself."""
    what = f"training of {spec.name} failed"
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    died = [rank for rank, raising in failures.items() if type(raising).__module__.startswith("ray.")]
    if died:  # whatever the others raised then, it was because of that
        remedy = "see the logs of the cluster for its end; then train again: the run goes on"
        return TrainingError(f"{what}: worker {died[0]} died", seen="killed, or out of memory", remedy=remedy)
    return raised if failures and raised else failure(what, getattr(error, "controller_failure", error))
