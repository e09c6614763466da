"""Removes what studies that were killed left on a shared cluster.

Ray Train frees the resources of a run through helper actors; when they die at the wrong moment, a placement
group stays for ever.  A study that starts removes the groups of ucd-ray's jobs that no longer run.
"""

from __future__ import annotations

import contextlib

OURS = ("ucd-ray", "ucd_ray")  # in the command line of a job's driver


def remove_leftover_groups(address: str) -> int:
    """Removes placement groups of ended ucd-ray jobs of the cluster at `host:port`.  Returns how many.

    Without the address nothing is found where several clusters run on a machine.
    """
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group
    from ray.util.state import list_jobs, list_placement_groups

    removed = 0
    with contextlib.suppress(
        Exception
    ):  # the state API needs the dashboard; without it nothing is known
        jobs = list_jobs(address, limit=1000, raise_on_missing_output=False)
        ended = {
            job.job_id
            for job in jobs
            if job.job_id
            and job.status not in ("RUNNING", "PENDING")
            and any(word in (job.entrypoint or "") for word in OURS)
        }
        for group in list_placement_groups(address, limit=1000, raise_on_missing_output=False):
            if group.state != "REMOVED" and group.creator_job_id in ended:
                found = PlacementGroupID.from_hex(group.placement_group_id)
                remove_placement_group(PlacementGroup(found))
                removed += 1
    return removed
