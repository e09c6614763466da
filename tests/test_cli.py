"""The command line: one sentence and exit code 2 for what a user can mend; what commands show."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from tests.tune.test_bridge import open_book, run_trial, spec_of
from tests.tune.test_database import step_report
from tests.tune.test_paper import study as voc_study
from tests.tune.test_paper import voc
from tests.tune.test_results import ABOUT
from ucd_ray import cli
from ucd_ray.cli.edit import read_range
from ucd_ray.cli.shared import TABLE_FORMATS, parse_value, read_values, study_settings
from ucd_ray.cli.study import study_run
from ucd_ray.data.prepare import Prepared
from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.published import rows as published
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.database import Database
from ucd_ray.tune.editing import edit
from ucd_ray.tune.edits import Edit
from ucd_ray.tune.events import EventLog
from ucd_ray.tune.parameter import Parameter
from ucd_ray.tune.places import places
from ucd_ray.tune.registration import MAY_CHANGE, register, with_edits
from ucd_ray.tune.spec import changed, parsed

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process.  Returns exit code, output and errors."""

    def run_command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ucd-ray", *arguments])
        with pytest.raises(SystemExit) as done:
            cli.main()
        code = done.value.code
        captured = capsys.readouterr()
        return code if isinstance(code, int) else 0, captured.out, captured.err

    return run_command


def tiny(*arguments: str, data: Prepared | None = None) -> list[str]:
    """Arguments of the tiny recipe, with its data."""
    sets = [f"{key}={value}" for key, value in TINY.items() if key != "scenario"]
    options = [part for text in sets for part in ("--set", text)]
    where = ["--data", str(data.path)] if data else []
    return [*arguments, "--scenario", str(TINY["scenario"]), *where, *options]


def assert_refused(result: tuple[int, str, str], *parts: str) -> None:
    code, _, errors = result
    assert code == 2, errors
    assert errors.startswith("error: ")
    assert not errors.startswith("error: :")
    assert "Traceback" not in errors
    assert [part for part in parts if part not in errors] == []


# What is refused before anything starts.

SHAPES = ("--scenario", "shapes-8-4")
BASE = ("--base", "a.pth", "--base-classes", "/absent.txt")


@pytest.mark.parametrize("command", ["tune", "train"])
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--scenario", "voc-15-x"), ("voc-15-x", "did you mean")),
        (("--scenario", "voc-15-4"), ("voc-15-4", "multiple of 4")),
        (("--scenario", "absent.yaml"), ("absent.yaml", "No such file")),
        ((*SHAPES, "--set", "ucd.temprature=1"), ("ucd.temprature", "'ucd.temperature'")),
        ((*SHAPES, "--set", "ucd.temperature=-1"), ("ucd.temperature (-1)", "greater than 0")),
        ((*SHAPES, "--set", "data.crop=large"), ("data.crop ('large')", "integer")),
        ((*SHAPES, "--set", "seed"), ("--set 'seed'", "KEY=VALUE")),
        ((*SHAPES, "--method", "mbi"), ("unknown method 'mbi'", "'mib'")),
        ((*SHAPES, "--method", "mib", "--set", "ucd.weight=1"), ("ucd.weight", "mib+ucd")),
        ((*SHAPES, "--setting", "overlap"), ("overlap", "overlapped")),
        ((*SHAPES, "--select-on", "test"), ("eval.select_on", "test", "holdout")),
        ((*SHAPES, "--weights-mean", "1,2"), ("--weights-mean '1,2'", "three numbers")),
        ((*SHAPES, "--base", "a.pth"), ("--base-classes (model.base_classes) is absent",)),
        ((*SHAPES, *BASE, "--method", "pi"), ("'pi' cannot start from --base", "use ewc")),
        ((*SHAPES, *BASE), ("--base-classes '/absent.txt'", "No such file")),
        (("--scenario", "voc-15-5"), ("'voc' needs --data", "--data generated")),
        (("--scenario", "voc-15-5", "--data", "/absent"), ("/absent", "does not exist")),
        (("--scenario", "folder-3-1"), ("folder-3-1", "--data DIR")),
        ((*SHAPES, "--workers", "5000", "--set", "data.batch_size=5000"), ("--workers", "5000")),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(
    run: Run, command: str, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert_refused(run(command, *arguments), *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("tune", *SHAPES, "--space", "absent.yaml"), ("absent.yaml", "No such file")),
        (("tune", *SHAPES, "--space", "vok-15-5"), ("no search space 'vok-15-5'", "'voc-15-5'")),
        (("tune", *SHAPES, "--trials", "0"), ("trials (0)",)),
        (("tune", *SHAPES, "--sampler", "cma"), ("unknown sampler 'cma'", "'cmaes'")),
        (("tune", *SHAPES, "--pruner", "medain"), ("'medain'", "'median'")),
        (("tune", *SHAPES, "--objective", "miou"), ("unknown objective 'miou'",)),
        (("tune", *SHAPES, "--name", "a b"), ("name", "a b")),
        (("tune", *SHAPES, "--format", "xml"), ("unknown format 'xml'", "csv")),
        (("config", "voc-15-x"), ("voc-15-x", "did you mean")),
        (("config", "voc-15-5", "--set", "x=1"), ("unknown key 'x'",)),
        (("results", "nothing"), ("no study 'nothing'", "no study has been started")),
        (("results", "nothing", "--format", "xml"), ("unknown format 'xml'",)),
        (("study", "run", "nothing"), ("no study 'nothing'",)),
        (("study", "show", "nothing"), ("no study 'nothing'",)),
        (("study", "logs", "nothing"), ("no study 'nothing'",)),
        (("study", "pause", "nothing"), ("no study 'nothing'",)),
        (("study", "resume", "nothing"), ("no study 'nothing'",)),
        (("study", "stop", "nothing"), ("no study 'nothing'",)),
        (("study", "cancel", "nothing", "0"), ("no study 'nothing'",)),
        (("study", "stop", "nothing", "--drain", "--kill"), ("--drain and --kill", "one of them")),
        (("tune", *SHAPES, "--max-hours", "long"), ("--max-hours ('long')", "a number, or none")),
        (("tune", *SHAPES, "--max-hours", "0"), ("max_hours (0.0)", "greater than 0")),
        (("tune", *SHAPES, "--patience", "1.5"), ("--patience ('1.5')", "a whole number")),
        (("tune", *SHAPES, "--keep-best", "0"), ("keep_best (0)",)),
        (("tune", *SHAPES, "--executor", "warm"), ("unknown executor 'warm'", "warm-gangs")),
        (
            ("tune", *SHAPES, "--executor", "run-per-trial", "--trials-per-run", "3"),
            ("--executor run-per-trial", "--trials-per-run is 3"),
        ),
        (("data", "prepare", "vok", "generated", "out"), ("vok", "'voc'")),
        (("data", "prepare", "voc", "/absent", "out"), ("/absent", "does not exist")),
    ],
)
def test_other_commands_refuse_alike(
    run: Run, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert_refused(run(*arguments), *parts)


def test_a_key_both_fixed_and_searched_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "scenario: shapes-8-4\nrecipe: {kd.weight: 1}\nsearch: {kd.weight: {low: 1, high: 2}}\n"
    )
    assert_refused(
        run("tune", *SHAPES, "--space", str(path)), "kd.weight", "both fixed and searched"
    )


