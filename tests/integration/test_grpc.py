"""gRPC on a real cluster behind its real front end, called as standard clients do and straight to an application.

A process of its own deploys (this file, run as a program), since Serve reads its environment when it is imported.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tidepool.artifact import open_artifact
from tidepool.cluster import local
from tidepool.cluster.ports import Ports
from tidepool.conformance.__main__ import main as conformance
from tidepool.registry.client import Registry
from tidepool.serve import health, protobuf
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.grpc import SERVICE
from tidepool.settings import Settings

pytestmark = pytest.mark.cluster


class Service:
    """Digits in service."""

    def __init__(self, settings: Settings, port: int, url: str) -> None:
        self.port, self.url, self.key = port, url, settings.cli_key_file.read_text()

    def message(self, model: str = "digits", rows: int = 1, raw: bool = True, outputs: Any = ()) -> bytes:
        image = {"image": np.zeros((rows, 64), np.float32)}
        message = protobuf.encode_request(image, {"image": "FP32"}, model=model, raw=raw)
        message.MergeFrom(pb.ModelInferRequest(outputs=outputs))
        return bytes(message.SerializeToString())

    def infer(
        self,
        model: str = "digits",
        key: str | None = None,
        rows: int = 1,
        raw: bool = True,
        outputs: Any = (),
        timeout: float = 60.0,
        compression: Any = None,
        **metadata: str,
    ) -> Any:
        message = self.message(model, rows, raw, outputs)
        sent = {"authorization": f"Bearer {self.key if key is None else key}", **metadata}
        options = {"timeout": timeout, "compression": compression}
        return self.call(f"/{SERVICE}/ModelInfer", message, pb.ModelInferResponse, sent, **options)

    def call(self, path: str, message: bytes, answer: Any, metadata: dict[str, str], **options: Any) -> Any:
        unlimited = [("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(f"127.0.0.1:{self.port}", unlimited) as channel:
            call = channel.unary_unary(path, response_deserializer=getattr(answer, "FromString", None))
            return call(message, metadata=tuple(metadata.items()), **{"timeout": 60, **options})

    def refusal(self, **options: Any) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as refused:
            self.infer(**options)
        return refused.value.code().name, refused.value.details()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEPOOL_HOME", str(tmp_path_factory.mktemp("home")))
        settings, ports = Settings(), Ports(*free_ports(3))
        local.up(settings, ports, num_cpus=4, num_gpus=0, resources={}, project=tmp_path_factory.mktemp("project"))
        try:
            subprocess.run([sys.executable, __file__], check=True, timeout=240)
            assert ports.grpc is not None
            yield Service(settings, ports.grpc, f"http://127.0.0.1:{ports.http}")
        finally:
            local.down(settings)


@pytest.fixture
def digits(service: Service, make_artifact: Callable[..., Path]) -> Service:
    registry = Registry(Settings().registry, Settings().storage("artifacts"))
    if not registry.models():
        registry.promote("digits", registry.register(open_artifact(str(make_artifact(7)))).version)
        subprocess.run([sys.executable, __file__, "digits"], check=True, timeout=240)
    return service


def test_the_server_answers_before_any_model_is_deployed(service: Service) -> None:
    assert service.call(f"/{SERVICE}/ServerReady", b"", pb.ServerReadyResponse, {}).ready
    assert service.call(f"/{SERVICE}/ServerMetadata", b"", pb.ServerMetadataResponse, {}).name == "tidepool"
    assert service.call(f"/{health.SERVICE}/Check", b"", None, {}) == health.SERVING


def test_a_standard_client_and_one_that_names_the_application_get_the_same_answer(digits: Service) -> None:
    standard, named = digits.infer(), digits.infer(application="digits")
    assert (standard.model_name, standard.model_version) == ("digits", "1")
    assert standard.raw_output_contents == named.raw_output_contents
    assert len(digits.infer(rows=10_000).raw_output_contents[0]) == 80_000


def test_keys_are_checked_on_this_port_as_well(digits: Service) -> None:
    assert digits.refusal(key="wrong")[0] == "UNAUTHENTICATED"
    assert digits.refusal(key="wrong", application="digits")[0] == "UNAUTHENTICATED"


def test_a_model_that_is_not_served_is_not_found(digits: Service) -> None:
    assert digits.refusal(model="nonsense") == ("NOT_FOUND", "no such model is served. Seen: nonsense.")
    assert digits.refusal(model="nonsense", application="nonsense")[0] == "NOT_FOUND"


@pytest.mark.parametrize("metadata", [{}, {"application": "digits"}])
def test_calls_to_infer_keep_grpcs_rules(digits: Service, metadata: dict[str, str]) -> None:
    typed = digits.infer(raw=False, **metadata)
    assert list(typed.outputs[0].contents.int64_contents) == [7]
    packed = digits.infer(compression=grpc.Compression.Gzip, **metadata)
    assert np.frombuffer(packed.raw_output_contents[0], np.int64).tolist() == [7]
    large = digits.infer(rows=100_000, **metadata)  # 26 MB there, 5 MB back
    assert [len(data) for data in large.raw_output_contents] == [800_000, 4_000_000]
    code, details = digits.refusal(outputs=[{"name": "é%"}], **metadata)
    assert (code, "Seen: é%." in details) == ("INVALID_ARGUMENT", True)
    assert digits.refusal(timeout=1e-3, rows=100_000, **metadata)[0] == "DEADLINE_EXCEEDED"


def test_calls_share_a_connection(digits: Service) -> None:
    message, sent = digits.message(), (("authorization", f"Bearer {digits.key}"),)
    with grpc.insecure_channel(f"127.0.0.1:{digits.port}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer", response_deserializer=pb.ModelInferResponse.FromString)
        pending = [call.future(message, metadata=sent, timeout=60) for _ in range(64)]
        for future in pending[::8]:
            future.cancel()
        kept = [future for at, future in enumerate(pending) if at % 8]
        assert {answer.result().model_name for answer in kept} == {"digits"}
    assert digits.infer().model_name == "digits"


def test_the_conformance_suite_passes(digits: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert broken_rules(digits, capsys, "digits") == []


def test_a_model_that_shares_its_replica_passes_it_too(
    digits: Service, make_artifact: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(Settings().registry, Settings().storage("artifacts"))
    artifact = open_artifact(str(make_artifact(3, name="small", serve={"placement": "shared"})))
    registry.promote("small", registry.register(artifact).version)
    subprocess.run([sys.executable, __file__, "small"], check=True, timeout=240)
    standard, named = digits.infer("small"), digits.infer("small", application="small")
    assert standard.raw_output_contents == named.raw_output_contents != digits.infer().raw_output_contents
    assert digits.refusal(model="nonsense") == ("NOT_FOUND", "no such model is served. Seen: nonsense.")
    assert broken_rules(digits, capsys, "small", digits.url) == []


def broken_rules(service: Service, capsys: pytest.CaptureFixture[str], model: str, *url: str) -> list[dict[str, Any]]:
    """The rules of the conformance suite that a model's service doesn't keep."""
    header = f"Authorization: Bearer {service.key}"
    conformance([*url, "--grpc", f"127.0.0.1:{service.port}", "--model", model, "--header", header, "--json"])
    outcomes = json.loads(capsys.readouterr().out)
    assert outcomes
    return [outcome for outcome in outcomes if outcome["verdict"] == "fail"]


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


if __name__ == "__main__":
    settings = Settings()
    cluster = local.running(settings)
    with local.connect(settings):
        from tidepool.serve import app

        if sys.argv[1:]:
            app.deploy(settings, sys.argv[1], cluster.http_port)
        else:
            app.start(settings, cluster.http_port, cluster.ports["grpc"])
