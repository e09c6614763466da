"""The recipe: every value of one run, merged and validated once.  It travels to the workers as it is.

Values come as flat keys (`{"ucd.temperature": 0.1}`) from file, command line, request and sampler
alike.  A key is `<section>.<field>` or `<term>.<field>`, or one of scenario, setting, method, seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from pydantic import SerializeAsAny, ValidationError

from ucd_ray.config import (
    NEVER,
    SECTIONS,
    ComputeConfig,
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    PseudoConfig,
)
from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.methods import ADDED, METHOD_DEFAULTS, METHODS, Term
from ucd_ray.scenarios import (
    LISTED_DISJOINT,
    Scenario,
    Setting,
    parse_scenario,
    scenario_from_mapping,
)

if TYPE_CHECKING:
    from ucd_ray.methods.memory import Memory

TOP_KEYS = ("scenario", "setting", "method", "seed")

ABSENT_IF_NULL = ("data.micro_batch_new",)  # newer than keys that are stored without it

# What only the training of step 0 reads, and what builds and scores a network that was trained elsewhere.
TRAINS_BASE = ("optim.lr_base", "optim.epochs_base", "optim.iterations_base", "terms.0")
BUILDS_BASE = ("model.backbone", "model.width", "model.output_stride")
SCORES_BASE = ("setting", "seed", "data.holdout")  # which images


class Recipe(Config):
    """Scenario, method and every number that determines a run."""

    scenario: Scenario
    """Data set and classes per step: a name, a YAML file, or explicit steps."""
    setting: Setting = "overlapped"
    """Which images and labels a step sees: sequential, disjoint or overlapped."""
    method: str = "mib+ucd"
    """Name of the method, that is of its loss terms."""
    seed: int = 42
    """Seed of hold-out, initial weights, image order and augmentation."""
    data: DataConfig = DataConfig()
    """Images and augmentation."""
    model: ModelConfig = ModelConfig()
    """Network."""
    pseudo: PseudoConfig = PseudoConfig()
    """Pseudo-labels."""
    optim: OptimConfig = OptimConfig()
    """Optimizer and schedule."""
    eval: EvalConfig = EvalConfig()
    """Evaluation."""
    compute: ComputeConfig = ComputeConfig()
    """Precision and determinism."""
    terms: tuple[SerializeAsAny[Term], ...] = ()
    """The method's loss terms with their values."""

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """The validated recipe of flat `values`; the method's and the fields' defaults fill the rest.

        Raises ConfigError naming the key and its value.
        """
        method = values.get("method", cls.model_fields["method"].default)
        check_method(method)
        merged = {**METHOD_DEFAULTS.get(method, {}), **values}
        terms = {term.section: term for term in METHODS[method]}
        groups: dict[str, dict[str, Any]] = {name: {} for name in (*SECTIONS, *terms)}
        for key, value in merged.items():
            if key in TOP_KEYS:
                continue
            check_key(key, method)
            section, field = key.split(".")
            groups[section][field] = value
        scenario = _scenario(merged)
        if len(scenario.steps) == 1 and any(term.first_step > 0 for term in terms.values()):
            raise ConfigError(
                f"method '{method}' distils from the model of the step before, but scenario "
                f"'{scenario.name}' has step 0 only; use finetune or joint, or a scenario with more steps"
            )
        recipe = cls(
            scenario=scenario,
            setting=_setting(values.get("setting", "overlapped")),
            method=method,
            seed=_integer("seed", values.get("seed", 42)),
            terms=tuple(
                _build(type(term), name, {**term.model_dump(), **groups[name]})
                for name, term in terms.items()
            ),
            **{name: _build(section, name, groups[name]) for name, section in SECTIONS.items()},
        )
        for term in recipe.terms:
            term.check(recipe.data.crop, recipe.model.output_stride)
        _check_base(recipe)
        return recipe

    def with_overrides(self, values: Mapping[str, Any]) -> Self:
        """This recipe with other values under some flat keys.  Raises ConfigError."""
        flat = self.flat()
        method = values.get("method", self.method)
        if method != self.method:
            own, others = (METHOD_DEFAULTS.get(str(name), {}) for name in (self.method, method))
            brought = {*self.loss_keys(), *own, *others}
            flat = {key: value for key, value in flat.items() if key not in brought}
        return type(self).from_flat({**flat, **values})

    def flat(self) -> dict[str, Any]:
        """Every value under its flat key; `Recipe.from_flat` of it gives the same recipe."""
        named = self.scenario.name and not self.scenario.name.endswith(("yaml", "yml"))
        flat: dict[str, Any] = {
            "scenario": self.scenario.model_dump(mode="json"),
            "setting": self.setting,
            "method": self.method,
            "seed": self.seed,
        }
        if named and _parses_to(self.scenario):
            flat["scenario"] = self.scenario.name
        for name in SECTIONS:
            values = getattr(self, name).model_dump(mode="json")
            flat.update({f"{name}.{field}": value for field, value in values.items()})
        for term in self.terms:
            values = term.model_dump(mode="json")
            flat.update({f"{term.section}.{field}": value for field, value in values.items()})
        return flat

    @property
    def steps(self) -> Scenario:
        """The steps that are really run: all classes at once for `joint`."""
        return self.scenario.joined() if self.method == "joint" else self.scenario

    def memories(self) -> dict[str, Memory]:
        """New, empty memories of what the method keeps from step to step, by name.  Needs torch."""
        found = [memory for term in self.terms if (memory := term.memory()) is not None]
        if self.pseudo.mode == "entropy" and self.setting != "sequential":
            from ucd_ray.methods.pseudo import Medians

            found.append(Medians(self.pseudo))
        return {memory.name: memory for memory in found}

    def memory_options(self, name: str) -> dict[str, Any]:
        """The values that shape the memory called `name`, for its key."""
        if name == "medians":
            return {"form": self.pseudo.form}
        return {term.section: term.memory_options() for term in self.terms if term.section == name}

    def terms_at(self, step: int) -> tuple[Term, ...]:
        """The loss terms that act at `step`."""
        return tuple(term for t in self.terms if (term := t.at(step)) is not None)

    def acting_until(self, step: int, *, in_pass: bool = False) -> dict[str, Any]:
        """The flat values that can change the result of steps 0..`step`, for the step cache.

        Terms are spelled as they act at steps 0 and, if reached, 1, so methods share a base step.
        A base network is not trained: step 0 is what scores it.
        in_pass: and what a pass over the images of `step` depends on, which scoring does not
        """
        values: dict[str, Any] = {"seed": self.seed, "setting": self.setting}
        for name in SECTIONS:
            section = getattr(self, name)
            for field, value in section.model_dump(mode="json").items():
                key = f"{name}.{field}"
                absent = value is None and key in ABSENT_IF_NULL
                if NEVER < section.acts_from(field) <= step and not absent:
                    values[key] = value
        for stage in range(min(step, 1) + 1):
            values[f"terms.{stage}"] = {
                type(term).__name__: term.model_dump(mode="json") for term in self.terms_at(stage)
            }
        watching = {t.section: t.memory_options() for t in self.terms if t.watches}
        if (
            watching
        ):  # what is kept from training step 0 cannot be had from a step that others trained
            values["watching"] = watching
        if self.eval.select_on == "val":
            del values["data.holdout"]
        if self.model.base is None:
            return values
        own = {key: value for key, value in values.items() if key not in TRAINS_BASE}
        return own if step > 0 or in_pass else self._scoring(own)

    def _scoring(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `values` that a network is built with and scored under."""
        drawn = SCORES_BASE if self.eval.select_on == "holdout" else ()
        sections = ("eval.", "compute.")
        return {
            key: value
            for key, value in values.items()
            if key in (*BUILDS_BASE, *drawn) or key.startswith(sections)
        }

    def loss_keys(self) -> tuple[str, ...]:
        """The flat keys of this method's terms."""
        return tuple(f"{t.section}.{field}" for t in self.terms for field in type(t).model_fields)


def _check_base(recipe: Recipe) -> None:
    """Raises ConfigError if no run of `recipe` can start from its base network."""
    model = recipe.model
    given = {"--base": model.base, "--base-classes": model.base_classes}
    absent = [option for option, value in given.items() if value is None]
    if len(absent) == 1:
        raise ConfigError(
            f"{absent[0]} (model.{absent[0][2:].replace('-', '_')}) is absent: --base FILE is a trained "
            "network and --base-classes FILE the names of its classes; give both or neither"
        )
    if absent:
        return
    if len(recipe.steps.steps) == 1:
        what = (
            "method 'joint' trains all classes in one step"
            if recipe.method == "joint"
            else f"scenario '{recipe.scenario.name}' has step 0 only"
        )
        raise ConfigError(
            f"--base '{model.base}' would be step 0, but {what}, so nothing is left to learn; leave "
            "--base out, or use another method or scenario"
        )
    watching = [term.section for term in recipe.terms if term.watches]
    if watching:
        raise ConfigError(
            f"method '{recipe.method}' cannot start from --base '{model.base}': what {watching[0]} keeps "
            "is made while step 0 is trained, and a base network comes trained; use ewc, which needs "
            "one pass over the images of step 0, or leave --base out"
        )


def by_epochs(values: Mapping[str, Any]) -> dict[str, Any]:
    """A user's flat values, where epochs without iterations set aside iterations given elsewhere."""
    pairs = {"optim.epochs_base": "optim.iterations_base", "optim.epochs_new": "optim.iterations_new"}
    idle = {iterations: None for epochs, iterations in pairs.items() if epochs in values}
    return {**idle, **values}


def check_searched(recipe: Recipe, key: str) -> None:
    """Raises ConfigError if other values of `recipe` leave nothing to search in `key`."""
    iterations = {"optim.epochs_base": recipe.optim.iterations_base}
    iterations["optim.epochs_new"] = recipe.optim.iterations_new
    if (given := iterations.get(key)) is not None:
        other = key.replace("epochs", "iterations")
        raise ConfigError(
            f"'{key}' cannot be searched: {other} ({given}) says how long training takes; "
            f"search that, or set it to null"
        )
    if recipe.model.base is not None and key in (*TRAINS_BASE, "model.backbone", "model.width"):
        raise ConfigError(
            f"'{key}' cannot be searched: --base '{recipe.model.base}' is step 0 as it is, neither "
            "built nor trained anew; remove it from the search, or leave --base out"
        )


def check_method(method: Any) -> None:
    """Raises ConfigError unless `method` is the name of one."""
    if isinstance(method, str) and method in METHODS:
        return
    alone = [name for name in METHODS if ADDED not in name]
    if str(method) in (f"finetune{ADDED}", f"joint{ADDED}"):
        hint = "UCD on fine-tuning is called 'ucd', and joint has no old model"
    elif "+" in str(method):
        hint = "only +ucd can be added, once, to any method with an old model"
    else:
        hint = did_you_mean(str(method), alone)
    raise ConfigError(
        f"unknown method '{method}'; {hint} (methods: {', '.join(alone)}; most also with {ADDED})"
    )


def method_keys(method: str) -> tuple[str, ...]:
    """All flat keys that a recipe of `method` accepts."""
    terms = METHODS[method]
    sections = [(name, section) for name, section in SECTIONS.items()]
    sections += [(term.section, type(term)) for term in terms]
    return (*TOP_KEYS, *(f"{name}.{f}" for name, section in sections for f in section.model_fields))


def check_key(key: str, method: str) -> None:
    """Raises ConfigError if no recipe of `method` has `key`."""
    known = method_keys(method)
    if key in known:
        return
    owners = sorted(name for name in METHODS if key in method_keys(name))
    if owners:
        raise ConfigError(
            f"key '{key}' is not used by method '{method}'; methods that have it: "
            + ", ".join(owners)
        )
    everything = {k for name in METHODS for k in method_keys(name)}
    raise ConfigError(f"unknown key '{key}'; {_suggest_key(key, everything)}")


def _suggest_key(key: str, known: set[str]) -> str:
    hint = did_you_mean(key, known)
    return (
        hint if hint.startswith("did") else "see `ucd-ray config SCENARIO --explain` for all keys"
    )


def _build(kind: type[Any], section: str, values: Mapping[str, Any]) -> Any:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(describe(error, section)) from None


def describe(error: ValidationError, section: str = "") -> str:
    """All of pydantic's findings in one sentence each: key, value, and what is allowed."""
    lines = []
    for finding in error.errors():
        key = ".".join(str(part) for part in ((section,) if section else ()) + finding["loc"])
        message = str(finding["msg"]).removeprefix("Value error, ")
        value = finding.get("input")
        shown = f" ({value!r})" if not isinstance(value, dict) else ""
        lines.append(f"{key}{shown}: {message}" if key else message)
    return "; ".join(lines)


def _scenario(values: Mapping[str, Any]) -> Scenario:
    scenario = values.get("scenario")
    if isinstance(scenario, Scenario):
        return scenario
    if isinstance(scenario, Mapping):
        return scenario_from_mapping(scenario)
    if not isinstance(scenario, str):
        raise ConfigError(f"scenario ({scenario!r}) must be a name such as 'voc-15-1'")
    return parse_scenario(scenario, num_classes=_folder_classes(scenario, values))


def _folder_classes(scenario: str, values: Mapping[str, Any]) -> int | None:
    """Number of classes of a user's own folder, which its name does not tell."""
    source = values.get("data.source")
    if not scenario.startswith("folder-") or not isinstance(source, str):
        return None
    from ucd_ray.data import find_dataset
    from ucd_ray.data.prepare import INFO_FILE, open_prepared

    path = Path(source)
    prepared = (path / INFO_FILE).is_file()
    classes = open_prepared(path).classes if prepared else find_dataset("folder", path).classes
    return len(classes) - 1


def _setting(value: Any) -> Setting:
    if value not in get_args(Setting):
        hint = did_you_mean(str(value), get_args(Setting))
        raise ConfigError(f"unknown setting '{value}'; {hint}")
    setting: Setting = value
    return setting


def _integer(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise ConfigError(f"{key} ({value!r}) must be an integer in 0..{2**32 - 1}")
    return value


def _parses_to(scenario: Scenario) -> bool:
    """Whether the name alone, on any machine, gives this scenario again."""
    if scenario.dataset == "folder":
        return False
    try:
        return parse_scenario(scenario.name) == scenario
    except ConfigError:
        return False


def needs_split_lists(recipe: Recipe) -> bool:
    """Whether the published split is a fixed list of images, which no rule reproduces."""
    listed = recipe.setting == "disjoint" and recipe.scenario.dataset in LISTED_DISJOINT
    return listed and recipe.method != "joint"


@dataclass(frozen=True)
class Schedule:
    """Updates of one step."""

    iterations: int  # optimizer updates in all
    per_epoch: int  # updates of one pass over the images

    @property
    def epochs(self) -> int:
        """Passes over the images; the last may be partial."""
        return math.ceil(self.iterations / self.per_epoch)


def schedule(recipe: Recipe, step: int, num_images: int) -> Schedule:
    """How many updates `step` has: given as iterations, or as epochs of full batches; a base network
    has none.
    """
    optim = recipe.optim
    per_epoch = max(1, num_images // recipe.data.batch_size)
    if step == 0 and recipe.model.base is not None:
        return Schedule(0, per_epoch)
    if step == 0:
        given, epochs = optim.iterations_base, optim.epochs_base
    else:
        given, epochs = optim.iterations_new, optim.epochs_new
    return Schedule(given or epochs * per_epoch, per_epoch)


def micro_batches(recipe: Recipe, world_size: int, *, step: int = 0) -> tuple[int, int]:
    """Images per forward pass of one worker, and passes per update.  Raises ConfigError."""
    batch = recipe.data.batch_size
    key, given = "data.micro_batch", recipe.data.micro_batch
    if step > 0 and recipe.data.micro_batch_new is not None:
        key, given = "data.micro_batch_new", recipe.data.micro_batch_new
    if batch % world_size:
        raise ConfigError(f"data.batch_size ({batch}) must be divisible by workers ({world_size})")
    share = batch // world_size
    micro = given or share
    if share % micro:
        raise ConfigError(
            f"{key} ({micro}) must divide the images of one worker: data.batch_size "
            f"({batch}) / workers ({world_size}) = {share}"
        )
    return micro, share // micro
