"""`ucd-ray --server URL report`: the report that a service makes, written here."""

from __future__ import annotations

from pathlib import Path

from ucd_ray.cli.remote import connected
from ucd_ray.cli.remote.finetune import train_finetuned
from ucd_ray.cli.shared import say_beside
from ucd_ray.tune.report import check_place, save


def report(study: str, out: Path | None, finetune: bool) -> None:
    """One HTML file with the tables and charts of a study.

    Raises ConfigError, RequestRefused; StudyError if fine-tuning fails.
    """
    with connected() as service:
        found = service.find(study)
        path = out or Path(f"{found.name}.html")
        check_place(path)
        if finetune:
            train_finetuned(service, found)
        size = save(service.report(found.id), path)
    say_beside(f"wrote {path} ({size / 1e6:.1f} MB); its end tells which charts are not drawn")
