from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

import pytest
import sqlalchemy as sa

import ucd_ray.service.migrations
from tests.postgres import PASSWORD, PostgresServer
from ucd_ray.doctor import storage
from ucd_ray.doctor.finding import Finding, examine
from ucd_ray.service.database import VERSION_TABLE, open_database
from ucd_ray.tune.inspection import inspect
from ucd_ray.tune.places import places

MIGRATIONS = {VERSION_TABLE: Path(ucd_ray.service.migrations.__file__).parent}
Usage = namedtuple("Usage", "total used free")


def database() -> Finding:
    (found,) = examine({"database": lambda: storage.database(MIGRATIONS)})
    return found


def test_a_home_that_can_be_written_is_fine(own_home: Path) -> None:
    (found,) = storage.home()
    assert str(own_home) in found.found and "GB free" in found.found


def test_a_home_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("UCD_RAY_HOME", str(tmp_path / "file" / "home"))
    (found,) = examine({"home": storage.home})
    assert found.state == "wrong" and "cannot write" in found.found and "UCD_RAY_HOME" in found.mend


@pytest.mark.parametrize(("free", "state"), [(5e8, "wrong"), (5e9, "note"), (5e10, "ok")])
def test_little_room_is_said(free: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: Usage(1e12, 0, free))
    (found,) = storage.home()
    assert found.state == state
    assert ("cache prune" in found.mend) == (state != "ok")


def test_a_storage_is_tried_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "storage"
    monkeypatch.setenv("UCD_RAY_STORAGE", str(place))
    (found,) = storage.storage()
    assert str(place) in found.found and list(place.iterdir()) == []


def test_a_bucket_is_tried_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "{}:{}".format(*server.get_host_and_port())
        client = boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        query = f"endpoint_override={endpoint}&scheme=http&region=us-east-1"
        monkeypatch.setenv("UCD_RAY_STORAGE", f"s3://bucket/place?{query}")
        (found,) = storage.storage()
        assert found.state == "ok", found
        left = [item["Key"] for item in client.list_objects_v2(Bucket="bucket")["Contents"]]
        assert left == ["place/"]  # how Arrow keeps an empty directory
        monkeypatch.setenv("UCD_RAY_STORAGE", f"s3://key:hidden@absent/place?{query}")
        (found,) = storage.storage()
        assert found.state == "wrong" and "hidden" not in found.found
        assert "UCD_RAY_STORAGE" in found.mend
    finally:
        server.stop()


def test_a_database_that_is_not_there_is_not_made(own_home: Path) -> None:
    found = database()
    assert found.state == "ok" and "not there yet" in found.found
    assert not (own_home / "studies.db").exists()


def test_a_current_database_is_fine_and_an_older_one_will_be_migrated() -> None:
    open_database(places().database)
    assert "current" in database().found
    set_version(None)
    found = database()
    assert found.state == "ok" and "brought up to date" in found.found
    assert inspect(places().database, MIGRATIONS).schemas[VERSION_TABLE] == "older"


def test_a_database_of_a_newer_version_is_named() -> None:
    open_database(places().database)
    set_version("of the future")
    found = database()
    assert (
        found.state == "wrong" and "newer ucd-ray" in found.found and VERSION_TABLE in found.found
    )


def set_version(version: str | None) -> None:
    """The migration that the service's tables claim to be at; None: none."""
    table = sa.table(VERSION_TABLE, sa.column("version_num"))
    with sa.create_engine(places().database).begin() as connection:
        connection.execute(table.delete())
        if version is not None:
            connection.execute(table.insert().values(version_num=version))


def test_a_file_that_is_no_database_is_named(own_home: Path) -> None:
    own_home.mkdir()
    (own_home / "studies.db").write_text("no database" * 100)
    found = database()
    assert found.state == "wrong" and "studies.db" in found.found


def test_a_server_that_is_away_or_refuses_is_named_without_the_password(
    monkeypatch: pytest.MonkeyPatch, postgres: PostgresServer
) -> None:
    monkeypatch.setenv("UCD_RAY_DATABASE", "postgresql://ann:Zebra@127.0.0.1:9/studies")
    found = database()
    assert found.state == "wrong" and "127.0.0.1:9" in found.found and "Zebra" not in found.found
    assert "UCD_RAY_DATABASE_PASSWORD_FILE" in found.mend
    url = postgres.url(postgres.new_database())
    monkeypatch.setenv("UCD_RAY_DATABASE", url)
    assert database().state == "ok"
    ahead = inspect(url).ahead_s
    assert ahead is not None and abs(ahead) < 1
    wrong = sa.make_url(url).set(password="Zebra").render_as_string(hide_password=False)
    monkeypatch.setenv("UCD_RAY_DATABASE", wrong)
    found = database()
    assert found.state == "wrong" and not {"Zebra", PASSWORD} & set(found.found.split())


def test_an_url_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCD_RAY_DATABASE", "mysql-ish")
    found = database()
    assert found.state == "wrong" and "mysql-ish" in found.found and "postgresql://" in found.mend


def test_nothing_is_written_by_a_user_who_may_not_write(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_database(places().database)
    before = (own_home / "studies.db").read_bytes()
    database()
    assert (own_home / "studies.db").read_bytes() == before
    assert os.listdir(own_home).count("studies.db") == 1
