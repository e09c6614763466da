"""A page costs what a page costs, however many trials there are: counted in steps of the database."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from optuna.study import StudyDirection

from benchmarks.tables import add_trials
from tests.work import steps_of
from ucd_ray.tune.database import Database
from ucd_ray.tune.one_trial import trial_content, trial_id
from ucd_ray.tune.space import build_spec, load_search_space
from ucd_ray.tune.trial_filter import TrialFilter
from ucd_ray.tune.trial_page import FEW, Place, trial_page

SIZES = {"small": 1000, "medium": 2 * FEW, "large": 6 * FEW}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    made = Database(f"sqlite:///{tmp_path_factory.mktemp('work')}/studies.db")
    for name, trials in SIZES.items():
        spec = build_spec(load_search_space("shapes-8-2"), name=name)
        made.save_spec(name, spec.model_dump_json(), {})
        study_id = made.optuna_storage().create_new_study([StudyDirection.MAXIMIZE], name)
        made.write(lambda c, i=study_id, n=trials: add_trials(c, i, range(n)))
    return made


@pytest.mark.parametrize("order", ["number", "value"])
@pytest.mark.parametrize("falls", [False, True])
@pytest.mark.parametrize("further", [False, True], ids=["first page", "from the middle"])
@pytest.mark.parametrize("filtered", [False, True])
def test_a_page_of_many_trials_is_no_more_work_than_one_of_few(
    database: Database, order: str, falls: bool, further: bool, filtered: bool
) -> None:
    work = {}
    for name, trials in SIZES.items():
        middle = Place(
            trial_id(database, name, trials // 2) or 0, 50.0 if order == "value" else None
        )
        compare = TrialFilter(database, name).compare
        page = partial(
            trial_page,
            database,
            name,
            where=[compare("state", "=", "COMPLETE")] if filtered else (),
            order_by=order,
            descending=falls,
            after=middle if further else None,
        )
        found, work[name] = steps_of(database, page)
        assert len(found.trials) == 50
    assert work["large"] < 2 * work["small"]
    assert work["large"] < 1.5 * work["medium"]


def test_the_last_trial_is_found_as_fast_as_the_first(database: Database) -> None:
    last = SIZES["large"] - 1
    found, late = steps_of(database, partial(trial_content, database, "large", last))
    assert found["number"] == last
    _, early = steps_of(database, partial(trial_content, database, "large", 0))
    assert late < 1.5 * early


def test_the_index_comes_to_a_database_that_has_none(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    Database(url).optuna_storage()
    with Database(url).engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ucd_trial_by_value")
    database = Database(url)
    database.optuna_storage()
    indexes = sa.inspect(database.engine).get_indexes("trial_values")
    assert "ucd_trial_by_value" in [index["name"] for index in indexes]
