"""`ucd-ray --server URL tune`: starts a study on a service and follows it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ucd_ray.cli.remote import connected, server
from ucd_ray.cli.remote.follow import follow
from ucd_ray.cli.shared import console, say, show_trials
from ucd_ray.errors import RequestRefused, StudyError
from ucd_ray.tune.curves import Curves
from ucd_ray.tune.spec import StudySpec

if TYPE_CHECKING:
    from ucd_ray.client import PlanView


def tune(
    spec: StudySpec,
    *,
    sources: Sequence[str],
    dry_run: bool,
    tensorboard: Path | None = None,
    output: str,
) -> None:
    """Starts the study, or finds it again, follows it to its end and shows its table.

    sources: names or ids of studies that it learns from
    tensorboard: directory on this machine for curves of its trials; None: no curves
    Raises StudyError if it fails, ConfigError, ServiceError.
    """
    curves = Curves(tensorboard / spec.name) if tensorboard and not dry_run else None
    # Under this id the same command finds its study again.
    asked: dict[str, Any] = {"spec": spec.model_dump(mode="json"), "external_id": spec.name}
    with connected() as service:
        asked["warm_start"] = [service.find(source).id for source in sources]
        if dry_run:
            del asked["external_id"]
            console.print(plan_table(spec.name, service.plan(asked)))
            return
        try:
            study = service.create(asked)
        except RequestRefused as refused:
            if refused.code != "EXTERNAL_ID_TAKEN":
                raise
            hint = "`ucd-ray study edit` changes it, another --name starts a second one"
            raise StudyError(f"{refused}; {hint}") from None
        say(f"study {study.name} is {study.id} on {server()}")
        if not follow(service, study, trials=spec.trials, curves=curves):
            return
        show_trials(service.table(study.id), study.name, output)


def plan_table(name: str, plan: PlanView) -> Table:
    """What a study would do and cost."""
    table = Table(title=f"plan of {name}", show_header=False)
    low, high = plan.hours
    gang = plan.gang
    rows: dict[str, Any] = {
        "trials": plan.trials,
        "replicates": plan.replicates,
        "workers": f"{gang['workers']:g} x {gang['cpus']:g} CPUs, {gang['gpus']:g} GPUs",
        "base steps": plan.base_steps,
        f"{plan.unit} hours": f"{low:.2g} to {high:.2g}",
        "searched": ", ".join(plan.searched),
        **({"warm start": "; ".join(plan.warm_start)} if plan.warm_start else {}),
    }
    for what, value in rows.items():
        table.add_row(what, str(value))
    return table


def stamp(seconds: float | None) -> str:
    """A time of this machine's zone."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
