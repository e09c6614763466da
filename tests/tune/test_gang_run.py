"""What a gang's Ray Train run starts and loads, without a cluster."""

from __future__ import annotations

import re
import subprocess
import sys

from ray.train import ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from ucd_ray.tune.gang_run import ControlGroup, GangTrainer, free_url


def parts_of(trainer: DataParallelTrainer) -> set[str]:
    return {type(part).__name__ for part in trainer._create_default_callbacks()}


def test_a_gang_has_all_parts_of_a_run_but_those_for_data_sets() -> None:
    scaling, group = ScalingConfig(num_workers=1), ControlGroup("gloo", 60)
    plain = DataParallelTrainer(print, scaling_config=scaling, backend_config=group)
    ours = GangTrainer(print, scaling_config=scaling, backend_config=group)
    assert parts_of(plain) - parts_of(ours) == {"DatasetsCallback"}
    assert "PlacementGroupCleanerCallback" in parts_of(ours)


def test_who_starts_a_gang_loads_no_torch() -> None:
    code = "import sys, ucd_ray.tune.gang_run, ucd_ray.tune.gangs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_workers_meet_at_a_port_of_this_node() -> None:
    assert re.fullmatch(r"tcp://(\[[0-9a-f:]+\]|[0-9.]+):\d{4,5}", free_url())