def test_a_directory_with_another_layout_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    result = run("train", "--scenario", "ade-100-50", "--data", str(tmp_path))
    assert_refused(result, str(tmp_path), "expected", "Pascal VOC layout")


def test_prepared_data_of_another_data_set_is_refused(run: Run, shapes: Prepared) -> None:
    result = run("train", "--scenario", "voc-15-5", "--data", str(shapes.path))
    assert_refused(result, "'shapes', not 'voc'")


def test_a_home_that_cannot_be_written_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UCD_RAY_HOME", str(tmp_path / "file" / "home"))
    for command in (["train", *SHAPES], ["tune", *SHAPES], ["study", "list"], ["results", "x"]):
        assert_refused(run(*command), "cannot write", "UCD_RAY_HOME")


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg2://me:secret@127.0.0.1:1/db", "sqlite:////dev/null/studies.db"]
)
def test_a_database_that_cannot_be_reached_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("UCD_RAY_DATABASE", url)
    for command in (["study", "list"], ["results", "x"], ["study", "run", "x"]):
        result = run(*command)
        assert_refused(result)
        assert "secret" not in result[2]


def test_an_unknown_backbone_is_refused(run: Run, shapes: Prepared) -> None:
    result = run(*tiny("train", data=shapes), "--set", "model.backbone=resnet11")
    assert_refused(result, "unknown model.backbone 'resnet11'", "did you mean 'resnet")


def test_weights_of_another_architecture_are_refused(
    run: Run, shapes: Prepared, tmp_path: Path
) -> None:
    import torch

    path = tmp_path / "other.pth"
    torch.save({"conv9.weight": torch.zeros(2, 2)}, path)
    triple = ["--weights-mean", "0,0,0", "--weights-std", "1,1,1"]
    result = run(*tiny("train", data=shapes), "--weights", str(path), *triple)
    assert_refused(result, str(path), "does not fit backbone 'test_resnet'", "conv9.weight")


def test_weights_without_a_normalisation_are_refused(
    run: Run, shapes: Prepared, tmp_path: Path
) -> None:
    (tmp_path / "w.pth").write_bytes(b"")
    result = run(*tiny("train", data=shapes), "--weights", str(tmp_path / "w.pth"))
    assert_refused(result, "w.pth", "--weights-mean")


