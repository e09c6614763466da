"""What a study would do and cost: `ucd-ray tune --dry-run`.  Nothing is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ucd_ray.checkpoint import StepCache
from ucd_ray.job import Job
from ucd_ray.recipe import schedule
from ucd_ray.tune.bases import num_bases, own_bases
from ucd_ray.tune.checks import check_start
from ucd_ray.tune.chunks import count_ended
from ucd_ray.tune.cluster import Cluster, check_local, local_cpus, local_gpus, private_head_needed
from ucd_ray.tune.costs import CPU_FLOPS, GPU_FLOPS, Cost, Range, total, update_costs
from ucd_ray.tune.database import Database
from ucd_ray.tune.executors import Gang
from ucd_ray.tune.explain import first_step, recipe_with, show_conditions, show_range
from ucd_ray.tune.overview import wanted_trials
from ucd_ray.tune.places import Places, places
from ucd_ray.tune.prepare import prepare_job
from ucd_ray.tune.progress import short
from ucd_ray.tune.registration import register
from ucd_ray.tune.replicates import replicate_jobs, undroppable
from ucd_ray.tune.run import base_line, memory_lines
from ucd_ray.tune.spec import StudySpec
from ucd_ray.tune.warm_start import WarmStart, check_images, check_sources, warm_start


@dataclass(frozen=True)
class Plan:
    """A study before its start."""

    spec: StudySpec
    job: Job
    gang: Gang
    local: bool  # on a head of its own, on this machine
    wanted: int  # trials of the whole study
    done: int  # trials that earlier starts have finished
    costs: list[Cost]  # of an update, by step
    warm: Sequence[WarmStart] = ()  # trials that its sampler is given

    @property
    def trials(self) -> int:
        """Trials still to be run."""
        return max(0, self.wanted - self.done)

    @property
    def concurrent(self) -> int | None:
        """Trials at a time; None: the cluster decides."""
        most = self.spec.max_concurrent
        if not self.local:
            return most
        machine = Cluster("", "", cpus=local_cpus(), gpus=local_gpus())
        fits = machine.concurrent_trials(self.gang)
        return max(1, min(fits, most or fits, self.trials))

    @property
    def precision(self) -> str:
        """As workers will most likely compute."""
        return self.job.guessed_precision(gpus=self.gang.gpus > 0)

    @cached_property
    def own_bases(self) -> list[str]:
        """Searched keys that change step 0, so that trials cannot share it."""
        return own_bases(self.spec)

    @property
    def runs(self) -> int:
        """Runs still to be made: a trial has one per replicate."""
        return self.trials * self.spec.replicates

    @cached_property
    def bases(self) -> int:
        """Base steps that are trained, for every replicate its own."""
        needed = num_bases(self.spec) or self.trials
        if needed > 1:
            return min(needed, self.trials) * self.spec.replicates
        return int(not self.cached[0]) + sum(not has for has in self._cached_bases)

    @cached_property
    def _cached_bases(self) -> list[bool]:
        """Whether the step cache holds the base steps of the replicates after the first."""
        jobs = replicate_jobs(self.job, self.spec)[1:]
        cache = StepCache(self.job.open_cache())
        return [cache.has(job.step_key(0, precision=self.precision)) for job in jobs]

    @cached_property
    def cached(self) -> list[bool]:
        """Whether the step cache holds each step of the first trial."""
        recipe = self.spec.trial_recipe(self.spec.first_params)
        job = Job(**{**self.job.__getstate__(), "recipe": recipe})
        cache = StepCache(job.open_cache())
        keys = [job.step_key(s, precision=self.precision) for s in range(len(recipe.steps.steps))]
        held: list[bool] = []
        for key in keys:
            held.append(all(held) and cache.has(key))
        return held

    def step_cost(self, step: int) -> Range:
        """Seconds of one step on one gang."""
        images = len(self.job.plan[step].train)
        return self.costs[step].seconds * schedule(self.job.recipe, step, images).iterations

    @property
    def base(self) -> Range:
        """Seconds of step 0."""
        return self.step_cost(0)

    @property
    def trial(self) -> Range:
        """Seconds of all later steps."""
        return total(self.step_cost(step) for step in range(1, len(self.job.plan)))

    @property
    def whole(self) -> Range:
        """Seconds of all that is to be trained."""
        return self.base * self.bases + self.trial * self.runs

    @property
    def unit(self) -> str:
        """What is counted in hours: GPU, or CPU without GPUs."""
        return "GPU" if self.gang.gpus else "CPU"

    @property
    def gang_hours(self) -> float:
        """Hours of that unit in a second of one gang."""
        return self.gang.workers * (self.gang.gpus or self.gang.cpus) / 3600

    @property
    def uncached(self) -> Range:
        """The same if every run trained step 0."""
        return (self.base + self.trial) * self.runs


def study_plan(
    spec: StudySpec,
    *,
    sources: Sequence[str] = (),
    address: str | None = None,
    where: Places | None = None,
    console: Console | None = None,
) -> Plan:
    """What a study would do.  Raises UcdRayError for what its start would refuse.

    sources: other studies whose fitting trials its sampler would be given
    where: None: as the environment says
    console: shows that data are prepared, which may take long
    """
    recipe = spec.base_recipe()
    check_start(spec)
    local = private_head_needed(address)
    if local:
        check_local(spec.workers, cpus=spec.cpus_per_worker, gpus=spec.gpus_per_worker or 0)
    where = where or places()
    database = Database(where.database)
    check_sources(database, spec, sources)
    name = (spec.name, "plan")
    job = prepare_job(
        recipe,
        where,
        name=name,
        workers=spec.workers,
        objective=spec.goals.scalar,
        console=console,
    )
    replicate_jobs(job, spec)  # raises what a start would
    done = 0
    if database.spec(spec.name) is not None:
        register(database, spec, recipe)  # raises if it is another study
        done = count_ended(database, spec.name)
    gang = _gang(spec, local=local)
    gang.check(recipe)
    check_images(database, spec, sources, job.prepared.fingerprint)
    return Plan(
        spec,
        job,
        gang,
        local,
        wanted_trials(database, spec.model_dump(mode="json")),
        done,
        update_costs(database, spec, gang),
        [warm_start(database, spec, source, dry=True) for source in sources],
    )


def _gang(spec: StudySpec, *, local: bool) -> Gang:
    """As a start would choose it; of a cluster's GPUs nothing is known, so it is taken to have them."""
    gpus = spec.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if not local or local_gpus() >= spec.workers else 0.0
    return Gang(spec.workers, spec.cpus_per_worker, gpus)


