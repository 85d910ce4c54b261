"""A run that shares logical accelerators of a real Ray with waves of replicas; a scenario of a process of its own.

A test runs its file as a script (`run_as_script`); what the script prints last, as JSON, is what the test judges.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from paced import PacedDigits, SlowAnswer, spec_of
from tidepool.spec import Spec
from tidepool.train.loop import Step

STEPS_PER_EPOCH = 23
EPOCHS = 30


class CountedDigits(PacedDigits):
    """Paced digits of which every worker writes down its part of each step, a file for each process."""

    def __init__(self, hurry: str = "", used: str = "") -> None:
        super().__init__(hurry)
        self.used = used
        self._samples: list[str] = []

    def network(self) -> torch.nn.Module:
        """As that of digits."""
        network = super().network()

        def note(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._samples = names(inputs[0])

        if self.used:
            network.register_forward_pre_hook(note)
        return network

    def loss(self, predictions: tuple[torch.Tensor, ...], target: torch.Tensor) -> torch.Tensor:
        """As that of paced digits; a line with the time, the loss and the samples."""
        loss = super().loss(predictions, target)
        if self.used:
            with (Path(self.used) / str(os.getpid())).open("a") as lines:
                print(time.time(), float(loss.detach()), *self._samples, file=lines)
        return loss


def names(rows: torch.Tensor) -> list[str]:
    """What tells samples apart: axis 0 the samples."""
    return [hashlib.sha1(row.numpy().tobytes()).hexdigest() for row in rows]


def run_as_script(file: str, home: Path, *arguments: str) -> dict[str, Any]:
    """The facts that the script prints."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "TIDEPOOL_HOME": str(home),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_AUTH_MODE": "disabled",
    }
    command = [sys.executable, file, *arguments]
    script = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540, check=False)
    assert script.returncode == 0, script.stdout[-2000:] + script.stderr[-6000:]
    printed = [line for line in script.stdout.splitlines() if line.startswith("{")]  # Ray may say something after it
    facts: dict[str, Any] = json.loads(printed[-1])
    print(facts)
    return facts


