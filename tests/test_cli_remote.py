"""`ucd-ray --server URL`: the same commands, carried out by a service."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from optuna.trial import TrialState

from tests.service.live import serving
from tests.service.rows import add_row, app_with_study
from tests.tune.charts.studies import fill
from tests.tune.finished import finish_study, spec_of
from tests.tune.test_results import ABOUT
from tests.tune.told import curves_below, first_half, read, second_half, tell_all
from ucd_ray import cli
from ucd_ray.client import Client
from ucd_ray.data.prepare import Prepared
from ucd_ray.service import creation
from ucd_ray.service import events as service_events
from ucd_ray.service.app import create_app
from ucd_ray.service.auth import Viewer
from ucd_ray.service.bodies import NewStudy
from ucd_ray.service.core import Core
from ucd_ray.service.settings import Settings
from ucd_ray.service.studies import StudyRow, find_study
from ucd_ray.service.tables import study_table
from ucd_ray.service.tokens import create_token
from ucd_ray.service.views import PlanView
from ucd_ray.tune.curves import Curves
from ucd_ray.tune.event_data import event_data
from ucd_ray.tune.events import EventLog, tell
from ucd_ray.tune.registration import stored_spec

Run = Callable[..., tuple[int, str, str]]
TUNE = ("tune", "--scenario", "shapes-8-4", "--data", "generated", "--trials", "2")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    app = app_with_study(tmp_path_factory.mktemp("remote"), 12)
    fill(app.state.core.database, 12, name="other", seed=1)
    add_row(app.state.core.database, "abd", name="other", title="other")
    tell(app.state.core.database, "study", "driven by somebody")
    for rank in (0, 1):
        data = event_data("worker", "trial 0", {"rank": rank, "node": "here", "level": "info"})
        text = f"worker {rank} begins"
        tell(app.state.core.database, "study", text, number=0, kind="worker", data=data)
    tell(app.state.core.database, "study", "trial 0 complete", number=0, kind="finished")
    yield app
    app.state.core.close()


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Runs a command in this process.  Returns exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ucd-ray", *arguments])
        with pytest.raises(SystemExit) as done:
            cli.main()
        sys.stdout.flush()
        out, errors = capfdbinary.readouterr()
        code = done.value.code
        return code if isinstance(code, int) else 0, out.decode("latin1"), errors.decode()

    return run


@pytest.fixture
def run(here: Run, url: str, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same on the service, as ann."""
    token = create_token(app.state.core.database, "ann", ("read", "write"))
    monkeypatch.setenv("UCD_RAY_TOKEN", token)
    return lambda *arguments: here("--server", url, *arguments)


def set_row(app: FastAPI, study_id: str, **values: Any) -> None:
    update = study_table.update().where(study_table.c.id == study_id)
    app.state.core.database.write(lambda c: c.execute(update.values(**values)))


def newest(app: FastAPI, known: set[str]) -> str:
    """The id of a study that was not known, once there is one."""
    for _ in range(400):
        ids = app.state.core.database.read(lambda c: c.execute(sa.select(study_table.c.id)).all())
        if new := {row.id for row in ids} - known:
            return str(new.pop())
        time.sleep(0.05)
    raise AssertionError("no study came")


@pytest.fixture
def meanwhile(app: FastAPI) -> Iterator[Callable[[Callable[[str], None]], None]]:
    """Does something with the next study that is started."""
    threads = []

    def later(act: Callable[[str], None]) -> None:
        found = app.state.core.database.read(lambda c: c.execute(sa.select(study_table.c.id)).all())
        known = {row.id for row in found}
        threads.append(threading.Thread(target=lambda: act(newest(app, known))))
        threads[-1].start()

    yield later
    for thread in threads:
        thread.join(30)


