"""Places in a replica: none is taken for ever, and one key leaves some to the others."""

from __future__ import annotations

import pytest

from lanes import application, double
from tidepool.errors import TryLater
from tidepool.serve.auth import Key, Keyring, digest
from tidepool.serve.rest import SPARED, ModelApp

PLACES = 2 * SPARED


@pytest.fixture
def app() -> ModelApp:
    """With two places in eight that a key with many may not have."""
    keys = [Key(name, name, digest(name), ("*",), 0.0, None) for name in ("flood", "alice")]
    return ModelApp(application(double).dataplane, Keyring(keys), 1000, max_in_air=PLACES)


def enter(app: ModelApp, key: str) -> str:
    return app.enter({b"x-api-key": key.encode()}, 10)


def test_a_key_that_takes_all_it_can_get_leaves_places_to_others(app: ModelApp) -> None:
    for _ in range(PLACES - 2):
        enter(app, "flood")
    with pytest.raises(TryLater, match="hands full"):
        enter(app, "flood")
    for _ in range(2):
        assert enter(app, "alice") == "alice"
    for key in ("alice", "flood"):
        with pytest.raises(TryLater, match="hands full"):
            enter(app, key)


def test_who_leaves_makes_room(app: ModelApp) -> None:
    for _ in range(PLACES - 2):
        enter(app, "flood")
    app.leave("flood")
    enter(app, "flood")
    for _ in range(PLACES - 2):
        app.leave("flood")
    assert app.in_air == 0


def test_where_no_key_is_needed_all_places_are_everybodys() -> None:
    app = ModelApp(application(double).dataplane, None, 1000, max_in_air=PLACES)
    for _ in range(PLACES):
        assert enter(app, "whoever") == ""
    with pytest.raises(TryLater, match="hands full"):
        enter(app, "whoever")
