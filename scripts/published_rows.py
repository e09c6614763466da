"""Makes `ucd_ray/published/rows.csv` from a transcription of the publications' tables.

    python scripts/published_rows.py results.csv > ucd_ray/published/rows.csv

The transcription has a line for each number, with the columns source_paper, table, dataset, setting,
scenario, method, metric and value.  Its words stay, but data sets and scenarios get our names, and a step
that stood in the scenario or the method gets a column of its own.  What a row was measured under is not
here but in `facts.csv`.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

COLUMNS = ("source", "table", "scenario", "setting", "step", "method", "metric", "value")
DATASETS = {"pascal_voc_2012": "voc", "ade20k": "ade", "cityscapes": "cityscapes"}


def published(row: dict[str, str]) -> dict[str, str]:
    """One cell with our names; `step` is empty for the last step."""
    split, _, rest = row["scenario"].partition(" ")  # as in `15-1 step2(+17)` and `11-5 domain`
    step = re.match(r"step(\d)", rest)
    before = row["method"].endswith("before increment")
    return {
        "source": row["source_paper"],
        "table": row["table"],
        "scenario": f"{DATASETS[row['dataset']]}-{split}",
        "setting": row["setting"],
        "step": step[1] if step else "0" if before else "",
        "method": row["method"],
        "metric": row["metric"],
        "value": row["value"],
    }


def main(path: Path) -> None:
    """Writes the rows of a transcription to standard output."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [published(row) for row in csv.DictReader(file)]
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
