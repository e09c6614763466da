"""Names of samplers, pruners and objectives, and the options of pruners.  Needs neither Optuna nor Ray."""

from __future__ import annotations

from ucd_ray.errors import ConfigError, did_you_mean

METHOD = "method"  # the key whose value decides which other keys there are
SAMPLERS = ("tpe", "gp", "cmaes", "nsga2", "nsga3", "qmc", "random", "grid", "brute-force")
MIOUS = tuple(
    f"miou_{group}{bg}" for group in ("all", "base", "added", "old", "new") for bg in ("", "_bg")
)
COSTS = ("forgetting", "drop", "seconds")  # the less the better
OBJECTIVES = (*MIOUS, *COSTS)
EPOCHLY = (*MIOUS, "forgetting", "drop")  # measured after every epoch
ONE_OBJECTIVE = ("cmaes",)  # samplers that know of no more
EXHAUSTIVE = ("grid", "brute-force")  # try every value of every key, once

# Options with their defaults.  startup: complete trials before others are compared with them; warmup:
# epochs after step 0 without a decision; first, last: rungs; 0 as last: learnt from the first trials.
PRUNERS: dict[str, dict[str, float]] = {
    "none": {},
    "median": {"startup": 3, "warmup": 2},
    "percentile": {"percentile": 25, "startup": 3, "warmup": 2},
    "successive-halving": {"first": 1, "reduction": 4},
    "hyperband": {"first": 1, "last": 0, "reduction": 3},
    "patient": {"patience": 3, "startup": 3, "warmup": 2},
    "threshold": {"lower": 10, "warmup": 2},
    "forgetting": {"limit": 20, "factor": 1, "startup": 3, "warmup": 1},
}


def check_sampler(name: str) -> None:
    """Raises ConfigError unless there is a sampler of that name."""
    if name not in SAMPLERS:
        raise ConfigError(f"unknown sampler '{name}'; {did_you_mean(name, SAMPLERS)}")


def pruner_options(text: str) -> tuple[str, dict[str, float]]:
    """Name and options of a pruner written as `name` or `name:option=number,...`.

    Raises ConfigError naming what is wrong and what exists.
    """
    name, _, listed = text.partition(":")
    if name not in PRUNERS:
        raise ConfigError(f"unknown pruner '{name}'; {did_you_mean(name, PRUNERS)}")
    options = dict(PRUNERS[name])
    for part in filter(None, listed.split(",")):
        option, _, value = part.partition("=")
        if option not in options:
            known = ", ".join(f"{key}={default:g}" for key, default in options.items()) or "none"
            raise ConfigError(f"pruner '{name}' has no option '{option}'; its options: {known}")
        try:
            options[option] = float(value)
        except ValueError:
            raise ConfigError(f"pruner '{text}': {option} ('{value}') must be a number") from None
        if options[option] < 0:
            raise ConfigError(f"pruner '{text}': {option} ({value}) must not be negative")
    return name, options
