"""The arithmetic of UCD, tile by tile, with the gradient made in the forward pass.

The contrast vectors are constants, so the gradient needs each similarity only once, and no matrix of
anchors x columns exists.

Per tile of anchors first the other classes, one tile of columns after the other: similarities,
exponentials, their row sums and their product with the vectors, divided by these sums at the end.
Then the own class, whose terms need the sums. Unit vectors bound a similarity by 1 / temperature,
so no row maximum is subtracted while exp of that bound is harmless; for a lower temperature one
more pass over the similarities finds the maximum.

Two anchors are as similar one way as the other: the exponentials of a tile of anchors and later
anchors also serve the later ones, as columns of their transpose.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ucd_ray.losses.common import LOG2_E
from ucd_ray.losses.contrastive_plan import Group, Segment, ranges, rows_of, split
from ucd_ray.losses.contrastive_vectors import (
    Columns,
    add_product,
    multiply,
    needs_maximum,
    softplus,
)

# Rows and elements of a tile; three are kept, on a CPU four. There 2 MiB, for the caches of two
# cores; on CUDA 48 MiB, since smaller kernels end before the next one is launched.
TILES = {"cpu": (1024, 2**19), "cuda": (4096, 3 * 2**22)}


def tiled_losses(
    anchors: Tensor,
    weights: Tensor,
    columns: Columns,
    groups: list[Group],
    temperature: float,
    shift: float,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some neighbouring anchors after others, their loss and its gradient with respect to them.

    anchors: [n, D], of length 1; weights: [n, C], their probabilities times their scales
    columns: first those that are anchors too, then the others, both sorted by class
    shift: added to the logarithm of the negatives
    """
    tiles = _Tiles(anchors, weights, columns, temperature, shift)
    for segments in split(groups, tiles.num_rows):
        yield rows_of(segments), *tiles.loss(segments)


class _Block(NamedTuple):
    """Some anchors of a class beside some columns of it.

    offset: of the anchors' own copies among the columns, as of a diagonal
    num_shared: the first columns, which are anchors too
    vectors: [k, D]; probs: [k, C]
    """

    rows: slice
    offset: int
    num_shared: int
    vectors: Tensor
    probs: Tensor

    @property
    def numel(self) -> int:
        return (self.rows.stop - self.rows.start) * len(self.vectors)


