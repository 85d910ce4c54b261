"""Where this installation keeps things: `TIDEPOOL_HOME` and what overrides parts of it.

Everything here comes from `TIDEPOOL_*` environment variables, read anew by each `Settings()`; nothing is
written by reading it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tidepool.errors import SpecError
from tidepool.storage import is_remote, local_path


class Settings(BaseSettings):
    """Paths, URIs and secrets of one installation.

    Raises:
        SpecError: a TIDEPOOL_* variable has a value that it can't have.
    """

    model_config = SettingsConfigDict(env_prefix="TIDEPOOL_", frozen=True)

    home: Path = Field(default_factory=lambda: Path.home() / ".tidepool", description="State of this installation.")
    registry_url: str | None = Field(
        None,
        description="SQLAlchemy URL of the registry, e.g. postgresql+psycopg://...; default SQLite in home.",
    )
    storage_url: str | None = Field(
        None, description="Where data, runs and artifacts go: a path, s3:// or gs://; default home."
    )
    """A relative path counts from where the command was typed: the cluster that `up` starts gets it absolute."""
    api_key: str | None = Field(None, description="The key that the CLI sends; default the one that `up` made.")
    mask_key: str | None = Field(None, description="Secret with which sensitive values are hashed in the request log.")

    pool: str = Field("{}", description="How accelerators are shared: settings of the pool's policy, as JSON.")

    jwt_issuer: str | None = Field(None, description="Who issues the tokens that `serve.auth: jwt` takes.")
    jwt_audience: str | None = Field(None, description="Whom these are for: this installation, by the issuer's name.")
    jwt_jwks: str | None = Field(None, description="The issuer's keys: an https:// URL or a JSON file.")
    jwt_claim: str = Field("scope", description="The claim that names what a token opens, as `model:verb`.")

    shared_mb: float = Field(512.0, gt=0, description="Memory of all shared models together, in each replica.")
    shared_replicas: int = Field(
        1, ge=1, description="Replicas that shared models have, each of which serves them all."
    )

    standby: int = Field(1, ge=0, description="Processes kept started on every machine for the next replicas.")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            variable = "TIDEPOOL_" + "_".join(map(str, wrong["loc"])).upper()
            raise SpecError(
                f"{variable} is not valid",
                seen=wrong["input"],
                allowed=wrong["msg"],
                remedy=f"set it anew, or unset {variable}",
            ) from None

    @field_validator("storage_url")
    @classmethod
    def _absolute(cls, url: str | None) -> str | None:
        return str(local_path(url).absolute()) if url and not is_remote(url) else url

    @field_validator("jwt_jwks")
    @classmethod
    def _absolute_file(cls, source: str | None) -> str | None:
        return str(Path(source).absolute()) if source and "://" not in source else source

    @property
    def registry(self) -> str:
        """SQLAlchemy URL of the registry database."""
        return self.registry_url or f"sqlite:///{self.root / 'registry.db'}"

    @property
    def root(self) -> Path:
        """`home`, absolute and with `~` expanded."""
        return self.home.expanduser().absolute()

    def storage(self, *parts: str) -> str:
        """URI or absolute path of a place in the shared storage, e.g. `storage("runs", "digits")`."""
        base = self.storage_url or str(self.root)
        return "/".join([base.rstrip("/"), *parts])

    @property
    def cluster_file(self) -> Path:
        """Pids and ports of the local cluster, written by `tidepool up`."""
        return self.root / "cluster.json"

    @property
    def keys_file(self) -> Path:
        """Hashed API keys."""
        return self.root / "keys.json"

    @property
    def roster_file(self) -> Path:
        """Models that share replicas, and how each is served."""
        return self.root / "shared.json"

    @property
    def quotas_file(self) -> Path:
        """What each API key has asked today."""
        return self.root / "quotas.json"

    @property
    def cli_key_file(self) -> Path:
        """The CLI's own API key, readable by its owner alone."""
        return self.root / "cli.key"

    @property
    def logs(self) -> Path:
        """Folder of the log files that tidepool itself writes."""
        return self.root / "logs"