def test_a_study_name_in_use_with_another_spec_is_refused_with_the_difference(
    run: Run, shapes: Prepared, own_home: Path
) -> None:
    spec = spec_of(name="mine", recipe={**TINY, "optim.lr_base": 0.5})
    Database(f"sqlite:///{own_home}/studies.db").save_spec("mine", spec.model_dump_json(), ABOUT)
    result = run(*tiny("tune", data=shapes), "--name", "mine", "--set", "optim.lr_base=0.25")
    assert_refused(
        result, "study 'mine' exists with another spec", "optim.lr_base (0.5 there, 0.25"
    )


def test_a_stored_study_cannot_go_on_with_no_trials(run: Run, own_home: Path) -> None:
    database = Database(f"sqlite:///{own_home}/studies.db")
    database.save_spec("mine", spec_of(name="mine").model_dump_json(), ABOUT)
    code, _, errors = run("study", "run", "mine", "--trials", "0")
    assert code == 2
    assert "--trials" in errors


def test_a_spec_of_another_version_is_refused(run: Run, own_home: Path) -> None:
    content = {**spec_of(name="mine").model_dump(mode="json"), "novelty": 1}
    database = Database(f"sqlite:///{own_home}/studies.db")
    database.save_spec("mine", json.dumps(content), ABOUT)
    assert_refused(run("study", "run", "mine"), "'mine'", "another version", "novelty")


def test_a_batch_that_workers_cannot_share_is_refused(
    run: Run, shapes: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ucd_ray.tune.cluster

    monkeypatch.setattr(ucd_ray.tune.cluster, "local_cpus", lambda: 64)
    result = run(*tiny("train", data=shapes), "--workers", "3")
    assert_refused(result, "data.batch_size (4) must be divisible by workers (3)")


def test_an_unknown_option_is_a_usage_error(run: Run) -> None:
    code, _, errors = run("train", "--scenari", "voc-15-5")
    assert code == 2
    assert "--scenari" in errors


def test_an_error_in_a_process_of_its_own_has_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ucd_ray.cli", "train", "--scenario", "voc-15-x"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "UCD_RAY_HOME": str(tmp_path)},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert_refused((done.returncode, "", done.stderr), "voc-15-x")


# Values.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("0.5", 0.5),
        ("1e-3", 0.001),
        ("2E4", 20000.0),
        ("true", True),
        ("null", None),
        ("", None),
        ("resnet50", "resnet50"),
        ("[0.5, 0.4, 0.3]", [0.5, 0.4, 0.3]),
        ("a: b: c", "a: b: c"),
        ("[e", "[e"),
        ("[1", "[1"),
        ("2020-13-45", "2020-13-45"),
        ("/data/e=1", "/data/e=1"),
    ],
)
def test_a_value_is_read_as_yaml_and_numbers_with_exponents(text: str, value: Any) -> None:
    assert parse_value(text) == value


def test_a_value_may_hold_an_equals_sign() -> None:
    assert read_values(["data.source=/a=b"]) == {"data.source": "/a=b"}
    with pytest.raises(ConfigError, match="must be KEY=VALUE"):
        read_values(["=1"])


# What commands show.


def test_scenarios_are_listed_with_their_steps(run: Run) -> None:
    code, output, _ = run("scenarios")
    assert code == 0
    row = next(line for line in output.splitlines() if "voc-15-1" in line)
    assert "15 + 5 x 1" in row


def test_config_shows_every_key_with_its_meaning(run: Run) -> None:
    code, output, _ = run("config", "voc-15-5", "--explain", "--set", "kd.weight=7")
    assert code == 0
    row = next(line for line in output.splitlines() if "kd.weight" in line)
    assert "7" in row
    assert "Factor of unbiased distillation" in row
    assert "ucd.temperature" in output


def test_prepared_data_can_be_trained_on(run: Run, tmp_path: Path) -> None:
    code, output, _ = run("data", "prepare", "shapes", "generated", str(tmp_path / "data"))
    assert code == 0
    assert "400 train, 80 val images, 12 classes" in output
    assert_refused(
        run("data", "prepare", "shapes", "generated", str(tmp_path / "data")), "exists and is not"
    )


def test_a_dry_run_shows_the_plan_and_trains_nothing(
    run: Run, shapes: Prepared, own_home: Path
) -> None:
    code, output, errors = run(*tiny("train", data=shapes), "--dry-run")
    assert code == 0, errors
    assert "GiB" in output
    words = " ".join(output.split())
    assert "base step: shared with finetune, frozen, lwf, ilt, mib, plop, sdr, ewc" in words
    assert "not yet in the step cache" in words
    rows = [line for line in output.splitlines() if line.startswith("│")]
    assert len(rows) == 3
    assert not (own_home / "steps").exists()


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("lwf-mc", "base step: shared with lwf-mc+ucd;"),
        ("ilt-output", "base step: shared with ilt-feature, ilt-freeze,"),
        ("pi", "keeps pi: during training, from step 0 on"),
        ("plop", "keeps medians: a pass before each later step"),
        ("joint", "base step: of its own;"),
    ],
)
def test_a_dry_run_says_whose_base_step_it_shares_and_what_it_keeps(
    run: Run, shapes: Prepared, method: str, told: str
) -> None:
    code, output, errors = run(*tiny("train", data=shapes), "--method", method, "--dry-run")
    assert code == 0, errors
    assert told in " ".join(output.split())


