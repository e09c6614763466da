"""Where trained networks are found: in a file, or in the step cache by study and trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ucd_ray.checkpoint import read_entry, read_weights
from ucd_ray.errors import CheckpointError, ConfigError, StudyError
from ucd_ray.network import SUFFIX, Network, read_network, trained_network
from ucd_ray.store import Store, masked
from ucd_ray.tune.best import MeasuredTrial, measured_trial
from ucd_ray.tune.database import Database
from ucd_ray.tune.formats import replaced
from ucd_ray.tune.places import places
from ucd_ray.tune.run import RunResult


def open_network(source: str, *, trial: int | None = None, step: int | None = None) -> Network:
    """A network from a file or a study.

    source: path of a `.safetensors` file, or the name of a study
    trial: its number in the study; None: the best
    step: after which step; None: the last
    Raises ConfigError, StudyError, WeightsError, CheckpointError.
    """
    if source.endswith(SUFFIX):
        given = {"--trial": trial, "--step": step}
        if option := next((name for name, value in given.items() if value is not None), None):
            raise ConfigError(f"{option} goes with a study, but '{source}' is a file: one network")
        return read_network(Path(source))
    database = Database(places().database)
    found = measured_trial(database, source, trial)
    return study_network(found, database.about(source), step=step)


def study_network(
    trial: MeasuredTrial, about: dict[str, Any], *, step: int | None = None
) -> Network:
    """The network of a trial.

    about: what the database says of the study
    Raises StudyError if there is no such step or the network is no longer kept.
    """
    steps = {measured.step: measured for measured in trial.steps}
    wanted = max(steps) if step is None else step
    if wanted not in steps:
        raise StudyError(f"trial {trial.number} has no step {wanted}; its steps: 0 to {max(steps)}")
    name, digest = trial.spec.name, steps[wanted].entry
    weights = None if digest is None else _stored(digest)
    if weights is None:
        raise StudyError(_gone(trial, wanted))
    if not about.get("classes"):
        raise StudyError(
            f"study '{name}' does not tell its class names: `ucd-ray study run {name}` stores them"
        )
    origin = {"study": name, "trial": trial.number, "value": trial.value}
    classes = tuple(about["classes"])
    return trained_network(trial.recipe, wanted, weights, classes=classes, origin=origin)


def has_network(trial: MeasuredTrial) -> bool:
    """Whether the step cache has the network of a trial after its last step.  Raises CheckpointError."""
    digest = trial.last.entry
    return digest is not None and read_entry(Store(places().steps), digest) is not None


def _gone(trial: MeasuredTrial, step: int) -> str:
    name, number, kept = trial.spec.name, trial.number, trial.spec.keep_best
    which = "its best trial" if kept == 1 else f"its best {kept} trials"
    return (
        f"the network of trial {number} of study '{name}' after step {step} is no longer kept: the "
        f"step cache '{masked(places().steps)}' has those of {which} (--keep-best) and what fits "
        f"its limit; `ucd-ray study best {name} --trial {number} --export recipe.yaml` and "
        f"`ucd-ray train --recipe recipe.yaml --save network{SUFFIX}` make it again"
    )


def run_network(result: RunResult, classes: tuple[str, ...]) -> Network:
    """The network of a run that has just ended.

    classes: name of every class id of its data set
    Raises CheckpointError if the step cache did not keep it.
    """
    last = result.steps[-1]
    weights = _stored(last["entries"][0])
    if weights is None:
        raise CheckpointError(
            f"the network was removed from the step cache '{masked(places().steps)}' before it could "
            "be saved; raise UCD_RAY_CACHE_LIMIT and start the run again"
        )
    recipe = result.recipe
    return trained_network(recipe, last["step"], weights, classes=classes, origin={})


def save_network(network: Network, path: Path) -> None:
    """Writes a network as one file.  Raises ConfigError if it cannot be written."""
    with replaced(path) as sink:
        sink.write(network.content())


def write_network(network: Network, out: Path, *, onnx: bool) -> list[str]:
    """Writes a network for use elsewhere into a directory.  Returns lines about it.

    `network.safetensors`, `network.onnx` if wanted, and `classes.txt`: its class names in the order of
    its channels, as `--base-classes` reads them.
    Raises ConfigError if it cannot be written, WeightsError if ONNX cannot express it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to --out '{out}': {error.strerror}") from None
    save_network(network, out / f"network{SUFFIX}")
    with replaced(out / "classes.txt") as sink:
        sink.write("".join(f"{name}\n" for name in network.info.class_names).encode())
    count = len(network.info.class_names)
    lines = [f"wrote {out / f'network{SUFFIX}'} and {out / 'classes.txt'}: {count} channels"]
    if onnx:
        from ucd_ray.onnx_export import export_onnx

        found = export_onnx(network, out / "network.onnx")
        lines.append(
            f"wrote {out / 'network.onnx'}: onnxruntime gives the same classes on images of "
            f"{found.sizes} sizes; logits differ by {found.difference:.0e} of the largest"
        )
    return lines


def _stored(digest: str) -> Any:
    """The weights of an entry of the step cache; None if it is not there."""
    from safetensors.torch import load

    store = Store(places().steps)
    entry = read_entry(store, digest)
    content = None if entry is None else read_weights(store, digest, entry)
    return None if content is None else load(content)
