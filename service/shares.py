"""How the cluster is shared: priorities first, then weighted fair shares between owners.

A pure function of what is asked for and what there is; the reconciler calls it and acts on the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ucd_ray.service.jobs import Resources
from ucd_ray.service.settings import Quota

UNLIMITED = 1_000_000
TOO_LARGE = "TOO_LARGE"  # a trial that does not fit on the whole cluster
SLACK = 1e-9  # of sums of fractions of a GPU


@dataclass(frozen=True)
class Claim:
    """A study that runs or wants to."""

    id: str
    owner: str
    priority: int
    created: float
    running: bool
    cpus: float  # of one gang, which trains one trial
    gpus: float
    most: int | None = None  # gangs that it can use; None: any number


@dataclass(frozen=True)
class Share:
    """What a study gets: gangs, or why none."""

    gangs: int
    reason: str = "ADMITTED"
    message: str = "has its share of the cluster"


@dataclass
class Division:
    """One division of a cluster."""

    there: Resources
    quotas: Mapping[str, Quota]  # by owner
    spent: frozenset[str]  # owners whose GPU hours of the day are used up
    cpus: float = 0.0  # given
    gpus: float = 0.0
    gangs: Counter[str] = field(default_factory=Counter)  # by study
    of_owner: dict[str, list[Claim]] = field(default_factory=dict)  # one entry for each gang

    def give(self, claim: Claim) -> None:
        """One more gang."""
        self.cpus += claim.cpus
        self.gpus += claim.gpus
        self.gangs[claim.id] += 1
        self.of_owner.setdefault(claim.owner, []).append(claim)

    def weighted(self, owner: str) -> float:
        """The larger of an owner's parts of CPUs and GPUs, by weight."""
        held = self.of_owner.get(owner, [])
        cpus = sum(claim.cpus for claim in held) / max(self.there.cpus, 1.0)
        gpus = sum(claim.gpus for claim in held) / max(self.there.gpus, 1.0)
        return max(cpus, gpus) / self.quotas[owner].weight

    def fits(self, claim: Claim, *, beside: tuple[float, float] = (0.0, 0.0)) -> bool:
        """Whether one more gang has room, beside what is kept for others."""
        return (
            self.cpus + beside[0] + claim.cpus <= self.there.cpus + SLACK
            and self.gpus + beside[1] + claim.gpus <= self.there.gpus + SLACK
        )

    def over_quota(self, claim: Claim) -> Share | None:
        """Why its owner's quota forbids one more gang, None if it does not."""
        quota, held = self.quotas[claim.owner], self.of_owner.get(claim.owner, [])
        if claim.owner in self.spent:
            told = (
                f"{quota.gpu_hours_per_day:g} GPU hours of today are used; goes on tomorrow (UTC)"
            )
            return Share(0, "QUOTA_GPU_HOURS", told)
        others = {other.id for other in held} - {claim.id}
        if quota.studies is not None and len(others) >= quota.studies:
            told = f"{claim.owner} may run {quota.studies} studies at a time"
            return Share(0, "QUOTA_STUDIES", told)
        gpus = sum(other.gpus for other in held) + claim.gpus
        if quota.gpus is not None and claim.gpus and gpus > quota.gpus + SLACK:
            told = f"{claim.owner} may hold {quota.gpus:g} GPUs at a time"
            return Share(0, "QUOTA_GPUS", told)
        return None


def divide(
    claims: Iterable[Claim],
    there: Resources,
    quotas: Mapping[str, Quota],
    spent: frozenset[str] = frozenset(),
) -> dict[str, Share]:
    """What each study gets, by id.

    First one gang each: by priority; of one priority, who runs already stays, then the owner with the
    smallest weighted part is next.  For the first that waits for room what is free is kept, so that small
    studies do not starve large ones.  What is left goes out gang by gang in the same order of fairness.
    quotas: of every owner among the claims
    """
    division = Division(there, quotas, spent)
    shares: dict[str, Share] = {}
    waiting = list(claims)
    kept = (0.0, 0.0)  # for the first that waits
    while waiting:
        claim = min(waiting, key=lambda c: _turn(c, division))
        waiting.remove(claim)
        refused = division.over_quota(claim) or _too_large(claim, there)
        if refused is not None:
            shares[claim.id] = refused
        elif division.fits(claim, beside=(0.0, 0.0) if claim.running else kept):
            division.give(claim)
        else:
            told = f"waits for {_needs(claim)}: others come first or hold them"
            shares[claim.id] = Share(0, "WAITS_FOR_ROOM", told)
            kept = kept if any(kept) else (claim.cpus, claim.gpus)
    admitted = [c for c in claims if division.gangs[c.id]]
    _spread(division, admitted, kept)
    return shares | {c.id: Share(division.gangs[c.id]) for c in admitted}


def _turn(claim: Claim, division: Division) -> tuple[float, ...]:
    part = division.weighted(claim.owner)
    return (-claim.priority, not claim.running, part, claim.created)


def _spread(division: Division, admitted: list[Claim], kept: tuple[float, float]) -> None:
    """Gives what is left, one gang at a time."""
    while True:
        open_ = [
            claim
            for claim in admitted
            if division.gangs[claim.id] < (claim.most or UNLIMITED)
            and division.fits(claim, beside=kept)
            and division.over_quota(claim) is None
        ]
        if not open_:
            return
        division.give(
            min(
                open_,
                key=lambda c: (
                    -c.priority,
                    division.weighted(c.owner),
                    division.gangs[c.id],
                    c.created,
                ),
            )
        )


def _too_large(claim: Claim, there: Resources) -> Share | None:
    if claim.cpus <= there.cpus + SLACK and claim.gpus <= there.gpus + SLACK:
        return None
    told = (
        f"a trial needs {_needs(claim)}, the cluster has {there.cpus:g} CPUs, {there.gpus:g} GPUs"
    )
    return Share(0, TOO_LARGE, told)


def _needs(claim: Claim) -> str:
    return f"{claim.cpus:g} CPUs" + (f" and {claim.gpus:g} GPUs" if claim.gpus else "")
