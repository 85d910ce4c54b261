"""Who is let in, what it costs, and how long a place is kept for a body that doesn't come."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from calls import Response, infer
from lanes import Connection, application, double, wait_until
from tidepool.errors import TryLater
from tidepool.serve.auth import Key, Keyring, digest
from tidepool.serve.limits import Limit
from tidepool.serve.rest import ModelApp

pytestmark = pytest.mark.usefixtures("own_models")

SLOW = {b"x-api-key": b"slow"}


def impatient(**options: Any) -> ModelApp:
    """Of a model m, with a key that may ask once in two seconds."""
    keys = Keyring([Key("slow", "slow", digest("slow"), ("*",), 0.0, None, limit=Limit(0.5))], clock=lambda: 10.0)
    return ModelApp(application(double).dataplane, keys, 10_000, **options)


@pytest.mark.parametrize(
    ("path", "body", "status"), [("/infer", b" " * 10_001, 413), ("/versions/9/infer", b"{}", 404)]
)
def test_a_refusal_costs_a_key_nothing(path: str, body: bytes, status: int) -> None:
    app = impatient()
    body = (
        b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}' if status == 404 else body
    )
    assert [ask(app, path, body)[0] for _ in range(3)] == [status] * 3
    assert app.enter(SLOW, 1) == "slow"
    with pytest.raises(TryLater, match="rate limit"):
        app.enter(SLOW, 1)


def test_a_full_replica_costs_a_key_nothing() -> None:
    app = impatient(max_in_air=0)
    for _ in range(3):
        with pytest.raises(TryLater, match="hands full"):
            app.enter(SLOW, 1)
    app._max_in_air = 1
    assert app.enter(SLOW, 1) == "slow"


def test_a_body_that_does_not_come_gives_up_its_place() -> None:
    app = impatient(patience_s=0.01)
    status, said = ask(app, "/infer", None)
    assert (status, app.in_air) == (400, 0)
    assert b"didn't come in time" in said


def test_a_call_whose_body_does_not_come_gives_up_its_place() -> None:
    async def main() -> None:
        app = application(double)
        app.patience_s = 0.01
        connection = Connection(app)
        connection.lane.data_received(infer()[:-5])
        assert app.in_air == 1
        await wait_until(lambda: connection.wire.written != b"")
        assert "didn't come in time" in Response(connection.wire.written).headers["grpc-message"]
        assert app.in_air == 0

    asyncio.run(main())


def ask(app: ModelApp, path: str, body: bytes | None) -> tuple[int, bytes]:
    """Status and body of the answer; a body of None begins and never ends."""
    sent: list[Any] = []
    length = [(b"content-length", b"%d" % len(body))] if body else []
    headers = [*SLOW.items(), *length]
    scope = {"type": "http", "method": "POST", "path": f"/m{path}", "root_path": "/m", "headers": headers}

    async def receive() -> dict[str, Any]:
        if body is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]
