"""Every error a user can meet.

    UcdRayError
    ├── ConfigError (ValueError)      a key, a value, a method, a search space
    │   └── ScenarioError             a scenario name, its classes, its setting
    ├── DataError (ValueError)        a data directory, an image, a mask, a prepared file
    ├── WeightsError (ValueError)     a pretrained-weight file
    ├── CheckpointError               the step cache, a trial's checkpoint
    ├── StudyError                    a study's name, spec or database
    │   ├── DatabaseError             the database does not answer, or refuses
    │   └── NotDrawn                  a chart that would be empty
    ├── ClusterError                  Ray: resources, ports, address
    ├── ServiceError                  a service over HTTP: away, or broken
    │   └── RequestRefused            what was asked of it is wrong, or not allowed
    └── TrainingDiverged              a loss term stopped being finite

The command line prints the message of any of them and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UcdRayError(Exception):
    """Base of all errors whose message is meant for the user."""


class ConfigError(UcdRayError, ValueError):
    """A key or value of a recipe, search space or study is wrong."""


class ScenarioError(ConfigError):
    """A scenario cannot be parsed or does not fit its data set."""


class DataError(UcdRayError, ValueError):
    """A data set is absent, has another layout or holds damaged files."""


class WeightsError(UcdRayError, ValueError):
    """A weight file is absent, damaged or of another architecture."""


class CheckpointError(UcdRayError):
    """A stored step or checkpoint is damaged or is not what its key says."""


class StudyError(UcdRayError):
    """A study cannot be opened, created or continued."""


class DatabaseError(StudyError):
    """The database cannot be reached, or refuses what is asked."""


class NotDrawn(StudyError):  # noqa: N818
    """A chart has nothing to show; the message says why."""


class ClusterError(UcdRayError):
    """The cluster cannot be reached, started, or can never hold what is asked for."""


class ServiceError(UcdRayError):
    """A service does not answer, or has failed."""


class RequestRefused(ServiceError):  # noqa: N818
    """A service refuses a request, with its own sentence.

    status: of HTTP; code: the reason, for programs; fields: pointer, code and detail of wrong ones
    """

    def __init__(
        self, detail: str, status: int, code: str, fields: Iterable[dict[str, str]] = ()
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.fields = status, code, tuple(fields)


class TrainingDiverged(UcdRayError):  # noqa: N818
    """A loss term became NaN or infinite."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A clause for an error message: the nearest choice, else all choices."""
    known = sorted(choices)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return "choose from: " + ", ".join(known)