class _Tiles:
    """What all tiles of a loss share; call `loss` for neighbouring anchors, first to last."""

    def __init__(
        self,
        anchors: Tensor,
        weights: Tensor,
        columns: Columns,
        temperature: float,
        shift: float,
    ) -> None:
        self.anchors = anchors
        self.weights = weights
        self.columns = columns
        self.temperature = temperature
        self.shift = shift
        self.needs_maximum = needs_maximum(temperature)
        # With a maximum or a weight of its own, a row's exponential is not the column's.
        self.is_symmetric = not self.needs_maximum and columns.log2_weights is None
        # Per anchor, over columns of other classes: sum of exp(s), sum of exp(s) * vector.
        self.total, self.product = anchors.new_zeros(len(anchors), 1), torch.zeros_like(anchors)
        vectors = columns.vectors
        self.num_rows, self.size = TILES.get(vectors.device.type, TILES["cuda"])
        self.size = min(self.size, self.num_rows * len(vectors))
        num_buffers = 4 if anchors.is_cpu else 3
        self.buffers = [anchors.new_empty(self.size) for _ in range(num_buffers)]
        self.factors = vectors.new_empty(self.size if vectors.dtype != anchors.dtype else 0)

    def loss(self, segments: list[Segment]) -> tuple[Tensor, Tensor]:
        """The loss of these anchors and its gradient with respect to them, [R, D]."""
        maximum = self._add_negatives(segments)
        rows = rows_of(segments)
        total, slope = self.total[rows], self.product[rows]
        log_total = total.log2()
        if maximum is not None:
            log_total += maximum
        log_total.div_(LOG2_E).add_(self.shift)
        loss, pull, positive = self._positives(log_total, segments)
        slope.mul_(pull / total.clamp(min=torch.finfo(total.dtype).tiny))
        return loss, slope.sub_(positive).div_(self.temperature)

    def _add_negatives(self, segments: list[Segment]) -> Tensor | None:
        """Complete `total` and `product` of these anchors.

        Returns the maxima, [R, 1], if both are divided by 2 to their power.
        """
        rows = rows_of(segments)
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
            add_product(product, factors, self.columns.vectors[columns])
            if self.is_symmetric and rows.stop <= columns.start < len(self.anchors):
                self.total[columns] += factors.sum(dim=0, dtype=total.dtype)[:, None]
                add_product(self.product[columns], factors.T, self.columns.vectors[rows])
        return maximum

    def _other_classes(
        self, scaled: Tensor, segments: list[Segment]
    ) -> Iterator[tuple[slice, Tensor]]:
        """Tiles of similarities, -inf at columns of an anchor's own class.

        If symmetric without columns of earlier anchors, which these anchors have been given.
        """
        rows = rows_of(segments)
        for span in self._spans(segments):
            for columns in ranges(span, self.size // len(scaled)):
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

    def _spans(self, segments: list[Segment]) -> list[slice]:
        """The columns to visit, without those of the class where there is only one."""
        num_anchors, num_columns = len(self.anchors), len(self.columns.vectors)
        rows = rows_of(segments)
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
        self, log_total: Tensor, segments: list[Segment]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of w * log(1 + exp(log_total - s)) over pairs of a class, and what the slope needs.

        The derivatives by log_total, [R, 1], and their sum times the vectors, [R, D].
        """
        first = segments[0].rows.start
        pull = torch.zeros_like(log_total)
        product = self.anchors.new_zeros(len(log_total), self.anchors.shape[1])
        parts = []
        for blocks in self._batches(segments):
            edges = list(accumulate((block.numel for block in blocks), initial=0))
            margins, losses, weights, *spare = (buffer[: edges[-1]] for buffer in self.buffers)
            for block, edge in zip(blocks, edges, strict=False):
                tile = self._similarities(
                    self.anchors[block.rows] / self.temperature, block.vectors, edge
                )
                here = slice(block.rows.start - first, block.rows.stop - first)
                torch.sub(log_total[here], tile, out=tile)
                # An anchor's own copy is no positive.
                tile[:, : block.num_shared].diagonal(block.offset).fill_(-torch.inf)
                out = weights[edge : edge + block.numel].view_as(tile)
                torch.mm(self.weights[block.rows], block.probs.T, out=out)
            softplus(margins, losses, *spare)
            parts.append(losses.mul_(weights).sum())
            factors = torch.mul(margins.sigmoid_(), weights, out=self._factors(margins))
            for block, edge in zip(blocks, edges, strict=False):
                here = slice(block.rows.start - first, block.rows.stop - first)
                part = factors[edge : edge + block.numel].view(-1, len(block.vectors))
                pull[here] += part.sum(dim=1, keepdim=True, dtype=pull.dtype)
                add_product(product[here], part, block.vectors)
        return torch.stack(parts).sum(), pull, product

    def _batches(self, segments: list[Segment]) -> Iterator[list[_Block]]:
        """Blocks of pairs of a class, as many at a time as a buffer holds: few large steps."""
        batch: list[_Block] = []
        for block in itertools.chain.from_iterable(map(self._blocks, segments)):
            if batch and sum(other.numel for other in batch) + block.numel > self.size:
                yield batch
                batch = []
            batch.append(block)
        if batch:
            yield batch

    def _blocks(self, segment: Segment) -> Iterator[_Block]:
        """The pairs of these anchors with the columns of their class; a small class is one block."""
        vectors, probs, _ = self.columns
        (anchors, shared, others), rows = segment
        limit = self.size // (rows.stop - rows.start)
        offset, num_shared = rows.start - anchors.start, shared.stop - shared.start
        if num_shared + others.stop - others.start <= limit:
            whole = [torch.cat([of[shared], of[others]]) for of in (vectors, probs)]
            yield _Block(rows, offset, num_shared, whole[0], whole[1])
            return
        for columns in ranges(shared, limit):
            start, size = columns.start - shared.start, columns.stop - columns.start
            yield _Block(rows, offset - start, size, vectors[columns], probs[columns])
        for columns in ranges(others, limit):
            yield _Block(rows, 0, 0, vectors[columns], probs[columns])

    def _similarities(self, scaled: Tensor, vectors: Tensor, start: int = 0) -> Tensor:
        """[R, K], in the first buffer from `start` on."""
        tile = self.buffers[0][start : start + len(scaled) * len(vectors)]
        return multiply(scaled.to(vectors.dtype), vectors.T, tile.view(len(scaled), len(vectors)))

    def _factors(self, tile: Tensor) -> Tensor:
        """Where to put what is multiplied with vectors: in place, unless their precision differs."""
        return self.factors[: tile.numel()].view_as(tile) if len(self.factors) else tile
