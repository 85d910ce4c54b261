"""HTTP: methods, statuses, encodings. Rules that REST alone has."""

from __future__ import annotations

import gzip
import http.client
import zlib
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from tidepool.conformance import rest
from tidepool.conformance.case import Failed, Level, Skipped, Table, Transport, require
from tidepool.conformance.cases.documents import half, refused, same
from tidepool.conformance.cases.health import UNKNOWN
from tidepool.conformance.messages import Refused
from tidepool.conformance.session import Session

rule = Table((Transport.REST,))


@rule("http.error-shape", Level.MUST, "Errors", 'every error is {"error": "<text>"} with a status of 400 or more')
def error_shape(session: Session) -> None:
    gets = (rest.model_path(UNKNOWN), rest.model_path(session.model, UNKNOWN))
    posts = (f"{rest.model_path(UNKNOWN)}/infer", f"{rest.model_path(session.model)}/infer")
    answers = {path: session.rest.send("GET", path) for path in gets}
    answers |= {f"POST {path}": session.rest.send("POST", path, content=b"{") for path in posts}
    for path, response in answers.items():
        try:
            rest.accepted(response)
        except Refused as error:
            require(error.well_formed, f"the error of {path} is out of form", f"{error.status} {error.message}")
        else:
            raise Failed(f"{path} is answered with 200")


@rule("http.method", Level.SHOULD, "RFC 9110, 405", "a method that a path doesn't have gets 405 and an Allow header")
def method(session: Session) -> None:
    path = rest.model_path(session.model)
    for verb, target in (("GET", f"{path}/infer"), ("DELETE", path), ("POST", f"{path}/ready")):
        response = session.rest.send(verb, target)
        require(response.status_code == 405, f"{verb} {target} is answered with", str(response.status_code))
        require("allow" in response.headers, f"the 405 of {verb} {target} has no Allow header")


@rule("http.unknown-path", Level.SHOULD, "RFC 9110, 404", "a path that doesn't exist is 404")
def unknown_path(session: Session) -> None:
    for path in (f"/v2/{UNKNOWN}", f"{rest.model_path(session.model)}/{UNKNOWN}"):
        status = session.rest.send("GET", path).status_code
        require(status == 404, f"{path} is answered with", str(status))


@rule("http.chunked", Level.SHOULD, "RFC 9112, 7.1", "a body may come in chunks, without a length")
def chunked(session: Session) -> None:
    session.need_json()
    body, _ = rest.encode(session.request())

    def pieces() -> Iterator[bytes]:
        yield body[:10]
        yield body[10:]

    path = f"{rest.model_path(session.model)}/infer"
    response = session.rest.send("POST", path, content=pieces(), headers={"Content-Type": "application/json"})
    same(session.baseline, rest.decode(response), "chunks change")


@rule("http.keep-alive", Level.SHOULD, "RFC 9112, 9.3", "a connection is still good after a refusal")
def keep_alive(session: Session) -> None:
    url = urlsplit(session.rest.url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.netloc, timeout=session.rest.timeout_s)
    path = f"{url.path.rstrip('/')}{rest.model_path(session.model)}"
    try:
        sockets = []
        for verb, target, body in (("POST", f"{path}/infer", b"{"), ("GET", f"{path}/ready", None)):
            connection.request(verb, target, body, session.rest.headers | {"Content-Type": "application/json"})
            sockets.append(connection.sock)
            response = connection.getresponse()
            response.read()
        require(response.status == 200, "after a refusal comes status", str(response.status))
        require(sockets[0] is sockets[1], "the server closed the connection")
    except (http.client.HTTPException, OSError) as error:
        raise Failed(f"the connection broke after a refusal: {type(error).__name__} {error}") from None
    finally:
        connection.close()


@rule("http.gzip", Level.EXTENSION, "RFC 9110, 8.4", "a body may be compressed with gzip (clients of Triton do)")
def gzipped(session: Session) -> None:
    _compressed(session, "gzip", gzip.compress)


@rule("http.deflate", Level.EXTENSION, "RFC 9110, 8.4", "a body may be compressed with deflate (clients of Triton do)")
def deflated(session: Session) -> None:
    _compressed(session, "deflate", zlib.compress)


@rule("http.broken-gzip", Level.EXTENSION, "RFC 9110, 8.4", "a body that isn't in its announced encoding is refused")
def broken_gzip(session: Session) -> None:
    body, _ = rest.encode(session.request(), raw_inputs=half(session))
    for what, content in {"no gzip": body, "cut off gzip": gzip.compress(body)[:-12]}.items():
        refused(session, content, what, {"Content-Encoding": "gzip"})


@rule("http.accept-encoding", Level.EXTENSION, "RFC 9110, 12.5.3", "an answer may be compressed for who accepts that")
def accept_encoding(session: Session) -> None:
    session.need_json()
    body, _ = rest.encode(session.request())
    for encoding in ("gzip", "deflate"):
        response = session.rest.post_infer(session.request(), body, headers={"Accept-Encoding": encoding})
        said = response.headers.get("content-encoding", "identity")
        require(said in (encoding, "identity"), f"who accepts {encoding} alone gets", said)
        same(session.baseline, rest.decode(response), f"accepting {encoding} changes")


def _compressed(session: Session, encoding: str, compress: Callable[[bytes], bytes]) -> None:
    session.need_json()
    body, _ = rest.encode(session.request())
    headers = {"Content-Encoding": encoding}
    response = session.rest.post_infer(session.request(), compress(body), headers=headers)
    if response.status_code == 415:
        raise Skipped(f"the server says that it doesn't take {encoding}")
    same(session.baseline, rest.decode(response), f"{encoding} changes")


@rule(
    "repository.index",
    Level.EXTENSION,
    "Triton: Model Repository",
    "the index lists the model, and whether it is ready",
)
def index(session: Session) -> None:
    session.need_extension("model_repository")
    response = session.rest.send("POST", "/v2/repository/index", json={})
    models = rest.accepted(response).json()
    require(isinstance(models, list), "the index is not a list", models)
    states = {model.get("name"): model.get("state") for model in models}
    require(states.get(session.model) == "READY", f"{session.model} is not listed as READY", states)
