"""Where things live: `UCD_RAY_HOME`, and what can be elsewhere for a cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ucd_ray.errors import StudyError
from ucd_ray.step_eviction import cache_limit


@dataclass(frozen=True)
class Places:
    """The places of one installation."""

    home: Path
    database: str  # SQLAlchemy URL
    storage: str  # local directory or URL

    @property
    def steps(self) -> str:
        """The step cache."""
        return below(self.storage, "steps")

    @property
    def runs(self) -> str:
        """Checkpoints of open trials."""
        return below(self.storage, "runs")

    @property
    def data(self) -> Path:
        """Prepared data sets."""
        return self.home / "data"


def below(storage: str, name: str) -> str:
    """A directory below a path or URL; the URL's query stays at the end."""
    base, mark, query = storage.partition("?")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


def places() -> Places:
    """The places that the environment names.

    Raises StudyError if home cannot be written, ConfigError if the step cache's limit is no size.

    UCD_RAY_HOME (default ~/.ucd-ray), UCD_RAY_DATABASE (default SQLite in home), UCD_RAY_STORAGE
    (default home).
    """
    cache_limit()  # refused here, before anything starts
    home = Path(os.environ.get("UCD_RAY_HOME") or "~/.ucd-ray").expanduser().absolute()
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # another thread may have been faster
    except OSError as error:
        raise StudyError(
            f"cannot write to '{home}': {error.strerror}; set UCD_RAY_HOME to a writable directory"
        ) from None
    storage = os.environ.get("UCD_RAY_STORAGE") or str(home)
    if "://" not in storage:  # workers have other working directories
        storage = str(Path(storage).expanduser().absolute())
    return Places(
        home=home,
        database=os.environ.get("UCD_RAY_DATABASE") or f"sqlite:///{home}/studies.db",
        storage=storage,
    )
