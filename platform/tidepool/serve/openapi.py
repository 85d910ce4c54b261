"""The OpenAPI document of the HTTP interface: every path, every status, the one shape of an error."""

from __future__ import annotations

from typing import Any

from tidepool import __version__
from tidepool.recipe import DATATYPES

Json = dict[str, Any]


def document() -> Json:
    """The document, OpenAPI 3.0."""
    paths: Json = {
        "/v2": {"get": _operation("Server metadata", "ServerMetadata")},
        "/v2/health/live": {"get": _operation("Whether the server is live", "Live")},
        "/v2/health/ready": {"get": _ready("Whether the server is ready", "Ready", [], (503,))},
        "/v2/repository/index": {
            "post": {
                **_operation("The versions that are served", "RepositoryIndex", errors=(400, 413)),
                "requestBody": _body("RepositoryIndexRequest", {"ready": True}, required=False),
            }
        },
    }
    for base, parameters in (
        ("/v2/models/{model}", [_path("model")]),
        ("/v2/models/{model}/versions/{version}", [_path("model"), _path("version")]),
    ):
        paths[base] = {"get": _operation("Model metadata", "ModelMetadata", parameters, _GUARDED)}
        paths[f"{base}/ready"] = {"get": _ready("Whether the model is ready", "ModelReady", parameters, (404, 503))}
        paths[f"{base}/config"] = {
            "get": _operation("Triton's model configuration", "ModelConfig", parameters, _GUARDED)
        }
        paths[f"{base}/stats"] = {
            "get": _operation("What the replica asked has done", "Statistics", parameters, _GUARDED)
        }
        infer = _operation("Answer a request", "InferResponse", parameters, _ASKED)
        infer["responses"]["200"]["content"]["application/octet-stream"] = _BINARY
        infer["requestBody"] = _body("InferRequest", _EXAMPLE)
        paths[f"{base}/infer"] = {"post": infer}
        explain = _operation("What an answer rests on", "InferResponse", parameters, _ASKED)
        explain["responses"]["200"]["content"]["image/png"] = _BINARY
        explain["responses"]["200"]["content"]["application/octet-stream"] = _BINARY
        generate = _operation("Generate text", "GenerateResponse", parameters, _ASKED)
        generate["requestBody"] = _body("GenerateRequest", _PROMPT)
        paths[f"{base}/generate"] = {"post": generate}
        events = _operation("Generate text, piece by piece", "GenerateResponse", parameters, _ASKED)
        events["responses"]["200"]["content"] = {"text/event-stream": {"schema": _EVENT}}
        paths[f"{base}/generate_stream"] = {"post": {**events, "requestBody": generate["requestBody"]}}
        paths[f"{base}/explain"] = {"post": {**explain, "requestBody": infer["requestBody"]}}
    return {
        "openapi": "3.0.3",
        "info": {"title": "tidepool", "version": __version__, "description": "Open Inference Protocol v2."},
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}},
        },
    }


def _operation(
    summary: str,
    schema: str,
    parameters: list[Json] | None = None,
    errors: tuple[int, ...] = (),
) -> Json:
    responses: Json = {"200": {"description": "OK", "content": {"application/json": {"schema": _ref(schema)}}}}
    for status in errors:
        responses[str(status)] = {
            "description": _STATUSES[status],
            "content": {"application/json": {"schema": _ref("Error")}},
        }
    operation: Json = {"summary": summary, "parameters": parameters or [], "responses": responses}
    return {**operation, "security": [{"key": []}]} if 401 in errors else operation


def _ready(summary: str, schema: str, parameters: list[Json], errors: tuple[int, ...]) -> Json:
    """Who isn't ready says so as who is; where there is nobody, there is an error."""
    operation = _operation(summary, schema, parameters, errors)
    for status in errors:
        either = {"anyOf": [_ref(schema), _ref("Error")]}
        operation["responses"][str(status)]["content"]["application/json"]["schema"] = either
    return operation


def _body(schema: str, example: Json, required: bool = True) -> Json:
    return {"required": required, "content": {"application/json": {"schema": _ref(schema), "example": example}}}


