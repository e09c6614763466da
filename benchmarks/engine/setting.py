"""What all parts share: a private head with an empty home, and studies of tiny trials."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

TINY: dict[str, Any] = {
    "scenario": "shapes-8-4",
    "method": "mib",
    "model.backbone": "test_resnet",
    "model.width": 16,
    "model.output_stride": 16,
    "data.crop": 48,
    "data.batch_size": 16,
    "optim.iterations_base": 8,
    "optim.epochs_new": 2,  # two seconds
    "optim.lr_base": 0.05,
    "eval.max_images": 8,
    "compute.deterministic": True,
}
SEARCH = {"kd.weight": {"low": 1, "high": 200, "log": True}}
console = Console(width=140)


@contextmanager
def head() -> Iterator[tuple[str, Path]]:
    """A private Ray head and an empty UCD_RAY_HOME."""
    from ucd_ray.tune.cluster import LEAN, local_head

    home = Path(tempfile.mkdtemp(prefix="ucd-", dir="/tmp"))
    os.environ.update({**LEAN, "UCD_RAY_HOME": str(home), "OMP_NUM_THREADS": "1"})
    try:
        with local_head(home) as (address, _):
            yield address, home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection for stock parts, with our lean environment."""
    import ray

    from ucd_ray.tune.cluster import LEAN
    from ucd_ray.tune.single import quiet_ray

    environment = {**{key: os.environ[key] for key in LEAN}, "RAY_ADDRESS": address}
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address, runtime_env={"env_vars": environment}, **options)
    try:
        with quiet_ray():
            yield
    finally:
        ray.shutdown()


def spec(name: str, trials: int, workers: int, recipe: dict[str, Any] = TINY, **more: Any) -> Any:
    """A study of tiny trials, one at a time."""
    from ucd_ray import StudySpec

    values = {"name": name, "recipe": recipe, "search": SEARCH, "trials": trials, "pruner": "none"}
    return StudySpec.model_validate({**values, "workers": workers, "max_concurrent": 1, **more})


def by_value(*modules: str) -> None:
    """Workers get the functions of these modules with their tasks: they cannot import them."""
    import sys

    from ray import cloudpickle

    for module in modules:
        cloudpickle.register_pickle_by_value(sys.modules[module])
