"""The script that makes the file of published rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ucd_ray.published.rows import FACTS, ROWS, read_rows

SCRIPT = Path(__file__).parents[2] / "scripts" / "published_rows.py"
TRANSCRIPTION = """\
source_paper,table,dataset,setting,scenario,method,metric,value
P (2020),Table 1,pascal_voc_2012,overlapped,15-5,A,miou_1_15,61.5
P (2020),Table 4,pascal_voc_2012,sequential,15-1 step2(+17),A,miou_all,50
P (2020),Table 4,pascal_voc_2012,sequential,15-5,M0(0-15) before increment,miou_all,75.5
P (2020),Table 5,cityscapes,domain-incremental,11-5 domain,A,miou_all,59
P (2020),Table 6,ade20k,disjoint,100-50,A,miou_101_150,28.2
"""


def test_a_transcription_gets_our_names_and_a_column_for_the_step(tmp_path: Path) -> None:
    source = tmp_path / "results.csv"
    source.write_text(TRANSCRIPTION)
    done = subprocess.run(
        [sys.executable, SCRIPT, source], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        ROWS.read_text().splitlines()[0],
        "P (2020),Table 1,voc-15-5,overlapped,,A,miou_1_15,61.5",
        "P (2020),Table 4,voc-15-1,sequential,2,A,miou_all,50",
        "P (2020),Table 4,voc-15-5,sequential,0,M0(0-15) before increment,miou_all,75.5",
        "P (2020),Table 5,cityscapes-11-5,domain-incremental,,A,miou_all,59",
        "P (2020),Table 6,ade-100-50,disjoint,,A,miou_101_150,28.2",
    ]
    (tmp_path / "rows.csv").write_text(done.stdout)
    assert len(read_rows(tmp_path / "rows.csv", FACTS)) == 5