def test_a_dry_run_leaves_out_methods_that_the_recipe_does_not_suit(
    run: Run, shapes: Prepared
) -> None:
    small = (
        "--set",
        "data.crop=48",
        "--set",
        "model.output_stride=16",
    )  # too small for plop's maps
    code, output, errors = run(*tiny("train", data=shapes), *small, "--dry-run")
    assert code == 0, errors
    assert "base step: shared with finetune, frozen, lwf, ilt, mib, sdr, ewc" in " ".join(
        output.split()
    )


def test_a_dry_run_says_that_the_base_step_is_there(run: Run, shapes: Prepared) -> None:
    short = ["--set", "optim.iterations_base=2", "--set", "optim.iterations_new=1"]
    run(*tiny("train", data=shapes), *short)
    code, output, _ = run(*tiny("train", data=shapes), *short, "--method", "lwf", "--dry-run")
    assert code == 0
    assert "; in the step cache" in " ".join(output.split())


def test_training_shows_every_step_and_continues_from_the_cache(
    run: Run, shapes: Prepared, own_home: Path
) -> None:
    short = ["--set", "optim.iterations_base=2", "--set", "optim.iterations_new=1"]
    code, output, errors = run(*tiny("train", data=shapes), *short)
    assert code == 0, errors
    assert output.count("done (") == 3
    assert len(list((own_home / "steps").glob("*/entry.json"))) == 3
    assert list((own_home / "runs").rglob("state.pt")) == []
    code, output, _ = run(*tiny("train", data=shapes), *short)
    assert output.count("from the step cache") == 3


@pytest.fixture
def study(own_home: Path) -> Path:
    """A study with one finished trial in the database at home."""
    book = open_book(own_home)
    book.database.save_spec("study", book.spec.model_dump_json(), ABOUT)
    run_trial(book, 12.5)
    return own_home


@pytest.mark.usefixtures("study")
def test_results_leave_in_every_format(run: Run, tmp_path: Path) -> None:
    import pyarrow.parquet

    code, output, _ = run("results", "study")
    assert code == 0
    assert "12.5" in output
    _, text, _ = run("results", "study", "--format", "json")
    assert json.loads(text)[0]["value"] == 12.5
    _, text, _ = run("results", "study", "--format", "csv")
    assert next(csv.DictReader(io.StringIO(text)))["state"] == "COMPLETE"
    for form in TABLE_FORMATS:
        path = tmp_path / f"out.{form}"
        assert run("results", "study", "--format", form, "--out", str(path))[0] == 0
    assert "12.5" in (tmp_path / "out.table").read_text()
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").num_rows == 1


