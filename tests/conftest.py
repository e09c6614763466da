"""Fixtures that all tests share: a home of their own, generated images, a recipe of seconds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.postgres import PostgresServer, running
from ucd_ray.data.prepare import Generated, Prepared, prepare
from ucd_ray.job import Job
from ucd_ray.recipe import Recipe

# The same examples in every run, on machines of any speed.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

# shapes-8-2 has three steps; timm's smallest residual network, for its own tests.
TINY: dict[str, Any] = {
    "scenario": "shapes-8-2",
    "model.backbone": "test_resnet",
    "model.width": 16,
    "data.crop": 64,
    "data.batch_size": 4,
    "optim.epochs_base": 2,
    "optim.epochs_new": 2,
    "compute.precision": "float32",
    "compute.deterministic": True,
}

MakeJob = Callable[..., Job]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_as_in_a_terminal() -> Iterator[None]:
    """Also where tests run in a script's background, which ignores Ctrl-C and so do its children."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """UCD_RAY_HOME of this test alone; nothing of the user's environment is seen."""
    for name in (
        "UCD_RAY_STORAGE",
        "UCD_RAY_CACHE_LIMIT",
        "RAY_ADDRESS",
        *(n for n in os.environ if n.startswith("UCD_RAY_DATABASE")),
    ):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    monkeypatch.setenv("UCD_RAY_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """24 training and 8 validation images of 64 pixels, 12 classes."""
    out = tmp_path_factory.mktemp("shapes") / "data"
    return prepare("shapes", None, out, generated=Generated(train=24, val=8, size=64))


@pytest.fixture
def make_job(shapes: Prepared, tmp_path: Path) -> MakeJob:
    """Jobs on the generated images, with one step cache per test."""

    def make(number: int = 0, *, workers: int = 1, until: int | None = None, **flat: Any) -> Job:
        return Job(
            recipe=tiny_recipe(**flat),
            data=str(shapes.path),
            cache=str(tmp_path / "steps"),
            weights=None,
            store=str(tmp_path / "runs"),
            name=("study", str(number)),
            workers=workers,
            until=until,
        )

    return make


@pytest.fixture(scope="session")
def finished_home(tmp_path_factory: pytest.TempPathFactory, shapes: Prepared) -> Path:
    """A home with the finished study `tiny`.  Nobody writes to it."""
    from tests.tune.finished import finish_study, spec_of  # which imports this module

    home = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCD_RAY_HOME", str(home))
        finish_study(spec_of(shapes.path))
    return home


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test run."""
    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new database, of each kind that we support."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/any.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.url(server.new_database())


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The development data: real images, class presence lists, weights."""
    directory = os.environ.get("UCD_RAY_TEST_DATA")
    if directory is None:
        pytest.skip("UCD_RAY_TEST_DATA does not point to the development data")
    return Path(directory)


def tiny_recipe(**flat: Any) -> Recipe:
    """The recipe of `TINY`, with other values under flat keys."""
    return Recipe.from_flat({**TINY, **flat})