def _path(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _object(required: tuple[str, ...], **properties: Json) -> Json:
    return {"type": "object", "required": list(required), "properties": properties}


def _or_null(schema: Json) -> Json:
    return {**schema, "nullable": True}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


_STATUSES = {
    400: "The request is not valid",
    401: "No key, or one that is not known",
    403: "The key does not open this model",
    404: "No such model or version",
    408: "The request stopped in the middle: the front end waits 10 s for what fits its buffer",
    413: "The body is too large",
    429: "Too many requests are waiting, or the key has asked too often: Retry-After says when to come back",
    499: "The client went away: nobody sees this",
    500: "The model failed",
    503: "The model is still being loaded, or no replica answers",
    507: "The model is larger than the memory of all shared models",
}
_GUARDED = (401, 403, 404, 429, 500, 503, 507)
_ASKED = (400, *_GUARDED, 408, 413, 499)
_BINARY: Json = {"schema": {"type": "string", "format": "binary"}}
_TEXT: Json = {"type": "string"}
_FLAG: Json = {"type": "boolean"}
_FREE: Json = {"type": "object", "additionalProperties": True}
_DATATYPE: Json = {"type": "string", "enum": list(DATATYPES)}
_SHAPE: Json = _list({"type": "integer"})
_TENSOR_METADATA = _object(("name", "datatype", "shape"), name=_TEXT, datatype=_DATATYPE, shape=_SHAPE)
_TENSOR_CONFIG = _object(("name", "data_type", "dims"), name=_TEXT, data_type=_TEXT, dims=_SHAPE)
_TENSOR = _object(
    ("name", "datatype", "shape"),
    name=_TEXT,
    datatype=_DATATYPE,
    shape=_SHAPE,
    parameters=_or_null(_FREE),
    data=_list({}),
)
_EXAMPLE: Json = {"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": [0] * 64}]}
_EVENT: Json = {**_object(("data",), data=_TEXT), "description": "`data` is a GenerateResponse or an Error, as JSON"}
_PROMPT: Json = {"text_input": "Once upon a time", "parameters": {"max_tokens": 20}}
_SCHEMAS: Json = {
    "Error": _object(("error",), error=_TEXT),
    "Live": _object(("live",), live=_FLAG),
    "Ready": _object(("ready",), ready=_FLAG),
    "ServerMetadata": _object(("name", "version", "extensions"), name=_TEXT, version=_TEXT, extensions=_list(_TEXT)),
    "RepositoryIndex": _list(_object(("name", "state"), name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT)),
    "ModelReady": _object(("name", "ready"), name=_TEXT, ready=_FLAG),
    "ModelMetadata": _object(
        ("name", "versions", "platform", "inputs", "outputs"),
        name=_TEXT,
        versions=_list(_TEXT),
        platform=_TEXT,
        inputs=_list(_TENSOR_METADATA),
        outputs=_list(_TENSOR_METADATA),
    ),
    "RepositoryIndexRequest": _object((), ready=_FLAG),
    "ModelConfig": _object(
        ("name", "platform", "max_batch_size", "input", "output"),
        name=_TEXT,
        platform=_TEXT,
        max_batch_size={"type": "integer"},
        input=_list(_TENSOR_CONFIG),
        output=_list(_TENSOR_CONFIG),
    ),
    "Statistics": _object(("model_stats",), model_stats=_list(_FREE)),
    "InferRequest": _object(
        ("inputs",),
        id=_or_null(_TEXT),
        parameters=_or_null(_FREE),
        inputs=_list(_TENSOR),
        outputs=_or_null(_list(_object(("name",), name=_TEXT, parameters=_or_null(_FREE)))),
    ),
    "GenerateRequest": _object(("text_input",), id=_or_null(_TEXT), text_input=_TEXT, parameters=_or_null(_FREE)),
    "GenerateResponse": _object(
        ("model_name", "model_version", "text_output"),
        id=_TEXT,
        model_name=_TEXT,
        model_version=_TEXT,
        text_output=_TEXT,
        parameters=_FREE,
    ),
    "InferResponse": _object(
        ("model_name", "outputs"),
        model_name=_TEXT,
        model_version=_TEXT,
        id=_TEXT,
        parameters=_FREE,
        outputs=_list(_TENSOR),
    ),
}
