"""Does tuning pay?  A study on real images, then its best params beside published ones and other methods.

    python -m benchmarks.tuning_pays --data DIR --weights FILE --scenario msrc-16-5 --out docs/results

A study of mib+ucd is scored on the hold-out.  Then every row of the table is trained on all training
images and scored on val, over seeds that the study did not use.  Writes SCENARIO.json with all that was
measured, and from it alone SCENARIO.md and its pictures; SCENARIO.remarks.md, written by hand, is shown
apart.  The same command goes on where it was killed: finished trials are in the study, finished runs in
SCENARIO.json, so rows can be added on another machine too.  `--quick` runs less of everything;
`--report` trains nothing and writes the page of what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.tuning_pays.experiment import FULL, QUICK, measure
from benchmarks.tuning_pays.page import markdown


def main() -> None:
    """Parses, then runs and writes what there is after every run."""
    arguments = parse()
    name = arguments.scenario + ("-quick" if arguments.quick else "")
    if not arguments.report:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # one worker of the study has one CPU
        if arguments.home:
            os.environ["UCD_RAY_HOME"] = str(arguments.home.absolute())
        arguments.out.mkdir(parents=True, exist_ok=True)
        plan = QUICK if arguments.quick else FULL
        trials, seeds = arguments.trials or plan.trials, arguments.seeds or plan.seeds
        path = arguments.out / f"{name}.json"
        for record in measure(
            arguments.scenario,
            replace(plan, trials=trials, seeds=seeds),
            {
                "data.source": str(arguments.data.absolute()),
                "model.weights": str(arguments.weights.absolute()),
            },
            json.loads(path.read_text()) if path.exists() else None,
        ):
            path.write_text(json.dumps(record, indent=1) + "\n")
            write_page(arguments.out, name, arguments.beside)
    write_page(arguments.out, name, arguments.beside)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="directory of the data set")
    parser.add_argument("--weights", type=Path, help="file of the pretrained backbone")
    parser.add_argument("--scenario", default="msrc-16-5")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--quick", action="store_true", help="fewer trials, seeds and updates")
    parser.add_argument("--trials", type=int, help=f"of the study, instead of {FULL.trials}")
    parser.add_argument("--seeds", type=int, help=f"of every row, instead of {FULL.seeds}")
    parser.add_argument("--beside", nargs="*", default=[], help="records in --out to compare with")
    parser.add_argument("--home", type=Path, help="instead of UCD_RAY_HOME")
    parser.add_argument("--report", action="store_true", help="only write the page anew")
    arguments = parser.parse_args()
    if not arguments.report and not (arguments.data and arguments.weights):
        parser.error("--data and --weights are needed, or --report")
    return arguments


def write_page(out: Path, name: str, beside: list[str]) -> None:
    """The page and pictures of the record called `name`, beside records of other scenarios."""
    from benchmarks.tuning_pays.charts import draw

    record = json.loads((out / f"{name}.json").read_text())
    others = [json.loads((out / f"{other}.json").read_text()) for other in beside]
    remarks = out / f"{name}.remarks.md"
    draw(record, out, name)
    written = remarks.read_text() if remarks.exists() else ""
    page = markdown(record, name=name, others=others, remarks=written)
    (out / f"{name}.md").write_text(page)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on where it stopped")