class Waves:
    """A driver on a cluster of its own, with training in a thread."""

    def __init__(self, folder: Path, slots: int = 4) -> None:
        from tidepool.data.preprocess import prepare

        self.folder, self.slots = folder, slots
        self.hurry, self.used = folder / "hurry", folder / "used"
        self.connect()
        spec = spec_of("1", 1, folder)
        self.data = prepare(spec, PacedDigits(), str(folder / "data"))
        self.step = 0
        self.coordinator: Any = None

    def connect(self) -> None:
        """Start a cluster, and what a wave consists of."""
        import ray

        slots = {"slot": self.slots}
        ray.init(address="local", num_cpus=6, resources=slots, include_dashboard=False, log_to_driver=False)
        # To Ray and to the pool it looks as Serve's replicas do.
        replica = type("ServeReplica:wave:Model", (), {"ping": lambda self: True})
        self.replica = ray.remote(resources={"slot": 1}, num_cpus=0)(replica)
        self.replicas: list[Any] = []

    def open_the_pool(self) -> None:
        """Start a coordinator that holds nothing back for long."""
        from tidepool.pool import coordinator
        from tidepool.pool.policy import PolicySpec
        from tidepool.settings import Settings

        self.coordinator = coordinator.start(Settings(), PolicySpec(hold_s=0.5, max_moves_per_minute=30))

    def begin(self) -> None:
        """Open the pool, and train with zero to four live members who write down the samples that they use."""
        from tidepool.pool import coordinator

        self.open_the_pool()
        self.used.mkdir()
        params = f"params={{hurry: {self.hurry}, used: {self.used}}}"
        spec = spec_of("[0, 4]", EPOCHS, self.hurry, "recipe=waves:CountedDigits", params)
        self.thread, self.results = self.train(spec, coordinator.sharing(spec))

    def finish(self) -> dict[str, Any]:
        """Let the run go on to its end; what came of it, and what is free then."""
        import ray

        self.hurry.touch()
        self.thread.join()
        self.wait_until(lambda: ray.available_resources().get("slot") == self.slots)
        free = ray.available_resources()["slot"]
        return {"free in the end": free, "uses": self.uses(), **self.outcome(self.results[0])}

    def deployed(self, most: int) -> Any:
        """The handle of an application of Serve's with one to so many replicas, each for two requests at a time."""
        from ray import serve

        from tidepool.serve.autoscale import policy, replica_options

        serve.start(proxy_location="Disabled")
        bounds = {"min_replicas": 1, "max_replicas": most, "target_ongoing_requests": 2}
        delays = {
            "upscale_delay_s": 0.0,
            "downscale_delay_s": 1.0,
            "metrics_interval_s": 0.2,
            "look_back_period_s": 0.5,
        }
        deployment = serve.deployment(
            name="Model",
            ray_actor_options=replica_options("slot", 0),
            autoscaling_config={**bounds, **delays, "policy": policy("slot", 0, 0, 1000.0)},
        )(SlowAnswer)
        return serve.run(deployment.bind(), name="app", route_prefix=None)

    def train(self, spec: Spec, share: Any = None) -> tuple[threading.Thread, list[Any]]:
        """The thread that trains, and where it leaves the result."""
        from tidepool.train.trainer import fit

        results: list[Any] = []

        def progress(step: str, done: float, total: float, note: str = "") -> None:
            self.step = int(done)

        def run() -> None:
            results.append(fit(spec, self.data, str(self.folder / "runs"), progress, share))

        thread = threading.Thread(target=run, daemon=True)  # a failed scenario ends without it
        self.step = 0
        thread.start()
        return thread, results

    def wave(self, more: int = 2) -> float:
        """Seconds until so many replicas more answer."""
        import ray

        began = time.monotonic()
        self.coordinator.want.remote("slot", name="wave", wanted=len(self.replicas) + more)
        self.replicas += [self.replica.remote() for _ in range(more)]
        ray.get([replica.ping.remote() for replica in self.replicas])
        return time.monotonic() - began

    def ebb(self) -> None:
        """All replicas go."""
        import ray

        ray.get(self.coordinator.want.remote("slot", name="wave", wanted=0))
        for replica in self.replicas:
            ray.kill(replica)
        self.replicas = []

    def settled(self, size: int, state: str = "running") -> int:
        """The size, once the pool has the run at it."""
        import ray

        def is_so() -> bool:
            runs = [run for pool in ray.get(self.coordinator.view.remote()) for run in pool.runs]
            return any((sum(run.workers.values()), run.state) == (size, state) for run in runs)

        self.wait_until(is_so)
        return size

    def outcome(self, result: Any) -> dict[str, Any]:
        """What the ledger says, and how the weights compare to those of an undisturbed run."""
        from tidepool import checkpoint
        from tidepool.pool import coordinator, ledger
        from tidepool.settings import Settings

        entries = ledger.read(coordinator.ledger_path(Settings()))
        sums = ledger.totals(entries)
        return {
            "steps": result.step,
            "steps redone": sums.steps_redone,
            "release_s": sums.release_s,
            "pauses": [entry.pause_s for entry in entries if entry.pause_s],
            "ledger": [(entry.kind, entry.phase) for entry in entries],
            "why": [entry.why for entry in entries],
            "largest difference": self.difference(checkpoint.load(result.checkpoint.uri).weights, result.step),
        }

    def difference(self, weights: dict[str, torch.Tensor], steps: int) -> float:
        """From the weights of one undisturbed worker, relative to the largest of each tensor."""
        alone, _ = self.undisturbed(steps)
        return max(float((weights[name] - alone[name]).abs().max() / alone[name].abs().max()) for name in alone)

    def undisturbed(self, steps: int) -> tuple[dict[str, torch.Tensor], list[Step]]:
        """The weights of one worker by itself after so many steps, and the steps."""
        from tidepool.train.loop import Trainee

        torch.set_num_threads(1)
        trainee = Trainee(PacedDigits(), spec_of("1", EPOCHS, self.folder).train, self.data.load("train"))
        taken = [trainee.step()[0] for _ in range(steps)]
        return trainee.state().weights, taken

    def parts(self) -> list[tuple[float, list[str]]]:
        """Loss and samples of the workers' parts of steps, in the order of time: that of the steps, as none begins
        before the gradients of all parts of the one before.
        """
        lines = [line.split() for file in self.used.iterdir() for line in file.read_text().splitlines()]
        return [(float(loss), samples) for _, loss, *samples in sorted(lines, key=lambda line: float(line[0]))]

    def difference_of_losses(self) -> float:
        """From the loss of each step of one undisturbed worker, relative to it, of a run that did no step twice."""
        parts = iter(self.parts())
        differences = []
        for step in self.undisturbed(EPOCHS * STEPS_PER_EPOCH)[1]:
            total, taken = 0.0, 0
            while taken < step.samples:
                loss, samples = next(parts)
                total, taken = total + loss * len(samples), taken + len(samples)
            differences.append(abs(total / taken / step.loss - 1))
        assert next(parts, None) is None
        return max(differences)

    def uses(self) -> dict[int, int]:
        """How many of the samples were used how many times more often than once an epoch; 0 of them: whole."""
        counts = Counter(sample for _, samples in self.parts() for sample in samples)
        pixels = torch.from_numpy(self.data.load("train")["pixels"].copy())
        wanted = Counter(names(pixels))
        assert not set(counts) - set(wanted)
        return dict(Counter(counts[name] - EPOCHS * times for name, times in wanted.items()))

    def story(self) -> str:
        """What the pool did so far and how it stands, to be read when a wait was in vain."""
        import ray

        from tidepool.pool import coordinator, ledger
        from tidepool.settings import Settings

        pools = ray.get(self.coordinator.view.remote()) if self.coordinator else []
        entries = ledger.read(coordinator.ledger_path(Settings())) if self.coordinator else []
        moves = [f"{entry.kind} {entry.phase} {entry.why} {entry.outcome}" for entry in entries]
        return "\n".join([f"step {self.step}", *map(str, pools), *moves])

    def further(self, steps: int) -> None:
        """Once so many steps more are done."""
        goal = self.step + steps
        self.wait_until(lambda: self.step >= goal)

    def wait_until(self, true: Callable[[], bool], deadline_s: float = 150.0) -> None:
        """Once it is true."""
        end = time.monotonic() + deadline_s
        while not true():
            assert time.monotonic() < end, self.story()
            time.sleep(0.05)
