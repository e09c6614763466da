"""The library's sentences as users of HTTP read them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import ucd_ray.tune
from tests.service.rows import app_with_study
from ucd_ray.service.studies import StudyRow, find_study
from ucd_ray.service.wording import worded

COMMAND = re.compile(r"`ucd-ray (?:study \w+|results) \{[^`\n]*`")


@pytest.fixture
def study(tmp_path: Path) -> StudyRow:
    row = find_study(app_with_study(tmp_path, 0).state.core.database, "abc")
    assert row is not None
    return replace(row, name="mine-abc", title="mine")


def test_every_command_that_the_library_advises_is_a_request_over_http(study: StudyRow) -> None:
    sources = Path(ucd_ray.tune.__file__).parent.rglob("*.py")
    advice = {text for path in sources for text in COMMAND.findall(path.read_text("utf-8"))}
    assert len(advice) > 8
    for text in advice:
        sentence = re.sub(r"\{[^}]+\}", "4", re.sub(r"\{[^}]+\}", study.name, text, count=1))
        assert re.match("`(GET|POST|PATCH) /v1/studies/abc", worded(sentence, [study])), text


def test_other_studies_and_other_commands_stay(study: StudyRow) -> None:
    told = "`ucd-ray study run other-abc` and `ucd-ray train --recipe recipe.yaml`"
    assert worded(told, [study]) == told
    assert worded("trial 3 of study 'mine-abc'", [study]) == "trial 3 of study 'mine'"
