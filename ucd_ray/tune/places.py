"""Where things live: `UCD_RAY_HOME`, and what can be elsewhere for a cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ucd_ray.errors import StudyError


@dataclass(frozen=True)
class Places:
    """The places of one installation."""

    home: Path
    database: str  # SQLAlchemy URL
    storage: str  # local directory or URL

    @property
    def steps(self) -> str:
        """The step cache."""
        return f"{self.storage}/steps"

    @property
    def runs(self) -> str:
        """Checkpoints of open trials."""
        return f"{self.storage}/runs"

    @property
    def data(self) -> Path:
        """Prepared data sets."""
        return self.home / "data"


def places() -> Places:
    """The places that the environment names.  Raises StudyError if home cannot be written.

    UCD_RAY_HOME (default ~/.ucd-ray), UCD_RAY_DATABASE (default SQLite in home), UCD_RAY_STORAGE
    (default home).
    """
    home = Path(os.environ.get("UCD_RAY_HOME") or "~/.ucd-ray").expanduser().absolute()
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StudyError(
            f"cannot write to '{home}': {error.strerror}; set UCD_RAY_HOME to a writable directory"
        ) from None
    return Places(
        home=home,
        database=os.environ.get("UCD_RAY_DATABASE") or f"sqlite:///{home}/studies.db",
        storage=os.environ.get("UCD_RAY_STORAGE") or str(home),
    )
