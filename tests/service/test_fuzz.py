"""Whatever JSON is sent to start a study: an answer that the API describes, and no trace of a refusal.

UCD_RAY_FUZZ_EXAMPLES: requests of each kind, times ten (default 8).
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.postgres import PostgresServer
from ucd_ray.recipe import Recipe
from ucd_ray.service.app import create_app
from ucd_ray.service.bodies import FromScenario, NewStudy
from ucd_ray.service.limits import has_half
from ucd_ray.service.problems import MEDIA
from ucd_ray.service.settings import Settings
from ucd_ray.service.tokens import create_token
from ucd_ray.tune.database import Database
from ucd_ray.tune.space import build_spec, space_of
from ucd_ray.tune.spec import StudySpec

EXAMPLES = 10 * int(os.environ.get("UCD_RAY_FUZZ_EXAMPLES", "8"))
QUICK = settings(
    max_examples=EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FEWER = settings(QUICK, max_examples=EXAMPLES // 4)  # some of them are planned
SPEC = build_spec(space_of("shapes-8-4", None, generated=True), trials=2).model_dump(mode="json")
VALID: tuple[dict[str, Any], ...] = (
    {
        "tune": {
            **{"scenario": "shapes-8-4", "method": "mib", "name": "fuzz"},
            "values": {"kd.weight": 10, "data.source": "generated"},
            "settings": {"trials": 2, "workers": 1, "pruner": "median"},
        },
        **{"external_id": "x", "priority": 1, "parallelism": 2, "labels": {"team": "x"}},
    },
    {"spec": SPEC},
)
KEYS = sorted(
    {
        *NewStudy.model_fields,
        *FromScenario.model_fields,
        *StudySpec.model_fields,
        *Recipe.from_flat({"scenario": "shapes-8-4"}).flat(),
    }
    | {"low", "high", "log", "choices", "when", "step", "type"}
)

# What a parser may stumble over is as likely as what it expects.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(KEYS),
    st.sampled_from(
        [2**63, -(2**70), 10**400, 1e308, -0.0, "", "\x00", "\ud800", "../x", "/etc", "s3://x"]
    ),
    st.sampled_from(
        ["mib", "generated", "shapes-8-4", "voc-15-1", "tpe", "drop <= 2", "kd.weight"]
    ),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), inner, max_size=4),
    ),
    max_leaves=12,
)


@st.composite
def nearly_valid(draw: Callable[[Any], Any]) -> Any:
    """A body that would start a study, with one or two places changed, added or left out."""
    body = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 2))):
        place: Any = body
        while True:
            key = draw(st.sampled_from([*place, None]) if isinstance(place, dict) else st.none())
            inner = place.get(key) if isinstance(place, dict) else None
            if isinstance(inner, dict) and inner and draw(st.booleans()):
                place = inner
                continue
            if key is None:
                place[draw(st.sampled_from(KEYS) | st.text(max_size=8))] = draw(JSON)
            elif draw(st.booleans()):
                place[key] = draw(JSON)
            else:
                del place[key]
            break
    return body


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("fuzz")
    url = f"sqlite:///{home}/studies.db"
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.url(server.new_database())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCD_RAY_HOME", str(home))
        yield create_app(Settings(database=url, requests_per_minute=10_000_000))


@pytest.fixture(scope="module")
def client(app: FastAPI) -> TestClient:
    token = create_token(app.state.core.database, "fuzz", ["write"])
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    return TestClient(app, headers=headers, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def count(app: FastAPI) -> Callable[[], dict[str, int]]:
    """Counts the rows of all tables."""
    database: Database = app.state.core.database
    tables = sa.MetaData()
    tables.reflect(database.engine)
    parts = [
        sa.select(sa.literal(table.name), sa.func.count()).select_from(table)
        for table in tables.sorted_tables
    ]
    assert len(parts) > 15
    query = sa.union_all(*parts)
    return lambda: dict(database.read(lambda c: [(n, k) for n, k in c.execute(query)]))


def check(
    client: TestClient, count: Callable[[], dict[str, int]], content: bytes, query: str
) -> int:
    """Sends a body.  Returns the status."""
    before = count()
    answer = client.post(
        f"/v1/studies{query}", content=content, headers={"Idempotency-Key": "of-a-fuzz"}
    )
    assert answer.status_code < 500, (answer.text, content)
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == MEDIA
        assert {"status", "code", "detail", "errors"} <= answer.json().keys()
    if answer.status_code >= 400 or query:
        assert count() == before, content
    else:  # a study was started: the key is used up
        forget(client)
    return answer.status_code


def forget(client: TestClient) -> None:
    from ucd_ray.service.tables import request_table

    database: Database = client.app.state.core.database  # type: ignore[attr-defined]
    database.write(lambda c: c.execute(request_table.delete()))


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


@QUICK
@given(value=JSON)
@example(value={"spec": {"name": "\ud800", "recipe": {}}})
@example(value={"tune": {"scenario": "shapes-8-4", "values": {"kd.weight": float("nan")}}})
@example(value={"tune": {"scenario": "shapes-8-4"}, "external_id": "\ud800"})
@example(value={"tune": {"scenario": "shapes-8-4"}, "labels": {"a": "\ud800"}})
def test_any_json_is_answered(client: TestClient, count: Any, value: Any) -> None:
    check(client, count, dumped(value), "")


@QUICK
@given(value=nearly_valid())
def test_a_study_with_something_changed_is_started_or_refused(
    client: TestClient, count: Any, value: Any
) -> None:
    check(client, count, dumped(value), "")


@FEWER
@given(value=JSON | nearly_valid())
def test_a_plan_of_anything_writes_nothing(client: TestClient, count: Any, value: Any) -> None:
    check(client, count, dumped(value), "?validate_only=true")


@QUICK
@given(
    content=st.binary(max_size=40)
    | st.text(alphabet='{}[]",:0eE+-.\\u', max_size=40).map(str.encode)
)
def test_what_is_no_json_is_answered(client: TestClient, count: Any, content: bytes) -> None:
    check(client, count, content, "")


@pytest.mark.parametrize(
    ("text", "half"),
    [
        (b'"\\ud83d\\ude00"', False),
        (b'"\\ud83d"', True),
        (b'"\\ude00\\ud83d"', True),
        (b'"\\ud83d \\ude00"', True),
        (b'"\\\\ud83d"', False),
        (b'"\\ud83d\\ud83d\\ude00"', True),
        (b'"\\u00e9\\n"', False),
    ],
)
def test_half_a_character_is_seen(text: bytes, half: bool) -> None:
    assert has_half(text) == half
    if half:
        with pytest.raises(UnicodeEncodeError):
            json.loads(text).encode()


def test_the_bodies_that_are_changed_would_start_a_study(client: TestClient, count: Any) -> None:
    """200: the first has an external id, under which it was started before."""
    assert [check(client, count, dumped(body), "") for body in VALID] in ([201, 201], [200, 201])
