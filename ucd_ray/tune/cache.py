"""The step cache as a person sees it: what it holds, whether it is whole, and making room."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from ucd_ray.checkpoint import DamagedEntry, read_entry, read_weights
from ucd_ray.errors import ConfigError
from ucd_ray.step_eviction import (
    Removed,
    Stored,
    cache_limit,
    delete_step,
    evict,
    in_use,
    parse_size,
    remove_leftovers,
    stored_steps,
)
from ucd_ray.store import Store, masked
from ucd_ray.tune.places import places

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def open_steps() -> Store:
    """The store of the step cache that the environment names."""
    return Store(places().steps)


def parse_age(text: str, name: str = "--older-than") -> float:
    """Seconds of a text such as `30d`.  Raises ConfigError, which names `name`."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smhdw])\s*", text)
    if match is None:
        raise ConfigError(f"{name} ('{text}') must be a time such as 90m, 12h, 30d or 2w")
    return float(match[1]) * SECONDS[match[2]]


def show_size(size: float) -> str:
    """Bytes in few characters."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def show_age(seconds: float) -> str:
    """A time in one number and its unit."""
    unit = next((u for u in "dhm" if seconds >= SECONDS[u]), "s")
    return f"{max(0.0, seconds) / SECONDS[unit]:.0f} {unit}"


def list_table(store: Store) -> Table:
    """Every entry of a step cache, the least recently used first."""
    steps, users, now = stored_steps(store), in_use(store), time.time()
    total = show_size(sum(stored.size for stored in steps))
    limit = cache_limit()
    bound = f"; limit {show_size(limit)}" if limit is not None else ""
    table = Table(title=f"step cache {masked(store.url)}", caption=f"{total}{bound}")
    for column in ("entry", "data set", "step", "shaped by"):
        table.add_column(column, overflow="fold")
    for column in ("size", "age", "last used"):
        table.add_column(column, justify="right")
    table.add_column("in use by", overflow="fold")
    for stored in steps:
        table.add_row(
            stored.digest[:12],
            *_about(store, stored),
            show_size(stored.size),
            show_age(now - stored.created),
            show_age(now - stored.used),
            "\n".join(users.get(stored.digest, ())),
        )
    return table


def _about(store: Store, stored: Stored) -> tuple[str, str, str]:
    """Data set, step, and what shaped an entry."""
    if not stored.complete:
        return "", "", "being written, or left over"
    try:
        entry = read_entry(store, stored.digest)
    except DamagedEntry:
        return "", "", "damaged: see `ucd-ray cache verify`"
    return ("", "", "just removed") if entry is None else about_key(json.loads(entry["key"]))


def about_key(key: dict[str, Any]) -> tuple[str, str, str]:
    """Data set, step, and what shaped it, of a key of the step cache."""
    if "memory" in key:
        dataset, step, shaped = about_key(key["after"])
        return dataset, f"{key['memory']} after {step}", shaped
    try:
        sizes = " + ".join(str(len(classes)) for classes in key["steps"])
        recipe = key["recipe"]
        if "base" in key and len(key["steps"]) == 1:
            shaped = f"base network {key['base']['digest'][:12]}, {key['precision']}"
            return key["dataset"], f"step 0: {sizes}", shaped
        workers = f", {key['workers']} worker(s)" if "workers" in key else ""
        terms = recipe[max(name for name in recipe if name.startswith("terms."))]
        shaped = (
            f"{recipe['setting']}, {recipe.get('model.backbone', 'own network')}, {' '.join(terms)}, "
            f"seed {recipe['seed']}{workers}, {key['precision']}"
        )
        return key["dataset"], f"step {len(key['steps']) - 1}: {sizes}", shaped
    except (KeyError, TypeError, ValueError):
        return "", "", "a key of another version"


def verify(store: Store, console: Console, *, delete: bool = False) -> int:
    """Reads every entry and shows the damaged.  Returns how many; with `delete` they are removed."""
    steps = [stored for stored in stored_steps(store) if stored.complete]
    table = Table(title=f"damaged entries of {masked(store.url)}")
    table.add_column("entry", overflow="fold")
    table.add_column("damage", overflow="fold")
    for stored in steps:
        try:
            entry = read_entry(store, stored.digest)
            if entry is not None:
                read_weights(store, stored.digest, entry)
        except DamagedEntry as error:
            table.add_row(store.path(stored.digest), error.what)
            if delete:
                delete_step(store, stored)
    if table.row_count:
        console.print(table)
    done = ", removed" if delete and table.row_count else ""
    console.print(f"{len(steps)} entries read, {table.row_count} damaged{done}", highlight=False)
    return table.row_count


def prune(
    store: Store,
    console: Console,
    *,
    limit: str | None = None,
    older_than: str | None = None,
    dry_run: bool = False,
) -> Removed:
    """Removes what a limit or age asks for, and leftovers; shows and returns what went."""
    bytes_kept = cache_limit() if limit is None else parse_size(limit, "--limit")
    unused_s = None if older_than is None else parse_age(older_than)
    shaped = {stored.digest: _about(store, stored) for stored in stored_steps(store)}
    removed = evict(store, limit=bytes_kept, unused_s=unused_s, dry_run=dry_run)
    removed.leftovers = remove_leftovers(store, dry_run=dry_run)
    verb = "would be freed" if dry_run else "freed"
    table = Table(title=f"{verb} in {masked(store.url)}")
    for column in ("entry", "data set", "step", "shaped by", "size", "last used"):
        table.add_column(column, overflow="fold")
    for stored in removed.entries:
        used = show_age(time.time() - stored.used)
        about = shaped.get(stored.digest, ("", "", ""))
        table.add_row(stored.digest[:12], *about, show_size(stored.size), used)
    for folder, file in removed.leftovers:
        used = show_age(time.time() - file.modified)
        table.add_row(folder[:12], "", "", f"left over: {file.name}", show_size(file.size), used)
    if table.row_count:
        console.print(table)
    stay = f"; {removed.kept} more stay, as they are in use" if removed.kept else ""
    console.print(
        f"{show_size(removed.size)} {verb}: {len(removed.entries)} entries and "
        f"{len(removed.leftovers)} leftover files{stay}",
        highlight=False,
        soft_wrap=True,
    )
    return removed
