"""The Ray Train run that is a gang, without what ours does not need.

`TorchTrainer` loads torch where the run is started and where it is controlled, and starts an actor that
hands out data sets: together three seconds of a CPU and 400 MB of memory for each gang.  Here only the
workers load torch, and they read their images themselves.
"""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from ucd_ray.errors import ClusterError
from ucd_ray.tune.nodes import on_this_node

LEAVE_S = 5.0  # for workers to leave their process group in order
UNUSED = ("DatasetsCallback",)  # parts of a run that only serve Ray Data


@dataclass
class ControlGroup(BackendConfig):
    """The process group of a run's workers.

    kinds: as `torch.distributed.init_process_group` takes them; timeout_s: of its collectives
    """

    kinds: str
    timeout_s: float

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets it up."""
        return ControlGroupBackend


class ControlGroupBackend(Backend):
    """Sets a control group up on all workers.  Runs in the controller, which has no torch."""

    share_cuda_visible_devices = True  # or NCCL does not find its peers on the same node

    def on_start(self, worker_group: Any, backend_config: ControlGroup) -> None:
        """Before the training function."""
        size = len(worker_group)
        try:
            url = worker_group.execute_single(0, free_url)
            shared = (url, size, backend_config.kinds, backend_config.timeout_s)
            ray.get([worker_group.execute_single_async(r, join, r, *shared) for r in range(size)])
        except Exception:
            worker_group.abort()  # Ray Train would forget it, and nobody would ever get its place
            raise

    def on_shutdown(self, worker_group: Any, backend_config: ControlGroup) -> None:
        """After it."""
        try:
            ray.get(worker_group.execute_async(leave), timeout=LEAVE_S)
        except GetTimeoutError:  # a rank hangs; its process is about to be ended
            return


def free_url() -> str:
    """Where the workers of this one's run can meet."""
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def join(rank: int, url: str, size: int, kinds: str, timeout_s: float) -> None:
    """Makes this worker a rank of its run's control group."""
    import torch.distributed as dist

    context = ray.train.get_context()
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(context.get_local_rank()),
        LOCAL_WORLD_SIZE=str(context.get_local_world_size()),
        NODE_RANK=str(context.get_node_rank()),
    )
    if "nccl" in kinds:
        check_card()
        # A collective that times out ends its process.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    timeout = datetime.timedelta(seconds=timeout_s)
    dist.init_process_group(kinds, init_method=url, rank=rank, world_size=size, timeout=timeout)


def check_card() -> None:
    """Raises ClusterError if PyTorch cannot use the GPU that this worker was given."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # no driver, an old one; a build without CUDA
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ClusterError(
            f"a worker on {ray.util.get_node_ip_address()} has a GPU that PyTorch cannot use: {reason}; "
            "`ucd-ray doctor` there tells more, --gpus-per-worker 0 trains on CPUs"
        ) from None


def leave() -> None:
    """Ends this worker's part in all process groups."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


class GangTrainer(DataParallelTrainer):
    """A data-parallel run without Ray Data, whose controller is known to its driver.

    on_controller: called with the actor; `fit` waits for it, and ends when somebody ends it
    """

    on_controller: Callable[[Any], None]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        actor = ray.remote(
            num_cpus=0,
            scheduling_strategy=on_this_node(),
            runtime_env={"env_vars": get_env_vars_to_propagate()},
        )(TrainController)
        controller = actor.remote(**parts)
        self.on_controller(controller)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [found for found in callbacks if type(found).__name__ not in UNUSED]


def run_gang(
    serve: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    name: str,
    storage: str,
    workers: int,
    resources: dict[str, float],
    control_timeout_s: float,
    on_controller: Callable[[Any], None],
) -> None:
    """Runs `serve(config)` on all workers of a run until it returns.  Raises what Ray Train raises.

    on_controller: as in `GangTrainer`
    """
    use_gpu = "GPU" in resources
    trainer = GangTrainer(
        serve,
        train_loop_config=config,
        backend_config=ControlGroup("cpu:gloo,cuda:nccl" if use_gpu else "gloo", control_timeout_s),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            # The board counts how often a trial loses its workers; the run goes on.
            failure_config=FailureConfig(max_failures=1000),
        ),
    )
    trainer.on_controller = on_controller
    trainer.fit()
