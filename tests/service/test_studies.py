"""Studies over HTTP: started once, listed by page, changed, stopped; nothing of a refusal is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ucd_ray.service import once
from ucd_ray.service.app import create_app
from ucd_ray.service.settings import Settings
from ucd_ray.service.tables import request_table, study_table
from ucd_ray.tune.registration import stored_sources, stored_spec

Clients = Callable[..., TestClient]
STUDIES = "/v1/studies"
SHAPES: dict[str, Any] = {"tune": {"scenario": "shapes-8-4", "settings": {"trials": 3}}}

SHAPES_8_2: dict[str, Any] = {"tune": {"scenario": "shapes-8-2"}}


@pytest.fixture
def settings(on_any_database: Settings) -> Settings:
    return on_any_database


@pytest.fixture
def ann(as_owner: Clients) -> TestClient:
    return as_owner("ann")


def start(client: TestClient, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    answer = client.post(STUDIES, json={**SHAPES, **fields}, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


def rows(app: FastAPI) -> int:
    count = sa.select(sa.func.count()).select_from(study_table)
    return int(app.state.core.database.read(lambda c: c.execute(count).scalar_one()))


def test_a_study_is_queued_and_known_to_the_library(ann: TestClient, app: FastAPI) -> None:
    study = start(ann)
    assert study["state"] == "QUEUED"
    assert study["name"] == "shapes-8-4-overlapped-mib+ucd"
    assert study["conditions"][0]["reason"] == "QUEUED"
    spec = stored_spec(study["study"], app.state.core.database)
    assert spec.trials == 3
    assert study["spec"]["search"].keys() == spec.search.keys()


def test_its_own_spec_starts_the_same_study(ann: TestClient) -> None:
    spec = start(ann)["spec"]
    again = ann.post(STUDIES, json={"spec": spec})
    assert again.status_code == 201
    assert again.json()["spec"] == spec


def test_a_key_replays_the_answer_and_belongs_to_one_request(ann: TestClient, app: FastAPI) -> None:
    key = {"Idempotency-Key": "k-1"}
    first = start(ann, key)
    again = ann.post(STUDIES, json=SHAPES, headers=key)
    assert (again.status_code, again.json()) == (201, first)
    other = ann.post(STUDIES, json={**SHAPES, "priority": 1}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "KEY_REUSED")
    assert rows(app) == 1


def test_keys_of_owners_are_apart(as_owner: Clients, app: FastAPI) -> None:
    key = {"Idempotency-Key": "k-1"}
    assert start(as_owner("ann"), key)["id"] != start(as_owner("bob"), key)["id"]


def test_a_key_in_flight_is_a_conflict_until_its_process_must_be_dead(
    ann: TestClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"Idempotency-Key": "k-1"}
    start(ann, key)
    database = app.state.core.database
    dropped = request_table.update().values(status=None, body=None)  # as if killed in between
    database.write(lambda c: (c.execute(dropped), c.execute(study_table.delete())))
    waits = ann.post(STUDIES, json=SHAPES, headers=key)
    assert (waits.status_code, waits.headers["Retry-After"]) == (409, "1")
    monkeypatch.setattr(once, "IN_FLIGHT_S", 0.0)
    start(ann, key)
    assert rows(app) == 1


def test_a_refused_request_frees_its_key(ann: TestClient) -> None:
    key = {"Idempotency-Key": "k-1"}
    assert ann.post(STUDIES, json={"tune": {"scenario": "no-1-1"}}, headers=key).status_code == 422
    start(ann, key)


def test_concurrent_requests_with_one_external_id_start_one_study(
    as_owner: Clients, app: FastAPI
) -> None:
    clients = [as_owner("ann") for _ in range(6)]
    codes: list[int] = []

    def post(client: TestClient) -> None:
        codes.append(client.post(STUDIES, json={**SHAPES, "external_id": "x"}).status_code)

    threads = [threading.Thread(target=post, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200] * 5 + [201]
    assert rows(app) == 1


def test_an_external_id_with_another_spec_names_what_differs(ann: TestClient) -> None:
    start(ann, external_id="x")
    other = {"tune": {"scenario": "shapes-8-4", "settings": {"trials": 4, "seed": 1}}}
    answer = ann.post(STUDIES, json={**other, "external_id": "x"})
    assert answer.status_code == 409
    assert [e["pointer"] for e in answer.json()["errors"]] == ["/spec/seed", "/spec/trials"]


def test_a_study_is_started_with_the_trials_of_others(
    ann: TestClient, as_owner: Clients, app: FastAPI
) -> None:
    first = start(ann)
    asked = {"external_id": "night-2", "warm_start": [first["id"]]}
    second = start(ann, **asked)
    about = app.state.core.database.about(second["study"])
    assert about["sources"] == [first["study"]]
    assert stored_sources(app.state.core.database, second["study"]) == [first["study"]]
    assert ann.post(STUDIES, json={**SHAPES, **asked}).status_code == 200
    other = ann.post(STUDIES, json={**SHAPES, "external_id": "night-2"}).json()
    assert [error["pointer"] for error in other["errors"]] == ["/warm_start"]
    before = rows(app)
    for client, sent in (
        (as_owner("bob"), {"warm_start": [first["id"]]}),
        (ann, {"warm_start": [first["id"], "nobody"], **SHAPES_8_2}),
    ):
        answer = client.post(STUDIES, json={**SHAPES, **sent})
        assert answer.status_code == 422
    told = {error["pointer"]: error["detail"] for error in answer.json()["errors"]}
    assert "only trials of the same question" in told["/warm_start/0"]
    assert told["/warm_start/1"] == "there is no study 'nobody'"
    assert rows(app) == before


def test_studies_are_compared_if_they_have_something_to_compare(ann: TestClient) -> None:
    one, other = start(ann)["id"], start(ann)["id"]
    answer = ann.get(f"{STUDIES}/{one}/comparison", params={"other": other})
    assert (answer.status_code, answer.json()["code"]) == (409, "NOT_COMPARABLE")
    told = f"study 'shapes-8-4-overlapped-mib+ucd' has no complete trial to compare; `POST {STUDIES}/{one}"
    assert answer.json()["detail"] == f"{told}:resume` goes on with it"
    answer = ann.get(f"{STUDIES}/{one}/comparison", params={"other": "nobody"})
    assert answer.status_code == 404


def test_every_wrong_field_is_named_at_once(ann: TestClient, app: FastAPI) -> None:
    spec = start(ann)["spec"]
    spec["recipe"] |= {"data.crop": 7, "ucd.wieght": 1, "model.weights": "/etc/passwd"}
    spec["trials"] = 0
    spec["search"]["optim.lr_new"] = {"low": 2, "high": 1}
    answer = ann.post(STUDIES, json={"spec": spec})
    assert answer.status_code == 422
    pointers = {error["pointer"] for error in answer.json()["errors"]}
    assert pointers >= {"/spec/recipe/model.weights", "/spec/trials"}
    assert any(pointer.startswith("/spec/search/optim.lr_new") for pointer in pointers)
    del spec["recipe"]["model.weights"]
    answer = ann.post(STUDIES, json={"spec": spec})
    pointers = {error["pointer"] for error in answer.json()["errors"]}
    assert pointers >= {"/spec/recipe/data.crop", "/spec/recipe/ucd.wieght", "/spec/trials"}
    assert rows(app) == 1


@pytest.mark.parametrize(
    "values",
    [
        {"data.source": "/etc"},
        {"data.source": "../data"},
        {"model.weights": "pretrained"},
        {"model.base": "x.pt"},
        {"data.split_lists": "lists"},
        {"model.backbone": "hf_hub:someone/network"},
        {"model.backbone": "local-dir:/tmp"},
    ],
)
def test_nothing_sent_is_a_path_or_a_place(ann: TestClient, values: dict[str, str]) -> None:
    answer = ann.post(STUDIES, json={"tune": {"scenario": "shapes-8-4", "values": values}})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["code"] in ("NOT_REGISTERED", "NOT_PLAIN")
    assert error["pointer"] == f"/tune/values/{next(iter(values))}"


def test_a_registered_name_becomes_its_path_and_only_the_name_is_shown(
    settings: Settings, tmp_path: Path
) -> None:
    weights = tmp_path / "resnet.pt"
    app = create_app(settings.model_copy(update={"weights": {"resnet": str(weights)}}))
    client = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
    values = {"model.weights": "resnet"}
    answer = client.post(STUDIES, json={"tune": {**SHAPES["tune"], "values": values}})
    assert answer.json()["spec"]["recipe"]["model.weights"] == "resnet"
    assert str(tmp_path) not in answer.text
    stored = stored_spec(answer.json()["study"], app.state.core.database)
    assert stored.recipe["model.weights"] == str(weights)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"tune": {"scenario": "voc-15-5"}}, "/tune/values/data.source"),
        (
            {"spec": {"name": "a", "recipe": {"scenario": "voc-15-5", "method": "mib"}}},
            "/spec/recipe/data.source",
        ),
    ],
    ids=["tune", "spec"],
)
def test_a_study_without_images_is_refused(
    settings: Settings, body: dict[str, Any], place: str
) -> None:
    app = create_app(settings.model_copy(update={"data_sets": {"voc": "/data/voc"}}))
    client = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
    (wrong,) = client.post(STUDIES, json=body).json()["errors"]
    assert (wrong["pointer"], wrong["code"]) == (place, "NEEDS_DATA")
    assert "data set 'voc' needs data.source; the service has: generated, voc" in wrong["detail"]


def test_a_plan_writes_nothing(ann: TestClient, app: FastAPI) -> None:
    answer = ann.post(f"{STUDIES}?validate_only=true", json=SHAPES)
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert (plan["trials"], plan["gang"]["workers"], plan["base_steps"]) == (3, 1, 1)
    low, high = plan["hours"]
    assert 0 < low <= high
    assert rows(app) == 0


def test_pages_neither_repeat_nor_hide_a_study(ann: TestClient) -> None:
    ids = [start(ann, labels={"n": str(n)})["id"] for n in range(5)]
    first = ann.get(STUDIES, params={"page_size": 2}).json()
    start(ann)  # is newer than what was listed
    seen, token = [s["id"] for s in first["studies"]], first["next_page_token"]
    while token:
        page = ann.get(STUDIES, params={"page_size": 2, "page_token": token}).json()
        seen, token = seen + [s["id"] for s in page["studies"]], page["next_page_token"]
    assert seen == ids[::-1]


def test_filters_and_orders(ann: TestClient) -> None:
    one = start(ann, labels={"team": "x", "n.1": "a"}, priority=3)["id"]
    two = start(ann, labels={"team": "y"})["id"]

    def listed(text: str, order: str = "create_time") -> list[str]:
        answer = ann.get(STUDIES, params={"filter": text, "order_by": order})
        assert answer.status_code == 200, answer.text
        return [study["id"] for study in answer.json()["studies"]]

    assert listed('labels.team="x"') == [one]
    assert listed('labels.team!="x"') == [two]
    assert listed('labels.n.1="a" AND state="QUEUED"') == [one]
    assert listed('NOT (labels.team="x" OR priority=3)') == [two]
    assert listed('state="FAILED" OR priority=3') == [one]
    assert listed("", "priority desc") == [one, two]
    assert listed('labels.absent="x"') == []


@pytest.mark.parametrize("text", ['state="X"', "state", 'stat="QUEUED"', "((", 'a="b" c="d"', "§"])
def test_a_wrong_filter_is_refused(ann: TestClient, text: str) -> None:
    answer = ann.get(STUDIES, params={"filter": text})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "#query/filter"


def test_a_mistyped_query_parameter_is_refused(ann: TestClient) -> None:
    answer = ann.get(STUDIES, params={"filtre": 'state="QUEUED"'})
    assert answer.status_code == 422
    assert "did you mean 'filter'?" in answer.json()["detail"]


def test_a_token_of_another_list_is_refused(ann: TestClient) -> None:
    start(ann)
    start(ann)
    token = ann.get(STUDIES, params={"page_size": 1}).json()["next_page_token"]
    for params in ({"page_token": token, "order_by": "name"}, {"page_token": "bm9wZQ=="}):
        assert ann.get(STUDIES, params=params).status_code == 422


def test_others_see_shared_studies_only_and_change_none(as_owner: Clients) -> None:
    ann, bob, root = as_owner("ann"), as_owner("bob"), as_owner("root", "admin")
    own, shared = start(ann)["id"], start(ann, shared=True)["id"]
    assert [s["id"] for s in bob.get(STUDIES).json()["studies"]] == [shared]
    assert bob.get(f"{STUDIES}/{own}").status_code == 404
    assert bob.get(f"{STUDIES}/{shared}").status_code == 200
    assert bob.post(f"{STUDIES}/{shared}:pause").status_code == 403
    assert bob.delete(f"{STUDIES}/{own}").status_code == 404
    assert root.post(f"{STUDIES}/{own}:pause").status_code == 200


def test_who_may_only_read_starts_nothing(as_owner: Clients, app: FastAPI) -> None:
    assert as_owner("ann", "read").post(STUDIES, json=SHAPES).status_code == 403
    assert rows(app) == 0


def test_an_unchanged_study_is_304_and_a_changed_one_412(ann: TestClient) -> None:
    study = start(ann)
    url, etag = f"{STUDIES}/{study['id']}", study["etag"]
    same = ann.get(url, headers={"If-None-Match": etag})
    assert (same.status_code, same.content) == (304, b"")
    changed = ann.patch(url, json={"priority": 5}, headers={"If-Match": etag})
    assert (changed.status_code, changed.json()["priority"]) == (200, 5)
    late = ann.patch(url, json={"priority": 6}, headers={"If-Match": etag})
    assert late.status_code == 412
    assert ann.get(url, headers={"If-None-Match": etag}).json()["priority"] == 5


def test_a_change_is_an_edit_of_the_library(ann: TestClient, app: FastAPI) -> None:
    study = start(ann)
    url = f"{STUDIES}/{study['id']}"
    space = {"search": {"ucd.temperature": {"low": 0.2, "high": 0.3}}}
    answer = ann.patch(url, json={"trials": 9, "labels": {"a": "b"}, "space": space})
    assert (answer.status_code, answer.json()["labels"]) == (200, {"a": "b"})
    assert answer.json()["etag"] != study["etag"]
    spec = stored_spec(study["study"], app.state.core.database)
    assert (spec.trials, spec.search["ucd.temperature"].low) == (9, 0.2)
    wrong = {"labels": {}, "space": {"fix": {"data.batch_size": 7}}}
    refused = ann.patch(url, json=wrong)
    assert refused.status_code == 422
    assert ann.get(url).json()["labels"] == {"a": "b"}


def test_pause_resume_stop_delete_undelete_of_a_study_that_waits(ann: TestClient) -> None:
    url = f"{STUDIES}/{start(ann)['id']}"

    def reasons() -> list[str]:
        return [c["reason"] for c in ann.get(url).json()["conditions"]]

    def states(*actions: str) -> list[str]:
        return [ann.post(f"{url}:{action}").json()["state"] for action in actions]

    assert states("pause", "pause", "resume", "resume") == ["PAUSED", "PAUSED", "QUEUED", "QUEUED"]
    assert states("stop", "stop") == ["CANCELLED", "CANCELLED"] and reasons() == []
    assert states("resume") == ["QUEUED"] and reasons() == ["QUEUED"]
    gone = ann.delete(url).json()
    assert (gone["state"], gone["conditions"]) == ("DELETED", [])
    assert ann.get(STUDIES).json()["studies"] == []
    assert ann.post(f"{url}:resume").status_code == 409
    assert states("undelete") == ["PAUSED"] and reasons() == ["PAUSED"]


def test_a_copy_is_a_study_of_its_own(ann: TestClient) -> None:
    study = start(ann, labels={"a": "b"})
    url = f"{STUDIES}/{study['id']}:clone"
    answer = ann.post(url, json={"name": "copy", "spec": {"trials": 5}})
    assert answer.status_code == 201, answer.text
    copy = answer.json()
    assert (copy["name"], copy["spec"]["trials"], copy["labels"]) == ("copy", 5, {"a": "b"})
    assert copy["id"] != study["id"]


def cloned(client: TestClient, study: Any, **spec: Any) -> Any:
    """The spec of a copy in which this is other."""
    answer = client.post(f"{STUDIES}/{study['id']}:clone", json={"name": "copy", "spec": spec})
    assert answer.status_code == 201, answer.text
    return answer.json()["spec"]


def test_a_copy_with_one_other_value_keeps_all_others(ann: TestClient) -> None:
    study = start(ann)
    before = study["spec"]
    copy = cloned(ann, study, trials=4, recipe={"optim.iterations_new": 60})
    assert copy["recipe"] == {**before["recipe"], "optim.iterations_new": 60}
    assert copy["search"] == before["search"]
    copy = cloned(ann, study, recipe={"optim.iterations_new": None})
    assert copy["recipe"] == {**before["recipe"], "optim.iterations_new": None}
    copy = cloned(ann, study, recipe={"optim.epochs_new": 5})
    assert copy["recipe"]["optim.iterations_new"] is None, "else the epochs would mean nothing"


def test_a_copy_searches_more_less_or_otherwise(ann: TestClient) -> None:
    study = start(ann)
    before = study["spec"]["search"]
    range_ = {"low": 0.01, "high": 0.5, "log": True}
    searched = cloned(ann, study, search={"optim.weight_decay": range_})["search"]
    assert searched["optim.weight_decay"]["high"] == 0.5
    assert searched.items() >= before.items()
    fixed = cloned(ann, study, recipe={"kd.weight": 3.0})
    assert fixed["recipe"]["kd.weight"] == 3.0
    assert fixed["search"].keys() == before.keys() - {"kd.weight"}
    first = study["spec"]["first"]
    assert fixed["first"] == {key: first[key] for key in first.keys() - {"kd.weight"}}
    narrow = cloned(ann, study, search={"kd.weight": {"low": 1, "high": 2}})
    assert narrow["first"] == fixed["first"], "the value of the first trial lies outside"
    assert cloned(ann, study, search={"kd.weight": None})["search"].keys() == fixed["search"].keys()


def test_a_copy_has_another_method(ann: TestClient) -> None:
    copy = cloned(ann, start(ann), recipe={"method": "mib"})
    assert copy["recipe"]["method"] == "mib"
    assert "kd.weight" in copy["search"]
    assert not [key for key in copy["search"] if key.startswith("ucd.")]
    both = ann.post(STUDIES, json={"tune": {"scenario": "shapes-8-4", "method": "mib,plop"}}).json()
    assert len(both["spec"]["first"]) == 2
    one = cloned(ann, both, recipe={"method": "plop"})
    assert "method" not in one["search"] and "kd.weight" not in one["search"]
    (first,) = one["first"]
    assert "pod.weight" in first, "that of plop"


@pytest.mark.parametrize("part", ["recipe", "search", "first"])
def test_a_copy_with_what_is_no_mapping_is_refused(ann: TestClient, part: str) -> None:
    url = f"{STUDIES}/{start(ann)['id']}:clone"
    assert ann.post(url, json={"spec": {part: 3}}).status_code == 422
    assert ann.post(url, json={"spec": {part: {"method": ["x"]}}}).status_code == 422


@pytest.mark.parametrize(
    ("tune", "pointer"),
    [
        ({"scenario": "nope"}, "/tune/scenario"),
        ({"method": "nope"}, "/tune/method"),
        ({"method": "mib,nope"}, "/tune/method"),
        ({"method": ""}, "/tune/method"),
        ({"space": "nope"}, "/tune/space"),
        ({"settings": {"sampler": "nope"}}, "/tune/settings/sampler"),
        ({"values": {"setting": "nope"}}, "/tune/values/setting"),
        ({"values": {"method": ""}}, "/tune/values/method"),
    ],
)
def test_the_pointer_leads_to_what_is_wrong(
    ann: TestClient, tune: dict[str, Any], pointer: str
) -> None:
    answer = ann.post(STUDIES, json={"tune": {"scenario": "shapes-8-4", **tune}})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize("name", ["größe", "x" * 300, "", "a\n"])
def test_a_wrong_name_is_told_in_words(ann: TestClient, name: str) -> None:
    study = start(ann)
    answers = [
        ann.post(STUDIES, json={"tune": {"scenario": "shapes-8-4", "name": name}}),
        ann.post(STUDIES, json={"spec": {**study["spec"], "name": name}}),
        ann.post(STUDIES, json={**SHAPES, "labels": {name: "x"}}),
        ann.post(f"{STUDIES}/{study['id']}:clone", json={"name": name}),
    ]
    assert [answer.status_code for answer in answers] == [422] * 4
    found = [error for answer in answers for error in answer.json()["errors"]]
    assert [e["pointer"] for e in found] == ["/tune/name", "/spec/name", f"/labels/{name}", "/name"]
    assert all("letters" in e["detail"] and "^" not in e["detail"] for e in found)


def test_a_wrong_edit_leads_to_its_key(ann: TestClient) -> None:
    url = f"{STUDIES}/{start(ann)['id']}"
    answer = ann.patch(url, json={"space": {"fix": {"nope": 1}}})
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/space/fix/nope"]
    answer = ann.patch(url, json={"space": {"constraints": ["x"]}})
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/space/constraints/0"]
    answer = ann.patch(url, json={"space": {"add": [["kd.weight", 3]]}})
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/space/add/0"]


@pytest.mark.parametrize("sent", ["application/x-www-form-urlencoded", "text/plain", None])
def test_a_body_that_is_not_sent_as_json_is_told_to_be(ann: TestClient, sent: str | None) -> None:
    headers = {} if sent is None else {"Content-Type": sent}
    study = start(ann)
    for path in (STUDIES, f"{STUDIES}/{study['id']}:stop"):
        answer = ann.post(path, content=b'{"tune": {"scenario": "shapes-8-4"}}', headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
        assert "Content-Type: application/json" in answer.json()["detail"]
    assert ann.post(STUDIES, json=["x"]).status_code == 422


def test_a_quote_that_does_not_end_is_told(ann: TestClient) -> None:
    answer = ann.get(STUDIES, params={"filter": 'state="RUNNING'})
    assert answer.status_code == 422
    assert 'the quote of "RUNNING is not closed' in answer.json()["detail"]


def test_another_method_of_an_address_is_told_those_that_it_has(ann: TestClient) -> None:
    answer = ann.put(STUDIES)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
    study = f"{STUDIES}/{start(ann)['id']}"
    assert ann.put(study).headers["allow"] == "DELETE, GET, PATCH"
    assert ann.put(f"{study}:stop").headers["allow"] == "POST"
    assert ann.put("/healthz").headers["allow"] == "GET, HEAD"
    assert ann.put("/v1/openapi.json").headers["allow"] == "GET, HEAD"


def test_an_action_that_is_none_is_404_and_named(ann: TestClient) -> None:
    study = f"{STUDIES}/{start(ann)['id']}"
    for path, hint in (
        (f"{study}:pauze", "did you mean 'pause'?"),
        (f"{study}/trials/0:x", "retry"),
    ):
        answer = ann.post(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "NO_ACTION")
        assert hint in answer.json()["detail"]
