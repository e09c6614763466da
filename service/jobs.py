"""What the service needs of a cluster: a job for every attempt of a study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

REFUSED = 78  # exit code for a wrong value, data set or weight file: EX_CONFIG of sysexits.h
State = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]


@dataclass(frozen=True)
class JobStatus:
    """Where a job stands."""

    state: State
    message: str = ""
    exit_code: int | None = None  # of its process, once that has ended

    @property
    def is_active(self) -> bool:
        """Whether it runs, or will."""
        return self.state in ("PENDING", "RUNNING")


@dataclass(frozen=True)
class Resources:
    """What a cluster has in all, whoever uses it."""

    cpus: float
    gpus: float


class Jobs(Protocol):
    """A cluster.  Every method raises ClusterError while it cannot be reached."""

    def submit(self, job: str, study: str) -> None:
        """Starts `ucd-ray study run STUDY` under the submission id `job`; a second time is nothing."""

    def status(self, job: str) -> JobStatus | None:
        """Where a job stands; None: the cluster does not know it."""

    def stop(self, job: str) -> None:
        """Ends a job's process; what it stored stays."""

    def logs(self, job: str) -> str:
        """What a job has printed, if the cluster still has it."""

    def resources(self) -> Resources:
        """What there is to share."""


def submission_id(study_id: str, attempt: int) -> str:
    """The submission id of an attempt: derived, so that whoever submits it again submits the same."""
    return f"ucd-{study_id}-{attempt}"
