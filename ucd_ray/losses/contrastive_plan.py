"""Which pixels UCD compares: anchors (rows) and contrast vectors (columns), sorted by class.

Sorted, the positives of a class are blocks of columns and no mask is needed. The columns that are
anchors too have the order of the rows, so that an anchor's own copy lies on the diagonal. They come
before all others, or where there are few pairs, before the others of their class.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ucd_ray.losses.sampling import Sample, balanced_sample

IGNORED = 255
NUM_LABELS = 256
# Elements; a product whose rows start at multiples of it can take two thirds of the time.
ALIGNED = 16
# Pairs of an anchor and a column, up to which one matrix is faster than tiles.
FEW = {"cpu": 2**21, "cuda": 2**24}


class Group(NamedTuple):
    """One class: its anchors, its columns that are anchors too, its other columns.

    The first anchors of the class are the pixels of `shared`, in this order.
    """

    anchors: slice
    shared: slice
    others: slice


class Segment(NamedTuple):
    """Some or all anchors of a class."""

    group: Group
    rows: slice


class Plan(NamedTuple):
    """What the loss computes, over flat positions of the pixels of a batch.

    anchors: [n] positions of the rows, sorted by class
    scales: [n] float64, the factor of each row's sum over positives in the loss
    new, old: positions of the columns that the new and the old model give
    is_whole: there are so few pairs that `contrastive_whole` is faster than `contrastive_tiles`
    order: [K], sorts the columns cat(new, old): if whole by class, in each class those that are
        anchors too before the others; else those that are anchors too, then the others, both by class
    column_weights: [K] float64, sorted likewise; None = all 1, and then every anchor is a column
    groups: the classes that have rows
    lowest, highest: of the labels
    """

    anchors: Tensor
    scales: Tensor
    new: Tensor
    old: Tensor
    is_whole: bool
    order: Tensor
    column_weights: Tensor | None
    groups: list[Group]
    lowest: int
    highest: int


def make_plan(
    truth: Tensor,
    guess: Tensor,
    *,
    max_anchors: int | None = None,
    max_old: int | None = None,
    max_per_class: int | None = None,
    generator: torch.Generator | None = None,
    may_be_whole: bool = True,
) -> Plan:
    """Choose rows and columns and sort them.

    truth: [N] int64 labels; guess: [N] int64, the old model's argmax
    The caps are those of `contrastive_distillation`. Labels out of range take no part.
    may_be_whole: few pairs may be sorted for `contrastive_whole`
    """
    classes = torch.where(truth == 0, guess, truth)
    pixels = ((classes > 0) & (classes < IGNORED)).nonzero().squeeze(1)
    labels = classes[pixels]
    # From here on positions are those in `pixels`.
    pseudo = (truth[pixels] == 0).nonzero().squeeze(1)[: 0 if max_old == 0 else None]
    rows = balanced_sample(labels, max_total=max_anchors, generator=generator)
    new = balanced_sample(labels, max_per_class=max_per_class, generator=generator)
    old = balanced_sample(labels[pseudo], max_total=max_old, generator=generator)
    old_at = pseudo[old.at]

    row_weights, new_weights = _spread(rows, labels), _spread(new, labels)
    column_labels = torch.cat([labels[new.at], labels[old_at]])
    is_other = torch.cat([row_weights[new.at] == 0, torch.ones_like(old_at, dtype=torch.bool)])
    pairs = len(rows.at) * len(column_labels)
    is_whole = may_be_whole and pairs <= FEW.get(truth.device.type, FEW["cuda"])
    # Strides of a table of counts, classes x (anchors too, others), flattened one way or the other.
    by_class, by_kind = (2, 1) if is_whole else (1, NUM_LABELS)
    column_keys = by_class * column_labels + by_kind * is_other
    row_keys = 2 * labels[rows.at] + (new_weights[rows.at] == 0)
    row_order, order = row_keys.argsort(stable=True), column_keys.argsort(stable=True)
    anchors = rows.at[row_order]

    weights = torch.cat([new_weights[new.at], _weights(old)])
    sums = weights.new_zeros(NUM_LABELS).index_add_(0, column_labels, weights)
    positives = (sums[labels] - new_weights)[anchors]
    population = _count(labels, NUM_LABELS) + _count(labels[pseudo], NUM_LABELS)
    num_anchors = (population[labels] > 1).sum()
    scales = row_weights[anchors] / (positives * num_anchors)
    scales = scales.where(positives > 0, 0.0)

    numbers = [_count(labels[rows.at], NUM_LABELS), _count(column_keys, 2 * NUM_LABELS)]
    lowest, highest, *counts = torch.cat([*truth[None].aminmax(dim=1), *numbers]).tolist()
    sampled = new.weights is not None or old.weights is not None
    return Plan(
        anchors=pixels[anchors],
        scales=scales,
        new=pixels[new.at],
        old=pixels[old_at],
        is_whole=is_whole,
        order=order,
        column_weights=weights[order] if sampled else None,
        groups=_groups(counts[:NUM_LABELS], counts[NUM_LABELS:], by_class, by_kind),
        lowest=lowest,
        highest=highest,
    )


def _groups(
    row_counts: list[int], column_counts: list[int], by_class: int, by_kind: int
) -> list[Group]:
    """From counts of rows per class and of columns per class and kind, with these strides."""
    rows, columns = _spans(row_counts), _spans(column_counts)
    return [
        Group(rows[label], columns[at], columns[at + by_kind])
        for label, at in enumerate(range(0, by_class * NUM_LABELS, by_class))
        if row_counts[label]
    ]


def _spans(sizes: list[int]) -> list[slice]:
    edges = accumulate(sizes, initial=0)
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _weights(sample: Sample) -> Tensor:
    if sample.weights is None:
        return torch.ones_like(sample.at, dtype=torch.float64)
    return sample.weights


def _spread(sample: Sample, pixels: Tensor) -> Tensor:
    """[N] float64: the weight of each pixel in the sample, 0 outside."""
    spread = torch.zeros_like(pixels, dtype=torch.float64)
    return spread.index_put_((sample.at,), _weights(sample))


def _count(keys: Tensor, size: int) -> Tensor:
    """How often each of 0..size-1 occurs; unlike bincount it does not wait for the device."""
    return keys.new_zeros(size).index_add_(0, keys, torch.ones_like(keys))


def rows_of(segments: list[Segment]) -> slice:
    """All anchors of neighbouring segments."""
    return slice(segments[0].rows.start, segments[-1].rows.stop)


def split(groups: list[Group], num_rows: int) -> Iterator[list[Segment]]:
    """Neighbouring anchors, at most num_rows: equal parts of a class or several small classes."""
    segments: list[Segment] = []
    room = num_rows
    for group in groups:
        size = group.anchors.stop - group.anchors.start
        if size > room and segments:
            yield segments
            segments, room = [], num_rows
        if size > num_rows:
            for rows in ranges(group.anchors, num_rows):
                yield [Segment(group, rows)]
        else:
            segments.append(Segment(group, group.anchors))
            room -= size
    if segments:
        yield segments


def ranges(span: slice, size: int) -> Iterator[slice]:
    """The span in parts of at most `size`, all about as long; aligned, where that leaves as few."""
    length = span.stop - span.start
    num_parts = -(-length // max(1, size))
    if not num_parts:
        return
    part = -(-length // num_parts)
    part = min(stride_of(part), max(1, size))
    for start in range(span.start, span.stop, part):
        yield slice(start, min(start + part, span.stop))


def stride_of(width: int) -> int:
    """The distance of a matrix's rows of so many elements, so that all start well."""
    return -(-width // ALIGNED) * ALIGNED
