"""Settings of the service: from the environment (`UCD_RAY_SERVICE_*`) or the options of `ucd-ray serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ucd_ray.errors import ConfigError
from ucd_ray.recipe import describe
from ucd_ray.tune.places import places


class Quota(BaseModel):
    """What one owner may use at a time; null: no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of the cluster, relative to the other owners' weights."""
    studies: Annotated[int, Field(ge=0)] | None = None
    """Studies that run at a time."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs held at a time."""
    gpu_hours_per_day: Annotated[float, Field(ge=0)] | None = None
    """GPU hours used in a day (UTC) after which this owner's studies wait for the next day."""


class Settings(BaseSettings):
    """Every setting of the service.  Mappings are given as JSON in the environment."""

    model_config = SettingsConfigDict(
        env_prefix="UCD_RAY_SERVICE_", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address to listen on; other than loopback only once a token exists."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port to listen on; 0: a free one."""
    database: str = Field(default_factory=lambda: places().database)
    """URL of the database, which is also the one of the studies (UCD_RAY_DATABASE)."""
    database_wait_s: Annotated[float, Field(ge=0)] = 5.0
    """Seconds a request waits for a database that does not answer."""
    ray_dashboard: str | None = None
    """Address of the Ray cluster's dashboard, such as http://head:8265; null: a head on this machine."""
    ray_token_file: Path | None = None
    """File with that cluster's token, readable by its owner only; null: Ray's own environment."""
    data_sets: dict[str, str] = {}
    """Directories of data sets by the name that clients use; `generated` needs none."""
    weights: dict[str, str] = {}
    """Files of pretrained weights by the name that clients use."""
    quota: Quota = Quota()
    """Of an owner that `quotas` does not name."""
    quotas: dict[str, Quota] = {}
    """By owner."""
    requests_per_minute: Annotated[int, Field(gt=0)] = 1200
    """Requests of one token; of one address ten times as many, whatever tokens come from there."""
    body_wait_s: Annotated[float, Field(gt=0)] = 20.0
    """Seconds without a word after which a client that sends a body is given up."""
    max_body_bytes: Annotated[int, Field(gt=0)] = 1_000_000
    """Largest body of a request."""
    max_depth: Annotated[int, Field(gt=0)] = 32
    """Deepest nesting of a JSON body."""
    purge_after_days: Annotated[float, Field(ge=0)] = 30.0
    """Days from the deletion of a study until its results are gone."""
    max_attempts: Annotated[int, Field(gt=0)] = 3
    """Starts of a study whose Ray job fails one after the other, before the study has failed."""
    tick_s: Annotated[float, Field(gt=0)] = 2.0
    """Seconds between two looks at the cluster."""
    lease_s: Annotated[float, Field(gt=0)] = 20.0
    """Seconds after which another replica takes over from one that is silent."""

    def quota_of(self, owner: str) -> Quota:
        """What an owner may use."""
        return self.quotas.get(owner, self.quota)


def read_settings(**given: Any) -> Settings:
    """The settings of the environment, with what is given here.  Raises ConfigError."""
    try:
        return Settings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(f"settings of the service: {describe(error)}") from None
