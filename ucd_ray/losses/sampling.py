"""Class-balanced random choice of pixels, with the weights that make up for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """Chosen pixels.

    at: [n] int64, their positions, ascending
    weights: [n] float64, one over the probability with which each was chosen, so that a weighted
        sum over the chosen has the sum over all as its expectation; None if all were chosen
    """

    at: Tensor
    weights: Tensor | None


def balanced_sample(
    classes: Tensor,
    *,
    max_total: int | None = None,
    max_per_class: int | None = None,
    generator: torch.Generator | None = None,
) -> Sample:
    """Choose pixels at random, scarce classes first.

    classes: [N] int64, the class of each pixel
    max_per_class: at most so many of each class; None = all
    max_total: at most so many in all, shared by `fair_shares`; None = all. Below the number of
        classes the draw ignores the classes: else some could never be chosen.
    generator: may live on another device; None uses the default one of the classes' device
    Draws only if a cap is exceeded.
    """
    everything = Sample(torch.arange(len(classes), device=classes.device), None)
    if max_total is None and max_per_class is None:
        return everything
    counts: list[int] = classes.bincount().tolist()
    shares = counts if max_per_class is None else [min(n, max_per_class) for n in counts]
    if max_total is not None and max_total < sum(n > 0 for n in shares):
        strata, counts, shares = torch.zeros_like(classes), [len(classes)], [max_total]
    elif max_total is not None:
        strata, shares = classes, fair_shares(shares, max_total)
    else:
        strata = classes
    if shares == counts:
        return everything
    device = classes.device if generator is None else generator.device
    shuffled = torch.randperm(len(classes), generator=generator, device=device)
    shuffled = shuffled.to(classes.device)
    by_stratum = shuffled[strata[shuffled].argsort(stable=True)]
    chosen = [
        group[:share] for group, share in zip(torch.split(by_stratum, counts), shares, strict=True)
    ]
    at = torch.cat(chosen).sort().values
    inverse = [n / share if share else 0.0 for n, share in zip(counts, shares, strict=True)]
    table = torch.tensor(inverse, dtype=torch.float64, device=classes.device)
    return Sample(at, table[strata[at]])


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
