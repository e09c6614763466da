"""The nodes of a cluster, and whether a gang fits on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

KINDS = ("CPU", "GPU")


@dataclass(frozen=True)
class Node:
    """A node of the cluster: what it has and what is free."""

    name: str
    total: dict[str, float]
    free: dict[str, float]


def fits(bundles: Sequence[tuple[float, float]], nodes: Sequence[Node]) -> bool:
    """Whether all bundles of (CPUs, GPUs) fit into what is free, each on one node."""
    free = [[node.free.get(kind, 0.0) for kind in KINDS] for node in nodes]
    for bundle in bundles:
        room = [node for node in free if all(n >= b for n, b in zip(node, bundle, strict=True))]
        if not room:
            return False
        tightest = min(room, key=lambda node: (node[1], node[0]))
        for kind, amount in enumerate(bundle):
            tightest[kind] -= amount
    return True


def count(value: float, kind: str) -> str:
    """A number with its unit: `1 GPU`, `2 CPUs`."""
    return f"{value:g} {kind}{'' if value == 1 else 's'}"


def free_text(nodes: Sequence[Node]) -> str:
    """What is free on every node."""
    return ", ".join(
        f"{node.name} {count(node.free.get('CPU', 0.0), 'CPU')}"
        + (f" {count(node.free.get('GPU', 0.0), 'GPU')}" if node.total.get("GPU") else "")
        for node in nodes
    )


def on_this_node() -> Any:
    """The scheduling strategy of an actor that is to live and end with this process's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
