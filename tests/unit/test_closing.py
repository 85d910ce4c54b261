"""What verbs say last: what a new champion changes, whether it answers, and what to type next."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tidepool.artifact import open_artifact
from tidepool.cli.announce import answering
from tidepool.cli.cluster import next_step, standing
from tidepool.cluster.environment import ELSEWHERE
from tidepool.errors import ClusterError
from tidepool.evaluate.gate import compared
from tidepool.registry.client import Registry
from tidepool.settings import Settings


class Front(BaseHTTPRequestHandler):
    """A front end that has version 2 of digits in service, and nothing else."""

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/v2/models/digits/versions/2/ready" else 404, b"")

    def do_POST(self) -> None:
        is_index = self.path == "/v2/repository/index"
        self._answer(200 if is_index else 404, b'[{"name": "digits", "version": "2", "state": "READY"}]')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def front(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Its port."""
    for variable in ELSEWHERE:
        monkeypatch.delenv(variable, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_a_new_champion_that_answers_is_said_to(front: int) -> None:
    assert answering("digits", 2, front).startswith("digits answers with version 2 now, at http://localhost:")


def test_a_new_champion_of_a_model_that_is_not_deployed_is_said_not_to_answer(front: int) -> None:
    assert "iris isn't in service" in answering("iris", 1, front)
    assert "deploy iris" in answering("iris", 1, front)


def test_a_version_that_does_not_come_up_is_not_said_to_answer(front: int) -> None:
    with pytest.raises(ClusterError, match="doesn't answer"):
        answering("digits", 3, front, deadline_s=0.2)


def test_what_a_new_champion_changes_is_said_of_every_metric_in_common() -> None:
    said = compared({"accuracy": 0.9722, "f1": 0.9, "auc": 1.0}, {"accuracy": 0.975, "f1": 0.9, "loss": 0.1})
    assert said == "accuracy 0.9722, was 0.975 (-0.0028); f1 0.9 as before"
    assert compared({"accuracy": 1.0}, {}) == "no metric in common"
    assert compared({"loss": 0.97204}, {"loss": 0.972}) == "loss 0.97204, was 0.972 (+4e-05)"
    assert compared({"auc": math.nan}, {"auc": math.nan}) == "auc nan as before"


def test_champions_that_are_not_in_service_could_be_deployed(front: int, make_artifact: Callable[..., Path]) -> None:
    assert standing(front) == ([], {"digits"})
    settings = Settings()
    here = Registry(settings.registry, settings.storage("artifacts"))
    for name in ("digits", "iris", "unproven"):
        here.register(open_artifact(str(make_artifact(name=name))))
    for name in ("digits", "iris"):
        here.promote(name, 1)
    assert standing(front) == (["digits", "iris"], {"digits"})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        assert standing(probe.getsockname()[1]) == ([], set())


def test_what_could_be_deployed_is_what_to_do_next() -> None:
    assert next_step([], set()).startswith("run ")
    assert next_step(["digits"], {"digits"}) == "status"
    assert next_step(["digits", "iris"], {"digits"}) == "deploy iris"
    assert next_step(["digits", "iris"], set()) == "deploy digits  # or iris"
    assert next_step([f"m{number}" for number in range(9)], set()) == "deploy m0  # or m1, m2, ..."
