"""The groups of classes that publications report: of step 0, of later steps, of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from ucd_ray.scenarios import Scenario

MOST_STEPS = 5  # later steps that get a column each


@dataclass(frozen=True)
class Group:
    """Classes whose mean IoU is a column."""

    name: str  # such as 1-15 or all
    ids: tuple[int, ...]  # 0 where background counts
    metrics: tuple[str, ...]  # its names in published rows

    def mean(self, iou: Mapping[int, float | None]) -> float | None:
        """Mean over the classes with truth pixels; None if there are none.

        iou: percent by class id, None without truth pixels
        """
        known = [value for class_id in self.ids if (value := iou.get(class_id)) is not None]
        return fmean(known) if known else None


def groups_of(scenario: Scenario, *, background: bool, by_step: bool = False) -> tuple[Group, ...]:
    """The columns of a scenario: VOC 15-1 has 1-15, 16-20, all; ADE 100-10 also one per later step.

    background: whether class 0 counts, among the classes of step 0 and all
    by_step: groups are named by their steps, as those of several class orders have to be
    """
    base, *later = scenario.steps
    added = [class_id for step in later for class_id in step]
    zero = (0,) if background else ()

    def group(name: str, ids: Sequence[int], *metrics: str) -> Group:
        found = _group(name, ids, *metrics)
        return replace(found, name=name) if by_step else found

    groups = [group("step 0", (*zero, *base), "miou_old")]
    if 1 < len(later) <= MOST_STEPS and all(len(step) > 1 for step in later):
        groups += [group(f"step {t}", step) for t, step in enumerate(later, start=1)]
    if added:
        groups.append(group("later steps", added, "miou_new"))
    everything = Group("all", (*zero, *base, *added), ("miou_all",))
    return (*groups, everything) if added else (everything,)


def _group(otherwise: str, ids: Sequence[int], *metrics: str) -> Group:
    """A group named by its ids if they follow each other, else `otherwise`."""
    first, last = ids[0], ids[-1]
    if list(ids) != list(range(first, last + 1)):
        return Group(otherwise, tuple(ids), metrics)
    name = f"{first}-{last}" if last > first else str(first)
    named = [f"miou_{first}_{last}"] if last > first else [f"miou_{first}"]
    if first <= 1:  # tables print either, whether or not background counts
        named = [f"miou_{start}_{last}" for start in (1, 0)]
    return Group(name, tuple(ids), (*named, *metrics))