def test_tune_starts_follows_and_shows_the_table(
    run: Run, app: FastAPI, meanwhile: Any, url: str
) -> None:
    def act(study: str) -> None:
        name = f"ours-{study}"  # in the library
        tell(app.state.core.database, name, "trial 0 complete", number=0, kind="finished")
        time.sleep(1.2)
        tell(app.state.core.database, name, "trial 1 complete", number=1, kind="finished")
        set_row(app, study, state="SUCCEEDED")

    meanwhile(act)
    code, out, errors = run(*TUNE, "--name", "ours", "--format", "csv")
    assert code == 0, errors
    assert f"on {url}" in out and "queued: waits for its turn" in out
    assert out.index("trial 0 complete") < out.index("trial 1 complete") < out.index('"number"')
    assert out.count("trial 1 complete") == 1
    code, out, _ = run(*TUNE, "--name", "ours", "--format", "csv")
    assert code == 0 and '"number"' in out  # found again, not started twice
    code, _, errors = run(*TUNE, "--name", "ours", "--seed", "3")
    assert code == 2 and "with another spec" in errors and "another --name" in errors


def test_ctrl_c_leaves_a_study_that_goes_on(run: Run, app: FastAPI, meanwhile: Any) -> None:
    found = []

    def act(study: str) -> None:
        found.append(study)
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGINT)

    meanwhile(act)
    code, out, errors = run(*TUNE, "--name", "left")
    assert code == 130 and "the study goes on" in out and errors == ""
    assert f"study stop {found[0]}" in out
    code, out, _ = run("study", "show", found[0])
    assert "QUEUED" in out
    run("study", "stop", found[0], "--kill")


def test_a_study_that_fails_is_an_error_with_its_reason(
    run: Run, app: FastAPI, meanwhile: Any
) -> None:
    why = (
        '[{"type": "Degraded", "status": true, "reason": "JOB_FAILED", "message": "disk full", '
        '"since": 1.0}]'
    )
    meanwhile(lambda study: set_row(app, study, state="FAILED", conditions=why))
    code, _, errors = run(*TUNE, "--name", "fails")
    assert code == 2 and "study 'fails' has failed: disk full" in errors


