"""How fast params are proposed and results stored, beside Optuna's SQLite default.

    python benchmarks/suggestions.py --trials 500

Each trial is asked for, reports one value and is told.  Optuna keeps its storage and one sampler, as its
users do; ours makes the sampler anew for each trial, as a study does.  Prints seconds, the ratio, and
how much of ours is storage (whatever happens in its methods) and how much is the sampler.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import optuna
from rich.console import Console
from rich.table import Table

from ucd_ray.tune.database import Database
from ucd_ray.tune.domain import Domain
from ucd_ray.tune.parameter import Parameter
from ucd_ray.tune.samplers import STARTUP, make_sampler

SEARCH = {f"x{i}": Parameter(low=-1.0, high=1.0) for i in range(6)}
DISTRIBUTIONS: dict[str, optuna.distributions.BaseDistribution] = {
    key: optuna.distributions.FloatDistribution(-1.0, 1.0) for key in SEARCH
}


class StorageTime:
    """Adds up the seconds spent in the methods of a storage."""

    def __init__(self, storage: Any) -> None:
        self.seconds, self._depth = 0.0, 0
        for name in dir(storage):
            if name.startswith(("get_", "set_", "create_")):
                setattr(storage, name, self._timed(getattr(storage, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def timed(*args: Any, **named: Any) -> Any:
            self._depth += 1
            start = time.perf_counter()
            try:
                return method(*args, **named)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - start

        return timed


def run(study: optuna.Study, trials: int, sampler: Callable[[int], Any] | None = None) -> float:
    """Seconds for `trials` trials; `sampler` makes that of each trial."""
    start = time.perf_counter()
    for number in range(trials):
        if sampler is not None:
            study.sampler = sampler(number)
        trial = study.ask(DISTRIBUTIONS)
        value = -sum(x * x for x in trial.params.values())
        trial.report(value, 1)
        study.tell(trial, value)
    return time.perf_counter() - start


def optunas(url: str, trials: int) -> float:
    """Seconds of Optuna's default."""
    tpe = optuna.samplers.TPESampler(
        multivariate=True, constant_liar=True, n_startup_trials=STARTUP, seed=0
    )
    storage = optuna.storages.RDBStorage(url)
    return run(optuna.create_study(storage=storage, sampler=tpe, direction="maximize"), trials)


def ours(url: str, trials: int) -> tuple[float, float]:
    """Seconds of ours, and those of its storage."""
    storage = Database(url).optuna_storage()
    study = optuna.create_study(storage=storage, direction="maximize")
    timed = StorageTime(storage)
    total = run(study, trials, lambda n: make_sampler("tpe", Domain(SEARCH), seed=0, number=n))
    stored = len(optuna.load_study(study_name=study.study_name, storage=storage).get_trials())
    assert stored == trials
    return total, timed.seconds


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--folder", help="where the database files lie for the time being")
    parser.add_argument("--postgres", metavar="URL", help="an empty database, for ours as well")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = Table("storage", "s", "ms/trial", "sampler s", "storage s", "x faster")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        slow = optunas(f"sqlite:///{folder}/optuna.db", options.trials)
        table.add_row("Optuna, SQLite", f"{slow:.2f}", f"{1000 * slow / options.trials:.1f}")
        urls = {"ours, SQLite": f"sqlite:///{folder}/ours.db", "ours, PostgreSQL": options.postgres}
        for name, url in urls.items():
            if url:
                total, storing = ours(url, options.trials)
                numbers = (total - storing, storing, slow / total)
                each = f"{1000 * total / options.trials:.1f}"
                table.add_row(name, f"{total:.2f}", each, *(f"{n:.2f}" for n in numbers))
    Console().print(table)


if __name__ == "__main__":
    main()
