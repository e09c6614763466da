"""Small batches for UCD's tests, and the loss by loops over pixels and as it was published."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ucd_ray.losses import balanced_sample, contrastive_distillation

NUM_OLD = 3
CAPS = {"max_anchors": 20, "max_old": 4, "max_per_class": 5}


class Batch:
    """Random inputs: 2 images of 5 x 4 positions, 4 features, classes 0..4, some ignored."""

    def __init__(
        self,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        size: tuple[int, int, int] = (2, 5, 4),
        width: int = 4,
    ) -> None:
        rng = torch.Generator().manual_seed(seed)
        batch, height, columns = size
        maps = (batch, width, height, columns)
        self.new = torch.randn(maps, generator=rng, dtype=torch.float64).to(dtype)
        self.new.requires_grad_()
        self.old = torch.randn(maps, generator=rng, dtype=torch.float64).to(dtype)
        logits = torch.randn((batch, NUM_OLD, height, columns), generator=rng, dtype=torch.float64)
        self.logits = (2 * logits).to(dtype)
        self.labels = torch.randint(0, 5, size, generator=rng)
        self.labels[torch.rand(size, generator=rng) < 0.4] = 0
        self.labels[0, 0, 0] = 255

    def loss(self, **knobs: Any) -> Tensor:
        return contrastive_distillation(
            self.new, self.old, self.logits, self.labels, **{"num_old": NUM_OLD, **knobs}
        )


def pixels(maps: Tensor) -> Iterator[Tensor]:
    for image in maps:
        for row in range(image.shape[1]):
            for column in range(image.shape[2]):
                yield image[:, row, column]


def unit(vector: Tensor) -> Tensor:
    return vector / vector.pow(2).sum().sqrt()


Weights = dict[int, float]  # of flat positions


def by_loops(
    new: Tensor,
    old: Tensor,
    logits: Tensor,
    labels: Tensor,
    *,
    num_old: int = NUM_OLD,
    temperature: float = 0.07,
    uncertainty: bool = True,
    form: str = "standard",
    drawn: tuple[Weights, Weights, Weights] | None = None,
) -> Tensor:
    """The loss as methods are described: one pixel, one pair at a time, labels at feature size.

    The authors' form follows the published procedure: negatives summed, then positives shifted.
    drawn: weights of the chosen anchors, new columns and old columns.
    """
    anchors, keys = [], []
    truths = labels.flatten().tolist()
    for at, (truth, f_new, f_old, z) in enumerate(
        zip(truths, pixels(new), pixels(old), pixels(logits), strict=True)
    ):
        label = truth if truth > 0 else int(z.argmax())
        if label in (0, 255):
            continue
        p = torch.exp(z) / torch.exp(z).sum()
        anchors.append((unit(f_new), label, p, at))
        keys.append((unit(f_new).detach(), label, p, at, at))
        if truth == 0:
            keys.append((unit(f_old), label, p, -1, at))
    present = [key[1] for key in keys]
    num_anchors = sum(present.count(anchor[1]) > 1 for anchor in anchors)
    total = new.sum() * 0.0
    for a, label, p, at in anchors:
        if drawn and at not in drawn[0]:
            continue
        negatives, terms, weights = torch.zeros((), dtype=new.dtype), [], []
        shift = 1 / temperature if form == "authors" else 0.0
        chosen = []
        for k, key_label, q, owner, key_at in keys:
            column_weight = 1.0
            if drawn:
                column_weight = drawn[2 if owner < 0 else 1].get(key_at, 0.0)
            if column_weight:
                chosen.append((a @ k / temperature, key_label, q, owner, column_weight))
        for s, key_label, _, _, column_weight in chosen:
            if key_label != label:
                negatives = negatives + column_weight * torch.exp(s)
        for s, key_label, q, owner, column_weight in chosen:
            if key_label != label or owner == at:
                continue
            certain = not uncertainty or (label >= num_old and key_label >= num_old)
            weight = 1.0 if certain else (p * q).sum()
            logit = s - shift
            terms.append(-column_weight * weight * (logit - (logit.exp() + negatives).log()))
            weights.append(column_weight)
        if terms:
            row = torch.stack(terms).sum() / sum(weights)
            total = total + row * (drawn[0][at] if drawn else 1.0)
    return total / max(1, num_anchors)


def by_published_procedure(
    new: Tensor, old: Tensor, logits: Tensor, labels: Tensor, *, temperature: float
) -> Tensor:
    """The published code's order of operations, with its masks and its subtraction of the maximum.

    Labels are at feature size already, so its resizing takes no part.
    """

    def rows(maps: Tensor) -> Tensor:
        return maps.movedim(1, -1).flatten(0, 2)

    truth = labels.flatten()
    classes = torch.where(truth == 0, logits.argmax(1).flatten(), truth)
    foreground = (classes > 0) & (truth != 255)
    pseudo = foreground & (truth == 0)
    anchor = torch.nn.functional.normalize(rows(new)[foreground], dim=1)
    contrast = torch.nn.functional.normalize(rows(old)[pseudo], dim=1)
    contrast = torch.cat([anchor, contrast]).detach()
    row, column = classes[foreground], torch.cat([classes[foreground], classes[pseudo]])
    probs = rows(logits).softmax(1)
    joint = probs[foreground] @ torch.cat([probs[foreground], probs[pseudo]]).T
    joint[(row >= NUM_OLD)[:, None] & (column >= NUM_OLD)] = 1.0
    positive = (row[:, None] == column).to(new.dtype)
    negative = 1 - positive
    positive[:, : len(row)].fill_diagonal_(0.0)

    similarity = anchor @ contrast.T / temperature
    negatives = (similarity.exp() * negative).sum(1, keepdim=True)
    similarity = similarity - similarity.max(1, keepdim=True).values.detach()
    log_prob = similarity - (similarity.exp() + negatives).log()
    count = positive.sum(1)
    kept = count > 0
    return -((log_prob * joint * positive).sum(1)[kept] / count[kept]).mean()


def draws(batch: Batch, seed: int, **caps: int) -> tuple[Weights, Weights, Weights]:
    """What the loss draws with this seed: anchors, then new columns, then old ones."""
    rng = torch.Generator().manual_seed(seed)
    truth = batch.labels.flatten()
    classes = torch.where(truth == 0, batch.logits.argmax(1).flatten(), truth)
    foreground = ((classes > 0) & (truth != 255)).nonzero()[:, 0]
    pseudo = foreground[truth[foreground] == 0]
    if caps.get("max_old") == 0:
        pseudo = pseudo[:0]
    weights = []
    for at, cap in (
        (foreground, {"max_total": caps.get("max_anchors")}),
        (foreground, {"max_per_class": caps.get("max_per_class")}),
        (pseudo, {"max_total": caps.get("max_old")}),
    ):
        sample = balanced_sample(classes[at], **cap, generator=rng)
        values = [1.0] * len(at) if sample.weights is None else sample.weights.tolist()
        weights.append(dict(zip(at[sample.at].tolist(), values, strict=True)))
    return weights[0], weights[1], weights[2]


def check_against_loops(batch: Batch, knobs: dict[str, Any]) -> None:
    caps = {name: value for name, value in knobs.items() if name.startswith("max_")}
    rest = {name: value for name, value in knobs.items() if name not in caps}
    loss = batch.loss(**knobs, generator=torch.Generator().manual_seed(3))
    drawn = draws(batch, 3, **caps) if caps else None
    expected = by_loops(batch.new, batch.old, batch.logits, batch.labels, **rest, drawn=drawn)
    (gradient,) = torch.autograd.grad(loss, batch.new)
    (expected_gradient,) = torch.autograd.grad(expected, batch.new)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)
    assert gradient.abs().max() > 1e-3


def on_cuda(batch: Batch) -> Batch:
    for name in ("new", "old", "logits", "labels"):
        setattr(batch, name, getattr(batch, name).detach().cuda())
    batch.new.requires_grad_()
    return batch
