"""Acting on the division of the cluster: who starts, who makes room, how many trials at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ucd_ray.errors import UcdRayError
from ucd_ray.service import usage
from ucd_ray.service.attempts import PREEMPTED, Attempts
from ucd_ray.service.jobs import Resources
from ucd_ray.service.rows import change
from ucd_ray.service.settings import Settings
from ucd_ray.service.shares import TOO_LARGE, Claim, Share, divide
from ucd_ray.service.states import ADMITTED, PAUSING, QUEUED, RUNNING, with_condition
from ucd_ray.service.studies import StudyRow, find_study
from ucd_ray.tune import commands
from ucd_ray.tune.database import Database
from ucd_ray.tune.editing import edit
from ucd_ray.tune.edits import Edit

log = logging.getLogger("ucd_ray.service")


def claim_of(row: StudyRow, there: Resources) -> Claim:
    """What a study asks for."""
    gpus = row.gpus
    if gpus is None:  # as the library decides
        gpus = 1.0 if there.gpus >= row.workers else 0.0
    return Claim(
        row.id,
        row.owner,
        row.priority,
        row.created,
        running=row.state == RUNNING,
        cpus=row.workers * row.cpus,
        gpus=row.workers * gpus,
        most=row.parallelism,
    )


@dataclass
class Sharing:
    """Shares one cluster between studies."""

    database: Database
    settings: Settings
    attempts: Attempts

    def share(self, rows: Collection[StudyRow], there: Resources) -> None:
        """Starts, preempts and resizes studies.  rows: those that are queued or have a job"""
        now = time.time()
        wanted = [r for r in rows if r.state == RUNNING or (r.state == QUEUED and _due(r, now))]
        claims = [claim_of(row, there) for row in wanted]
        owners = {claim.owner for claim in claims}
        quotas = {owner: self.settings.quota_of(owner) for owner in owners}
        left = _beside([r for r in rows if r.state not in (RUNNING, QUEUED)], there)
        shares = divide(claims, left, quotas, self._spent(owners))
        alone = len(claims) == 1
        leaves = {r.id for r in wanted if r.state == RUNNING and _must_leave(shares[r.id])}
        for row in wanted:
            share = shares[row.id]
            if row.id in leaves:
                self._preempt(row, share)
            elif row.state == RUNNING and share.gangs:
                self._resize(self._say_why(row, share), _limit(row, share, alone=alone))
            elif row.state == RUNNING:  # a node is gone: its driver waits for another
                self._say_why(row, share)
            elif share.gangs and leaves:
                self._say_why(row, Share(0, "WAITS_FOR_ROOM", "others make room for it"))
            elif share.gangs:
                resized = self._resize(row, _limit(row, share, alone=alone))
                if resized is not None:
                    self.attempts.begin(resized)
            else:
                self._say_why(row, share)

    def _spent(self, owners: set[str]) -> frozenset[str]:
        hours = usage.gpu_hours_today(self.database)
        limits = {owner: self.settings.quota_of(owner).gpu_hours_per_day for owner in owners}
        return frozenset(
            owner
            for owner, limit in limits.items()
            if limit is not None and hours.get(owner, 0.0) >= limit
        )

    def _preempt(self, row: StudyRow, share: Share) -> None:
        """Makes room: the study goes on from its checkpoints when it is its turn again."""
        told = f"makes room at its next checkpoint: {share.message}"
        conditions = with_condition(row.conditions, ADMITTED, False, PREEMPTED, told)
        self._change(row, state=PAUSING, conditions=conditions, command=None)

    def _say_why(self, row: StudyRow, share: Share) -> StudyRow:
        """Tells whether a study is admitted, and why not.  Returns its row."""
        conditions = with_condition(
            row.conditions, ADMITTED, share.gangs > 0, share.reason, share.message
        )
        same = conditions == row.conditions
        return row if same else self._change(row, conditions=conditions) or row

    def _resize(self, row: StudyRow, limit: int | None) -> StudyRow | None:
        """Trials at a time as its share has it.  Returns the row, None if it has changed meanwhile."""
        running = row.state == RUNNING
        if running and (row.share == limit or not commands.driven(self.database, row.name)):
            return row
        try:
            wanted = Edit(settings={"max_concurrent": limit})
            edit(self.database, row.name, wanted, wait_s=0)
        except UcdRayError as error:  # it keeps what it has, and is asked again
            log.warning("study %s keeps its parallelism: %s", row.id, error)
            return row
        return self._change(row, share=limit)

    def _change(self, row: StudyRow, **values: Any) -> StudyRow | None:
        changed = self.database.write(
            lambda connection: change(connection, row.id, revision=row.revision, **values)
        )
        return find_study(self.database, row.id) if changed else None


def _must_leave(share: Share) -> bool:
    """Whether a running study has to make room for others, or has used its quota."""
    return not share.gangs and share.reason != TOO_LARGE


def _due(row: StudyRow, now: float) -> bool:
    return row.not_before is None or row.not_before <= now


def _limit(row: StudyRow, share: Share, *, alone: bool) -> int | None:
    """Trials at a time; None: as many as fit, which is the whole cluster for a study alone on it."""
    return row.parallelism if alone else share.gangs


def _beside(leaving: Collection[StudyRow], there: Resources) -> Resources:
    """What there is beside studies that still hold a gang while they pause or stop."""
    claims = [claim_of(row, there) for row in leaving]
    return Resources(
        max(0.0, there.cpus - sum(claim.cpus for claim in claims)),
        max(0.0, there.gpus - sum(claim.gpus for claim in claims)),
    )
