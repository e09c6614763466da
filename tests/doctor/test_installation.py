from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from ucd_ray.doctor import installation
from ucd_ray.doctor.finding import Finding


def test_this_installation_is_fine() -> None:
    found = [*installation.python(), *installation.packages()]
    assert {finding.state for finding in found} == {"ok"}
    assert platform.python_version() in found[0].found and "torch" in found[1].found


def test_a_package_that_is_too_old_or_absent_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = ["numpy>=999", "no-such-package[extra]>=1", "never; extra == 'x'", "pillow>=1"]
    monkeypatch.setattr(installation, "requires", lambda _: needed)
    old, absent = installation.packages()
    assert "numpy" in old.found and "numpy>=999 is needed" in old.found
    assert old.mend == "pip install 'numpy>=999'"
    assert "no-such-package is not installed" in absent.found
    assert absent.mend == "pip install 'no-such-package[extra]>=1'"
    assert old.state == absent.state == "wrong"


def test_another_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.platform, "python_version", lambda: "3.9.1")
    (found,) = installation.python()
    assert found.state == "wrong" and "3.9.1" in found.found and ">=3.11" in found.mend


SEEN: dict[str, Any] = {"cuda": "12.8", "cards": ["H100", "H100"], "problem": None, "nccl": True}


@pytest.fixture(autouse=True)
def _c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/usr/bin/cc")


def gpus(monkeypatch: pytest.MonkeyPatch, there: int, **seen: Any) -> list[Finding]:
    monkeypatch.setattr(installation, "local_gpus", lambda: there)
    monkeypatch.setattr(installation, "_seen_by_torch", lambda: {**SEEN, **seen})
    return list(installation.gpus())


def test_cards_that_torch_sees_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = gpus(monkeypatch, 2)
    assert found.state == "ok" and "2 of 2 visible: H100" in found.found


@pytest.mark.parametrize(
    ("seen", "told", "mend"),
    [
        ({"cuda": None}, "built without CUDA", "with CUDA"),
        ({"cards": [], "problem": "driver too old"}, "driver too old", "install a driver"),
        ({"nccl": False}, "no NCCL", "NCCL"),
    ],
    ids=["cpu-build", "driver", "nccl"],
)
def test_cards_that_cannot_be_used_are_a_finding(
    seen: dict[str, Any], told: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = [f for f in gpus(monkeypatch, 2, **seen) if f.state == "wrong"]
    assert told in found.found and mend in found.mend


def test_without_a_c_compiler_there_are_no_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC")
    _, found = gpus(monkeypatch, 2)
    assert found.state == "wrong" and "no C compiler" in found.found and "libc6-dev" in found.mend


def test_a_torch_that_does_not_load_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "local_gpus", lambda: 1)
    monkeypatch.setattr(installation, "PROBE", "raise OSError('libcudart is missing')")
    (found,) = installation.gpus()
    assert "libcudart is missing" in found.found and "reinstall" in found.mend


def test_without_cards_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "local_gpus", lambda: 0)
    assert [finding.state for finding in installation.gpus()] == ["note"]
