"""Triton's own clients against a running service: HTTP and gRPC, plain and asyncio. `python tests/foreign` runs it.

It runs in an environment of its own, without tidepool: `tritonclient` brings messages that clash with ours.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as rpc
import tritonclient.grpc.aio as rpc_aio
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

Client = Any
Check = Callable[["Asked"], None]
CHECKS: list[Check] = []


class Asked:
    """One model behind one kind of client."""

    def __init__(self, module: Any, address: str, model: str, key: str) -> None:
        self.module, self.model, self.address = module, model, address
        self.client = module.InferenceServerClient(address)
        self.key = key
        metadata = self.told(self.client.get_model_metadata(model, headers=self.headers))
        self.inputs, self.outputs = metadata["inputs"], metadata["outputs"]

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}  # a new one each time: the client adds its own

    @property
    def is_http(self) -> bool:
        return self.module is http

    def told(self, message: Any) -> Any:
        """A document, from either kind of client."""
        if self.is_http:
            return message
        from google.protobuf.json_format import MessageToDict

        return MessageToDict(message, preserving_proto_field_name=True)

    def tensors(self, rows: int = 2, module: Any = None, **how: Any) -> list[Any]:
        made = []
        for head in self.inputs:
            shape = [rows, *(1 if int(axis) < 0 else int(axis) for axis in head["shape"][1:])]
            if head["datatype"] == "BYTES":
                values = np.full(shape, "é\0".encode(), np.object_)
            else:
                values = np.ones(shape, triton_to_np_dtype(head["datatype"]))
            tensor = (module or self.module).InferInput(head["name"], shape, head["datatype"])
            tensor.set_data_from_numpy(values, **({} if head["datatype"] == "FP16" else how))
            made.append(tensor)
        return made

    def infer(self, rows: int = 2, **options: Any) -> Any:
        return self.client.infer(self.model, self.tensors(rows), headers=self.headers, **options)

    def all_of(self, answer: Any) -> dict[str, Any]:
        return {head["name"]: answer.as_numpy(head["name"]) for head in self.outputs}

    def refusal(self, ask: Callable[[], Any]) -> InferenceServerException:
        try:
            ask()
        except InferenceServerException as error:
            return error
        raise AssertionError("not refused")


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys(), (one.keys(), other.keys())
    for name, values in one.items():
        assert values is not None, f"no {name}"
        np.testing.assert_array_equal(values, other[name])


@check
def server_and_model_are_live_and_ready(asked: Asked) -> None:
    client = asked.client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(asked.model)
    assert not client.is_model_ready(asked.model, "999")
    assert not client.is_model_ready("nonsense")


@check
def metadata_configuration_statistics_and_index_are_told(asked: Asked) -> None:
    client, headers, model = asked.client, asked.headers, asked.model
    server = asked.told(client.get_server_metadata())
    assert server["name"] == "tidepool", server
    assert {"model_repository", "statistics"} <= set(server["extensions"]), server
    config = asked.told(client.get_model_config(model, headers=headers))
    config = config.get("config", config)
    assert [head["name"] for head in config["input"]] == [head["name"] for head in asked.inputs], config
    assert len(config["input"][0]["dims"]) == len(asked.inputs[0]["shape"]), config
    asked.infer()
    told = asked.told(client.get_inference_statistics(model, headers=headers))["model_stats"]
    counts = [int(entry.get("inference_stats", {}).get("success", {}).get("count", 0)) for entry in told]
    assert sum(counts) > 0, told
    index = asked.told(client.get_model_repository_index())
    entries = index["models"] if isinstance(index, dict) else index
    assert (model, "READY") in {(entry["name"], entry["state"]) for entry in entries}, entries


@check
def an_answer_has_all_outputs_and_comes_with_its_id(asked: Asked) -> None:
    answer = asked.infer(request_id="42")
    said = asked.told(answer.get_response())
    assert (said["model_name"], said["id"]) == (asked.model, "42"), said
    for head, values in ((head, answer.as_numpy(head["name"])) for head in asked.outputs):
        assert values.shape[0] == 2, head
        assert head["datatype"] == "BYTES" or values.dtype == triton_to_np_dtype(head["datatype"]), head


@check
def some_outputs_can_be_asked_for(asked: Asked) -> None:
    name = asked.outputs[-1]["name"]
    answer = asked.infer(outputs=[asked.module.InferRequestedOutput(name)])
    assert answer.as_numpy(name) is not None
    assert [head["name"] for head in asked.told(answer.get_response())["outputs"]] == [name]


@check
def json_and_bytes_give_the_same(asked: Asked) -> None:
    if not asked.is_http or any(head["datatype"] in ("FP16", "BYTES") for head in asked.inputs):
        return  # gRPC has one form here; FP16 has none in JSON, and these BYTES are no JSON text to this client
    wanted = [http.InferRequestedOutput(head["name"], binary_data=False) for head in asked.outputs]
    plain = asked.client.infer(asked.model, asked.tensors(binary_data=False), outputs=wanted, headers=asked.headers)
    same(asked.all_of(plain), asked.all_of(asked.infer()))


@check
def a_version_answers_by_its_number(asked: Asked) -> None:
    version = asked.told(asked.infer().get_response())["model_version"]
    same(asked.all_of(asked.infer(model_version=version)), asked.all_of(asked.infer()))
    assert "999" in str(asked.refusal(lambda: asked.infer(model_version="999")))


@check
def compressed_requests_and_answers_are_the_same(asked: Asked) -> None:
    for algorithm in ("gzip", "deflate"):
        options = {"compression_algorithm": algorithm}
        if asked.is_http:
            options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        same(asked.all_of(asked.infer(200, **options)), asked.all_of(asked.infer(200)))  # long enough to be packed


@check
def deadline_and_priority_are_taken(asked: Asked) -> None:
    same(asked.all_of(asked.infer(priority=5, timeout=30_000_000)), asked.all_of(asked.infer()))
    assert "priority" in str(asked.refusal(lambda: asked.infer(priority=5000)))
    if not asked.is_http:
        asked.infer(client_timeout=30.0)
        assert "DEADLINE_EXCEEDED" in str(asked.refusal(lambda: asked.infer(2000, client_timeout=0.000_001)).status())


@check
def what_is_wrong_is_said(asked: Asked) -> None:
    short = asked.tensors(1)[:0]
    client, headers = asked.client, asked.headers
    errors = {
        "inputs are not the model's": lambda: client.infer(asked.model, short, headers=headers),
        "no such output": lambda: asked.infer(outputs=[asked.module.InferRequestedOutput("nonsense")]),
        "no such model": lambda: client.infer("nonsense", asked.tensors(), headers=headers),
        "key": lambda: client.infer(asked.model, asked.tensors()),
        "not known": lambda: client.infer(asked.model, asked.tensors(), headers={"x-api-key": "wrong"}),
    }
    for words, ask in errors.items():
        assert words in asked.refusal(ask).message(), (words, asked.refusal(ask).message())


@check
def many_at_once_are_answered_by_asyncio_clients(asked: Asked) -> None:
    aio = http_aio if asked.is_http else rpc_aio
    expected = asked.all_of(asked.infer())

    async def ask() -> list[Any]:
        async with aio.InferenceServerClient(asked.address) as client:
            assert await client.is_model_ready(asked.model)
            asking = (client.infer(asked.model, asked.tensors(module=aio), headers=asked.headers) for _ in range(50))
            return list(await asyncio.gather(*asking))

    for answer in asyncio.run(ask()):
        same(asked.all_of(answer), expected)


@check
def a_cancelled_call_harms_nobody(asked: Asked) -> None:
    if asked.is_http:
        return
    outcomes: list[Any] = []

    def asking(**options: Any) -> Any:
        tensors = asked.tensors(1000)
        return asked.client.async_infer(
            asked.model, tensors, lambda result, error: outcomes.append(error), headers=asked.headers, **options
        )

    for call in [asking() for _ in range(20)]:
        call.cancel()
    same(asked.all_of(asked.infer()), asked.all_of(asked.infer()))
    assert all(error is None or "CANCELLED" in str(error) for error in outcomes), outcomes


def main(http_address: str, rpc_address: str, key: str, *models: str) -> int:
    """Every check for every model over both; a line for each, and the number of those that failed."""
    failed = passed = 0
    for module, address in ((http, http_address), (rpc, rpc_address)):
        for model in models:
            asked = Asked(module, address, model, key)
            for each in CHECKS:
                try:
                    each(asked)
                    passed += 1
                except Exception:
                    failed += 1
                    print(f"{module.__name__} {model}: {each.__name__} failed\n{traceback.format_exc()}")
    print(f"tritonclient: {passed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
