"""Home, storage and their free space; the database of studies and the migration it is at."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from ucd_ray.doctor.finding import Finding
from ucd_ray.errors import CheckpointError
from ucd_ray.store import Store, masked
from ucd_ray.tune.inspection import inspect
from ucd_ray.tune.places import places

LITTLE, TOO_LITTLE = 10e9, 1e9  # free bytes: steps of a study soon fill the first
PROBE = b"ucd-ray doctor"


def home() -> Iterator[Finding]:
    """UCD_RAY_HOME can be written and has room."""
    place = places().home
    yield _room("home", place)


def storage() -> Iterator[Finding]:
    """UCD_RAY_STORAGE takes a file, gives it back and lets it go."""
    url = os.environ.get("UCD_RAY_STORAGE")
    if not url:
        yield Finding("storage", "ok", "in home")
        return
    place = places().storage
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    try:
        store = Store(place)
        store.write(PROBE, name)
        same = store.read(name) == PROBE
        store.delete(name)
    except CheckpointError as error:
        mend = "correct UCD_RAY_STORAGE, or give what its URL's scheme reads: AWS_ACCESS_KEY_ID ..."
        yield Finding("storage", "wrong", str(error), mend)
        return
    if not same:
        mend = "use another storage: steps and checkpoints must come back as they were written"
        yield Finding("storage", "wrong", f"{masked(place)} gives back another file", mend)
    elif store.local:
        yield _room("storage", Path(place))
    else:
        yield Finding("storage", "ok", f"{masked(place)} can be written and read")


def _room(check: str, place: Path) -> Finding:
    free = shutil.disk_usage(place).free
    told = f"{place}: {free / 1e9:.1f} GB free"
    mend = "`ucd-ray cache prune --limit 10GB`, or set UCD_RAY_STORAGE to a larger disk"
    if free < TOO_LITTLE:
        return Finding(check, "wrong", told, mend)
    return Finding(check, "note" if free < LITTLE else "ok", told, mend if free < LITTLE else "")


def database(service_migrations: Mapping[str, Path]) -> Iterator[Finding]:
    """The database answers; nothing is written, and no table made.

    service_migrations: folders of migrations beside the library's, by their version table
    """
    found = inspect(places().database, service_migrations)
    if not found.is_there:
        told = f"{found.shown} is not there yet; the first study makes it"
        yield Finding("database", "ok", told)
        return
    newer = [name for name in found.schemas if found.schemas[name] == "newer"]
    if newer:
        mend = "install the version of ucd-ray that last used it, or name another UCD_RAY_DATABASE"
        told = f"{found.shown} was made by a newer ucd-ray ({', '.join(newer)})"
        yield Finding("database", "wrong", told, mend)
        return
    older = [name for name in found.schemas if found.schemas[name] == "older"]
    told = f"{found.shown} answers, its tables are current"
    if older:
        told = f"{found.shown} answers; its tables are brought up to date at the next start"
    yield Finding("database", "ok", told)
