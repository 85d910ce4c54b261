"""gRPC calls to infer as HAProxy sends them on, and what is answered."""

from __future__ import annotations

from urllib.parse import unquote

import httptools
import numpy as np

from tidepool.serve import protobuf
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.framing import PATH

TENSORS = {"x": np.array([[1, 2]], np.float32)}
MESSAGE = protobuf.encode_request(TENSORS, {"x": "FP32"}, model="m", raw=True).SerializeToString()
HEADERS = {"content-type": "application/grpc", "te": "trailers", "application": "m", "authorization": "Bearer good"}


def frame(message: bytes, packed: bool = False) -> bytes:
    return bytes([packed]) + len(message).to_bytes(4, "big") + message


def call(body: bytes, chunk: int | None = None, opening: bytes = b"POST " + PATH, **headers: str) -> bytes:
    """A call as HAProxy sends it, in chunks of so many bytes, or at once."""
    chosen = {**HEADERS, **{name.replace("_", "-"): value for name, value in headers.items()}}
    if chunk:
        parts = [body[at : at + chunk] for at in range(0, len(body), chunk)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    length = ("transfer-encoding", "chunked") if chunk else ("content-length", str(len(body)))
    lines = [f"{name}: {value}\r\n" for name, value in [("host", "here"), *chosen.items(), length] if value]
    return b"%b HTTP/1.1\r\n%b\r\n%b" % (opening, "".join(lines).encode(), body)


def infer(**headers: str) -> bytes:
    return call(frame(MESSAGE), 1000, **headers)


class Response:
    """What a client that knows HTTP/1.1 reads; httptools tells trailers as headers."""

    def __init__(self, data: bytes) -> None:
        self.headers, self.body, self.whole = dict[str, str](), b"", 0
        parser = httptools.HttpResponseParser(self)
        parser.feed_data(data)
        self.http, self.status = parser.get_status_code(), self.headers.get("grpc-status")
        self.details = unquote(self.headers.get("grpc-message", ""))

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole += 1

    @property
    def answer(self) -> list[float]:
        assert self.body[:1] == b"\0"
        assert int.from_bytes(self.body[1:5], "big") == len(self.body) - 5
        message = pb.ModelInferResponse.FromString(self.body[5:])
        return np.frombuffer(message.raw_output_contents[0], np.float32).tolist()


def is_http(data: bytes) -> bool:
    try:
        httptools.HttpRequestParser(object()).feed_data(data)
    except httptools.HttpParserError:
        return False
    return True
