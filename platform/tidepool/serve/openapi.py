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
        "/v2/health/ready": {"get": _operation("Whether the server is ready", "Ready")},
        "/v2/repository/index": {"post": _operation("The models that are served", "RepositoryIndex")},
    }
    for base, parameters in (
        ("/v2/models/{model}", [_path("model")]),
        ("/v2/models/{model}/versions/{version}", [_path("model"), _path("version")]),
    ):
        paths[base] = {"get": _operation("Model metadata", "ModelMetadata", parameters, _GUARDED)}
        paths[f"{base}/ready"] = {"get": _operation("Whether the model is ready", "ModelReady", parameters, (404, 503))}
        paths[f"{base}/stats"] = {
            "get": _operation("What the replica asked has done", "Statistics", parameters, _GUARDED)
        }
        infer = _operation("Answer a request", "InferResponse", parameters, (*_GUARDED, 413))
        infer["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref("InferRequest"), "example": _EXAMPLE}},
        }
        paths[f"{base}/infer"] = {"post": infer}
        explain = _operation("What an answer rests on", "InferResponse", parameters, (*_GUARDED, 413))
        explain["responses"]["200"]["content"]["image/png"] = {"schema": {"type": "string", "format": "binary"}}
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


def _path(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _object(required: tuple[str, ...], **properties: Json) -> Json:
    return {"type": "object", "required": list(required), "properties": properties}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


_STATUSES = {
    400: "The request is not valid",
    401: "No key, or one that is not known",
    403: "The key does not open this model",
    404: "No such model or version",
    413: "The body is too large",
    429: "Too many requests are waiting",
    500: "The model failed",
    503: "The model is still being loaded",
    507: "The model is larger than the memory of all shared models",
}
_GUARDED = (400, 401, 403, 404, 429, 500, 503, 507)
_TEXT: Json = {"type": "string"}
_FLAG: Json = {"type": "boolean"}
_FREE: Json = {"type": "object", "additionalProperties": True}
_DATATYPE: Json = {"type": "string", "enum": list(DATATYPES)}
_SHAPE: Json = _list({"type": "integer"})
_TENSOR_METADATA = _object(("name", "datatype", "shape"), name=_TEXT, datatype=_DATATYPE, shape=_SHAPE)
_TENSOR = _object(
    ("name", "datatype", "shape"), name=_TEXT, datatype=_DATATYPE, shape=_SHAPE, parameters=_FREE, data=_list({})
)
_EXAMPLE: Json = {"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": [0] * 64}]}
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
    "Statistics": _object(("model_stats",), model_stats=_list(_FREE)),
    "InferRequest": _object(
        ("inputs",),
        id=_TEXT,
        parameters=_FREE,
        inputs=_list(_TENSOR),
        outputs=_list(_object(("name",), name=_TEXT, parameters=_FREE)),
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
