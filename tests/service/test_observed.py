"""What the service says of a study that runs, from the library's tables."""

from __future__ import annotations

from pathlib import Path

from tests.service.rows import app_with_study
from ucd_ray.service.observed import while_running
from ucd_ray.service.states import BASE_STEP, condition
from ucd_ray.service.studies import read_row
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