@pytest.mark.usefixtures("study")
def test_results_are_views_with_filters_order_and_limit(run: Run) -> None:
    book = TrialBook(spec_of(), Database(places().database))
    book.next_trial()
    for step in range(2):
        book.report(1, step_report(step, 60.0 + step))
    book.report(1, {"kind": "done", "value": 61.0})
    book.close(1)
    assert "61.0" in run("results", "study", "--view", "steps", "--filter", "step=1")[1]
    options = ("--order-by", "-iou", "--limit", "2", "--format", "csv")
    _, text, _ = run("results", "study", "--view", "classes", *options)
    assert [row["iou"] for row in csv.DictReader(io.StringIO(text))] == ["90", "90"]
    _, text, _ = run("results", "study", "--filter", "value>12", "--filter", "value<20")
    assert "12.5" in text and "61.0" not in text


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--view", "trails"), ("unknown view 'trails'", "'trials'")),
        (("--filter", "state"), ("filter 'state' must be COLUMN=VALUE",)),
        (("--filter", "sate=COMPLETE"), ("no column 'sate'", "'state'")),
        (("--filter", "state=FAILED"), ("no row of view 'trials'", "'state=FAILED'")),
        (("--order-by", "vlue"), ("no column 'vlue'", "'value'")),
        (("--view", "steps"), ("nothing for view 'steps' yet",)),
    ],
)
def test_results_that_cannot_be_had_are_refused_and_write_nothing(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    path = tmp_path / "out.csv"
    assert_refused(
        run("results", "study", *arguments, "--format", "csv", "--out", str(path)), *parts
    )
    assert not path.exists()


def test_the_paper_table_has_own_and_published_rows_and_numbers_what_marks_them(
    run: Run, own_home: Path
) -> None:
    voc_study(Database(places().database), "study", voc(60, 20))
    code, output, errors = run("results", "study", "--view", "paper")
    assert code == 0, errors
    assert [line for line in output.splitlines() if "mib+ucd" in line and "60.0" in line]
    assert "MiB+UCD" in output and "joint bound 77.4 there, unknown here" in output
    assert "setting disjoint there" not in output
    assert (
        "setting disjoint there, overlapped here"
        in run("results", "study", "--view", "paper", "--all-rows", "--limit", "999")[1]
    )
    options = ("--columns", "method,0-15,all", "--background", "with", "--best", "1")
    _, text, _ = run("results", "study", "--view", "paper", *options, "--format", "csv")
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["method", "0-15", "all"]
    assert ["PLOP", "65.12", "54.64"] in rows
    refused = run("results", "study", "--best", "2")
    assert_refused(refused, "--best: only --view paper has it, not 'trials'")


def test_published_rows_are_shown_without_a_study(run: Run) -> None:
    options = ("--filter", "setting=disjoint", "--order-by", "-all", "--format", "csv")
    _, text, _ = run("results", "--published", "voc-15-1", *options)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["setting"] for row in rows} == {"disjoint"}
    assert [row["all"] for row in rows if row["method"] == "MiB+UCD"] == ["43.5"]
    assert "code of UCD" in next(row["known_from"] for row in rows if row["method"] == "MiB+UCD")
    assert "MiB+UCD" in run("results", "--published", "voc-15-1")[1]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("give either the name of a study or --published SCENARIO",)),
        (("study", "--published", "voc-15-1"), ("give either the name of a study or",)),
        (("--published", "voc-15-x"), ("unknown scenario 'voc-15-x'", "voc-15-5")),
        (("--published", "msrc-16-5"), ("no published rows for 'msrc-16-5'", "voc-15-1")),
        (("--published", "voc-15-1", "--filter", "all>99"), ("no published row", "'all>99'")),
        (("--published", "voc-15-1", "--columns", "methd"), ("no column 'methd'", "'method'")),
    ],
)
def test_published_rows_that_cannot_be_had_are_refused(
    run: Run, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert_refused(run("results", *arguments), *parts)


def test_a_damaged_file_of_published_rows_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "rows.csv"
    damaged.write_text(published.ROWS.read_text().replace("overlapped,,FT,miou_20,12.9", "x"))
    monkeypatch.setattr(published, "ROWS", damaged)
    published.published_rows.cache_clear()
    refused = run("results", "--published", "voc-15-1")
    published.published_rows.cache_clear()
    assert_refused(refused, f"'{damaged}', line 6, column 'step'")


@pytest.mark.usefixtures("study")
def test_results_of_a_misspelt_study_name_the_nearest(run: Run, tmp_path: Path) -> None:
    assert_refused(run("results", "stduy"), "did you mean 'study'")
    result = run("results", "study", "--format", "csv", "--out", str(tmp_path))
    assert_refused(result, "cannot write", "Is a directory")


@pytest.mark.usefixtures("study")
def test_studies_are_listed_with_their_best_value(run: Run) -> None:
    code, output, _ = run("study", "list")
    assert code == 0
    row = next(line for line in output.splitlines() if "│ study" in line)
    assert "1 of 6" in row
    assert "12.50 (trial 0)" in row


def test_no_studies_are_an_empty_list(run: Run) -> None:
    code, output, _ = run("study", "list")
    assert code == 0
    assert "studies.db" in output


# Commands of studies; `tests/tune/test_manage.py` has those that a driver answers.


@pytest.mark.usefixtures("study")
def test_show_says_where_a_study_stands(run: Run) -> None:
    code, output, errors = run("study", "show", "study")
    assert code == 0, errors
    assert "study study: not running" in output
    assert "best: 12.50 (trial 0)" in output
    assert "1 of 6 trials" in output
    _, text, _ = run("study", "show", "study", "--format", "json")
    content = json.loads(text)
    assert (content["state"], content["states"], content["best"]) == (
        *("not running", {"COMPLETE": 1}, {"numbers": [0], "text": "12.50 (trial 0)"}),
    )


def test_show_lists_open_trials_with_what_they_wait_for(run: Run, own_home: Path) -> None:
    book = open_book(own_home)
    book.database.save_spec("study", book.spec.model_dump_json(), ABOUT)
    book.database.claim("study")
    for _ in range(2):
        book.next_trial()
    book.study.enqueue_trial({"kd.weight": 20.0})
    book.say_waiting(1, "needs 4 GPUs, 2 free")
    log = EventLog(book.database, "study")
    log.add("trial 0 step 1 epoch 3/9: ce 0.5", kind="epoch", number=0)
    log.close()
    code, output, errors = run("study", "show", "study")
    assert code == 0, errors
    assert f"study study: running; driven by process {os.getpid()} on" in output
    assert "QUEUED 1  RUNNING 1  WAITING 1" in output
    rows = [line.split("│") for line in output.splitlines() if line.startswith("│")]
    shown = {row[1].strip(): [cell.strip() for cell in row[2:4]] for row in rows if len(row) == 6}
    assert shown["0"] == ["RUNNING", "step 1 epoch 3/9: ce 0.5"]
    assert shown["1"] == ["WAITING", "needs 4 GPUs, 2 free"]
    assert shown["2"] == ["QUEUED", ""]


def test_logs_are_printed_with_their_time_and_by_trial(run: Run, study: Path) -> None:
    database = Database(f"sqlite:///{study}/studies.db")
    log = EventLog(database, "study")
    for number in (0, 1):
        log.add(f"trial {number} [started]", number=number)
    log.close()
    code, output, _ = run("study", "logs", "study", "--follow")
    assert code == 0
    assert [line[19:] for line in output.splitlines()] == [
        *("  trial 0 [started]", "  trial 1 [started]"),
    ]
    assert run("study", "logs", "study", "--trial", "1")[1].endswith("  trial 1 [started]\n")
    assert run("study", "logs", "study", "--last", "1")[1].count("\n") == 1


@pytest.mark.usefixtures("study")
def test_commands_without_a_driver_end_well_and_may_be_repeated(run: Run) -> None:
    for _ in range(2):
        for name, said in (
            ("pause", "is paused; nothing runs it"),
            ("stop", "nothing runs study 'study'"),
            ("resume", "nothing runs it: `ucd-ray study run study` does"),
        ):
            code, output, errors = run("study", name, "study")
            assert code == 0, errors
            assert said in output
    assert "has ended already: COMPLETE" in run("study", "cancel", "study", "0")[1]


def test_a_study_is_deleted_after_a_question(
    run: Run, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(f"sqlite:///{study}/studies.db")
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert run("study", "delete", "study")[0] == 1
    assert database.spec("study") is not None
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    code, output, _ = run("study", "delete", "study")
    assert code == 0
    assert "study 'study' is deleted" in output
    assert database.spec("study") is None
    code, output, _ = run("study", "delete", "study", "--yes")
    assert (code, output) == (0, "there is no study 'study'\n")


def test_options_of_a_study_become_fields_of_its_spec() -> None:
    settings = study_settings(
        trials=3,
        max_hours="2.5",
        patience="none",
        max_concurrent="2",
        gpus_per_worker="0.5",
        terminator=False,
        keep_best=None,
        executor="run-per-trial",
    )
    assert settings == {
        "trials": 3,
        "max_hours": 2.5,
        "patience": None,
        "max_concurrent": 2,
        "gpus_per_worker": 0.5,
        "terminator": False,
        "trials_per_run": 1,
    }
    assert study_settings(executor="warm-gangs") == {"trials_per_run": None}
    assert study_settings(executor=None, trials_per_run="5") == {"trials_per_run": 5}


def test_a_study_may_go_on_with_other_budgets_and_parallelism() -> None:
    beside = {"name", "address", "executor", "tensorboard"}
    fields = {*inspect.signature(study_run).parameters} - beside
    assert fields == MAY_CHANGE
    spec = changed(spec_of(max_hours=1.0), {"max_hours": None, "trials": 9, "patience": 4})
    assert (spec.max_hours, spec.trials, spec.patience) == (None, 9, 4)
    with pytest.raises(ConfigError, match=r"patience \(0\)"):
        changed(spec_of(), {"patience": 0})


def test_a_study_is_planned_without_being_started(
    run: Run, shapes: Prepared, own_home: Path
) -> None:
    code, output, errors = run(*tiny("tune", data=shapes), "--dry-run", "--trials", "7")
    assert code == 0, errors
    assert "7 trial(s) to run" in output
    assert "without the step cache" in output
    assert Database(f"sqlite:///{own_home}/studies.db").studies() == []


# Spaces.


def test_the_schema_of_a_study_is_printed_as_json(run: Run) -> None:
    code, out, _ = run("config", "--schema", "study")
    assert code == 0
    assert "recipe" in json.loads(out)["properties"]


def test_config_shows_where_keys_exist_and_what_constrains_them(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "scenario: shapes-8-4\nconstraints: [optim.lr_new <= optim.lr_base]\nsearch:\n"
        "  method: {choices: [mib, plop]}\n  optim.lr_new: {low: 0.001, high: 0.1}\n"
        "  pod.weight: {choices: [0.01, 0.02]}\n"
    )
    code, out, _ = run("config", "shapes-8-4", "--space", str(path))
    text = " ".join(out.split())
    assert code == 0
    assert "shapes-8-4, method mib, plop" in text
    assert "{0.01, 0.02} where method is plop" in text
    assert "optim.lr_new <= optim.lr_base" in text
    code, out, _ = run("config", "shapes-8-4", "--space", str(path), "--explain")
    assert code == 0
    assert "Factor of this term" in out, "also of keys that the first method has not"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["config"], "give a scenario"),
        (["config", "--schema", "stud"], "unknown schema 'stud'; did you mean 'study'"),
        (["config", "shapes-8-4", "--method", "mib,plopp"], "unknown method 'plopp'"),
        ([*tiny("tune"), "--constraint", "kd.wait < 1"], "unknown key 'kd.wait'; did you mean"),
        ([*tiny("tune"), "--constraint", "kd.weight = 1"], "must compare keys and numbers"),
        ([*tiny("tune"), "--constraint", "kd.weight < 0"], "leaves nothing to try"),
    ],
)
def test_a_wrong_space_is_refused(run: Run, arguments: list[str], part: str) -> None:
    assert_refused(run(*arguments), part)


