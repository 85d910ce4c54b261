"""One regime of a replay, on a cluster of its own; run as a program, since Serve reads its environment once.

up -> deploy -> train (a process of its own) -> requests as the trace has them -> down, whatever happened
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tidepool.cluster import local
from tidepool.cluster.ports import Ports
from tidepool.errors import TrainingError
from tidepool.pool.sight import Sight
from tidepool.pool.workload import Floats
from tidepool.replay.regimes import Outcome, Regime
from tidepool.replay.traffic import Answers, due_times, send, until_new_answers, waves
from tidepool.settings import Settings

RESOURCE = "slot"
"""The logical accelerator."""
TRAINER = "from tidepool.replay.trainer import main; main()"
LOOK_S = 0.25
"""Between two looks at who holds what."""
PACE_S = 5.0
"""For so long training is by itself before the first request."""
START_S = 180.0
"""Longest wait for training to begin."""


@dataclass(frozen=True)
class Play:
    """What every regime is given. Durations in seconds."""

    accelerators: int = 4
    seconds: float = 90.0
    compress: float = 60.0
    trace: str | None = None
    wave_s: float | None = None
    """From one wave of requests to the next, in place of a trace."""
    service_s: float = 0.1
    """Of a replica for a request."""
    sample_s: float = 0.004
    """Of a train worker for a sample."""
    slo_s: float = 1.0
    peak: float = 0.7
    """Of requests, over what all accelerators together could answer."""

    @property
    def due_s(self) -> Floats:
        """When the requests are due."""
        peak = self.peak * self.accelerators / self.service_s
        if self.wave_s is not None:
            return waves(self.seconds, self.wave_s, peak)
        return due_times(Path(self.trace) if self.trace else None, self.seconds, self.compress, peak)

    @property
    def rises_s(self) -> Floats:
        """When waves begin."""
        return np.arange(self.wave_s / 2, self.seconds, self.wave_s) if self.wave_s is not None else np.array([])


def perform(play: Play, regime: Regime, ports: Ports, project: Path) -> Outcome:
    """One regime, from the start of its cluster to its end. TIDEPOOL_HOME must be one of its own."""
    settings = Settings()
    local.up(settings, ports, num_cpus=64, num_gpus=0, resources={RESOURCE: play.accelerators}, project=project)
    try:
        with local.connect(settings):
            _deploy(play, regime, settings, ports.http)
            with _training(play, regime, settings) as steps:
                pace = _pace(play, regime, steps)
                before = steps[-1][1]
                with _watched() as tide:
                    answers = asyncio.run(send(f"http://127.0.0.1:{ports.http}/answer", play.due_s))
                return _outcome(play, regime, settings, answers, tide, steps[-1][1] - before, pace)
    finally:
        local.down(settings)


def _deploy(play: Play, regime: Regime, settings: Settings, port: int) -> None:
    from ray import serve

    from tidepool.pool import coordinator
    from tidepool.replay.default import RayPolicy
    from tidepool.replay.stand_ins import SlowAnswer
    from tidepool.serve import autoscale

    scaling: dict[str, Any] = {
        "min_replicas": regime.replicas[0],
        "max_replicas": regime.replicas[1],
        "target_ongoing_requests": 2,  # Ray's default
        "metrics_interval_s": 0.2,
        "look_back_period_s": 0.5,
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 2.0,
    }
    if regime.shared:
        coordinator.start(settings)
        by = RayPolicy if regime.default_policy else autoscale.PoolPolicy
        scaling["policy"] = autoscale.policy(RESOURCE, 0, 0, play.slo_s * 1e3, by)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deployment = serve.deployment(
        name="Answer",
        autoscaling_config=scaling,
        ray_actor_options=autoscale.replica_options(RESOURCE, 0),
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=5.0,
    )(SlowAnswer)
    serve.run(deployment.bind(play.service_s, play.slo_s), name="answer", route_prefix="/answer")


@contextmanager
def _training(play: Play, regime: Regime, settings: Settings) -> Iterator[list[tuple[float, int]]]:
    """Training, under way, inside the block; the list grows by (seconds, samples done)."""
    least, most = regime.workers
    arguments = [str(play.sample_s), f"[{least}, {most}]", RESOURCE]
    log = (settings.root / "training.log").open("w")
    with (
        log,
        subprocess.Popen([sys.executable, "-c", TRAINER, *arguments], stdout=subprocess.PIPE, stderr=log) as process,
    ):
        steps: list[tuple[float, int]] = []
        reader = threading.Thread(target=_read, args=(process.stdout, steps), daemon=True)
        reader.start()
        until = time.monotonic() + START_S
        try:
            while not steps:
                if process.poll() is not None or time.monotonic() > until:
                    raise TrainingError("training doesn't begin", seen=Path(log.name).read_text()[-1000:])
                time.sleep(LOOK_S)
            yield steps
        finally:
            process.kill()


def _pace(play: Play, regime: Regime, steps: list[tuple[float, int]]) -> float:
    """Samples a second of one worker, while training has all that it can have and no request comes."""
    time.sleep(PACE_S)
    (first_at, first), (last_at, last) = steps[0], steps[-1]
    return (last - first) / (last_at - first_at) / min(regime.workers[1], play.accelerators - regime.replicas[0])


def _read(lines: Any, steps: list[tuple[float, int]]) -> None:
    steps.extend((time.monotonic(), int(line)) for line in lines)


@contextmanager
def _watched() -> Iterator[list[tuple[float, int, int]]]:
    """Inside the block, who holds what: the list grows by (seconds, accelerators of serving, of training)."""
    from tidepool.pool.sight import look

    tide: list[tuple[float, int, int]] = []
    over = threading.Event()

    def watch() -> None:
        began = time.monotonic()
        while not over.wait(LOOK_S):
            tide.append((time.monotonic() - began, *holdings(look(RESOURCE))))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield tide
    finally:
        over.set()
        thread.join()


def holdings(sight: Sight) -> tuple[int, int]:
    """Accelerators that serving and training hold: a process that only comes to life has its own already."""
    held = round(sum(sight.total.values()) - sum(sight.free.values()))
    living = sum(sum(nodes.values()) for nodes in sight.replicas.values())
    runs = [*sight.members.values(), *sight.hired.values(), sight.workers]
    training = max(0, min(sum(sum(nodes.values()) for nodes in runs), held - living))
    return held - training, training


def _outcome(
    play: Play,
    regime: Regime,
    settings: Settings,
    answers: Answers,
    tide: list[tuple[float, int, int]],
    samples: int,
    pace: float,
) -> Outcome:
    from tidepool.pool import coordinator, ledger

    path = coordinator.ledger_path(settings)
    entries = ledger.read(path) if path.exists() else []
    moves = ledger.totals(entries)
    due, total = play.due_s, play.accelerators
    times, serving, training = np.array(tide).T
    spans = np.diff(times, prepend=0.0)
    rate = np.histogram(due, np.append([0.0], times))[0] / spans
    smooth = np.convolve(rate, np.ones(12) / 12, mode="same")
    return Outcome(
        regime=regime.name,
        accelerators=total,
        requests=len(due),
        late=answers.late(play.slo_s),
        failed=answers.failed,
        p99_s=answers.percentile(0.99),
        samples_per_s=samples / times[-1],
        releases_s=list(moves.release_s),
        pauses_s=[entry.pause_s for entry in entries if entry.pause_s],
        steps_redone=moves.steps_redone,
        idle=1 - float((serving + training) @ spans) / (total * times[-1]),
        goodput=samples / (pace * float((total - serving) @ spans)),
        most_resizes=_most_a_minute([entry.at["promised"] for entry in entries if entry.run]),
        new_answers_s=until_new_answers(play.rises_s, answers.first_s.values()),
        tide=[(*row, float(now)) for row, now in zip(tide, smooth, strict=True)],
    )


def _most_a_minute(times: list[float]) -> int:
    return max((sum(at - 60 < other <= at for other in times) for at in times), default=0)


def main() -> None:
    """Perform what the argument says, as JSON, and print the outcome as JSON."""
    told = json.loads(sys.argv[1])
    play, regime, ports = Play(**told["play"]), Regime(**told["regime"]), Ports(**told["ports"])
    print(json.dumps(asdict(perform(play, regime, ports, Path(told["project"])))))


if __name__ == "__main__":
    main()
