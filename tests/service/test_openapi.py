"""Schemathesis over the whole API: whatever the description allows or forbids, no answer breaks it.

UCD_RAY_FUZZ_EXAMPLES: requests of each kind for each operation (default 8).
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import schemathesis
import sqlalchemy as sa
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig

from ucd_ray.service.app import create_app
from ucd_ray.service.settings import Settings
from ucd_ray.service.tables import request_table, study_table
from ucd_ray.service.tokens import create_token

EXAMPLES = int(os.environ.get("UCD_RAY_FUZZ_EXAMPLES", "8"))
# What is well-formed may still be no study: an unknown key, a range upside down.
CONFIG = {"checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "4xx"]}}}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCD_RAY_HOME", str(home))
        yield create_app(
            Settings(database=f"sqlite:///{home}/studies.db", requests_per_minute=10_000_000)
        )


@pytest.fixture(scope="module")
def token(app: Any) -> str:
    return create_token(app.state.core.database, "fuzz", ["write"])


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_the_service_keeps_what_its_description_promises(
    app: Any, token: str, mode: GenerationMode
) -> None:
    config = SchemathesisConfig.from_dict(CONFIG)
    schema = schemathesis.openapi.from_asgi("/v1/openapi.json", app, config=config)
    operations: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    assert len(operations) >= 12
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not _takes_anything(operation):
            continue

        @settings(
            max_examples=EXAMPLES,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            case.call_and_validate(headers={"Authorization": f"Bearer {token}"})

        check()


def _takes_anything(operation: Any) -> bool:
    """Whether there is something to get wrong."""
    return bool(operation.body or operation.query or operation.headers or operation.path_parameters)


def test_the_description_is_openapi_3_1_and_every_operation_tells_its_errors(app: Any) -> None:
    content = TestClient(app).get("/v1/openapi.json").json()
    assert content["openapi"].startswith("3.1")
    for path, operations in content["paths"].items():
        for method, operation in operations.items():
            assert {"401", "422", "429"} <= set(operation["responses"]), (path, method)
    assert "ProblemBody" in content["components"]["schemas"]


def test_a_refused_request_writes_nothing(app: Any, token: str) -> None:
    database = app.state.core.database
    client = TestClient(app, headers={"Authorization": f"Bearer {token}", "Idempotency-Key": "r"})

    def count() -> list[int]:
        queries = [sa.select(sa.func.count()).select_from(t) for t in (study_table, request_table)]
        return [database.read(lambda c, q=q: c.execute(q).scalar_one()) for q in queries]

    before = count()
    unsearched = {"name": "x", "recipe": {"scenario": "shapes-8-4"}}
    bodies: list[dict[str, Any]] = [{}, {"spec": {}}, {"spec": unsearched}]
    for body in bodies:
        assert client.post("/v1/studies", json=body).status_code == 422
    assert count() == before
