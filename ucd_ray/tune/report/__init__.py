"""A study as one HTML file, and its charts as files; none of them needs a network."""

from __future__ import annotations

from ucd_ray.tune.report.page import report_of, write_report
from ucd_ray.tune.report.plots import (
    Written,
    check_finished,
    check_place,
    make_directory,
    save,
    write_picture,
    write_plots,
)

__all__ = [
    "Written",
    "check_finished",
    "check_place",
    "make_directory",
    "report_of",
    "save",
    "write_picture",
    "write_plots",
    "write_report",
]
