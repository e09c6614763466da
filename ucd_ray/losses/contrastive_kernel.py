"""The arithmetic of UCD, tile by tile, with the gradient made in the forward pass.

The contrast vectors are constants, so the gradient needs each similarity only once: forward keeps
the gradient of the features, backward scales it, and no matrix of anchors x columns exists.

Per tile of anchors first the other classes, one tile of columns after the other: similarities,
exponentials, their row sums and their product with the vectors, divided by these sums at the end.
Then the own class, whose terms need the sums. Unit vectors bound a similarity by 1 / temperature,
so no row maximum is subtracted while exp of that bound is harmless; for a lower temperature one
more pass over the similarities finds the maximum.

Two anchors are as similar one way as the other: the exponentials of a tile of anchors and later
anchors also serve the later ones, as columns of their transpose.
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
        tiles = _Tiles(anchors, weights, columns, temperature, shift)

        batch, width, height, breadth = new_features.shape
        gradient = anchors.new_zeros(batch * height * breadth, width)
        parts = [anchors.new_zeros(())]
        for segments in _split(plan.groups, tiles.num_rows):
            loss, slope = tiles.loss(segments)
            parts.append(loss)
            rows = _rows(segments)
            along = (slope * anchors[rows]).sum(dim=1, keepdim=True)
            slope.addcmul_(along, anchors[rows], value=-1).mul_(lengths[rows])
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
    """What all tiles of a loss share; call `loss` for neighbouring anchors, first to last.

    anchors: [n, D], of length 1
    weights: [n, C], their probabilities times their scales
    """

    def __init__(
        self,
        anchors: Tensor,
        weights: Tensor,
        columns: _Columns,
        temperature: float,
        shift: float,
    ) -> None:
        self.anchors = anchors
        self.weights = weights
        self.columns = columns
        self.temperature = temperature
        self.shift = shift
        self.needs_maximum = 1 / temperature > MAX_SIMILARITY
        # With a maximum or a weight of its own, a row's exponential is not the column's.
        self.is_symmetric = not self.needs_maximum and columns.log2_weights is None
        # Per anchor, over columns of other classes: sum of exp(s), sum of exp(s) * vector.
        self.total, self.product = anchors.new_zeros(len(anchors), 1), torch.zeros_like(anchors)
        vectors = columns.vectors
        self.num_rows, self.size = TILES.get(vectors.device.type, TILES["cuda"])
        self.size = min(self.size, self.num_rows * len(vectors))
        self.buffers = [anchors.new_empty(self.size) for _ in range(3)]
        self.factors = vectors.new_empty(self.size if vectors.dtype != anchors.dtype else 0)

    def loss(self, segments: list[_Segment]) -> tuple[Tensor, Tensor]:
        """The loss of these anchors and its gradient with respect to them, [R, D]."""
        maximum = self._add_negatives(segments)
        rows = _rows(segments)
        total, slope = self.total[rows], self.product[rows]
        log_total = total.log2()
        if maximum is not None:
            log_total += maximum
        log_total.div_(LOG2_E).add_(self.shift)
        loss, pull, positive = self._positives(log_total, segments)
        slope.mul_(pull / total.clamp(min=torch.finfo(total.dtype).tiny))
        return loss, slope.sub_(positive).div_(self.temperature)

    def _add_negatives(self, segments: list[_Segment]) -> Tensor | None:
        """Complete `total` and `product` of these anchors.

        Returns the maxima, [R, 1], if both are divided by 2 to their power.
        """
        rows = _rows(segments)
        unit, total, product = self.anchors[rows], self.total[rows], self.product[rows]
        scaled = unit * (LOG2_E / self.temperature)
        maximum = None
        if self.needs_maximum:
            # Finite, since -inf - -inf would be NaN where a row has no negatives.
            maximum = unit.new_full((len(unit), 1), torch.finfo(unit.dtype).min)
            for _, tile in self._other_classes(scaled, segments):
                maximum = torch.maximum(maximum, tile.amax(dim=1, keepdim=True))
        for columns, tile in self._other_classes(scaled, segments):
            if maximum is not None:
                tile.sub_(maximum)
            factors = torch.exp2(tile, out=self._factors(tile))
            total += factors.sum(dim=1, keepdim=True, dtype=total.dtype)
            _add_product(product, factors, self.columns.vectors[columns])
            if self.is_symmetric and rows.stop <= columns.start < len(self.anchors):
                self.total[columns] += factors.sum(dim=0, dtype=total.dtype)[:, None]
                _add_product(self.product[columns], factors.T, self.columns.vectors[rows])
        return maximum

    def _other_classes(
        self, scaled: Tensor, segments: list[_Segment]
    ) -> Iterator[tuple[slice, Tensor]]:
        """Tiles of similarities, -inf at columns of an anchor's own class.

        If symmetric without columns of earlier anchors, which these anchors have been given.
        """
        rows = _rows(segments)
        for span in self._spans(segments):
            for columns in _ranges(span, self.size // len(scaled)):
                tile = self._similarities(scaled, self.columns.vectors[columns])
                if self.columns.log2_weights is not None:
                    tile.add_(self.columns.log2_weights[columns])
                if len(segments) > 1:
                    for group, part in segments:
                        for own in (group.shared, group.others):
                            start, stop = max(own.start, columns.start), min(own.stop, columns.stop)
                            if start < stop:
                                tile[
                                    part.start - rows.start : part.stop - rows.start,
                                    start - columns.start : stop - columns.start,
                                ] = -torch.inf
                yield columns, tile

    def _spans(self, segments: list[_Segment]) -> list[slice]:
        """The columns to visit, without those of the class where there is only one."""
        num_anchors, num_columns = len(self.anchors), len(self.columns.vectors)
        rows = _rows(segments)
        if len(segments) > 1:
            if self.is_symmetric:
                return [rows, slice(rows.stop, num_anchors), slice(num_anchors, num_columns)]
            return [slice(0, num_columns)]
        _, shared, others = segments[0].group
        after = slice(others.stop, num_columns)
        if self.is_symmetric:
            later, before = slice(shared.stop, num_anchors), slice(num_anchors, others.start)
            return [later, before, after]
        return [slice(0, shared.start), slice(shared.stop, others.start), after]

    def _positives(
        self, log_total: Tensor, segments: list[_Segment]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of w * log(1 + exp(log_total - s)) over pairs of a class, and what the slope needs.

        The derivatives by log_total, [R, 1], and their sum times the vectors, [R, D].
        """
        first = segments[0].rows.start
        pull = torch.zeros_like(log_total)
        product = self.anchors.new_zeros(len(log_total), self.anchors.shape[1])
        parts = []
        for group, rows in segments:
            here = slice(rows.start - first, rows.stop - first)
            scaled = self.anchors[rows] / self.temperature
            for start, num_shared, vectors, probs in self._own_class(group, len(scaled)):
                tile = self._similarities(scaled, vectors)
                margins = torch.sub(log_total[here], tile, out=tile)
                # An anchor's own copy is no positive.
                own = margins[:, :num_shared].diagonal(rows.start - group.anchors.start - start)
                own.fill_(-torch.inf)
                losses, weights = (self._view(index, tile) for index in (1, 2))
                torch.ops.aten.softplus.out(margins, 1, 50, out=losses)
                torch.mm(self.weights[rows], probs.T, out=weights)
                parts.append(losses.mul_(weights).sum())
                factors = torch.mul(margins.sigmoid_(), weights, out=self._factors(tile))
                pull[here] += factors.sum(dim=1, keepdim=True, dtype=pull.dtype)
                _add_product(product[here], factors, vectors)
        return torch.stack(parts).sum(), pull, product

    def _own_class(self, group: Group, num_rows: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Tiles of a class's columns: where in `shared` they start, how many are, vectors, probs.

        A small class is one tile.
        """
        vectors, probs, _ = self.columns
        limit = self.size // num_rows
        shared, others = group.shared, group.others
        num_shared = shared.stop - shared.start
        if num_shared + others.stop - others.start <= limit:
            whole = [torch.cat([of[shared], of[others]]) for of in (vectors, probs)]
            yield 0, num_shared, whole[0], whole[1]
            return
        for columns in _ranges(shared, limit):
            start, size = columns.start - shared.start, columns.stop - columns.start
            yield start, size, vectors[columns], probs[columns]
        for columns in _ranges(others, limit):
            yield 0, 0, vectors[columns], probs[columns]

    def _similarities(self, scaled: Tensor, vectors: Tensor) -> Tensor:
        tile = self.buffers[0][: len(scaled) * len(vectors)].view(len(scaled), len(vectors))
        return _multiply(scaled.to(vectors.dtype), vectors.T, tile)

    def _view(self, index: int, tile: Tensor) -> Tensor:
        return self.buffers[index][: tile.numel()].view_as(tile)

    def _factors(self, tile: Tensor) -> Tensor:
        """Where to put what is multiplied with vectors: in place, unless their precision differs."""
        return self.factors[: tile.numel()].view_as(tile) if len(self.factors) else tile


def _rows(segments: list[_Segment]) -> slice:
    return slice(segments[0].rows.start, segments[-1].rows.stop)


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
