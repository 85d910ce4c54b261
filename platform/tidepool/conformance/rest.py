"""A server over HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx

from tidepool.conformance import tensors
from tidepool.conformance.case import Failed, Transport
from tidepool.conformance.messages import Model, Refused, Request, Response, Server
from tidepool.conformance.tensors import Spec, Tensor

JSON_LENGTH = "Inference-Header-Content-Length"
"""Header of the binary tensor extension: bytes of JSON before the raw tensors."""


class RestTarget:
    """The protocol's calls as HTTP requests below `url`; `headers` go with each."""

    transport = Transport.REST

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float) -> None:
        self.url, self.headers, self.timeout_s = url.rstrip("/"), dict(headers), timeout_s
        # Without TLS there is nothing to verify, and loading certificates takes longer than many cases.
        secure = self.url.startswith("https")
        # A connection for each request: one that a server drops after an error must not fail the next case.
        self._client = httpx.Client(
            base_url=self.url,
            headers=self.headers,
            timeout=timeout_s,
            verify=secure,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def live(self) -> bool:
        """Whether the server says that it is live."""
        return self.send("GET", "/v2/health/live").status_code == 200

    def ready(self) -> bool:
        """Whether the server says that it is ready."""
        return self.send("GET", "/v2/health/ready").status_code == 200

    def server(self) -> Server:
        """The server's metadata."""
        document = self._document("/v2")
        return Server(
            text(document, "name"),
            text(document, "version"),
            tuple(_texts(document.get("extensions", []), "extensions")),
        )

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether the server says that a model is ready."""
        return self.send("GET", f"{model_path(model, version)}/ready").status_code == 200

    def model(self, model: str, version: str = "") -> Model:
        """A model's metadata."""
        document = self._document(model_path(model, version))
        return Model(
            name=text(document, "name"),
            versions=tuple(_texts(document.get("versions") or [], "versions")),
            platform=text(document, "platform"),
            inputs=_specs(document, "inputs"),
            outputs=_specs(document, "outputs"),
        )

    def infer(self, request: Request, raw: bool = False) -> Response:
        """A model's answer; FP16 goes as raw bytes whatever `raw` says."""
        half = any(tensor.datatype == "FP16" for tensor in request.inputs)
        body, json_length = encode(request, raw_inputs=raw or half, raw_outputs=raw or half)
        return decode(self.post_infer(request, body, json_length))

    def post_infer(
        self,
        request: Request,
        body: bytes,
        json_length: int | str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """The server's answer to `body` as an inference request for the model and version of `request`."""
        kind = "application/json" if json_length is None else "application/octet-stream"
        length = {} if json_length is None else {JSON_LENGTH: str(json_length)}
        path = f"{model_path(request.model, request.version)}/infer"
        return self.send("POST", path, content=body, headers={"Content-Type": kind, **length, **(headers or {})})

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The server's answer, whatever its status.

        Raises:
            Failed: there is none.
        """
        try:
            return self._client.request(method, path, **options)
        except httpx.RequestError as error:
            raise Failed(f"no answer to {method} {path}: {type(error).__name__} {error}") from None

    def _document(self, path: str) -> dict[str, Any]:
        return parse(accepted(self.send("GET", path)))


def model_path(model: str, version: str = "") -> str:
    """The path of a model or one of its versions."""
    return f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


def encode(request: Request, *, raw_inputs: bool = False, raw_outputs: bool = False) -> tuple[bytes, int | None]:
    """Body of a request, and the length of its JSON if raw tensors follow it."""
    document = inference_document(request)
    raw = [tensors.to_raw(tensor) for tensor in request.inputs] if raw_inputs else []
    for tensor, data in zip(document["inputs"], raw, strict=False):
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": len(data)}
    if raw_outputs:
        document["parameters"] = {**document.get("parameters", {}), "binary_data_output": True}
    body = json.dumps(document).encode()
    return (body + b"".join(raw), len(body)) if raw else (body, None)


def inference_document(request: Request) -> dict[str, Any]:
    """A request's JSON object, its tensors flat."""
    document: dict[str, Any] = {
        "inputs": [
            {"name": t.name, "datatype": t.datatype, "shape": list(t.shape), "data": json_values(t)}
            for t in request.inputs
        ]
    }
    if request.id:
        document["id"] = request.id
    if request.parameters:
        document["parameters"] = dict(request.parameters)
    if request.outputs:
        document["outputs"] = [{"name": name} for name in request.outputs]
    return document


def json_values(tensor: Tensor) -> list[Any]:
    """Elements as JSON has them: those of BYTES are strings."""
    return [value.decode() if isinstance(value, bytes) else value for value in tensor.values]


def decode(response: httpx.Response) -> Response:
    """An inference answer, with or without raw tensors.

    Raises:
        Refused: it is an error.
        Failed: it is out of form.
    """
    content = accepted(response).content
    length = response.headers.get(JSON_LENGTH)
    if length is not None and not (length.isdigit() and int(length) <= len(content)):
        raise Failed(f"{JSON_LENGTH} is {length!r} in an answer of {len(content)} bytes")
    end = len(content) if length is None else int(length)
    document, at = _loads(content[:end]), end
    outputs = []
    for output in _list(document, "outputs"):
        spec = _spec(output, "output")
        size = (output.get("parameters") or {}).get("binary_data_size")
        if size is None:
            outputs.append(_from_json(spec, output))
            continue
        if not isinstance(size, int) or at + size > len(content):
            raise Failed(f"output {spec.name} has binary_data_size {size!r}, {len(content) - at} bytes are left")
        outputs.append(tensors.from_raw(spec, content[at : at + size]))
        at += size
    if at != len(content):
        raise Failed(f"{len(content) - at} bytes are left over after the last output")
    version, id_ = document.get("model_version") or "", document.get("id") or ""
    return Response(text(document, "model_name"), str(version), id_, tuple(outputs))


def accepted(response: httpx.Response) -> httpx.Response:
    """`response` if its status is 200.

    Raises:
        Refused: it isn't.
    """
    if response.status_code == 200:
        return response
    try:
        message = response.json()["error"]
    except (ValueError, KeyError, TypeError, IndexError):
        message = None
    raise Refused(
        status=str(response.status_code),
        message=message if isinstance(message, str) else response.text[:200],
        blames_client=400 <= response.status_code < 500,
        well_formed=isinstance(message, str) and message != "" and response.status_code >= 400,
    )


def parse(response: httpx.Response) -> dict[str, Any]:
    """The JSON object in a response.

    Raises:
        Failed: there is none.
    """
    return _loads(response.content)


def _loads(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError:
        raise Failed(f"the answer is not JSON: {content[:100]!r}") from None
    if not isinstance(document, dict):
        raise Failed(f"the answer is not a JSON object: {content[:100]!r}")
    return document


def text(document: Mapping[str, Any], name: str) -> str:
    """A member that must be a string."""
    value = document.get(name)
    if not isinstance(value, str):
        raise Failed(f"{name} is not a string: {value!r}")
    return value


def _texts(value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Failed(f"{name} is not a list of strings: {value!r}")
    return value


def _list(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = document.get(name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Failed(f"{name} is not a list of objects: {value!r}")
    return value


def _specs(document: Mapping[str, Any], side: str) -> tuple[Spec, ...]:
    return tuple(_spec(item, side) for item in _list(document, side))


def _spec(document: Mapping[str, Any], side: str) -> Spec:
    shape = document.get("shape")
    if not isinstance(shape, list) or not all(isinstance(length, int) for length in shape):
        raise Failed(f"a shape in {side} is not a list of integers: {shape!r}")
    return Spec(text(document, "name"), text(document, "datatype"), tuple(shape))


def _from_json(spec: Spec, output: Mapping[str, Any]) -> Tensor:
    if not isinstance(output.get("data"), list):
        raise Failed(f"output {spec.name} has neither data nor binary_data_size")
    values = tensors.flat(output["data"])
    if spec.datatype == "BYTES":
        values = [value.encode() if isinstance(value, str) else value for value in values]
    return tensors.checked(Tensor(spec.name, spec.datatype, spec.shape, values))
