"""Parses and runs one of the parts."""

from __future__ import annotations

import argparse

from benchmarks.engine import __doc__ as about
from benchmarks.engine.gangs import show_gangs
from benchmarks.engine.overhead import show_overhead
from benchmarks.engine.work import show_work

parser = argparse.ArgumentParser(
    prog="python -m benchmarks.engine",
    description=about,
    formatter_class=argparse.RawDescriptionHelpFormatter,
)
parser.add_argument("what", choices=("gangs", "overhead", "work"))
parser.add_argument("--trials", type=int, help="default 12, 300 and 20")
parser.add_argument("--workers", type=int, default=2, help="of a trial of `gangs`")
arguments = parser.parse_args()
if arguments.what == "gangs":
    show_gangs(arguments.trials or 12, arguments.workers)
elif arguments.what == "overhead":
    show_overhead(arguments.trials or 300)
else:
    show_work(arguments.trials or 20)
