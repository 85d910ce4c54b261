"""Protobuf messages to tensors and back."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepool.errors import InvalidRequest
from tidepool.recipe import DATATYPES, Signature, TensorSpec
from tidepool.serve import codecs, protobuf
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.protocol import InferResponse, Tensors

TYPED = [name for name in DATATYPES if name != "FP16"]
NUMERIC = [name for name in DATATYPES if name != "BYTES"]


def tensor(**fields: Any) -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(**{"name": "x", "datatype": "FP32", "shape": [2], **fields})


def contents(**fields: Any) -> pb.InferTensorContents:
    return pb.InferTensorContents(**fields)


def of(values: np.ndarray, datatype: str, raw: bool) -> np.ndarray:
    message = protobuf.encode_request({"x": values}, {"x": datatype}, model="m", raw=raw)
    request = protobuf.decode(pb.ModelInferRequest.FromString(message.SerializeToString()))
    assert request.binary_output is raw
    return request.inputs["x"]


def elements(datatype: str) -> np.ndarray:
    if datatype == "BYTES":
        values = np.empty((2, 3), np.object_)
        values[:] = [[b"a", b"", b"\xff"], [b"bc", b"d", b"e"]]
        return values
    return np.arange(6).reshape(2, 3).astype(DATATYPES[datatype])


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_tensors_of_every_datatype_survive(datatype: str) -> None:
    decoded = of(elements(datatype), datatype, raw=False)
    np.testing.assert_array_equal(decoded, elements(datatype))
    assert decoded.dtype == DATATYPES[datatype]


@pytest.mark.parametrize("datatype", DATATYPES)
def test_raw_tensors_of_every_datatype_survive(datatype: str) -> None:
    decoded = of(elements(datatype), datatype, raw=True)
    np.testing.assert_array_equal(decoded, elements(datatype))
    assert decoded.dtype == DATATYPES[datatype]


@pytest.mark.parametrize("datatype", NUMERIC)
def test_a_raw_tensor_is_a_view_of_its_message(datatype: str) -> None:
    assert not of(elements(datatype), datatype, raw=True).flags.owndata


@pytest.mark.parametrize(("datatype", "low", "high"), [("INT64", -(2**63), 2**63 - 1), ("UINT64", 0, 2**64 - 1)])
def test_integers_of_64_bits_stay_exact(datatype: str, low: int, high: int) -> None:
    values = np.array([low, high], DATATYPES[datatype])
    assert of(values, datatype, raw=False).tolist() == [low, high]


def test_id_parameters_and_requested_outputs_are_read() -> None:
    message = pb.ModelInferRequest(
        id="7",
        parameters=protobuf.encode_parameters(
            {"flag": True, "text": "a", "whole": -3, "large": 2**64 - 1, "half": 0.5}
        ),
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="y")],
    )
    message.parameters["empty"].SetInParent()
    request = protobuf.decode(message)
    assert request.id == "7"
    assert request.parameters == {"flag": True, "text": "a", "whole": -3, "large": 2**64 - 1, "half": 0.5}
    assert request.outputs is not None
    assert [output.name for output in request.outputs] == ["y"]


def test_empty_contents_beside_raw_bytes_do_no_harm() -> None:
    message = pb.ModelInferRequest(inputs=[tensor(contents=contents())], raw_input_contents=[bytes(8)])
    assert protobuf.decode(message).inputs["x"].tolist() == [0, 0]


def test_a_message_without_id_and_outputs_asks_for_all_outputs() -> None:
    request = protobuf.decode(pb.ModelInferRequest())
    assert (request.id, request.outputs, dict(request.parameters)) == (None, None, {})


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"inputs": [tensor()], "raw_input_contents": [b"", b""]}, "doesn't fit the inputs"),
        ({"inputs": [tensor(), tensor(name="y")], "raw_input_contents": [b""]}, "doesn't fit the inputs"),
        ({"inputs": [tensor()] * 2, "raw_input_contents": [bytes(8)] * 2}, "given twice"),
        ({"inputs": [tensor()], "raw_input_contents": [bytes(7)]}, "wrong number of bytes"),
        (
            {"inputs": [tensor(contents=contents(fp32_contents=[1, 2]))], "raw_input_contents": [bytes(8)]},
            "one or the other",
        ),
        ({"inputs": [tensor(datatype="FP31")], "raw_input_contents": [bytes(8)]}, "unknown datatype"),
        ({"inputs": [tensor(datatype="FP31")]}, "unknown datatype"),
        ({"inputs": [tensor(datatype="FP16")]}, "no typed contents"),
        ({"inputs": [tensor(shape=[-1])]}, "no proper shape"),
        ({"inputs": [tensor(shape=[1] * 70)]}, "no proper shape"),
        ({"inputs": [tensor(shape=[0, 2**62, 2**62], contents=contents())]}, "no proper shape"),
        ({"inputs": [tensor()]}, "0 values"),
        ({"inputs": [tensor(contents=contents(fp32_contents=[1]))]}, "1 values"),
        ({"inputs": [tensor(contents=contents(int_contents=[1, 2]))]}, "wrong field"),
        ({"inputs": [tensor(contents=contents(fp32_contents=[1, 2], fp64_contents=[1]))]}, "wrong field"),
        ({"inputs": [tensor(datatype="INT8", contents=contents(int_contents=[128, 0]))]}, "out of the range"),
        ({"inputs": [tensor(datatype="UINT16", contents=contents(uint_contents=[0, 65536]))]}, "out of the range"),
        ({"inputs": [tensor(datatype="BYTES", contents=contents(bytes_contents=[b"a"]))]}, "1 values"),
    ],
)
def test_a_broken_message_is_refused_with_a_reason(message: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        protobuf.decode(pb.ModelInferRequest(**message))


@given(st.binary(max_size=200))
def test_any_bytes_that_are_a_message_give_a_request_or_an_invalid_request(data: bytes) -> None:
    from google.protobuf.message import DecodeError

    with contextlib.suppress(DecodeError, InvalidRequest):
        assert protobuf.decode(pb.ModelInferRequest.FromString(data)).inputs is not None


@given(
    st.sampled_from([*DATATYPES, "?"]),
    st.lists(st.integers(-1, 3) | st.integers(-(2**63), 2**63 - 1), max_size=4),
    st.none() | st.lists(st.floats(width=32), max_size=9),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9),
    st.lists(st.binary(max_size=40), max_size=2),
)
def test_any_tensor_gives_a_request_or_an_invalid_request(
    datatype: str, shape: list[int], floats: list[float] | None, integers: list[int], raw: list[bytes]
) -> None:
    filled = None if floats is None else contents(fp32_contents=floats, int_contents=integers)
    message = pb.ModelInferRequest(
        inputs=[tensor(datatype=datatype, shape=shape, contents=filled)], raw_input_contents=raw
    )
    with contextlib.suppress(InvalidRequest):
        assert protobuf.decode(message).inputs["x"].dtype == DATATYPES[datatype]


def signature(**datatypes: str) -> Signature:
    return Signature(inputs=(), outputs=tuple(TensorSpec(name, kind, (-1,)) for name, kind in datatypes.items()))


OUTPUTS: Tensors = {"y": np.array([1.5, 2], np.float32), "s": np.array([b"a", b"\xff"], np.object_)}


def test_an_answer_to_typed_contents_is_typed() -> None:
    message = protobuf.encode(InferResponse("m", "3", OUTPUTS, signature(y="FP32", s="BYTES"), id="i"))
    assert (message.model_name, message.model_version, message.id) == ("m", "3", "i")
    assert [(t.name, t.datatype, list(t.shape)) for t in message.outputs] == [("y", "FP32", [2]), ("s", "BYTES", [2])]
    assert list(message.outputs[0].contents.fp32_contents) == [1.5, 2]
    assert list(message.outputs[1].contents.bytes_contents) == [b"a", b"\xff"]
    assert not message.raw_output_contents


def test_an_answer_to_raw_inputs_is_raw() -> None:
    response = InferResponse("m", "3", OUTPUTS, signature(y="FP32", s="BYTES"), binary=frozenset(OUTPUTS))
    message = protobuf.encode(response)
    assert list(message.raw_output_contents) == [codecs.to_raw(values) for values in OUTPUTS.values()]
    assert not any(tensor.HasField("contents") for tensor in message.outputs)


def test_an_answer_with_a_half_precision_tensor_is_raw_as_a_whole() -> None:
    outputs: Tensors = {"h": np.array([0.5], np.float16), "y": np.array([1.5], np.float32)}
    message = protobuf.encode(InferResponse("m", "3", outputs, signature(h="FP16", y="FP32")))
    assert [len(raw) for raw in message.raw_output_contents] == [2, 4]


def test_parameters_of_an_answer_keep_their_kinds() -> None:
    parameters = {"digest": "ab", "shadowed": False, "rows": 3, "seconds": 0.25}
    message = protobuf.encode(InferResponse("m", "3", {}, signature(), parameters=parameters))
    assert protobuf.decode_parameters(message.parameters) == parameters


def test_parameters_that_are_equal_and_of_two_kinds_are_not_taken_for_each_other() -> None:
    for value in (1, True, 1.0):
        message = protobuf.encode(InferResponse("m", "3", {}, signature(), parameters={"a": value}))
        assert type(protobuf.decode_parameters(message.parameters)["a"]) is type(value)


@given(st.sampled_from([None, "", "i", "é" * 90]), st.integers(0, 200), st.booleans())
def test_bytes_of_an_answer_are_those_of_its_message(id_: str | None, count: int, raw: bool) -> None:
    outputs: Tensors = {"y": np.arange(count, dtype=np.float32), "s": np.array([b"a" * count], np.object_)}
    binary = frozenset(outputs) if raw else frozenset[str]()
    parameters = {"digest": "ab"}
    response = InferResponse("m", "3", outputs, signature(y="FP32", s="BYTES"), id_, parameters, binary)
    message = pb.ModelInferResponse.FromString(protobuf.serialize(response))
    assert message == protobuf.encode(response)
    assert (message.id, len(message.outputs), list(message.outputs[0].shape)) == (id_ or "", 2, [count])
    assert len(message.raw_output_contents) == (2 if raw else 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_parameter_that_json_does_not_have_is_refused(value: float) -> None:
    message = pb.ModelInferRequest(parameters={"a": pb.InferParameter(double_param=value)})
    with pytest.raises(InvalidRequest, match="parameter a"):
        protobuf.decode(message)


def test_metadata_names_tensors_versions_and_properties() -> None:
    message = protobuf.model_metadata(
        {
            "name": "m",
            "versions": ["1", "2"],
            "platform": "p",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [],
            "parameters": {"digest": "ab"},
        }
    )
    assert (message.name, list(message.versions), dict(message.properties)) == ("m", ["1", "2"], {"digest": "ab"})
    assert list(message.inputs[0].shape) == [-1, 4]
