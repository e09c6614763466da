"""What the events of a run say to programs: the JSON beside the line for people.

Every event of a trial that changes its state has `state`, in our words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ucd_ray.tune.reasons import code_of

ENDED = ("COMPLETE", "PRUNED", "FAILED", "INFEASIBLE", "CANCELLED")  # of `shown_state`
OWN_STATES = {"OUT_OF_MEMORY": "INFEASIBLE", "STOPPED_BY_USER": "CANCELLED"}  # by reason code
WORKER = "worker"  # kind of the lines that one worker said
IMAGES = ("select", "val")
STATES = {
    **dict.fromkeys(("started", "run", "waiting", "paused", "lost", "smaller"), "WAITING"),
    **dict.fromkeys(("start", "pass", "epoch"), "RUNNING"),
}
FIELDS: dict[str, tuple[str, ...]] = {
    "run": ("label",),
    "start": ("first_step",),
    "epoch": (
        *("step", "epoch", "epochs", "run_epoch", "losses", "lr", "value"),
        *("images_per_s", "seconds_left"),
    ),
    "pass": ("step", "name"),
    "step": ("step", "run_epoch", "cached", "own", "seconds"),
    "waiting": ("reason",),
    "lost": ("nodes",),
    "smaller": ("reason",),
    "worker": ("rank", "node", "level"),
    "measured": ("value", "code", "reason"),
    "finished": ("value", "values", "broken", "code", "reason"),
}


def is_by(kind: str, data: Mapping[str, Any] | None, worker: int | None) -> bool:
    """Whether a worker of that rank said a line; None: anybody may have."""
    return worker is None or (kind == WORKER and (data or {}).get("rank") == worker)


def event_data(kind: str, who: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """The data of an event; who: `base step`, `trial 3` or its run `trial 3-r1`."""
    found: dict[str, Any] = {"of": who}
    if kind == "started":
        found["params"] = dict(report)
    elif kind == "step":
        found |= {images: report[images]["means"] for images in IMAGES}
    found |= {name: report[name] for name in FIELDS.get(kind, ()) if name in report}
    if kind == "waiting":
        found["code"] = code_of(report["reason"])
    if kind in ("finished", "measured"):
        found["state"] = shown_state(report["state"], report)
    elif kind == "waiting" and not report.get("reason"):
        found["state"] = "RUNNING"  # what it waited for is there
    elif kind in STATES:
        found["state"] = STATES[kind]
    return {name: _plain(value) for name, value in found.items()}


def shown_state(state: str, attributes: Mapping[str, Any] | None = None) -> str:
    """Optuna's state in our words; attributes: the trial's, whose `code` and `waiting` tell more."""
    known = attributes or {}
    if state == "FAIL":
        return OWN_STATES.get(str(known.get("code")), "FAILED")
    if state == "RUNNING" and known.get("waiting"):
        return "WAITING"
    return "QUEUED" if state == "WAITING" else state


def _plain(value: Any) -> Any:
    """A value that JSON has: NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
