"""Parses and runs one of the parts."""

from __future__ import annotations

import argparse

from benchmarks.service import __doc__ as about
from benchmarks.service.creates import show_creates
from benchmarks.service.export import show_export
from benchmarks.service.lists import show_lists
from benchmarks.service.reads import show_reads
from benchmarks.service.streams import show_streams

PARTS = {
    "reads": show_reads,
    "lists": show_lists,
    "streams": show_streams,
    "export": show_export,
    "creates": show_creates,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.service",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=PARTS)
    parser.add_argument("--trials", type=int, default=100_000, help="of the large study")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--clients", type=int, default=500, help="that listen to events")
    PARTS[(arguments := parser.parse_args()).what](arguments)
