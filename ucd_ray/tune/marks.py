"""What tables say about the trials of an edited study, and of trials that it took over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ucd_ray.errors import StudyError
from ucd_ray.tune.cells import column
from ucd_ray.tune.chunks import StoredTrial
from ucd_ray.tune.database import Database
from ucd_ray.tune.revisions import History, revisions
from ucd_ray.tune.seen import Fit
from ucd_ray.tune.spec import parsed
from ucd_ray.tune.taken import taken

TAKEN = "TAKEN"  # state of a trial of another study


class Marks:
    """The revision of each trial, and whether it is of the present search space."""

    def __init__(self, database: Database, study: str) -> None:
        self.database, self.study = database, study
        self.fit: Fit | None = None  # of a study that was edited
        if found := revisions(database, study):
            try:
                self.fit = Fit(History(parsed(database.stored_spec(study)), found))
            except StudyError:  # of another version: it shows what is stored
                return

    def columns(self) -> list[pa.Field]:
        """`revision`, and `fits`: the sampler learns from the trial; of a study that was edited."""
        return [column("revision", int), column("fits", bool)] if self.fit is not None else []

    def mark(self, trial: StoredTrial) -> dict[str, Any]:
        """The values of these columns.  A trial gets what it had under keys that were searched later."""
        if self.fit is None:
            return {}
        fits = None
        if trial.params:
            trial.params = self.fit.history.values(trial.revision, trial.params)
            fits = self.fit.misfit(trial.params) is None
        return {"revision": trial.revision, "fits": fits}

    def taken(self) -> Iterator[dict[str, Any]]:
        """A row for each trial that the study took over; it has no number here."""
        for trial in taken(self.database, self.study):
            yield {
                "state": TAKEN,
                "value": trial.values[0] if trial.values and trial.state == "COMPLETE" else None,
                "seconds": trial.attributes.get("seconds"),
                "reason": f"trial {trial.number} of study {trial.source}, {trial.state}",
                **trial.params,
            }
