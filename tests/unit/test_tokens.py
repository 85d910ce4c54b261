"""Tokens of an identity provider, whose keys come from a real server or a file."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tidepool.errors import Forbidden, NotReady, SpecError, Unauthenticated
from tidepool.serve import jwks, tokens
from tidepool.serve.auth import Keyring
from tidepool.serve.tokens import Tokens
from tidepool.settings import Settings

ISSUER, AUDIENCE = "https://login.example", "tidepool"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def published(kid: str, private: Any, algorithm: str, **changes: Any) -> dict[str, Any]:
    """A key as an issuer publishes it."""
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key(), as_dict=True)
    return {**made, "kid": kid, "use": "sig", **changes}


JWKS = {"keys": [published("r", RSA, "RS256", alg="RS256"), published("e", EC, "ES256"), published("d", ED, "EdDSA")]}


def token(private: Any = RSA, algorithm: str = "RS256", kid: str | None = "r", **changes: Any) -> str:
    now = time.time()
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now + 60, "scope": "openid digits:infer"}
    claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}
    return jwt.encode(claims, private, algorithm, headers={"kid": kid} if kid else None)


def ring(document: Any = JWKS, clock: Any = time.time) -> Keyring:
    issued = Tokens(ISSUER, AUDIENCE)
    issued.replace(document)
    return Keyring(clock=clock, tokens=issued)


@pytest.mark.parametrize(("private", "algorithm", "kid"), [(RSA, "RS256", "r"), (EC, "ES256", "e"), (ED, "EdDSA", "d")])
def test_a_token_of_the_issuer_lets_in_for_what_it_names(private: Any, algorithm: str, kid: str) -> None:
    text = token(private, algorithm, kid)
    assert ring().check(text, "digits", "infer").id == "jwt:alice"
    for model, verb in (("digits", "explain"), ("iris", "infer"), ("openid", "infer")):
        with pytest.raises(Forbidden, match="digits:infer"):
            ring().check(text, model, verb)


@pytest.mark.parametrize("scope", ["*:*", "digits:*", ["other:read", "*:infer"]])
def test_a_star_stands_for_any_and_the_claim_may_be_a_list(scope: Any) -> None:
    assert ring().check(token(scope=scope), "digits", "infer")


@pytest.mark.parametrize("scope", [None, "", "digits", ["digits"], 3, {"digits": "infer"}])
def test_a_token_that_names_no_model_and_verb_opens_nothing(scope: Any) -> None:
    with pytest.raises(Forbidden):
        ring().check(token(scope=scope), "digits", "infer")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exp": 1_000}, "expired"),
        ({"exp": None}, "exp"),
        ({"sub": None}, "sub"),
        ({"aud": "elsewhere"}, "[Aa]udience"),
        ({"aud": None}, "aud"),
        ({"iss": "https://evil.example"}, "[Ii]ssuer"),
        ({"nbf": time.time() + 3600}, "not yet valid"),
        ({"kid": "x"}, "unknown key"),
        ({"kid": None}, "unknown key"),
        ({"private": EC, "algorithm": "ES256"}, "alg"),  # of another of the issuer's keys
        ({"algorithm": "PS256"}, "alg"),  # the key says that it is for RS256
        ({"private": rsa.generate_private_key(65537, 2048)}, "Signature"),
    ],
)
def test_a_token_that_is_not_good_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Unauthenticated, match=words):
        ring().check(token(**changes), "digits", "infer")


def forged(header: dict[str, str], secret: bytes | None) -> str:
    """What the library refuses to make: a token without a signature, or signed with a public key as shared secret."""
    claims = jwt.decode(token(), options={"verify_signature": False})
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    signature = hmac.new(secret, b".".join(parts), hashlib.sha256).digest() if secret else b""
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def test_neither_no_signature_nor_the_public_key_as_a_secret_lets_in() -> None:
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for text in (
        forged({"alg": "none", "kid": "r"}, None),
        forged({"alg": "HS256", "kid": "r"}, pem),
        forged(
            {"alg": "HS256", "kid": "e"}, EC.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        ),
    ):
        with pytest.raises(Unauthenticated):
            ring().check(text, "digits", "infer")


def test_a_shared_secret_among_the_published_keys_is_passed_over() -> None:
    secret = base64.urlsafe_b64encode(b"0" * 32).decode()
    document = {
        "keys": [{"kty": "oct", "k": secret, "kid": "s", "alg": "HS256"}, "rubbish", {"kid": "r", "kty": "RSA"}]
    }
    with pytest.raises(Unauthenticated, match="unknown key"):
        ring(document).check(token(b"0" * 32, "HS256", "s"), "digits", "infer")


@pytest.mark.parametrize("text", ["..", "a.b.c", "e30.e30.", "x" * 9000 + ".y.z", "\N{SNOWMAN}.a.b"])
def test_rubbish_with_two_dots_is_refused(text: str) -> None:
    with pytest.raises(Unauthenticated):
        ring().check(text, "digits", "infer")


def test_a_token_that_was_let_in_ends_when_it_expires_or_its_key_goes() -> None:
    now = [time.time()]
    issued = Tokens(ISSUER, AUDIENCE)
    issued.replace(JWKS)
    guard = Keyring(clock=lambda: now[0], tokens=issued)
    text = token()
    assert guard.check(text, "digits", "infer") is guard.check(text, "digits", "infer")
    assert not issued.replace(dict(JWKS))
    assert issued.replace({"keys": []})
    guard.forget()
    with pytest.raises(Unauthenticated, match="unknown key"):
        guard.check(text, "digits", "infer")
    issued.replace(JWKS)
    assert guard.check(text, "digits", "infer")
    now[0] += 100
    with pytest.raises(Unauthenticated, match="expired"):
        guard.check(text, "digits", "infer")


def test_before_the_keys_are_there_a_token_has_to_wait() -> None:
    with pytest.raises(NotReady):
        Keyring(tokens=Tokens(ISSUER, AUDIENCE)).check(token(), "digits", "infer")


class Issuer:
    """A server of keys that counts who asks."""

    def __init__(self) -> None:
        self.document: Any = {"keys": []}
        self.asked = 0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                body = json.dumps(issuer.document).encode()
                self.send_response(200 if issuer.document else 500)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


async def wait_until_let_in(guard: Keyring, deadline_s: float = 60) -> None:
    until = time.monotonic() + deadline_s
    while True:
        try:
            assert guard.check(token(), "digits", "infer").id == "jwt:alice"
            return
        except Unauthenticated:
            assert time.monotonic() < until
            await asyncio.sleep(0.01)


def test_keys_come_in_the_background_and_an_unknown_one_hurries_them(issuer: Issuer) -> None:
    async def scenario() -> None:
        issued, forgotten = Tokens(ISSUER, AUDIENCE), list[bool]()
        guard = Keyring(tokens=issued)
        await jwks.refresh(issued, issuer.url, lambda: forgotten.append(True))
        assert issuer.asked == 1
        issuer.document = JWKS
        background = asyncio.create_task(jwks.follow(issued, issuer.url, guard.forget, every_s=3600, soonest_s=0.01))
        await wait_until_let_in(guard)
        issuer.document = None
        await jwks.refresh(issued, issuer.url, guard.forget)  # a provider that fails takes nobody's key away
        assert guard.check(token(), "digits", "infer")
        background.cancel()

    asyncio.run(scenario())


def test_keys_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_text(json.dumps(JWKS))
    issued = Tokens(ISSUER, AUDIENCE)
    asyncio.run(jwks.refresh(issued, str(tmp_path / "jwks.json"), lambda: None))
    assert Keyring(tokens=issued).check(token(), "digits", "infer")


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_file_that_holds_no_keys_changes_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "jwks.json").write_text(content)
    issued = Tokens(ISSUER, AUDIENCE)
    asyncio.run(jwks.refresh(issued, str(tmp_path / "jwks.json"), lambda: None))
    assert not issued.known


def test_keys_over_the_network_without_tls_are_refused() -> None:
    with pytest.raises(SpecError, match="TLS"):
        jwks.fetch("http://login.example/jwks")


def test_settings_have_to_say_whose_tokens_are_good(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="TIDEPOOL_JWT_ISSUER"):
        tokens.of(Settings())
    for name, value in (("ISSUER", ISSUER), ("AUDIENCE", AUDIENCE), ("JWKS", "jwks.json")):
        monkeypatch.setenv(f"TIDEPOOL_JWT_{name}", value)
    assert not tokens.of(Settings()).known
    assert Path(str(Settings().jwt_jwks)).is_absolute()
