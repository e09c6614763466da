"""The arithmetic of UCD, tile by tile, with the gradient made in the forward pass.

The contrast vectors are constants, so the gradient needs each similarity only once: forward keeps
the gradient of the features, backward scales it, and no matrix of anchors x columns exists.

Per tile of anchors first the other classes, one tile of columns after the other: similarities,
exponentials, their row sums and their product with the vectors, divided by these sums at the end.
Then the own class, whose terms need the sums. Unit vectors bound a similarity by 1 / temperature,
so no row maximum is subtracted while exp of that bound is harmless; for a lower temperature one
more pass over the similarities finds the maximum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ucd_ray.losses.contrastive_plan import Group, Plan

MIN_NORM = 1e-6  # a shorter feature has no direction: it becomes 0, without gradient
MAX_SIMILARITY = 50.0  # exp of +-50, times any number of columns, is a normal float32
LOG2_E = math.log2(math.e)  # exp(x) = exp2(x * LOG2_E), and exp2 is the faster one
# Rows and elements of a tile; three are kept. On the CPU 2 MiB, for the caches of two cores; on
# CUDA 64 MiB, since smaller kernels end before the next one is launched.
TILES = {"cpu": (512, 2**19), "cuda": (4096, 2**24)}


class Contrast(torch.autograd.Function):
    """The loss over the rows and columns of a plan."""

    @staticmethod
    def forward(
        ctx: Any,
        new_features: Tensor,
        old_features: Tensor,
        probs: Tensor,
        plan: Plan,
        temperature: float,
        shift: float,
        half: bool,
    ) -> Tensor:
        """Return the loss, a scalar, and keep its gradient.

        new_features, old_features: [B, D, h, w]
        probs: [B * h * w, C], inner products of which weigh the positive pairs
        shift: added to the logarithm of the negatives
        half: multiply in bfloat16 and add in float32; only CUDA can
        """
        anchors, lengths, columns = _gather(new_features, old_features, probs, plan, half)
        weights = probs[plan.anchors] * plan.scales[:, None].to(probs.dtype)
        tiles = _Tiles(columns, temperature, shift)

        batch, width, height, breadth = new_features.shape
        gradient = anchors.new_zeros(batch * height * breadth, width)
        parts = [anchors.new_zeros(())]
        for segments in _split(plan.groups, tiles.num_rows):
            rows = slice(segments[0].rows.start, segments[-1].rows.stop)
            unit = anchors[rows]
            loss, slope = tiles.loss(unit, weights[rows], segments)
            parts.append(loss)
            along = (slope * unit).sum(dim=1, keepdim=True)
            slope.addcmul_(along, unit, value=-1).mul_(lengths[rows])
            gradient.index_copy_(0, plan.anchors[rows], slope)
        ctx.save_for_backward(gradient.view(batch, height, breadth, width).movedim(-1, 1))
        ctx.dtype = new_features.dtype
        return torch.stack(parts).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_outputs[0]).to(ctx.dtype), None, None, None, None, None, None


class _Segment(NamedTuple):
    """Some or all anchors of a class."""

    group: Group
    rows: slice


class _Columns(NamedTuple):
    """The contrast set, sorted by class.

    vectors: [K, D], of length 1
    probs: [K, C], times the columns' weights
    log2_weights: [K]; None = all 0
    """

    vectors: Tensor
    probs: Tensor
    log2_weights: Tensor | None


class _Tiles:
    """The contrast set, the buffers and the constants that all tiles of a loss share."""

    def __init__(self, columns: _Columns, temperature: float, shift: float) -> None:
        self.columns = columns
        self.temperature = temperature
        self.shift = shift
        vectors, like = columns.vectors, columns.probs
        self.num_rows, self.size = TILES.get(vectors.device.type, TILES["cuda"])
        self.size = min(self.size, self.num_rows * len(vectors))
        self.buffers = [like.new_empty(self.size) for _ in range(3)]
        self.factors = vectors.new_empty(self.size if vectors.dtype != like.dtype else 0)

    def loss(
        self, unit: Tensor, weights: Tensor, segments: list[_Segment]
    ) -> tuple[Tensor, Tensor]:
        """The loss of neighbouring anchors and its gradient with respect to `unit`.

        unit: [R, D]; weights: [R, C], their probabilities times their scales
        """
        total, maximum, slope = self._negatives(unit, segments)
        log_total = total.log().add_(self.shift)
        if maximum is not None:
            log_total.add_(maximum, alpha=1 / LOG2_E)
        loss, pull, positive = self._positives(unit, weights, log_total, segments)
        slope.mul_(pull / total.clamp(min=torch.finfo(total.dtype).tiny))
        return loss, slope.sub_(positive).div_(self.temperature)

    def _negatives(
        self, unit: Tensor, segments: list[_Segment]
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Sum of exp(s) over the columns of other classes, [R, 1], and of exp(s) * k, [R, D].

        Both are divided by 2 to the power of the maximum, [R, 1], if there is one.
        """
        scaled = unit * (LOG2_E / self.temperature)
        maximum = None
        if 1 / self.temperature > MAX_SIMILARITY:
            # Finite, since -inf - -inf would be NaN where a row has no negatives.
            maximum = unit.new_full((len(unit), 1), torch.finfo(unit.dtype).min)
            for _, tile in self._other_classes(scaled, segments):
                maximum = torch.maximum(maximum, tile.amax(dim=1, keepdim=True))
        total, product = unit.new_zeros(len(unit), 1), torch.zeros_like(unit)
        for columns, tile in self._other_classes(scaled, segments):
            if maximum is not None:
                tile.sub_(maximum)
            factors = torch.exp2(tile, out=self._factors(tile))
            total += factors.sum(dim=1, keepdim=True, dtype=total.dtype)
            _add_product(product, factors, self.columns.vectors[columns])
        return total, maximum, product

    def _other_classes(
        self, scaled: Tensor, segments: list[_Segment]
    ) -> Iterator[tuple[slice, Tensor]]:
        """Tiles of similarities, -inf at columns of an anchor's own class."""
        first = segments[0].rows.start
        own = segments[0].group.columns
        num_columns = len(self.columns.vectors)
        alone = len(segments) == 1
        spans = [slice(0, own.start), slice(own.stop, num_columns)]
        for span in spans if alone else [slice(0, num_columns)]:
            for columns in _ranges(span, self.size // len(scaled)):
                tile = self._similarities(scaled, columns)
                if self.columns.log2_weights is not None:
                    tile.add_(self.columns.log2_weights[columns])
                for segment in () if alone else segments:
                    own = segment.group.columns
                    start, stop = max(own.start, columns.start), min(own.stop, columns.stop)
                    if start < stop:
                        rows = slice(segment.rows.start - first, segment.rows.stop - first)
                        tile[rows, start - columns.start : stop - columns.start] = -torch.inf
                yield columns, tile

    def _positives(
        self, unit: Tensor, weights: Tensor, log_total: Tensor, segments: list[_Segment]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of w * log(1 + exp(log_total - s)) over pairs of a class, and what the slope needs.

        The derivatives by log_total, [R, 1], and their sum times the vectors, [R, D].
        """
        scaled = unit / self.temperature
        pull, product = torch.zeros_like(log_total), torch.zeros_like(unit)
        parts = []
        for group, span in segments:
            rows = slice(span.start - segments[0].rows.start, span.stop - segments[0].rows.start)
            start, stop = span.start - group.anchors.start, span.stop - group.anchors.start
            num_own = max(0, min(stop, group.num_own) - start)
            for columns in _ranges(group.columns, self.size // (stop - start)):
                tile = self._similarities(scaled[rows], columns)
                margins = torch.sub(log_total[rows], tile, out=tile)
                own = start - (columns.start - group.columns.start)
                margins[:num_own].diagonal(own).fill_(-torch.inf)  # its own copy is no positive
                losses, pair_weights = (self._view(index, tile) for index in (1, 2))
                torch.ops.aten.softplus.out(margins, 1, 50, out=losses)
                torch.mm(weights[rows], self.columns.probs[columns].T, out=pair_weights)
                parts.append(losses.mul_(pair_weights).sum())
                factors = torch.mul(margins.sigmoid_(), pair_weights, out=self._factors(tile))
                pull[rows] += factors.sum(dim=1, keepdim=True, dtype=pull.dtype)
                _add_product(product[rows], factors, self.columns.vectors[columns])
        return torch.stack(parts).sum(), pull, product

    def _similarities(self, scaled: Tensor, columns: slice) -> Tensor:
        vectors = self.columns.vectors[columns]
        tile = self.buffers[0][: len(scaled) * len(vectors)].view(len(scaled), len(vectors))
        return _multiply(scaled.to(vectors.dtype), vectors.T, tile)

    def _view(self, index: int, tile: Tensor) -> Tensor:
        return self.buffers[index][: tile.numel()].view_as(tile)

    def _factors(self, tile: Tensor) -> Tensor:
        """Where to put what is multiplied with vectors: in place, unless their precision differs."""
        return self.factors[: tile.numel()].view_as(tile) if len(self.factors) else tile


def _gather(
    new_features: Tensor, old_features: Tensor, probs: Tensor, plan: Plan, half: bool
) -> tuple[Tensor, Tensor, _Columns]:
    """Unit vectors of the anchors, [n, D], one over their lengths, [n, 1], and the columns."""
    pixels = _pixels(new_features)
    anchors, lengths = _unit(pixels, plan.anchors, probs.dtype)
    slots = plan.order.argsort()  # where each column goes
    vectors = anchors.new_empty(
        (len(slots), anchors.shape[1]), dtype=torch.bfloat16 if half else anchors.dtype
    )
    num_new = len(plan.new)
    vectors[slots[:num_new]] = _unit(pixels, plan.new, probs.dtype)[0].to(vectors.dtype)
    pixels = _pixels(old_features)
    vectors[slots[num_new:]] = _unit(pixels, plan.old, probs.dtype)[0].to(vectors.dtype)
    column_probs = probs[torch.cat([plan.new, plan.old])[plan.order]]
    if plan.column_weights is None:
        return anchors, lengths, _Columns(vectors, column_probs, None)
    column_weights = plan.column_weights.to(probs.dtype)
    column_probs.mul_(column_weights[:, None])
    return anchors, lengths, _Columns(vectors, column_probs, column_weights.log2())


def _pixels(maps: Tensor) -> Tensor:
    """[B, D, h, w] as [B * h * w, D]."""
    return maps.movedim(1, -1).flatten(0, 2)


def _unit(pixels: Tensor, at: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of length 1, [n, D], and what they were multiplied with, [n, 1]; 0 for short ones."""
    vectors = pixels.index_select(0, at).to(dtype)
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    inverse = (norm > MIN_NORM) / norm.clamp(min=MIN_NORM)
    return vectors.mul_(inverse), inverse


def _split(groups: list[Group], num_rows: int) -> Iterator[list[_Segment]]:
    """Neighbouring anchors, at most num_rows: equal parts of a class or several small classes."""
    segments: list[_Segment] = []
    room = num_rows
    for group in groups:
        size = group.anchors.stop - group.anchors.start
        if size > room and segments:
            yield segments
            segments, room = [], num_rows
        if size > num_rows:
            for rows in _ranges(group.anchors, num_rows):
                yield [_Segment(group, rows)]
        else:
            segments.append(_Segment(group, group.anchors))
            room -= size
    if segments:
        yield segments


def _ranges(span: slice, size: int) -> Iterator[slice]:
    """The span in equal parts of at most `size`."""
    length = span.stop - span.start
    num_parts = -(-length // max(1, size))
    for part in range(num_parts):
        yield slice(
            span.start + length * part // num_parts, span.start + length * (part + 1) // num_parts
        )


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)


def _add_product(to: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == to.dtype:
        to.addmm_(a, b)
    else:
        to.add_(torch.mm(a, b, out_dtype=to.dtype))
