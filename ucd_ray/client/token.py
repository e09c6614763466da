"""Where a client's token comes from: never the command line, which every user of a machine can list."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ucd_ray.errors import ConfigError

FILE = "service-token"  # in UCD_RAY_HOME


def find_token() -> str | None:
    """The token of UCD_RAY_TOKEN, or of a file: UCD_RAY_TOKEN_FILE, else `service-token` in UCD_RAY_HOME.

    None without any.  Raises ConfigError for a file that is not there, empty, or readable by others.
    """
    if given := os.environ.get("UCD_RAY_TOKEN"):
        return given.strip()
    named = os.environ.get("UCD_RAY_TOKEN_FILE")
    home = Path(os.environ.get("UCD_RAY_HOME") or "~/.ucd-ray").expanduser()
    path = Path(named) if named else home / FILE
    if not named and not path.exists():
        return None
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"token file '{path}' can be read by others; `chmod 600` it")
        text = path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"token file '{path}': {error.strerror}") from None
    if not text:
        raise ConfigError(f"token file '{path}' is empty; put what `ucd-ray token create` printed")
    return text
