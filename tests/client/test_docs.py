"""The example of docs/service.md runs as it stands, but for the address."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa

from tests.service.live import serving
from ucd_ray.service.app import create_app
from ucd_ray.service.settings import Settings
from ucd_ray.service.tables import study_table
from ucd_ray.tune.events import tell

GUIDE = Path(__file__).parents[2] / "docs" / "service.md"
URL = "http://127.0.0.1:8080"


def test_the_example_follows_a_study_and_takes_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert URL in example
    app = create_app(Settings(database=f"sqlite:///{tmp_path}/studies.db"))
    database = app.state.core.database

    def drive() -> None:
        """Says two lines as the driver of the study would, and ends it."""
        found = None
        while found is None:
            time.sleep(0.05)
            found = database.read(lambda c: c.execute(sa.select(study_table)).first())
        tell(database, found.name, "first")
        time.sleep(0.7)
        tell(database, found.name, "second")
        time.sleep(0.7)
        database.write(lambda c: c.execute(study_table.update().values(state="SUCCEEDED")))

    driver = threading.Thread(target=drive)
    driver.start()
    names: dict[str, object] = {}
    with serving(app) as port:
        exec(example.replace(URL, f"http://127.0.0.1:{port}"), names)
    driver.join()
    assert capsys.readouterr().out == "first\nsecond\n"
    assert isinstance(names["table"], pa.Table)
