"""The examples of the API guide run as they stand against a server."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.live import serving
from tests.service.rows import app_with_study
from ucd_ray.service.tokens import create_token
from ucd_ray.tune.events import tell

GUIDE = Path(__file__).parents[2] / "docs" / "service-api.md"
EXAMPLES = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(), re.DOTALL)
CHECKED = {
    "view=steps": ("steps.csv", b'"number","step","miou_all"'),
    "view=classes": ("classes.parquet", b"PAR1"),
    "plots/history": ("history.svg", b"<?xml"),
    "/report": ("report.html", b"<!"),
    "schemas/study": ("study.schema.json", b"{"),
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """SERVER, TOKEN and STUDY of a server that answers."""
    app = app_with_study(tmp_path_factory.mktemp("docs"), 12)
    database = app.state.core.database
    for text in ("one", "two"):
        tell(database, "study", text, number=0, data={"of": "trial 0"})
    token = create_token(database, "ann", ("read", "write"))
    with serving(app) as port:
        yield {"SERVER": f"http://127.0.0.1:{port}", "TOKEN": token, "STUDY": "abc"}
    app.state.core.drawer.close()


def test_the_guide_has_examples_of_every_part() -> None:
    text = "".join(EXAMPLES)
    parts = (
        "results",
        "best",
        "plots",
        "report",
        "trials",
        "logs",
        "events",
        "scenarios",
        "metrics",
    )
    assert [part for part in parts if f"/{part}" not in text] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs_as_it_stands(
    example: str, environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example],
        env={"PATH": "/usr/bin:/bin", **environment},
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    for part, (name, start) in CHECKED.items():
        if part in example:
            assert (tmp_path / name).read_bytes().startswith(start)
    if "If-None-Match" in example:
        assert done.stdout == b"304\n"
    if "Last-Event-ID" in example:
        assert b'"text": "two"' in done.stdout and b'"text": "one"' not in done.stdout
    if "page_size=2" in example:
        assert done.stdout.count(b'"number"') == 2
    if "/trials" in example and "-X POST" in example:
        assert b'"trial":12' in done.stdout.replace(b" ", b"")
