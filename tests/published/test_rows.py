"""The published rows that come with the package, and what becomes of damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ucd_ray.errors import DataError
from ucd_ray.published import PublishedRow, published_rows, read_rows, scenarios
from ucd_ray.published.rows import FACTS, ROWS
from ucd_ray.scenarios import KNOWN_SCENARIOS

HEAD = "source,table,scenario,setting,step,method,metric,value\n"
ROW = "P (2020),Table 1,voc-15-5,overlapped,,A,miou_all,61.5\n"
FACTS_HEAD = "source,scenario,method,fact,value,from\n"

Read = Callable[..., list[PublishedRow]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads rows and facts from text."""

    def read_text(rows: str, facts: str = "") -> list[PublishedRow]:
        (tmp_path / "rows.csv").write_text(rows)
        (tmp_path / "facts.csv").write_text(FACTS_HEAD + facts)
        return read_rows(tmp_path / "rows.csv", tmp_path / "facts.csv")

    return read_text


def find(source: str, method: str, scenario: str, setting: str) -> PublishedRow:
    found = [
        row
        for row in published_rows()
        if (row.source, row.method, row.step) == (source, method, None)
        and (row.protocol.scenario, row.protocol.setting) == (scenario, setting)
    ]
    assert len(found) == 1
    return found[0]


def test_a_published_row_has_its_numbers_its_protocol_and_its_sources() -> None:
    row = find("UCD (2203.14098) authors repo image", "PLOP+UCD", "voc-15-1", "overlapped")
    assert (row.value("miou_1_15"), row.value("miou_16_20"), row.value("miou_all")) == (
        *(66.3, 21.6, 55.1),
    )
    protocol = row.protocol
    assert (protocol.backbone, protocol.head, protocol.crop) == ("resnet101", "deeplabv3", "512")
    assert (protocol.background, protocol.joint) == ("without", "77.4")
    assert "crop: code of UCD: crop_val is its default" in row.known_from
    assert not row.is_joint


def test_a_row_keeps_the_step_it_was_measured_after() -> None:
    steps = {
        row.step
        for row in published_rows()
        if row.method == "L'_D" and row.protocol.scenario == "voc-15-1"
    }
    assert steps == {None, 1, 2, 3, 4, 5}


def test_what_no_source_says_is_not_known() -> None:
    row = find("leaderboard entry for 1907.13372", "ILT", "voc-15-1", "disjoint")
    assert (row.protocol.backbone, row.protocol.crop, row.protocol.background) == (None, None, None)
    mib = find("MiB (2002.00718)", "MiB", "ade-100-50", "disjoint")
    assert (mib.protocol.class_order, mib.protocol.background) == (None, "without")


def test_copies_of_another_convention_are_told_from_their_neighbours() -> None:
    source = "UCD (2203.14098) authors repo image"
    for method, background in (("MiB", "without"), ("MiB+SDR", "with"), ("MiB+UCD", "without")):
        assert find(source, method, "voc-15-1", "disjoint").protocol.background == background


def test_most_scenarios_with_a_search_space_have_published_rows() -> None:
    assert set(scenarios()) & set(KNOWN_SCENARIOS) >= {
        *("voc-19-1", "voc-15-5", "voc-15-1", "voc-10-1", "voc-5-3"),
        *("ade-100-50", "ade-100-10", "ade-50-50", "ade-100-5"),
    }


def test_every_fact_is_about_some_row() -> None:
    known = {fact for row in published_rows() for fact in row.known_from}
    lines = FACTS.read_text().splitlines()[1:]
    for line in lines:
        *_, fact, _, place = line.split(",", 5)
        shown = {f"{fact}: {place}", f"{fact}: arithmetic on this row"}
        assert shown & known, line


# The files.


def test_a_row_gathers_its_numbers_and_later_facts_replace_earlier_ones(read: Read) -> None:
    facts = "P*,*,*,crop,512,code\nP*,voc-*,A,crop,none,issue 3\nQ,*,*,backbone,resnet18,code\n"
    row = read(HEAD + ROW + ROW.replace("miou_all,61.5", "miou_1_15,70"), facts)[0]
    assert dict(row.values) == {"miou_all": "61.5", "miou_1_15": "70"}
    assert (row.protocol.crop, row.protocol.backbone) == ("none", None)
    assert row.known_from == ("crop: issue 3",)


@pytest.mark.parametrize(
    ("rows", "line", "column", "what"),
    [
        (
            HEAD.replace("metric", "metrics") + ROW,
            1,
            "metric",
            "the head has 'metrics' in its place",
        ),
        ("", 1, "source", "the head has '' in its place"),
        (HEAD + ROW + ROW, 3, "metric", "'miou_all' stands twice"),
        (HEAD + ROW.replace("61.5", "6l.5"), 2, "value", "'6l.5' is no number from 0 to 100"),
        (HEAD + ROW.replace("61.5", "161.5"), 2, "value", "'161.5' is no number from 0 to 100"),
        (HEAD + ROW.replace("61.5", "nan"), 2, "value", "'nan' is no number"),
        (HEAD + ROW.replace("overlapped", "overlaped"), 2, "setting", "did you mean 'overlapped'"),
        (HEAD + ROW.replace("voc-15-5", "15-5"), 2, "scenario", "'15-5' is not like voc-15-1"),
        (HEAD + ROW.replace("miou_all", "all"), 2, "metric", "'all' is none"),
        (HEAD + ROW.replace(",,", ",last,"), 2, "step", "'last' is no number of a step"),
        (HEAD + ROW.replace(",A,", ",,"), 2, "method", "it is empty"),
        (HEAD + ROW + "P (2020),Table 1\n", 3, "scenario", "the line has 2 cells, not 8"),
        (HEAD + ROW.replace("\n", ",\n"), 2, "value", "the line has 9 cells, not 8"),
        (HEAD + '"P', 2, "value", "unexpected end of data"),
    ],
)
def test_a_damaged_file_is_refused_with_line_and_column(
    read: Read, rows: str, line: int, column: str, what: str
) -> None:
    with pytest.raises(DataError) as refused:
        read(rows)
    message = str(refused.value)
    assert f"rows.csv', line {line}, column '{column}': " in message
    assert what in message


@pytest.mark.parametrize(
    ("facts", "column", "what"),
    [
        ("P,*,*,backbon,resnet101,code\n", "fact", "'backbon' is none; did you mean 'backbone'"),
        ("P,*,*,setting,disjoint,code\n", "fact", "'setting' is none"),
        ("P,*,*,backbone,resnet101,\n", "from", "it is empty"),
        ("P,*,*,joint,high,code\n", "value", "'high' is no number from 0 to 100"),
    ],
)
def test_damaged_facts_are_refused_with_line_and_column(
    read: Read, facts: str, column: str, what: str
) -> None:
    with pytest.raises(DataError, match=f"facts.csv', line 2, column '{column}': {what}"):
        read(HEAD + ROW, facts)


def test_an_absent_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"cannot read published rows '.*absent\.csv': No such file"
    ):
        read_rows(ROWS, tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"binary\.csv' are not UTF-8 text"):
        read_rows(tmp_path / "binary.csv", FACTS)