def local_curves(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """What a driver writes for itself, of a study that is told like those of a service."""
    curves = Curves(folder)
    tell_all([*first_half(), *second_half()], curves=curves)
    return curves_below(folder)


@pytest.mark.parametrize("stream_s", [0.2, 3600.0], ids=["cut", "whole"])
def test_curves_are_those_that_the_driver_would_write(
    stream_s: float, app: FastAPI, run: Run, meanwhile: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    wanted = local_curves(tmp_path / "local")
    assert list(wanted) == ["base-step", "trial-0", "trial-1-r1"]
    assert [step for step, _ in wanted["trial-0"]["objective"]] == [3, 4, 5, 6, 7]
    monkeypatch.setattr(service_events, "STREAM_S", stream_s)
    name = f"curves-{stream_s:.0f}"

    def act(study: str) -> None:
        for half in (first_half(), second_half()):
            tell_all(half, log=EventLog(app.state.core.database, f"{name}-{study}"))
        set_row(app, study, state="SUCCEEDED")

    meanwhile(act)
    command = (*TUNE, "--name", name, "--tensorboard", str(tmp_path / "remote"))
    for _ in range(3):  # the same command finds the study again, and writes the same
        before = time.time()
        code, out, errors = run(*command)
        assert (code, errors) == (0, "") and out.count("trial 0 PRUNED") == 1
        assert curves_below(tmp_path / "remote" / name) == wanted
    rates = read(tmp_path / "remote" / name / "trial-0").Scalars("lr")
    assert all(point.wall_time < before for point in rates), "points have the time of training"
    files = sorted((tmp_path / "remote" / name).rglob("events.*"))
    assert len(files) == len(wanted) and "lack" not in out


def test_ctrl_c_leaves_curves_that_the_same_command_goes_on_with(
    app: FastAPI, run: Run, meanwhile: Any, tmp_path: Path
) -> None:
    wanted = local_curves(tmp_path / "local")
    found: list[str] = []
    written = tmp_path / "remote/stopped/trial-0"

    def act(study: str) -> None:
        found.append(study)
        tell_all(first_half(), log=EventLog(app.state.core.database, f"stopped-{study}"))
        until(lambda: written.exists() and 5 in objectives(written))
        os.kill(os.getpid(), signal.SIGINT)

    meanwhile(act)
    command = (*TUNE, "--name", "stopped", "--tensorboard", str(tmp_path / "remote"))
    code, out, errors = run(*command)
    assert code == 130 and "the study goes on" in out and errors == ""
    assert objectives(written) == [3, 4, 5]
    tell_all(second_half(), log=EventLog(app.state.core.database, f"stopped-{found[0]}"))
    set_row(app, found[0], state="SUCCEEDED")
    assert run(*command)[0] == 0
    assert curves_below(written.parent) == wanted


def objectives(folder: Path) -> list[int]:
    points = curves_below(folder.parent)[folder.name].get("objective", [])
    return [step for step, _ in points]


def until(ready: Callable[[], bool]) -> None:
    for _ in range(1200):
        if ready():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_a_disk_that_fills_up_ends_the_curves_and_not_the_command(
    app: FastAPI, run: Run, meanwhile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(study: str) -> None:
        tell_all(first_half(), log=EventLog(app.state.core.database, f"full-{study}"))
        set_row(app, study, state="SUCCEEDED")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ucd_ray.tune.curves._Run.add", full)
    meanwhile(act)
    code, out, errors = run(*TUNE, "--name", "full", "--tensorboard", str(tmp_path))
    told = f"no more curves for TensorBoard in '{tmp_path}/full': No space left on device"
    assert (code, errors) == (0, "") and out.count(told) == 1
    assert out.index(told) < out.index("trial 0 step 1 epoch 5/6")


def test_curves_that_cannot_be_written_are_refused_before_anything_is_sent(
    app: FastAPI, here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = ("--server", "http://127.0.0.1:9", *TUNE)  # a request would say that none answers
    (tmp_path / "file").touch()
    code, out, errors = here(*nobody, "--tensorboard", str(tmp_path / "file"))
    assert (code, out) == (2, "") and "cannot write --tensorboard" in errors
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    code, out, errors = here(*nobody, "--tensorboard", str(tmp_path / "curves"))
    assert (code, out) == (2, "") and "`pip install 'ucd-ray[tensorboard]'`" in errors
    assert not (tmp_path / "curves").exists()


def test_a_dry_run_shows_the_plan_and_starts_nothing(
    run: Run, app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = sa.select(sa.func.count()).select_from(study_table)
    before = app.state.core.database.read(lambda c: c.execute(count).scalar_one())
    asked = []

    def plan(body: NewStudy, viewer: Viewer, core: Core) -> PlanView:
        asked.append(body.spec)
        gang = {"workers": 2, "cpus": 1, "gpus": 0}
        fields = {"trials": 2, "replicates": 1, "base_steps": 1, "unit": "CPU", "hours": (0.1, 0.2)}
        found = {
            "gang": gang,
            "searched": ["kd.weight"],
            "warm_start": [f"takes {body.warm_start}"],
        }
        return PlanView.model_validate({**fields, **found})

    monkeypatch.setattr(creation, "plan", plan)
    source = ("--from", "study")
    curves = tmp_path / "curves"
    options = ("--dry-run", "--workers", "2", "--tensorboard", str(curves))
    code, out, errors = run(*TUNE, *options, *source)
    assert code == 0 and not curves.exists(), errors
    assert "takes ('abc',)" in out
    assert asked[0] is not None and asked[0]["workers"] == 2
    assert "2 x 1 CPUs" in out and "hours" in out and "kd.weight" in out
    assert app.state.core.database.read(lambda c: c.execute(count).scalar_one()) == before


def test_a_study_learns_from_others_of_the_same_question_only(run: Run, url: str) -> None:
    with Client(url) as client:
        client.create({"tune": {"scenario": "shapes-8-2", "name": "source"}})
    code, _, errors = run(*TUNE, "--from", "source")
    assert code == 2 and "its scenario is shapes-8-2" in errors and "same question" in errors


def test_a_data_set_is_a_registered_name(run: Run) -> None:
    code, _, errors = run(*TUNE[:3], "--data", "voc", "--trials", "2")
    assert code == 2 and "'voc' is not among the registered data sets" in errors


@pytest.mark.parametrize("view", ["trials", "steps", "classes", "paper"])
@pytest.mark.parametrize("form", ["csv", "json", "parquet", "arrow", "markdown", "latex", "table"])
def test_results_are_what_the_command_shows_beside_the_database(
    view: str, form: str, here: Run, run: Run, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    if view == "paper" and form in ("parquet", "arrow"):
        pytest.skip("as of the other views")
    url = f"sqlite:///{app.state.core.database.url.database}"
    monkeypatch.setenv("UCD_RAY_DATABASE", url)
    wanted = ("results", "study", "--view", view, "--format", form)
    if view in ("steps", "trials"):
        wanted = (*wanted, "--filter", "state=COMPLETE", "--order-by", "-number")
    own = here(*wanted)
    assert own[0] == 0, own[2]
    monkeypatch.delenv("UCD_RAY_DATABASE")
    remote = run(*wanted)
    assert remote[0] == 0, remote[2]
    assert remote[1] in own[1] if form == "table" else remote[1] == own[1]


def test_charts_are_those_that_the_command_draws_beside_the_database(
    here: Run, run: Run, app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, told = run("results", "study", "--plots", str(tmp_path / "remote"))
    assert code == 0 and "wrote" in told
    url = f"sqlite:///{app.state.core.database.url.database}"
    monkeypatch.setenv("UCD_RAY_DATABASE", url)
    assert here("results", "study", "--plots", str(tmp_path / "own"))[0] == 0
    names = {path.name for path in (tmp_path / "own").iterdir()}
    assert "history.html" in names
    assert {path.name for path in (tmp_path / "remote").iterdir()} == names
    page = (tmp_path / "remote/history.html").read_text()
    assert "Plotly.newPlot" in page and "plotly.min.js" in page
    assert (tmp_path / "remote/history.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--plots", "x", "--chart", "histroy"), "did you mean 'history'"),
        (("--plots", "x", "--chart", "predictions"), "is not in the step cache"),
        (("--picture", "x.png"), "is not in the step cache"),
        (("--picture", "no/x.png"), "there is no directory 'no'"),
        (("--chart", "history"), "give a directory"),
        (("--finetune",), "--finetune is for the charts of --plots DIR or --picture FILE"),
        (("--finetune", "--picture", "no/x.png"), "there is no directory 'no'"),
        (("--finetune", "--plots", "x", "--chart", "histroy"), "did you mean 'history'"),
    ],
)
def test_a_chart_that_cannot_be_drawn_is_refused(
    options: tuple[str, ...], told: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = run("results", "abc", *options)
    assert code == 2 and told in errors


def test_a_chart_without_content_is_told_or_an_error_if_it_was_asked_for(
    here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = app_with_study(tmp_path, 2)
    monkeypatch.setenv("UCD_RAY_TOKEN", create_token(few.state.core.database, "ann", ("read",)))
    with serving(few) as port:
        asked = ("--server", f"http://127.0.0.1:{port}", "results", "abc", "--plots", str(tmp_path))
        code, _, told = here(*asked)
        assert code == 0 and "not drawn: importances: importances need" in told
        code, _, errors = here(*asked, "--chart", "importances")
        assert code == 2 and "chart 'importances': importances need" in errors
    few.state.core.close()


def test_results_go_to_a_file_and_published_rows_need_no_study(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "steps.parquet"
    assert (
        run("results", "abc", "--view", "steps", "--format", "parquet", "--out", str(out))[0] == 0
    )
    assert out.read_bytes().startswith(b"PAR1")
    code, text, _ = run("results", "--published", "voc-15-1", "--format", "csv")
    assert code == 0 and text.count("\n") > 10


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("study", "list"), "abc"),
        (("study", "show", "abc"), "RUNNING"),
        (("study", "compare", "abc", "other"), "cannot be told apart"),
        (("study", "show", "study", "--format", "json"), '"id": "abc"'),
        (("study", "logs", "abc"), "driven by somebody"),
        (("study", "logs", "abc", "--trial", "0", "--last", "1"), "trial 0 complete"),
        (("study", "compare", "abc", "other", "--format", "json"), '"verdict"'),
        (("study", "best", "abc"), "kd.weight"),
        (("study", "best", "abc", "--format", "json"), '"recipe"'),
        (("study", "enqueue", "abc", "--set", "kd.weight=7"), "trial"),
        (("study", "edit", "abc", "--trials", "99", "--search", "kd.weight=1..300,log"), "changed"),
    ],
    ids=lambda value: "-".join(value[1:]) if isinstance(value, tuple) else "",
)
def test_a_command_of_studies_works(arguments: tuple[str, ...], told: str, run: Run) -> None:
    code, out, errors = run(*arguments)
    assert (code, errors) == (0, "") and told in out


def test_a_log_of_one_worker_is_the_same_here_and_over_http(
    here: Run, run: Run, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ("study", "logs", "study", "--trial", "0", "--worker", "1")
    remote = run(*wanted)
    assert remote[1].count("\n") == 1 and "worker 1 begins" in remote[1]
    url = f"sqlite:///{app.state.core.database.url.database}"
    monkeypatch.setenv("UCD_RAY_DATABASE", url)
    assert here(*wanted) == remote


def test_a_study_is_copied_paused_resumed_stopped_and_deleted(run: Run, url: str) -> None:
    with Client(url) as client:
        first = client.create({"tune": {"scenario": "shapes-8-4"}}).id
    code, out, errors = run("study", "clone", first, "--name", "copy")
    assert code == 0, errors
    copy = out.split(" is ")[1].split(",")[0]
    assert "PAUSED" in run("study", "pause", "copy")[1]
    assert "QUEUED" in run("study", "resume", copy)[1]
    code, _, errors = run("study", "stop", "copy", "--drain", "--kill")
    assert code == 2 and "give one of them" in errors
    assert "CANCELLED" in run("study", "stop", "copy", "--kill")[1]
    assert "is deleted" in run("study", "delete", "copy", "--yes")[1]
    code, _, errors = run("study", "show", "copy")
    assert code == 2 and "there is no study 'copy'" in errors


def test_a_pause_is_waited_for(run: Run, app: FastAPI) -> None:
    add_row(app.state.core.database, "waits", name="waits", title="waits", job="a-job")
    code, out, _ = run("study", "pause", "waits", "--wait", "0")
    assert (code, "is PAUSING" in out) == (1, True)
    paused = threading.Timer(1.0, set_row, (app, "waits"), {"state": "PAUSED"})
    paused.start()
    code, out, _ = run("study", "pause", "waits", "--wait", "30")
    paused.join()
    assert (code, "is PAUSED" in out) == (0, True)


def test_the_end_of_a_trial_is_waited_for(run: Run, app: FastAPI) -> None:
    database = app.state.core.database
    study = optuna.create_study(study_name="open", storage=database.optuna_storage())
    database.save_spec("open", json.dumps(database.stored_spec("study")), ABOUT)
    add_row(database, "open", name="open", title="open")
    trial = study.ask()
    database.claim("open")  # by a driver that does not answer
    code, out, _ = run("study", "cancel", "open", "0", "--wait", "0")
    assert (code, "the command (cancel) stays for it" in out) == (1, True), out
    ended = threading.Timer(1.0, study.tell, (trial,), {"state": TrialState.FAIL})
    ended.start()
    code, out, _ = run("study", "cancel", "open", "0", "--wait", "60")
    ended.join()
    assert (code, out) == (0, "trial 0 of study 'open' is FAILED\n")
    database.release("open")


def test_a_queued_trial_has_not_ended(run: Run, app: FastAPI) -> None:
    database = app.state.core.database
    study = optuna.create_study(study_name="queued", storage=database.optuna_storage())
    database.save_spec("queued", json.dumps(database.stored_spec("study")), ABOUT)
    add_row(database, "queued", name="queued", title="queued")
    study.enqueue_trial({"kd.weight": 3.0})
    database.claim("queued")  # by a driver that does not answer
    code, out, _ = run("study", "cancel", "queued", "0", "--wait", "8")
    assert (code, "the command (cancel) stays for it" in out) == (1, True), out
    database.release("queued")


def test_a_report_is_the_one_that_is_written_beside_the_database(
    run: Run, here: Run, app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, own = tmp_path / "remote.html", tmp_path / "own.html"
    code, _, told = run("report", "abc", "--out", str(remote))
    assert code == 0 and f"wrote {remote}" in told
    monkeypatch.setenv("UCD_RAY_DATABASE", f"sqlite:///{app.state.core.database.url.database}")
    assert here("report", "study", "--out", str(own))[0] == 0
    shown = r"<h[1-3].*?</h[1-3]>|Plotly.newPlot.*?,"
    parts = [re.findall(shown, file.read_text()) for file in (remote, own)]
    assert parts[0] == parts[1] and len(parts[0]) > 10
    assert "is not in the step cache" in remote.read_text()
    code, _, told = run("report", "abc", "--out", str(tmp_path / "no" / "report.html"))
    assert code == 2 and "there is no directory" in told


@pytest.fixture
def trained(tmp_path: Path, shapes: Prepared, monkeypatch: pytest.MonkeyPatch) -> Iterator[FastAPI]:
    """A service whose study `tiny` of ann has trained networks."""
    monkeypatch.setenv("UCD_RAY_HOME", str(tmp_path))
    spec = spec_of(shapes.path, trials=1)
    finish_study(spec)
    settings = Settings(
        database=f"sqlite:///{tmp_path}/studies.db", data_sets={"mine": str(shapes.path)}
    )
    made = create_app(settings)
    row = {"name": "tiny", "title": "tiny", "state": "SUCCEEDED"}
    shown = spec.model_dump(mode="json")
    shown["recipe"]["data.source"] = "mine"
    add_row(made.state.core.database, spec=json.dumps(shown), **row)
    yield made
    made.state.core.close()


def started(app: FastAPI) -> StudyRow:
    """The one study beside `abc`, once there is one."""
    row = find_study(app.state.core.database, newest(app, {"abc"}))
    assert row is not None
    return row


def drive(app: FastAPI, work: Callable[[StudyRow], None], state: str) -> threading.Thread:
    """Does what its driver would with the study that comes, and ends it."""

    def act() -> None:
        row = started(app)
        work(row)
        set_row(app, row.id, state=state)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_fine_tuning_is_trained_by_the_service_and_then_drawn(
    here: Run, trained: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = trained.state.core.database
    monkeypatch.setenv("UCD_RAY_TOKEN", create_token(database, "ann", ("read", "write")))
    picture, page = tmp_path / "p.png", tmp_path / "r.html"

    def work(row: StudyRow) -> None:
        finish_study(stored_spec(row.name, database))
        tell(database, row.name, "trial 0 complete", number=0, kind="finished")

    with serving(trained) as port:
        server = ("--server", f"http://127.0.0.1:{port}")
        driver = drive(trained, work, "SUCCEEDED")
        asked = ("--finetune", "--picture", str(picture), "--format", "csv")
        code, out, told = here(*server, "results", "tiny", *asked)
        driver.join()
        assert code == 0, told
        assert out.startswith('"number"')  # what is told goes beside it
        assert told.index("study tiny-finetune is") < told.index("trial 0 complete")
        assert told.index("succeeded") < told.index("wrote")
        assert picture.read_bytes().startswith(b"\x89PNG")
        code, _, told = here(*server, "report", "tiny", "--finetune", "--out", str(page))
        assert code == 0 and "trial 0 complete" in told, told  # it is there already
        assert "fine-tuning after step" in page.read_text()


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("SUCCEEDED", "has not trained a network: it was stopped before it began"),
        ("FAILED", "study 'tiny-finetune' has failed: "),
        ("CANCELLED", "has not trained a network: it was stopped before it began"),
    ],
)
def test_without_fine_tuning_nothing_is_drawn(
    state: str,
    reason: str,
    here: Run,
    trained: FastAPI,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = trained.state.core.database
    monkeypatch.setenv("UCD_RAY_TOKEN", create_token(database, "ann", ("read", "write")))
    picture = tmp_path / "p.png"
    with serving(trained) as port:
        driver = drive(trained, lambda row: None, state)
        asked = ("results", "tiny", "--finetune", "--picture", str(picture))
        code, out, told = here("--server", f"http://127.0.0.1:{port}", *asked)
        driver.join()
    assert code == 2 and reason in told and told.count("error:") == 1
    assert out == "" and not picture.exists()


def test_ctrl_c_leaves_fine_tuning_that_goes_on(
    here: Run, trained: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = trained.state.core.database
    monkeypatch.setenv("UCD_RAY_TOKEN", create_token(database, "ann", ("read", "write")))
    picture = tmp_path / "p.png"

    def interrupted(self: Client, study: str, **_: Any) -> Iterator[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "events", interrupted)
    with serving(trained) as port:
        asked = ("results", "tiny", "--finetune", "--picture", str(picture))
        code, out, told = here("--server", f"http://127.0.0.1:{port}", *asked)
    row = started(trained)
    assert code == 130 and out == "" and not picture.exists()
    assert "the study goes on" in told and f"study stop {row.id}" in told
    assert row.state == "QUEUED"


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--scenario", "voc-15-1"),
        ("cache", "list"),
        ("serve",),
        ("token", "list"),
        ("study", "run", "abc"),
    ],
    ids=lambda value: "-".join(value[:2]),
)
def test_what_only_works_here_is_refused(arguments: tuple[str, ...], run: Run) -> None:
    code, out, errors = run(*arguments)
    assert code == 2 and out == "" and "works on this machine only" in errors
    others = "`study resume`" if arguments[:2] == ("study", "run") else "there are tune, results"
    assert f"over HTTP {others}" in errors


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ((*TUNE, "--address", "auto"), "--address"),
        (("report", "abc", "--address", "x"), "--address"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_option_that_only_works_here_is_refused(
    arguments: tuple[str, ...], option: str, run: Run
) -> None:
    code, _, errors = run(*arguments)
    assert code == 2 and option in errors and "works on this machine only" in errors


def test_commands_without_studies_are_the_same_with_a_server(run: Run) -> None:
    code, out, _ = run("scenarios")
    assert code == 0 and "voc-15-1" in out


def test_the_server_comes_from_the_environment_too(
    run: Run, here: Run, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_SERVER", url)
    assert "abc" in here("study", "list")[1]
    monkeypatch.setenv("UCD_RAY_TOKEN", "ucd_no_token")
    code, _, errors = here("study", "list")
    assert code == 2 and "unknown, expired or revoked" in errors


def test_without_a_server_a_copy_is_not_made(here: Run) -> None:
    code, _, errors = here("study", "clone", "abc")
    assert code == 2 and "--server URL" in errors