# The best trial, trained again, and the use of networks.


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("train",), ("give --scenario", "--recipe FILE")),
        (("train", *SHAPES, "--other-data"), ("--other-data goes with --recipe",)),
        (("train", "--recipe", "absent.yaml"), ("recipe 'absent.yaml'", "No such file")),
        (("train", "--recipe", "a.yaml", "--seed", "0"), ("--seed does not go with --recipe",)),
        (("train", "--recipe", "a.yaml", "--set", "a=1"), ("--set does not go with --recipe",)),
        (("train", *SHAPES, "--save", "a.pth"), ("--save 'a.pth'", ".safetensors")),
        (("train", *SHAPES, "--save", "/absent/a.safetensors"), ("no directory '/absent'",)),
        (("study", "best", "nothing"), ("no study 'nothing'",)),
        (("study", "best", "nothing", "--format", "xml"), ("unknown format 'xml'",)),
        (("evaluate", "--network", "nothing"), ("no study 'nothing'",)),
        (("evaluate", "--network", "a.safetensors"), ("'a.safetensors'", "no such file")),
        (("evaluate", "--network", "a", "--images", "test"), ("unknown images 'test'", "val")),
        (("evaluate", "--network", "a", "--format", "xml"), ("unknown format 'xml'",)),
        (("export", "--network", "nothing", "--no-onnx"), ("no study 'nothing'",)),
        (("predict", "absent.png", "--network", "a"), ("image 'absent.png' does not exist",)),
        (("predict", str(Path(__file__)), "--network", "nothing"), ("no study 'nothing'",)),
    ],
)
def test_commands_for_networks_refuse_wrong_input(
    run: Run, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert_refused(run(*arguments), *parts)


def test_a_network_is_trained_saved_scored_exported_and_used(
    run: Run, shapes: Prepared, tmp_path: Path
) -> None:
    network, out = tmp_path / "net.safetensors", tmp_path / "out"
    short = ("--set", "optim.epochs_base=1", "--set", "optim.epochs_new=1")
    code, text, errors = run(*tiny("train", data=shapes), *short, "--save", str(network))
    assert (code, f"wrote {network}" in text) == (0, True), errors
    chosen = ("--network", str(network))
    code, text, _ = run("evaluate", *chosen, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert (code, len([row for row in rows if row["kind"] == "class"])) == (0, 13)
    code, _, _ = run("export", *chosen, "--no-onnx", "--out", str(out))
    assert (code, sorted(p.name for p in out.iterdir())) == (
        *(0, ["classes.txt", "network.safetensors"]),
    )
    from PIL import Image

    Image.new("RGB", (30, 20)).save(tmp_path / "scene.jpg")
    code, text, _ = run(
        "predict", str(tmp_path / "scene.jpg"), *chosen, "--out", str(tmp_path / "masks")
    )
    assert (code, "scene.jpg: " in text) == (0, True)
    assert (tmp_path / "masks/scene-mask.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--objective", "miou_old", "--objective", "drop"], "pruner none"),
        (["--objective", "seconds"], "pruner none"),
        (
            ["--objective", "miou_old", "--objective", "drop", "--prune-on", "miou_all"],
            "pruner median",
        ),
        (["--objective", "forgetting", "--constraint", "drop <= 2"], "pruner median"),
    ],
)
def test_nothing_prunes_by_itself_where_nothing_can(
    run: Run, shapes: Prepared, arguments: list[str], expected: str
) -> None:
    code, out, errors = run(*tiny("tune", data=shapes), *arguments, "--dry-run")
    assert code == 0, errors
    assert expected in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--objective", "miou_old", "--objective", "miou_nw"], "did you mean 'miou_new'"),
        (["--objective", "miou_old", "--objective", "drop", "--pruner", "median"], "prune_on"),
        (["--constraint", "forgeting <= 2"], "unknown metric 'forgeting'"),
        (["--prune-on", "seconds"], "is not measured after every epoch"),
    ],
)
def test_wrong_goals_are_refused(run: Run, arguments: list[str], part: str) -> None:
    assert_refused(run(*tiny("tune"), *arguments), part)


