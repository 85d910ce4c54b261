"""A training run on Ray Train: workers, their checkpoints, what they tell the driver."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidepool import checkpoint
from tidepool.checkpoint import Checkpoint
from tidepool.cluster.resources import accelerator_resource
from tidepool.errors import TrainingError
from tidepool.recipe import load_recipe
from tidepool.spec import Spec
from tidepool.telemetry.progress import Progress, quiet
from tidepool.train import tracking
from tidepool.train.tracking import Run

if TYPE_CHECKING:
    import torch

    from tidepool.data.preprocess import PreparedData
    from tidepool.train.loop import Step, Trainee

log = logging.getLogger(__name__)

NAMESPACE = "tidepool"
KEPT = 2
"""Checkpoints that a run keeps: the newest, and one more in case its bytes go bad."""


@dataclass(frozen=True)
class TrainResult:
    """A complete run."""

    run_id: str
    checkpoint: Checkpoint
    step: int
    resumed_from: int | None
    """The step that this call went on from, if an earlier one had begun the run."""
    metrics: dict[str, float]
    seconds: float


def fit(spec: Spec, data: PreparedData, runs: str, progress: Progress = quiet) -> TrainResult:
    """Train `spec` on prepared data, from the last checkpoint of an unfinished run of the same spec if there is one.

    Raises:
        TrainingError: the workers failed more often than `train.max_failures`, or another driver trains the same run.
        ClusterError: the cluster has no such accelerator.
    """
    began = time.monotonic()
    run, had_begun = tracking.begin(runs, spec, data.uri, data.digest)
    start = checkpoint.latest(run.checkpoints) if had_begun else None
    resumed_from = start.step if start else None
    with _board(run) as board, _relayed(board, progress):
        if resumed_from is not None:
            progress("train", 0, 1, f"resuming run {run.run_id} from step {resumed_from}")
            print(f"train: resuming run {run.run_id} from step {resumed_from}")
        metrics = _fit(spec, run, board)
    final = checkpoint.latest(run.checkpoints)
    if final is None:
        raise TrainingError("the run left no checkpoint", seen=run.uri, remedy="see the log of the job")
    tracking.complete(run, final, metrics)
    return TrainResult(run.run_id, final, final.step, resumed_from, metrics, time.monotonic() - began)


def _fit(spec: Spec, run: Run, board: Any) -> dict[str, float]:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    resource = accelerator_resource(spec.train.accelerator, ray.cluster_resources())
    per_worker = {"CPU": 1} if resource == "CPU" else {resource: 1}
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"spec": spec.model_dump(mode="json"), "run": run, "board": board},
        scaling_config=ScalingConfig(
            num_workers=spec.train.num_workers[1], use_gpu=resource == "GPU", resources_per_worker=per_worker
        ),
        torch_config=TorchConfig(backend="nccl" if resource == "GPU" and _has_cuda() else "gloo"),
        run_config=RunConfig(
            name=f"{run.run_id}-{int(time.time() * 1e3):x}",
            storage_path=f"{run.uri}/ray",
            failure_config=FailureConfig(max_failures=spec.train.max_failures),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        cause = getattr(error, "worker_failures", None) or {}
        reason = next(iter(cause.values()), error)
        raise TrainingError(
            f"training of {spec.name} failed", seen=_one_line(reason), remedy="correct it and train again: it resumes"
        ) from error
    metrics: dict[str, float] = ray.get(board.metrics.remote())
    return metrics


def _worker(config: dict[str, Any]) -> None:
    """What runs in every train worker."""
    import ray.train

    from tidepool.data.preprocess import open_prepared
    from tidepool.train.loop import Trainee
    from tidepool.train.loop import run as run_loop

    spec, run, board = Spec.model_validate(config["spec"]), config["run"], config["board"]
    rows = open_prepared(run.data_uri).load("train")
    trainee = Trainee(load_recipe(spec.recipe, spec.params), spec.train, rows, _group(), _device())
    newest = checkpoint.latest(run.checkpoints)
    if newest is not None:
        trainee.restore(checkpoint.load(newest.uri))
        if trainee.parallel.rank == 0:
            log.warning("resuming run %s from step %s", run.run_id, newest.step)

    def save(trainee: Trainee, step: Step) -> None:
        if trainee.parallel.rank == 0:
            checkpoint.save(run.checkpoints, trainee.state(run=run.run_id, loss=step.loss))
            checkpoint.prune(run.checkpoints, KEPT)
        ray.train.report({"step": step.number, "loss": step.loss})

    if not trainee.finished:
        told = _teller(board, trainee.total_steps)
        run_loop(trainee, save=save, told=told, checkpoint_every_s=spec.train.checkpoint_every_s)


def _teller(board: Any, total: int, clock: Callable[[], float] = time.monotonic) -> Callable[[Step], None]:
    """Tells the board of steps, ten times a second at most, and never waits for it."""
    last = began = clock()
    samples = 0

    def tell(step: Step) -> None:
        nonlocal last, samples
        samples += step.samples
        now = clock()
        if step.number == total or now - last >= 0.1:
            last = now
            board.tell.remote(step.number, total, step.loss, samples / max(now - began, 1e-9))

    return tell


class Board:
    """An actor between workers and driver: the latest news of a run. Its name makes a second driver of the run fail."""

    def __init__(self) -> None:
        self._news: tuple[int, int, float, float] | None = None

    def tell(self, step: int, total: int, loss: float, rate: float) -> None:
        """News from rank 0."""
        self._news = (step, total, loss, rate)

    def news(self) -> tuple[int, int, float, float] | None:
        """(step, total steps, loss, samples a second)."""
        return self._news

    def metrics(self) -> dict[str, float]:
        """The last loss and speed."""
        if self._news is None:
            return {}
        return {"loss": self._news[2], "samples_per_s": self._news[3]}


@contextlib.contextmanager
def _board(run: Run) -> Iterator[Any]:
    import ray

    try:
        board = (
            ray.remote(Board).options(name=f"train:{run.name}:{run.run_id}", namespace=NAMESPACE, num_cpus=0).remote()
        )
        ray.get(board.news.remote())
    except ValueError:
        raise TrainingError(
            "another driver trains this run", seen=run.run_id, remedy="wait for it, or change train.seed"
        ) from None
    try:
        yield board
    finally:
        ray.kill(board)


@contextlib.contextmanager
def _relayed(board: Any, progress: Progress, every_s: float = 0.2) -> Iterator[None]:
    """Pass the board's news on to `progress` while the block runs, and once more at its end."""
    import ray

    over = threading.Event()

    def relay() -> None:
        while True:
            last = over.wait(every_s)
            with contextlib.suppress(ray.exceptions.RayError):
                if news := ray.get(board.news.remote()):
                    step, total, loss, rate = news
                    progress("train", step, total, f"step {step}/{total}  loss {loss:.4f}  {rate:,.0f} samples/s")
            if last:
                return

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _group() -> torch.distributed.ProcessGroup | None:
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return dist.distributed_c10d._get_default_group()


def _device() -> torch.device:
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _has_cuda() -> bool:
    """Whether a process that is given a GPU finds one: a logical GPU on a machine without any is none."""
    import ray

    def probe() -> bool:
        import torch

        return torch.cuda.is_available()

    found: bool = ray.get(ray.remote(probe).options(num_gpus=1).remote())
    return found


def _one_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else type(error).__name__
