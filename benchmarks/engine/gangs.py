"""Slot idle time between trials, whole studies and memory, for both executors and for stock."""

from __future__ import annotations

from rich.table import Table

from benchmarks.engine.setting import console, head, spec
from benchmarks.engine.stock import stock_study
from benchmarks.engine.timeline import Timeline, our_timeline

STOCK = "stock, reuse_actors"
FEWER = 3  # the ways with a Ray Train run for each trial run a third of the trials


def show_gangs(trials: int, workers: int) -> None:
    """Prints three ways to run the same trials."""
    few = max(3, trials // FEWER)
    with head() as (address, home):
        from ucd_ray import run_study

        run_study(spec("base", 1, workers), address=address)  # trains the base step for all
        found = {STOCK: stock_study(address, home, few, workers)}
        for name, number, per_run in (("RunPerTrial", few, 1), ("WarmGangs", trials, None)):
            study = spec(name, number, workers, trials_per_run=per_run)
            found[name] = our_timeline(address, name, number, study)
    console.print(_table(found, trials, workers))
    _print_ratios(found, trials)


def _table(found: dict[str, Timeline], trials: int, workers: int) -> Table:
    table = Table(
        title=f"trials of {workers} workers, one at a time",
        caption=f"study of {trials}: where fewer ran, each missing one counts with the mean; "
        "MB: peaks of PSS; trial: all its actors but the workers; head: there without any trial",
    )
    columns = ("ran", "between trials s", "least-most", f"study of {trials} s")
    memory = ("workers MB", "trial MB", "driver MB", "head MB", "all MB", "processes")
    for column in ("", *columns, *memory):
        table.add_column(column, justify="right")
    for name, line in found.items():
        gaps = line.gaps()
        times = (f"{line.gap():.2f}", f"{min(gaps):.2f}-{max(gaps):.2f}")
        whole = f"{line.seconds_of(trials):.0f}"
        parts = (f"{line.megabytes(p):.0f}" for p in ("workers", "trials", "driver", "head", "all"))
        count = str(line.memory.processes["all"])
        table.add_row(name, str(line.trials), *times, whole, *parts, count)
    return table


def _print_ratios(found: dict[str, Timeline], trials: int) -> None:
    warm, each, stock = found["WarmGangs"], found["RunPerTrial"], found[STOCK]
    say = console.print
    say(f"between trials: RunPerTrial / WarmGangs {each.gap() / warm.gap():.0f} (at least 20)")
    times = each.seconds_of(trials) / warm.seconds_of(trials)
    say(f"study of {trials} trials: RunPerTrial / WarmGangs {times:.1f} (at least 3)")
    trial = each.megabytes("trials") / stock.megabytes("trials")
    say(f"memory of a trial besides the workers: RunPerTrial / stock {trial:.2f} (at most 0.75)")
    for name in ("RunPerTrial", "WarmGangs"):
        line = found[name]
        whole = line.megabytes("all") / stock.megabytes("all")
        say(
            f"memory in all: {name} / stock {whole:.2f}{' (at most 1)' if line is warm else ''}; ",
            end="",
        )
        say(f"study: {name} / stock {line.seconds_of(trials) / stock.seconds_of(trials):.2f}")
