"""Weight regularisers: how far parameters moved, and how much each of them matters (EWC, PI, RW).

Equations as in the re-implementations by the authors of MiB, which the papers of our field compare
with.  The functions look at parameters and their statistics only, never at images: `quadratic_penalty`
and its gradient are the same on all ranks if these are, so the mean over ranks is that gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ucd_ray.errors import ConfigError
from ucd_ray.losses.common import in_full_precision

Tensors = Mapping[str, Tensor] | Sequence[Tensor]


def quadratic_penalty(parameters: Tensors, anchors: Tensors, importance: Tensors) -> Tensor:
    """Sum over all entries of importance * (parameter - anchor)^2, a scalar.

    parameters: tensors of any shapes, by name or as a sequence
    anchors: their values at the end of the step before, no gradient
    importance: non-negative, the same shapes, no gradient
    By name, the importance says which parameters count: those that the old model has too. Sequences
    are taken pairwise.
    Raises ConfigError if the three do not match in names, number or shapes, or are empty.
    """
    summands = []
    for name, value, anchor, factor in _matched(parameters, anchors, importance):
        for kind, other in (("anchor", anchor), ("importance", factor)):
            if other.shape != value.shape:
                raise ConfigError(
                    f"the {kind} of parameter {name} has the shape {list(other.shape)}; it must be "
                    f"that of the parameter, {list(value.shape)}"
                )
        # The gradient keeps the factor, which inference mode would forbid.
        kept = factor.clone() if factor.is_inference() else factor.detach()
        moved = in_full_precision(value) - in_full_precision(anchor).detach()
        summands.append((in_full_precision(kept) * moved.square()).sum())
    if not summands:
        raise ConfigError(
            "quadratic_penalty got no importance; it needs that of a parameter at least"
        )
    return torch.stack(summands).sum()


def min_max(tensor: Tensor) -> Tensor:
    """The tensor shifted and scaled to [0, 1]; zeros if all its entries are equal."""
    values = in_full_precision(tensor)
    low, high = values.aminmax()
    span = high - low
    return (values - low) / span.where(span > 0, 1.0)


def running_fisher(fisher: Tensor, gradient: Tensor, decay: float) -> Tensor:
    """Moving mean of squared gradients (EWC): decay * gradient^2 + (1 - decay) * fisher.

    decay: the share of the newest gradient; the published code uses 0.9 and starts from ones
    Raises ConfigError unless 0 <= decay <= 1.
    """
    if not 0 <= decay <= 1:
        raise ConfigError(f"decay ({decay}) must lie between 0 and 1; published is 0.9")
    return in_full_precision(fisher).lerp(in_full_precision(gradient).square(), decay)


def path_importance(path: Tensor, moved: Tensor, eps: float = 1e-20) -> Tensor:
    """Loss decrease per squared distance (PI): max(0, path / (moved^2 + eps)).

    path: sum over updates of gradient * (parameter before - parameter after)
    moved: how far each entry went from the start of the step to its end
    """
    return (in_full_precision(path) / (in_full_precision(moved).square() + eps)).clamp(min=0)


def walk_score(path: Tensor, fisher: Tensor, moved: Tensor, eps: float = 1e-20) -> Tensor:
    """Loss decrease per Riemannian distance (RW): max(0, path / (0.5 * fisher * moved^2 + eps)).

    path, moved: as in `path_importance`, over the iterations that one score looks at
    fisher: as in `running_fisher`
    """
    distance = 0.5 * in_full_precision(fisher) * in_full_precision(moved).square()
    return (in_full_precision(path) / (distance + eps)).clamp(min=0)


def _matched(
    parameters: Tensors, anchors: Tensors, importance: Tensors
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Name, parameter, anchor and importance, one by one."""
    parameters, anchors, importance = map(_by_name, (parameters, anchors, importance))
    for kind, group in (("parameters", parameters), ("anchors", anchors)):
        if absent := sorted(importance.keys() - group.keys()):
            raise ConfigError(
                f"{kind} lacks {absent[0]}, which has an importance; the {len(importance)} entries "
                f"of importance need a parameter and an anchor each ({kind}: {len(group)})"
            )
    return ((name, parameters[name], anchors[name], importance[name]) for name in importance)


def _by_name(tensors: Tensors) -> Mapping[str, Tensor]:
    if isinstance(tensors, Mapping):
        return tensors
    return {f"number {position}": tensor for position, tensor in enumerate(tensors)}
