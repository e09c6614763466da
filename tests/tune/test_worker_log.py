"""The lines of one worker: its warnings and records, its own error, never too many."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import pytest
import torch

from ucd_ray.errors import ConfigError
from ucd_ray.tune import worker_log
from ucd_ray.tune.worker_log import WorkerLog

Lines = list[dict[str, Any]]


def test_warnings_and_records_of_this_process_are_sent_with_their_level() -> None:
    lines: Lines = []
    with WorkerLog(lines.append, rank=1, node="10.0.0.2") as log, warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)  # pytest's own capture took it
        warnings.warn("lr is high", UserWarning, stacklevel=1)
        logging.getLogger("timm.models").warning("no weights for %s", "head")
        logging.getLogger("timm.models").info("not worth a line")
        log.ends("done")
    assert all(
        (line["kind"], line["rank"], line["node"]) == ("worker", 1, "10.0.0.2") for line in lines
    )
    begins, warning, record, ends = (line["text"] for line in lines)
    assert begins == f"begins in process {os.getpid()}"
    assert "test_worker_log.py" in warning and warning.endswith("UserWarning: lr is high")
    assert record == "timm.models: no weights for head"
    assert ends.startswith("done after 0.0 s; at most ")
    assert [line["level"] for line in lines] == ["info", "warning", "warning", "info"]


def test_the_last_line_has_the_peak_of_the_trial_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)  # of a GPU that is not there
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("begins"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2_340_000_000)
    lines: Lines = []
    with WorkerLog(lines.append, rank=0, node="here") as log:
        assert calls == ["begins"]
        log.ends("done")
    assert "at most 2.34 GB of its GPU; at most " in lines[-1]["text"]


def test_an_error_is_sent_with_its_traceback() -> None:
    lines: Lines = []
    with WorkerLog(lines.append, rank=0, node="here") as log:
        try:
            raise OSError("image 7 cannot be read")
        except OSError as error:
            log.ends("failed", error)
    _, trace, ends = lines
    assert trace["level"] == "error"
    assert trace["text"].startswith("Traceback") and trace["text"].endswith("cannot be read")
    assert ends["text"].startswith("failed after")


def test_a_mistake_of_the_user_has_no_traceback() -> None:
    lines: Lines = []
    with WorkerLog(lines.append, rank=0, node="here") as log:
        log.ends("failed", ConfigError("kd.weight must be positive"))
    assert lines[1]["text"] == "kd.weight must be positive"


def test_a_worker_that_repeats_itself_is_cut_off_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_log, "MOST", 5)
    lines: Lines = []
    with WorkerLog(lines.append, rank=0, node="here"):
        for _ in range(20):
            logging.getLogger("loop").error("again")
    assert len(lines) == 5
    assert lines[-1]["text"] == "said 5 lines about this trial; no more of them are kept"


def test_nothing_is_sent_once_it_is_closed() -> None:
    lines: Lines = []
    with WorkerLog(lines.append, rank=0, node="here"):
        pass
    logging.getLogger("after").error("late")
    assert len(lines) == 1