def plan_view(plan: Plan) -> RenderableType:
    """A plan for a terminal."""
    return Group(Text(_head(plan)), _searched(plan), _steps(plan), _costs(plan), Text(_told(plan)))


def _head(plan: Plan) -> str:
    spec, gang, recipe = plan.spec, plan.gang, plan.job.recipe
    each = f"{gang.workers} worker(s) with {gang.cpus:g} CPU(s)" + (
        f" and {gang.gpus:g} GPU(s)" if gang.gpus else ""
    )
    before = f", {plan.done} finished before" if plan.done else ""
    where = "on this machine" if plan.local else "on the cluster"
    at_a_time = plan.concurrent or "as many as fit"
    lines = [
        f"study {spec.name}: {recipe.scenario.name}, {recipe.setting}, method {', '.join(spec.methods)}",
        f"{plan.trials} trial(s) to run{before}; sampler {spec.sampler}, pruner {spec.pruner}",
        f"{spec.goals.words}, on {recipe.eval.select_on}",
        *_replicates(spec),
        *map(str, plan.warm),
        f"a trial takes {each}; {at_a_time} at a time {where}",
        base_line(plan.job, precision=plan.precision),
        *memory_lines(recipe),
    ]
    if plan.own_bases:
        keys = ", ".join(plan.own_bases)
        number = num_bases(spec)
        each = f"there are {number}" if number else "each trains its own"
        lines.append(f"searched at step 0: {keys}: trials cannot share a base step, {each}")
    hits = sum(plan.cached)
    if hits:
        lines.append(
            f"the first trial finds {hits} of its {len(plan.cached)} steps in the step cache"
        )
    return "\n".join(lines)


