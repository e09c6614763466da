"""What one-second trials on 16 slots cost besides their second."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.engine.setting import by_value, connected, console, head, spec
from benchmarks.engine.stock import stock_sleep

SLOTS = 16


class Sleepers:
    """The workers of all gangs, in one process: they take trials from a real board, and sleep."""

    async def serve(self, board_name: str, gang: str) -> None:
        """One gang, until its board says that it shall end."""
        import asyncio

        import ray

        board = ray.get_actor(board_name)
        await board.gang_started.remote(gang, ("here",))
        while True:
            order = await board.next_trial.remote(gang, 5.0)
            if order == "close":
                return
            if order is None:
                continue
            key, _ = order
            start = {"kind": "start", "first_step": 1, "notes": [], "time": time.time()}
            await board.report.remote(key, start, False)
            await asyncio.sleep(1.0)
            value = float(int(key) % 7)
            epoch = {"kind": "epoch", "step": 1, "rung": 1, "epoch": 1, "epochs": 1, "value": value}
            speed = {"losses": {"ce": 1.0}, "images_per_s": 1.0, "seconds_left": 0.0}
            await board.report.remote(key, {**epoch, **speed}, True)
            await board.trial_ended.remote(gang, key, {"kind": "done", "value": value})


def our_sleep(trials: int, address: str, home: Path) -> float:
    """Seconds of a study of ours: all of it is real but the workers and their training."""
    import ray

    from ucd_ray.tune.admission import Admission
    from ucd_ray.tune.bridge import TrialBook
    from ucd_ray.tune.budgets import Budgets
    from ucd_ray.tune.cluster import Cluster
    from ucd_ray.tune.database import Database
    from ucd_ray.tune.dispatch import Dispatcher
    from ucd_ray.tune.events import EventLog
    from ucd_ray.tune.executors import Executor, Gang, Host
    from ucd_ray.tune.ledger import Ledger
    from ucd_ray.tune.places import places
    from ucd_ray.tune.prepare import prepare_job
    from ucd_ray.tune.progress import Progress
    from ucd_ray.tune.registration import register
    from ucd_ray.tune.study import Drive

    class Sleeping(Executor):
        """Gangs without a Ray Train run."""

        def add_gang(self, name: str) -> None:
            ray.get(self.board.add_gang.remote(name))
            self.hosts[name] = Host(name)
            sleepers.serve.remote(self.board_name, name)

    study = spec("sleep", trials, 1)
    job = prepare_job(study.base_recipe(), places(), name=("sleep", "base"), workers=1)
    database = Database(places().database)
    register(database, study, study.base_recipe())
    database.claim("sleep")
    book, gang = TrialBook(study, database), Gang(1, 0.1, 0.0)
    by_value(__name__)
    sleepers = ray.remote(num_cpus=0, max_concurrency=1000)(Sleepers).remote()
    progress = Progress(
        study, Console(quiet=True), finished=book.states(), log=EventLog(database, "sleep")
    )
    ledger, admission = Ledger(database, "sleep", gang), Admission(database, "sleep", address, gang)
    executor = Sleeping(gang, str(home / "ours"), "sleep")
    nodes = Cluster(address, "", 2.0, 0.0).nodes
    dispatcher = Dispatcher(
        job, executor, admission, ledger, Budgets(book, ledger), nodes, lambda: SLOTS
    )
    with executor, progress:
        started = time.monotonic()
        Drive(study, book, dispatcher, progress).trials()
        seconds = time.monotonic() - started
        dispatcher.close()
    assert book.finished() == trials
    return seconds


def show_overhead(trials: int) -> None:
    """Prints the wall time of all three beside the ideal."""
    found: dict[str, float] = {}
    ideal = trials / SLOTS
    with head() as (address, home), connected(address):
        found["ours"] = our_sleep(trials, address, home)
        for name, reuse in (("stock, reuse_actors", True), ("stock", False)):
            found[name] = stock_sleep(trials, SLOTS, home / "stock", reuse=reuse)
    table = Table(title=f"{trials} one-second trials on {SLOTS} slots, ideal {ideal:.1f} s")
    for column in ("", "s", "overhead s", "ours / this"):
        table.add_column(column, justify="right")
    own = found["ours"] - ideal
    for name, seconds in found.items():
        over = seconds - ideal
        table.add_row(name, f"{seconds:.1f}", f"{over:.1f}", f"{own / over:.2f}")
    console.print(table)
