"""Class-balanced random choice of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def balanced_sample(
    classes: Tensor,
    *,
    max_total: int | None = None,
    max_per_class: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose pixels at random, scarce classes first.

    classes: [N] int64, the class of each pixel
    max_per_class: at most so many of each class; None = all
    max_total: at most so many in all, shared by `fair_shares`; None = all
    generator: may live on another device; None uses the default one of the classes' device
    Returns their positions in `classes`, [n] int64, ascending. Draws only if a cap is exceeded.
    """
    counts: list[int] = classes.bincount().tolist()
    shares = counts if max_per_class is None else [min(n, max_per_class) for n in counts]
    if max_total is not None:
        shares = fair_shares(shares, max_total)
    if shares == counts:
        return torch.arange(len(classes), device=classes.device)
    device = classes.device if generator is None else generator.device
    shuffled = torch.randperm(len(classes), generator=generator, device=device)
    shuffled = shuffled.to(classes.device)
    by_class = shuffled[classes[shuffled].argsort(stable=True)]
    chosen = [
        group[:share] for group, share in zip(torch.split(by_class, counts), shares, strict=True)
    ]
    return torch.cat(chosen).sort().values


def fair_shares(counts: Sequence[int], total: int) -> list[int]:
    """Share `total` among classes that have `counts` pixels, as equally as the counts allow.

    Classes below the common level keep all their pixels; the others get the level, and what does
    not divide goes to the largest. The shares sum to min(total, sum(counts)).
    """
    shares = [0] * len(counts)
    for done, index in enumerate(sorted(range(len(counts)), key=counts.__getitem__)):
        shares[index] = min(counts[index], total // (len(counts) - done))
        total -= shares[index]
    return shares