def _replicates(spec: StudySpec) -> list[str]:
    """How often a trial is measured, and what racing may spare of that."""
    count = spec.replicates
    if count == 1:
        return []
    surely = undroppable(count, spec.racing)
    racing = f"racing may drop a trial after {surely}" if surely < count else "racing drops none"
    seeds = f"{spec.seeds} seed(s) x {spec.class_orders} class order(s)"
    return [f"each trial is measured {count} times, {seeds}; {racing}"]


def _searched(plan: Plan) -> Table:
    table = Table(title="searched")
    for column in ("key", "range", "first trial", "acts from step"):
        table.add_column(column)
    domain = plan.spec.domain()
    for key, parameter in sorted(plan.spec.search.items()):
        first = plan.spec.first_params
        shown = short(first[key]) if key in first else ""
        step = first_step(recipe_with(plan.spec, key), key)
        table.add_row(key, show_range(parameter) + show_conditions(domain, key), shown, str(step))
    for constraint in domain.constraints:
        table.add_row("constraint", constraint.text, "", "")
    return table


def _steps(plan: Plan) -> Table:
    table = Table(title="steps of a trial")
    for column in ("step", "new classes", "images", "hold-out", "val", "iterations", "epochs"):
        table.add_column(column, justify="right")
    table.add_column("seconds an update", justify="right")
    table.add_column("from")
    for step, images in enumerate(plan.job.plan):
        updates = schedule(plan.job.recipe, step, len(images.train))
        counts = (len(images.train), len(images.holdout), len(images.val))
        cost = plan.costs[step]
        table.add_row(
            str(step),
            str(len(plan.job.recipe.steps.steps[step])),
            *map(str, (*counts, updates.iterations, updates.epochs)),
            _range(cost.seconds) if updates.iterations else "",
            f"measured in {', '.join(cost.studies)}" if cost.studies else "FLOPs: rough",
        )
    return table


def _costs(plan: Plan) -> Table:
    hours = plan.gang_hours
    table = Table(title=f"cost in {plan.unit} hours")
    for column in ("what", "times", "each", "all"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for what, times, cost in (
        ("step 0", plan.bases, plan.base),
        ("later steps", plan.runs, plan.trial),
    ):
        table.add_row(what, str(times), _range(cost * hours), _range(cost * hours * times))
    table.add_section()
    table.add_row("all", "", "", _range(plan.whole * hours))
    table.add_row("without the step cache", "", "", _range(plan.uncached * hours))
    return table


def _told(plan: Plan) -> str:
    lines = []
    if plan.concurrent:
        wall = plan.whole * (1 / 3600 / plan.concurrent)
        if not plan.own_bases and not plan.cached[0]:  # nothing else runs meanwhile
            wall = wall + plan.base * ((1 - 1 / plan.concurrent) / 3600)
        lines.append(
            f"about {_range(wall)} hours of wall time, {plan.concurrent} trial(s) at a time"
        )
    if plan.spec.pruner != "none":
        lines.append("trials that the pruner stops cost less")
    if undroppable(plan.spec.replicates, plan.spec.racing) < plan.spec.replicates:
        lines.append("trials that racing drops cost less")
    if any(not cost.studies for cost in plan.costs):
        (slow, fast), unit, scale = (
            (GPU_FLOPS, "TFLOP/s of a GPU", 1e12)
            if plan.gang.gpus
            else (CPU_FLOPS, "GFLOP/s of a core", 1e9)
        )
        lines.append(
            "rough: three forward passes of the network for an update, four with an old model, at "
            f"{slow / scale:g} to {fast / scale:g} {unit}; evaluation is not counted"
        )
    return "\n".join(lines)


def _range(value: Range) -> str:
    low, high = f"{value.low:.2g}", f"{value.high:.2g}"
    return low if low == high else f"{low} .. {high}"
