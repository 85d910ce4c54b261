"""Bytes to tensors and back."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import struct
import tracemalloc
import zlib

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepool.errors import InvalidRequest, RequestTooLarge
from tidepool.recipe import DATATYPES, Signature, TensorSpec
from tidepool.serve import codecs
from tidepool.serve.body import read_body
from tidepool.serve.protocol import InferResponse

NUMERIC = [name for name in DATATYPES if name != "BYTES"]


def body(**tensor: object) -> bytes:
    return orjson.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2], **tensor}]})


def raw_body(values: np.ndarray, datatype: str) -> tuple[bytes, int]:
    raw = codecs.to_raw(values)
    tensor = {"name": "x", "shape": values.shape, "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}
    head = orjson.dumps({"inputs": [tensor]})
    return head + raw, len(head)


def test_nested_and_flat_data_mean_the_same() -> None:
    flat = codecs.decode(body(shape=[2, 2], data=[1, 2, 3, 4])).inputs["x"]
    nested = codecs.decode(body(shape=[2, 2], data=[[1, 2], [3, 4]])).inputs["x"]
    np.testing.assert_array_equal(flat, nested)
    assert flat.dtype == np.float32


def test_id_parameters_and_requested_outputs_are_read() -> None:
    request = codecs.decode(
        orjson.dumps(
            {
                "id": "7",
                "parameters": {"binary_data_output": True},
                "inputs": [],
                "outputs": [{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}],
            }
        )
    )
    assert request.id == "7"
    assert request.binary_output
    assert request.outputs is not None
    assert [(o.name, o.binary) for o in request.outputs] == [("y", False), ("z", None)]


@pytest.mark.parametrize("datatype", NUMERIC)
def test_raw_tensors_of_every_numeric_datatype_survive(datatype: str) -> None:
    values = np.arange(6).reshape(2, 3).astype(DATATYPES[datatype])
    decoded = codecs.decode(*raw_body(values, datatype)).inputs["x"]
    np.testing.assert_array_equal(decoded, values)
    assert decoded.dtype == values.dtype


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_raw_bytes_elements_survive(items: list[bytes]) -> None:
    values = np.empty(len(items), dtype=np.object_)
    values[:] = items
    assert list(codecs.decode(*raw_body(values, "BYTES")).inputs["x"]) == items


def test_integers_over_63_bits_stay_exact() -> None:
    assert codecs.decode(body(datatype="UINT64", data=[2**63 + 1, 1])).inputs["x"].tolist() == [2**63 + 1, 1]


def test_texts_for_numbers_are_refused_before_numpy_makes_room_for_them() -> None:
    sent = body(name="x", datatype="FP32", shape=[4000], data=["a" * 20_000, *[1] * 3999])
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match="not FP32"):
        codecs.decode(sent)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6


def test_strings_travel_as_bytes() -> None:
    assert list(codecs.decode(body(datatype="BYTES", data=["é", ""])).inputs["x"]) == ["é".encode(), b""]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (b"", "not JSON"),
        (b'{"inputs": [', "not JSON"),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [NaN]}]}', "not JSON"),
        (b"[]", "no list of inputs"),
        (b'{"inputs": {}}', "no list of inputs"),
        (b'{"inputs": [3]}', "not an object"),
        (b'{"inputs": [], "outputs": 3}', "not a list"),
        (b'{"inputs": [], "outputs": [{}]}', "no name"),
        (b'{"inputs": [], "id": 3}', "not a string"),
        (b'{"inputs": [], "parameters": []}', "not an object"),
        (body(name=None), "no name"),
        (body(datatype="FP31"), "unknown datatype"),
        (body(datatype="FP16"), "no JSON form"),
        (body(shape="2"), "no proper shape"),
        (body(shape=[-1]), "no proper shape"),
        (body(shape=[True]), "no proper shape"),
        (body(shape=[3]), "don't fit"),
        (body(shape=[1] * 65), "too large"),
        (body(shape=[2**31 - 1] * 10**6), "too large"),  # at once: their product would take hours
        (body(shape=[0, 2**30, 2**30, 2**30], data=[]), "too large"),
        (body(data=[[1, 2], [3]]), "ragged"),
        (body(data=[1, "a"]), "not FP32"),
        (body(data=["1", "2"]), "not FP32"),
        (body(data=[1, None]), "not FP32"),
        (body(data=[True, False]), "not FP32"),
        (body(data=[1e39, 0]), "too large"),
        (body(datatype="INT64", data=[1.5, 2]), "not INT64"),
        (body(datatype="UINT8", data=[256, 0]), "out of the range"),
        (body(datatype="UINT8", data=[-1, 0]), "out of the range"),
        (body(datatype="INT64", data=[2**63, 0]), "not INT64"),
        (
            b'{"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [99999999999999999999]}]}',
            "not INT64",
        ),
        (body(datatype="BOOL", data=[0, 1]), "not BOOL"),
        (body(datatype="BYTES", data=["a", 1]), "not strings"),
        (body(data=3), "not a list"),
        (body(parameters={"binary_data_size": 8}), "binary_data_size"),
        (orjson.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}), "no data"),
        (orjson.dumps({"inputs": [orjson.loads(body())["inputs"][0]] * 2}), "given twice"),
    ],
)
def test_a_broken_body_is_refused_with_a_reason(broken: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        codecs.decode(broken)


@pytest.mark.parametrize("length", [0, -3, 1000])
def test_a_wrong_header_length_is_refused(length: int) -> None:
    with pytest.raises(InvalidRequest, match="Content-Length"):
        codecs.decode(body(), length)


def test_left_over_and_missing_raw_bytes_are_refused() -> None:
    raw, length = raw_body(np.zeros(2, np.float32), "FP32")
    with pytest.raises(InvalidRequest, match="left over"):
        codecs.decode(raw + b"x", length)
    with pytest.raises(InvalidRequest, match="binary_data_size"):
        codecs.decode(raw[:-1], length)


def test_bytes_elements_that_lie_about_their_length_are_refused() -> None:
    raw = struct.pack("<I", 99) + b"ab"
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    head = orjson.dumps({"inputs": [tensor]})
    with pytest.raises(InvalidRequest, match="don't fit"):
        codecs.decode(head + raw, len(head))


@given(st.binary(max_size=200), st.none() | st.integers(-5, 250))
def test_any_bytes_give_a_request_or_an_invalid_request(data: bytes, length: int | None) -> None:
    with contextlib.suppress(InvalidRequest):
        assert codecs.decode(data, length).inputs is not None


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries(
        {
            "name": st.just("x") | JSON_VALUES,
            "datatype": st.sampled_from([*DATATYPES, "?"]) | JSON_VALUES,
            "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON_VALUES,
            "data": JSON_VALUES,
        }
    )
)
def test_any_json_gives_a_request_or_an_invalid_request(tensor: dict[str, object]) -> None:
    try:
        request = codecs.decode(orjson.dumps({"inputs": [tensor]}))
    except (InvalidRequest, orjson.JSONEncodeError):
        return
    assert request.inputs["x" if tensor["name"] == "x" else str(tensor["name"])].dtype in DATATYPES.values()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["x", "y"]),
            st.sampled_from([*DATATYPES, "?"]),
            st.lists(st.integers(0, 3), max_size=3),
            st.integers(-1, 30) | JSON_VALUES,
        ),
        max_size=3,
    ),
    st.binary(max_size=60),
    st.integers(-2, 2),
)
def test_any_raw_tensors_give_a_request_or_an_invalid_request(
    heads: list[tuple[str, str, list[int], object]], raw: bytes, off: int
) -> None:
    tensors = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
        for name, datatype, shape, size in heads
    ]
    with contextlib.suppress(InvalidRequest, orjson.JSONEncodeError):
        head = orjson.dumps({"inputs": tensors})
        inputs = codecs.decode(head + raw, len(head) + off).inputs
        assert [values.shape for values in inputs.values()] == [tuple(shape) for _, _, shape, _ in heads]


@given(st.binary(max_size=200), st.sampled_from([b"gzip", b"deflate", b"br"]), st.integers(0, 500), st.booleans())
def test_any_packed_body_is_unpacked_or_refused(data: bytes, encoding: bytes, limit: int, proper: bool) -> None:
    sent = {b"gzip": gzip.compress, b"deflate": zlib.compress}[encoding](data) if proper and encoding != b"br" else data

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": sent}

    with contextlib.suppress(InvalidRequest, RequestTooLarge):
        body = asyncio.run(read_body({b"content-encoding": encoding}, receive, limit))
        assert len(body) <= limit
        assert not proper or body == data


SIGNATURE = Signature(inputs=(), outputs=(TensorSpec("y", "FP32", (-1,)), TensorSpec("s", "BYTES", (-1,))))


def test_an_answer_in_json_names_model_version_and_id() -> None:
    outputs = {"y": np.array([1.5], np.float32), "s": np.array([b"a"], np.object_)}
    encoded, length = codecs.encode(InferResponse("m", "3", outputs, SIGNATURE, id="i"))
    document = orjson.loads(encoded)
    assert length is None
    assert (document["model_name"], document["model_version"], document["id"]) == ("m", "3", "i")
    assert document["outputs"][0] == {"name": "y", "datatype": "FP32", "shape": [1], "data": [1.5]}
    assert document["outputs"][1]["data"] == ["a"]


def test_an_answer_in_raw_bytes_follows_its_json() -> None:
    outputs = {"y": np.array([1.5, 2], np.float32), "s": np.array([b"\xff"], np.object_)}
    encoded, length = codecs.encode(InferResponse("m", "3", outputs, SIGNATURE, binary=frozenset(outputs)))
    assert length is not None
    heads = orjson.loads(encoded[:length])["outputs"]
    assert [head["parameters"]["binary_data_size"] for head in heads] == [8, 5]
    assert encoded[length:] == struct.pack("<ff", 1.5, 2) + struct.pack("<I", 1) + b"\xff"


def test_bytes_that_are_no_text_are_refused_in_json() -> None:
    with pytest.raises(InvalidRequest, match="binary_data"):
        codecs.encode(InferResponse("m", "3", {"s": np.array([b"\xff"], np.object_)}, SIGNATURE))


def test_the_value_that_does_not_fit_is_the_one_that_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"Seen: -300\."):
        codecs.decode(body(name="x", datatype="INT8", shape=[2], data=[-300, 1]))
    with pytest.raises(InvalidRequest, match=r"shape \[2, 2\].*\[4\]"):
        codecs.decode(body(name="x", datatype="INT8", shape=[4], data=[[1, 2], [3, 4]]))


def test_a_message_does_not_send_back_a_megabyte() -> None:
    with pytest.raises(InvalidRequest) as refused:
        codecs.decode(orjson.dumps({"inputs": ["x" * 1_000_000]}))
    assert len(str(refused.value)) < 5000
