"""Published results, each with its source and what it was measured under.

    rows.csv    a line for each published number: who, where, scenario, setting, method, metric, value
    facts.csv   a line for each fact about such rows that the number itself does not tell, and where that
                fact was read; `*` matches anything, a later line replaces an earlier one

What neither says is not known.  Whether background counts in a row's means shows in its own numbers, where
they are precise enough: `miou_all` is the mean over all classes, with it or without.
"""

from __future__ import annotations

from ucd_ray.published.protocol import Comparison, Protocol, compare, protocol_of
from ucd_ray.published.rows import PublishedRow, published_rows, read_rows, scenarios

__all__ = [
    "Comparison",
    "Protocol",
    "PublishedRow",
    "compare",
    "protocol_of",
    "published_rows",
    "read_rows",
    "scenarios",
]
