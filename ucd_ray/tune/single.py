"""One run outside a study, through the same trainable: the base step, and `ucd-ray train`."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from ucd_ray.job import Job
from ucd_ray.tune.bridge import NotSaved
from ucd_ray.tune.executors import RunPerTrial, unpack

OnReport = Callable[[str, dict[str, Any]], None]


class Listener(NotSaved, FIFOScheduler):
    """Passes reports on and keeps why the run failed."""

    def __init__(self, on_report: OnReport) -> None:
        super().__init__()
        self.on_report = on_report
        self.failure: str | None = None

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """One report of the run."""
        report = unpack(result)
        if report is not None:
            if report["kind"] == "failed":
                self.failure = report["reason"]
            self.on_report(report["kind"], report)
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """The run ended with an error."""
        self.failure = self.failure or "the process that drove the run ended"


def run_single(executor: RunPerTrial, job: Job, on_report: OnReport) -> str | None:
    """Runs one job on its gang.  Returns why it failed, None if it did not."""
    listener = Listener(on_report)
    with quiet_tune():
        tune.Tuner(
            executor.trainable(),
            param_space={"job": job},
            tune_config=tune.TuneConfig(
                scheduler=listener, trial_dirname_creator=lambda trial: trial.trial_id
            ),
            run_config=tune_run_config(executor.storage, "-".join(job.name)),
        ).fit()
    return listener.failure


def tune_run_config(storage: str, name: str) -> Any:
    """Where Tune keeps its own files; nothing of ours depends on them."""
    return tune.RunConfig(
        name=f"tune-{name}",
        storage_path=storage,
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=0),
    )


@contextlib.contextmanager
def quiet_tune() -> Iterator[None]:
    """Keeps Tune's own tables and notes off the terminal; our progress shows what they would."""
    for name in ("ray.tune", "ray.air", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
