"""What the service says of a study that runs, from the library's tables."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.service.rows import app_with_study, client_of
from ucd_ray.service.observed import while_running
from ucd_ray.service.states import BASE_STEP, RESOURCES, condition
from ucd_ray.service.studies import find_study, read_row
from ucd_ray.service.tables import study_table
from ucd_ray.tune.events import tell


def test_the_base_step_is_ready_once_it_is_trained_and_before_a_trial_has_it(
    tmp_path: Path,
) -> None:
    database = app_with_study(tmp_path, 0).state.core.database

    def ready() -> tuple[bool, str]:
        row = database.read(lambda connection: read_row(connection, "abc"))
        found = condition(while_running(database, row), BASE_STEP)
        assert found is not None
        return found["status"], found["reason"]

    tell(database, "study", "base step step 0 epoch 1/2", kind="epoch")
    assert ready() == (False, "TRAINING")
    tell(database, "study", "base step step 0 done", kind="step")
    assert ready() == (True, "READY")


def test_a_study_starts_until_something_was_trained_and_not_again_at_its_end(
    tmp_path: Path,
) -> None:
    database = app_with_study(tmp_path, 0).state.core.database

    def resources() -> tuple[bool, str]:
        row = find_study(database, "abc")
        assert row is not None
        found = condition(while_running(database, row), RESOURCES)
        assert found is not None
        return found["status"], found["reason"]

    tell(database, "study", "trial 0 step 1 epoch 1/2", number=0, kind="epoch")
    submitted = {"submitted": time.time() + 60}  # again, as another attempt
    database.write(lambda c: c.execute(study_table.update().values(submitted)))
    assert resources() == (False, "STARTING")
    database.write(lambda c: c.execute(study_table.update().values(submitted=1.0)))
    assert resources() == (True, "FREE")


def test_a_budget_that_was_used_up_is_told_as_long_as_it_is(tmp_path: Path) -> None:
    app = app_with_study(tmp_path, 12)
    client = client_of(app, "ann")
    used = {
        "type": "BudgetExhausted",
        "status": True,
        "reason": "TRIALS",
        "message": "",
        "since": 1.0,
    }

    def budget(answer: Any) -> tuple[bool, str] | None:
        assert answer.status_code == 200, answer.text
        found = condition(answer.json()["conditions"], "BudgetExhausted")
        return None if found is None else (found["status"], found["message"])

    ended = {"state": "SUCCEEDED", "conditions": json.dumps([used])}
    app.state.core.database.write(lambda c: c.execute(study_table.update().values(ended)))
    url = "/v1/studies/abc"
    assert budget(client.patch(url, json={"trials": 12})) == (True, "12 of 12 trials")
    assert budget(client.patch(url, json={"trials": 13})) == (False, "no budget is used up")
    assert budget(client.patch(url, json={"trials": 12})) == (True, "12 of 12 trials")
    assert budget(client.post(f"{url}:resume")) is None, "it is to go on"
    assert budget(client.patch(url, json={"trials": 12, "priority": 3})) is None
