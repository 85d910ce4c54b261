"""A model in service on a real local cluster, behind its real front end: asked over HTTP, promoted, rolled back."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from listening import listening_elsewhere, title
from services import ZEROS, Service
from tidepool.artifact import open_artifact
from tidepool.cluster import local
from tidepool.cluster.ports import Ports
from tidepool.cluster.processes import members
from tidepool.errors import ClusterError, CorruptionError, GateError, ModelNotFound
from tidepool.serve import app
from tidepool.serve.auth import KeyFile
from tidepool.serve.limits import Limit
from tidepool.serve.rehearsal import rehearse
from tidepool.serve.requestlog import logged_files
from tidepool.serve.rollout import announce, await_answer
from tidepool.serve.standby import raylets
from tidepool.serve.versions import keeper
from tidepool.settings import Settings
from waiting import wait_until

SERVE = {
    "canary": {"decide": True, "max_error_rate": 0.3, "max_disagreement": 0.5, "min_requests": 10, "min_s": 0},
    "request_log": {"share": 1.0, "every_s": 0.2},
}
PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def service(no_ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEPOOL_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("TIDEPOOL_STANDBY", "1")
        settings, ports = Settings(), Ports(_free_port(), _free_port())
        local.up(settings, ports, None, None, {}, PROJECT)
        try:
            with local.connect(settings):
                app.start(settings, ports.http, local.running(settings).ports["grpc"])
                yield Service(settings, ports.http)
        finally:
            local.down(settings)


@pytest.fixture
def digits(service: Service, make_artifact: Callable[..., Path]) -> Service:
    versions = {m.name: len(m.versions) for m in service.registry.models()}
    if versions.get("digits", 0) < 2:
        for favourite in (1, 2):
            service.registry.register(open_artifact(str(make_artifact(favourite, serve=SERVE))))
        service.registry.promote("digits", 1)
        app.deploy(service.settings, "digits", service.port)
    service.registry.promote("digits", 1)
    announce("digits")
    service.await_version("1")
    return service


def test_the_server_answers_before_any_model_is_deployed(service: Service) -> None:
    assert httpx.get(f"{service.url}/v2/health/live").json() == {"live": True}
    assert httpx.get(f"{service.url}/docs").status_code == 200
    assert "iris" in service.ask("iris").json()["error"]


def test_a_started_process_becomes_the_next_replica_and_keeps_to_loopback(
    service: Service, make_artifact: Callable[..., Path]
) -> None:
    (node,) = raylets()
    wait_until(lambda: node.unused() == 1)
    at_hand = node.signed()
    service.registry.register(open_artifact(str(make_artifact(name="spare"))))
    service.registry.promote("spare", 1)
    app.deploy(service.settings, "spare", service.port)
    try:
        processes = members(local.running(service.settings).id)
        assert [process.pid in at_hand for process in processes if "Replica:spare" in title(process)] == [True]
        assert listening_elsewhere(processes) == []
    finally:
        app.undeploy(service.settings, "spare")


def test_an_answer_names_model_and_version(digits: Service) -> None:
    answer = digits.ask().json()
    assert (answer["model_name"], answer["model_version"], answer["outputs"][0]["data"]) == ("digits", "1", [1])


def test_promote_and_rollback_change_the_answer(digits: Service) -> None:
    digits.registry.promote("digits", 2)
    announce("digits")
    digits.await_version("2")
    assert digits.ask().json()["outputs"][0]["data"] == [2]
    assert digits.ask("digits/versions/1").json()["model_version"] == "1"
    digits.registry.rollback("digits")
    announce("digits")
    digits.await_version("1")


def test_a_canary_answers_its_part_and_is_ended_when_it_breaks_the_rules(digits: Service) -> None:
    import ray

    def versions() -> list[str]:
        return [digits.ask(json={**ZEROS, "parameters": {"key": f"c{n}"}}).json()["model_version"] for n in range(20)]

    digits.registry.shift("digits", 2, "canary", 50)
    announce("digits")
    wait_until(lambda: "canary" in digits.stats())
    assert set(versions()) == {"1", "2"}
    wait_until(lambda: set(versions()) == {"1"})
    (*_, last) = digits.registry.model("digits").shifts["canary"]
    assert (last.version, last.percent) == (2, 0)
    assert "rollback: broken: disagreement" in last.why
    assert ray.get(keeper().watched.remote("digits"))["canary"]["verdict"]["decision"] == "rollback"


def test_a_canary_that_keeps_the_rules_is_promoted(digits: Service, make_artifact: Callable[..., Path]) -> None:
    same = digits.registry.register(open_artifact(str(make_artifact(1)))).version
    digits.registry.shift("digits", same, "canary", 50)
    announce("digits")
    wait_until(lambda: all(digits.ask().json()["model_version"] == str(same) for _ in range(10)))
    assert "every rule is kept" in digits.registry.model("digits").shifts["canary"][-1].why


def test_a_shadow_is_compared_and_never_answers(digits: Service) -> None:
    digits.registry.shift("digits", 2, "shadow", 100)
    announce("digits")
    wait_until(lambda: "shadow" in digits.stats())
    assert digits.ask().json()["model_version"] == "1"
    wait_until(lambda: digits.stats()["shadow"]["disagreed"] == 1)
    digits.registry.shift("digits", 2, "shadow", 0)


def test_what_was_asked_is_logged_and_asked_of_a_candidate(digits: Service) -> None:
    digits.ask()
    folder = digits.settings.storage("requests", "digits")
    wait_until(lambda: bool(logged_files(folder)))
    report = rehearse(digits.settings, "digits", 2)
    assert report.whole.disagreed == report.whole.rows > 0
    with pytest.raises(GateError, match="disagrees with version 1"):
        report.check(0.5)


def test_small_models_share_a_replica(service: Service, make_artifact: Callable[..., Path]) -> None:
    for number, name in enumerate(("red", "blue")):
        artifact = open_artifact(
            str(make_artifact(number, name=name, serve={"placement": "shared", "prewarm": name == "blue"}))
        )
        service.registry.promote(name, service.registry.register(artifact).version)
        app.deploy(service.settings, name, service.port)
    for number, name in enumerate(("red", "blue", "red")):
        answer = service.ask(name).json()
        assert (answer["model_name"], answer["outputs"][0]["data"]) == (name, [number % 2])
    for name in ("red", "blue"):
        stats = httpx.get(f"{service.url}/v2/models/{name}/stats", headers={"x-api-key": service.key}).json()
        assert (stats["shelf"]["loads"], stats["shelf"]["hits"]) == (1, 1)
    assert service.ask("red", key="wrong").status_code == 401
    second = service.registry.register(open_artifact(str(make_artifact(2, name="red")))).version
    service.registry.shift("red", second, "canary", 50)
    announce("red")
    keyed = [{**ZEROS, "parameters": {"key": f"c{n}"}} for n in range(20)]
    wait_until(lambda: {service.ask("red", json=body).json()["model_version"] for body in keyed} == {"1", "2"})
    explain = {"headers": {"x-api-key": service.key}, "json": ZEROS}
    assert httpx.post(f"{service.url}/v2/models/blue/explain", **explain).json()["model_name"] == "blue"
    index = httpx.post(f"{service.url}/v2/repository/index").json()
    assert {"red", "blue"} <= {model["name"] for model in index}
    app.undeploy(service.settings, "red")
    wait_until(lambda: service.ask("red").status_code == 404)
    assert service.ask("blue").status_code == 200
    app.undeploy(service.settings, "blue")
    assert not any(model["name"] == "blue" for model in httpx.post(f"{service.url}/v2/repository/index").json())


def test_a_version_whose_bytes_are_damaged_is_not_promoted(digits: Service, make_artifact: Callable[..., Path]) -> None:
    third = digits.registry.register(open_artifact(str(make_artifact(3))))
    model = Path(third.uri) / "model.onnx"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    with pytest.raises(CorruptionError, match=r"model\.onnx"):
        digits.registry.promote("digits", third.version)
    announce("digits")
    assert digits.registry.version("digits").version == 1
    assert digits.ask().json()["model_version"] == "1"
    shutil.rmtree(third.uri)


def test_keys_take_effect_at_once(digits: Service) -> None:
    keys = KeyFile(digits.settings.keys_file)
    text = keys.create("guest", ["iris"])
    announce(keys=True)
    assert digits.ask(key="wrong").status_code == 401
    wait_until(lambda: digits.ask(key=text).status_code == 403)
    keys.revoke(keys.load()[-1].id)
    announce(keys=True)
    wait_until(lambda: digits.ask(key=text).status_code == 401)


def test_a_quota_is_told_to_the_keeper_of_all_replicas(digits: Service) -> None:
    keys = KeyFile(digits.settings.keys_file)
    text = keys.create("guest", limit=Limit(per_day=2))
    announce(keys=True)
    wait_until(lambda: digits.ask(key=text).status_code == 200)
    assert digits.ask(key=text).status_code == 200
    refused = digits.ask(key=text)
    assert (refused.status_code, int(refused.headers["retry-after"]) <= 86_400) == (429, True)
    wait_until(lambda: "of all replicas together" in digits.ask(key=text).json()["error"])


def test_a_model_in_service_explains_its_answers(digits: Service) -> None:
    url, headers = f"{digits.url}/v2/models/digits/explain", {"x-api-key": digits.key}
    outputs = {tensor["name"]: tensor for tensor in httpx.post(url, headers=headers, json=ZEROS).json()["outputs"]}
    assert (outputs["target"]["data"], outputs["image"]["shape"]) == ([1], [1, 64])
    drawn = httpx.post(url, headers={**headers, "accept": "image/png"}, json=ZEROS)
    assert drawn.content.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"inputs": [', 400, "not JSON"),
        (b'{"inputs": [{"name": "image", "data": [NaN]}]}', 400, "not JSON"),
        (b"x" * 100_000_000, 413, "too large"),
    ],
    ids=["truncated", "NaN", "100 MB"],
)
def test_rubbish_is_refused_and_the_service_goes_on(digits: Service, body: bytes, status: int, words: str) -> None:
    response = digits.ask(content=body)
    assert response.status_code == status
    assert words in response.json()["error"]
    assert digits.ask().status_code == 200


def test_a_deployment_that_fails_leaves_the_others_alone(digits: Service) -> None:
    before = _replicas(digits)
    app.deploy(digits.settings, "digits", digits.port)
    with pytest.raises(ModelNotFound, match="iris"):
        app.deploy(digits.settings, "iris", digits.port)
    with pytest.raises(ModelNotFound, match="digits"):
        app.undeploy(digits.settings, "iris")
    assert _replicas(digits) == before
    assert digits.ask().status_code == 200


def test_a_replica_has_neither_torch_nor_mlflow(digits: Service) -> None:
    import ray

    replicas: list[Any] = [ray.get_actor(name, namespace="serve") for name in _replicas(digits).values()]
    assert replicas
    for replica in replicas:
        loaded = ray.get(replica.__ray_call__.remote(lambda _: {module.partition(".")[0] for module in sys.modules}))
        assert {"tidepool", "onnxruntime"} <= loaded
        assert {"torch", "mlflow"} & loaded == set()


def test_a_port_that_nobody_answers_on_is_reported() -> None:
    with pytest.raises(ClusterError, match="doesn't answer"):
        await_answer(_free_port(), "/v2/health/ready", deadline_s=0.2)


def _replicas(service: Service) -> dict[str, str]:
    """The replicas of digits: the actor's id to its name."""
    from ray.util.state import list_actors

    actors = list_actors(address=local.running(service.settings).dashboard, filters=[("state", "=", "ALIVE")])
    return {actor.actor_id: actor.name for actor in actors if "digits" in (actor.name or "")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
