"""The key that the command line asks with."""

from __future__ import annotations

import stat
from pathlib import Path

from tidepool.serve.app import ensure_cli_key
from tidepool.serve.auth import KeyFile, digest
from tidepool.settings import Settings


def test_the_command_line_keeps_its_key_while_it_is_good(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    for _ in range(2):
        ensure_cli_key(settings)
    (key,) = KeyFile(settings.keys_file).load()
    assert digest(settings.cli_key_file.read_text()) == key.sha256
    assert stat.S_IMODE(settings.cli_key_file.stat().st_mode) == 0o600


def test_a_key_that_was_cut_short_or_revoked_is_replaced(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    ensure_cli_key(settings)
    for text in ("", "tp_0_unknown"):
        settings.cli_key_file.write_text(text)
        ensure_cli_key(settings)
        known = {key.sha256 for key in KeyFile(settings.keys_file).load()}
        assert digest(settings.cli_key_file.read_text()) in known