# Presets.


def test_presets_are_listed_with_what_they_should_give(run: Run) -> None:
    code, out, _ = run("presets")
    assert code == 0
    assert "voc-15-1/mib+ucd" in out


@pytest.mark.parametrize("command", ["tune", "train"])
def test_a_preset_tells_its_numbers_and_is_checked(run: Run, tmp_path: Path, command: str) -> None:
    arguments = (command, "--preset", "voc-15-1/mib", "--data", str(tmp_path), "--dry-run")
    code, out, errors = run(*arguments)
    assert (code, "should give mIoU" in out) == (2, True), "its data are not there"
    assert "error: " in errors
    assert_refused(run(command, "--preset", "voc-15-1/mibb"), "did you mean 'voc-15-1/mib'?")
    assert_refused(run(command), "give --scenario")


# Edits and queued trials.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1..300,log", {"low": 1, "high": 300, "log": True}),
        ("1e-4 .. 1e-2, log", {"low": 1e-4, "high": 1e-2, "log": True}),
        ("-1..1", {"low": -1, "high": 1}),
        ("64..512,int,step=64", {"low": 64, "high": 512, "type": "int", "step": 64}),
        ("[256, 512, null]", {"choices": (256, 512, None)}),
        ("[standard, authors]", {"choices": ("standard", "authors")}),
    ],
)
def test_a_range_is_read_from_the_command_line(text: str, expected: dict[str, Any]) -> None:
    assert read_range("kd.weight", text) == Parameter.model_validate(expected)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("nothing to edit", "--search")),
        (("--search", "kd.weight"), ("--search 'kd.weight'", "KEY=VALUE")),
        (("--search", "kd.weight=1..2,lg"), ("kd.weight=1..2,lg", "LOW..HIGH")),
        (("--search", "kd.weight=1-2"), ("kd.weight=1-2", "LOW..HIGH")),
        (("--search", "kd.weight=5..2"), ("kd.weight", "low (5.0) must be below high (2.0)")),
        (("--search", "kd.weight=[]"), ("kd.weight", "choices is empty")),
        (("--search", "kd.wieght=1..2"), ("kd.wieght", "'kd.weight'")),
        (("--search", "optim.epochs_new=1..2,int"), ("'optim.epochs_new' is fixed at 2",)),
        (("--add-choice", "kd.weight=3"), ("'kd.weight' has a range",)),
        (("--space", "nothing"), ("no search space 'nothing'",)),
        (("--max-concurrent", "few"), ("--max-concurrent ('few')", "whole number")),
    ],
)
def test_a_wrong_edit_is_one_message_and_changes_nothing(
    run: Run, own_home: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    database = open_book(own_home).database
    before = database.stored_spec("study")
    assert_refused(run("study", "edit", "study", *arguments), *parts)
    assert database.stored_spec("study") == before


def test_a_study_is_edited_and_given_trials_from_the_command_line(run: Run, own_home: Path) -> None:
    open_book(own_home)
    code, out, _ = run(
        *("study", "edit", "study", "--search", "kd.weight=1..300,log", "--trials", "40"),
        *("--add-choice", "ucd.max_old=512"),
    )
    assert (code, "revision 1: kd.weight: 1 .. 200 log -> 1 .. 300 log" in out) == (0, True)
    code, out, _ = run("study", "enqueue", "study", "--set", "kd.weight=400")
    assert code == 0
    assert "trial 1 is queued with kd.weight=400" in out
    assert "outside of its range 1 .. 300 log" in out
    assert_refused(run("study", "enqueue", "study"), "nothing to queue", "--set")
    code, out, _ = run("study", "show", "study")
    assert "revisions" in out
    assert "trials: 6 -> 40" in out


def test_the_ranges_of_a_file_replace_those_of_a_study(
    run: Run, own_home: Path, tmp_path: Path
) -> None:
    database = open_book(own_home).database
    file = tmp_path / "space.yaml"
    file.write_text(
        "scenario: shapes-8-2\nmethod: mib+ucd\nsearch:\n"
        "  kd.weight: {low: 2, high: 50, log: true}\n"
        "  ucd.max_old: {choices: [256, null]}\n"
        "  optim.epochs_new: {low: 1, high: 3, type: int}\n"
    )
    code, out, errors = run("study", "edit", "study", "--space", str(file))
    assert code == 0, errors
    assert "kd.weight: 1 .. 200 log -> 2 .. 50 log" in out
    spec = database.stored_spec("study")
    assert spec["search"]["kd.weight"]["high"] == 50
    assert "optim.epochs_new" not in spec["search"], "the study fixes it"
    assert "ucd.weight" in spec["recipe"] or "ucd.weight" in spec["search"]


def test_the_same_command_after_an_edit_keeps_budgets_and_names_the_differences(
    own_home: Path,
) -> None:
    spec = spec_of()
    database = open_book(own_home, spec).database
    edit(database, "study", Edit(settings={"trials": 40, "patience": 9}))
    assert (with_edits(spec).trials, with_edits(spec).patience) == (40, 9)
    assert with_edits(changed(spec, {"trials": 50})).trials == 50
    edit(database, "study", Edit(search={"kd.weight": Parameter(low=20, high=100)}))
    with pytest.raises(StudyError) as error:
        register(database, with_edits(spec), spec.base_recipe())
    assert "kd.weight ({low: 20.0, high: 100.0" in str(error.value)
    assert "`ucd-ray study run study` goes on with the edited values" in str(error.value)
    register(database, parsed(database.stored_spec("study")), spec.base_recipe())
