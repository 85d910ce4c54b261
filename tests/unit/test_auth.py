"""API keys on disk and in a replica."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tidepool.errors import Forbidden, SpecError, StorageError, TryLater, Unauthenticated
from tidepool.serve.auth import MOST_REMEMBERED, VERBS, Key, KeyFile, Keyring, digest
from tidepool.serve.limits import Limit


def test_a_key_opens_what_it_was_made_for(tmp_path: Path) -> None:
    store = KeyFile(tmp_path / "keys.json")
    text = store.create("alice", ["digits"])
    ring = Keyring(store.load())
    assert ring.check(text, "digits", "infer").name == "alice"
    with pytest.raises(Forbidden, match="iris"):
        ring.check(text, "iris", "infer")


@pytest.mark.parametrize("scheme", ["", "Bearer ", "bearer ", "BEARER  "])
def test_a_key_may_come_with_bearer_whose_case_does_not_matter(tmp_path: Path, scheme: str) -> None:
    store = KeyFile(tmp_path / "keys.json")
    text = store.create("alice")
    assert Keyring(store.load()).check(f"{scheme}{text}", "digits", "infer").name == "alice"


def test_the_secret_is_not_stored_and_the_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    text = KeyFile(path).create("alice")
    assert text.split("_")[2] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_expired_key_is_refused(tmp_path: Path) -> None:
    now = [100.0]
    store = KeyFile(tmp_path / "keys.json", clock=lambda: now[0])
    text = store.create("alice", ttl_s=10)
    ring = Keyring(store.load(), clock=lambda: now[0])
    assert ring.check(text, "digits", "infer")
    now[0] = 111.0
    with pytest.raises(Unauthenticated, match="expired"):
        ring.check(text, "digits", "infer")


def test_a_revoked_key_is_refused(tmp_path: Path) -> None:
    store = KeyFile(tmp_path / "keys.json")
    text = store.create("alice")
    ring = Keyring(store.load())
    store.revoke(store.load()[0].id)
    ring.replace(store.load())
    with pytest.raises(Unauthenticated, match="not known"):
        ring.check(text, "digits", "infer")


def test_revoking_an_unknown_key_names_those_there_are(tmp_path: Path) -> None:
    store = KeyFile(tmp_path / "keys.json")
    store.create("alice")
    with pytest.raises(SpecError, match=store.load()[0].id):
        store.revoke("nobody")


def test_no_key_is_lost_and_none_comes_back_when_several_change_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "home" / "keys.json"

    def make_and_revoke(name: str) -> str:
        kept, revoked = KeyFile(path).create(name), KeyFile(path).create("revoked")
        KeyFile(path).revoke(revoked.split("_")[1])
        return kept

    with ThreadPoolExecutor(8) as threads:
        kept = list(threads.map(make_and_revoke, map(str, range(40))))
    assert {key.id for key in KeyFile(path).load()} == {text.split("_")[1] for text in kept}


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, math.nan, math.inf, 1e12])
def test_a_key_that_would_never_be_good_or_last_for_ever_is_refused(tmp_path: Path, ttl_s: float) -> None:
    store = KeyFile(tmp_path / "keys.json")
    with pytest.raises(SpecError, match="36500 days"):
        store.create("alice", ttl_s=ttl_s)
    assert store.load() == []


@pytest.mark.parametrize("damaged", ['[{"id": 3}]', '{"a": 1}', "[1]", "3", "{"])
def test_a_damaged_keys_file_is_reported(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "keys.json").write_text(damaged)
    with pytest.raises(StorageError, match=r"keys\.json"):
        KeyFile(tmp_path / "keys.json").load()


def test_a_key_is_for_the_verbs_that_it_was_made_for(tmp_path: Path) -> None:
    store = KeyFile(tmp_path / "keys.json")
    ring = Keyring([])
    text = store.create("dashboard", ["digits"], verbs=["read"])
    ring.replace(store.load())
    assert ring.check(text, "digits", "read")
    with pytest.raises(Forbidden, match=r"not for this.*infer.*Allowed: read"):
        ring.check(text, "digits", "infer")
    with pytest.raises(SpecError, match="admin"):
        store.create("root", verbs=["read", "admin"])


def test_a_key_made_before_there_were_verbs_has_them_all() -> None:
    old = {"id": "1", "name": "a", "sha256": digest("t"), "models": ["*"], "created": 0.0, "expires": None}
    key = Key.from_json(old)
    assert (key.verbs, key.limit) == (VERBS, None)


def test_a_key_over_its_limit_is_told_to_try_later_but_is_known(tmp_path: Path) -> None:
    store = KeyFile(tmp_path / "keys.json")
    text = store.create("alice", limit=Limit(per_second=1, burst=2, per_day=100))
    ring = Keyring(store.load(), clock=lambda: 100.0)
    key = ring.check(text, "digits", "infer")
    assert key.limit == Limit(1, 2, 100)
    ring.charge(key)
    ring.charge(key)
    with pytest.raises(TryLater) as refused:
        ring.charge(key)
    assert refused.value.retry_after_s == pytest.approx(1.0)
    assert ring.check(text, "digits", "read")
    ring.replace(store.load())
    with pytest.raises(TryLater):
        ring.charge(ring.check(text, "digits", "infer"))


def test_a_key_that_is_written_strangely_is_good_and_takes_no_room_from_others() -> None:
    ring = Keyring([Key("good", "good", digest("good"), ("*",), 0.0, None)])
    for blanks in range(2, 50):
        assert ring.check(f"bearer{' ' * blanks}good", "digits", "infer").id == "good"
    assert not ring._let_in


def test_what_is_remembered_of_a_key_is_gone_with_the_key_and_bounded() -> None:
    key = Key("good", "good", digest("good"), ("*",), 0.0, None)
    ring = Keyring([key])
    for number in range(MOST_REMEMBERED + 10):
        assert ring.check("good", f"model-{number}", "infer") is key
    assert len(ring._let_in) == MOST_REMEMBERED
    ring.replace([])
    with pytest.raises(Unauthenticated):
        ring.check("good", "model-0", "infer")
