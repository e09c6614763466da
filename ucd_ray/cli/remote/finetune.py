"""`ucd-ray --server URL results|report --finetune`: a service trains fine-tuning, then charts show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from ucd_ray.cli.remote import server
from ucd_ray.cli.remote.follow import follow
from ucd_ray.cli.shared import say
from ucd_ray.errors import StudyError

if TYPE_CHECKING:
    from ucd_ray.client import Client, StudyView

COMPLETE = "COMPLETE"  # state of a trial


def train_finetuned(service: Client, study: StudyView) -> None:
    """Has the best trial's recipe trained without distillation, and follows that to its end.

    Raises StudyError if it fails, RequestRefused if no trial is complete, ServiceError; Left after Ctrl-C.
    """
    beside = Console(stderr=True)
    found = service.finetune(study.id)
    say(f"study {found.name} is {found.id} on {server()}", beside)
    if not follow(service, found, trials=1, to=beside):
        raise StudyError(f"study '{found.name}' ({found.id}) was deleted before its end")
    trial = next(service.trials(found.id), None)
    if trial is None or trial.state != COMPLETE:
        reason = trial and (trial.reason or trial.state)
        told = f"study '{found.name}' ({found.id}) has not trained a network"
        raise StudyError(f"{told}: {reason or 'it was stopped before it began'}")
