"""Published rows of one scenario, with what is known of how they were measured."""

from __future__ import annotations

from dataclasses import fields

import pyarrow as pa

from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.published import Protocol, published_rows, scenarios
from ucd_ray.scenarios import parse_scenario
from ucd_ray.tune.cells import column
from ucd_ray.tune.groups import groups_of

FACTS = tuple(f.name for f in fields(Protocol) if f.name not in ("scenario", "setting", "joint"))


def published_view(scenario: str) -> pa.RecordBatchReader:
    """The published rows of a scenario in every setting, in the order of their sources.

    Columns: `method setting source table step` (null: the last), mIoU of each group of classes in
    percent, what is known of the protocol (`ucd_ray.published.protocol`), `joint` in percent, and
    `known_from`, where each fact was read.
    Raises ScenarioError for no scenario, ConfigError if nothing is published for it.
    """
    groups = groups_of(parse_scenario(scenario), background=False)
    found = [row for row in published_rows() if row.protocol.scenario == scenario]
    if not found:
        known = [name for name in scenarios() if name != scenario]
        raise ConfigError(f"no published rows for '{scenario}'; {did_you_mean(scenario, known)}")
    schema = pa.schema(
        [
            *(column(name, str) for name in ("method", "setting", "source", "table")),
            column("step", int),
            *(column(group.name, float, "percent") for group in groups),
            *(column(name, str) for name in FACTS),
            column("joint", float, "percent"),
            column("known_from", str),
        ],
        {"scenario": scenario},
    )
    rows = [
        {
            **vars(row.protocol),
            **{"method": row.method, "source": row.source, "table": row.table, "step": row.step},
            **{group.name: row.value(*group.metrics) for group in groups},
            "joint": row.protocol.joint and float(row.protocol.joint),
            "known_from": "; ".join(row.known_from),
        }
        for row in found
    ]
    return pa.Table.from_pylist(rows, schema).to_reader()
