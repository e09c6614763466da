"""The arithmetic of UCD as one kernel, for bfloat16 on CUDA: no matrix of pairs leaves the chip.

What `contrastive_tiles` does in large steps that go through memory, a program does here for a block of
anchors of a class: first over the columns of other classes, then over those of its own. Similarities and
their exponentials live in registers, like in flash attention; sums are float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ucd_ray.losses.common import LOG2_E
from ucd_ray.losses.contrastive_plan import Group, ranges
from ucd_ray.losses.contrastive_vectors import Columns, needs_maximum

MAX_WIDTH = 256  # of the features: a block of them stays in registers
ROWS, COLUMNS, CHANNELS = 128, 64, 32  # of a block of anchors, of columns, of probabilities
WARPS, STAGES = 8, 2


def fits(width: int, temperature: float) -> bool:
    """Whether features of this width can be taken; a low temperature would need the rows' maxima."""
    return width <= MAX_WIDTH and not needs_maximum(temperature)


def fused_losses(
    anchors: Tensor,
    weights: Tensor,
    columns: Columns,
    groups: list[Group],
    temperature: float,
    shift: float,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """As `contrastive_tiles.tiled_losses`: all anchors, their loss, its gradient; nothing if none."""
    blocks = [
        (*_edges(rows), group.anchors.start, *_edges(group.shared), *_edges(group.others))
        for group in groups
        for rows in ranges(group.anchors, ROWS)
    ]
    if not blocks:
        return
    vectors, probs, log2_weights = columns
    scaled = (anchors * (LOG2_E / temperature)).to(vectors.dtype)
    losses, slopes = anchors.new_empty(len(blocks)), torch.empty_like(anchors)
    table = torch.tensor(blocks, dtype=torch.int32).to(anchors.device, non_blocking=True)
    width, num_channels = anchors.shape[1], probs.shape[1]
    _block[(len(blocks),)](
        scaled,
        vectors,
        weights,
        probs,
        probs if log2_weights is None else log2_weights,
        table,
        losses,
        slopes,
        len(vectors),
        num_channels,
        width,
        temperature,
        shift,
        has_weights=log2_weights is not None,
        block_rows=ROWS,
        block_columns=COLUMNS,
        block_width=max(16, triton.next_power_of_2(width)),
        block_channels=CHANNELS,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    yield slice(0, len(anchors)), losses.sum(), slopes


def _edges(span: slice) -> tuple[int, int]:
    return span.start, span.stop


@triton.jit
def _block(  # type: ignore[no-untyped-def]
    scaled,  # [n, D] anchors times LOG2_E / temperature
    vectors,  # [K, D]
    weights,  # [n, C]
    probs,  # [K, C]
    log2_weights,  # [K] if has_weights
    table,  # [blocks, 7] rows, first anchor of the class, its columns: anchors too, others
    losses,  # [blocks], written
    slopes,  # [n, D], written
    num_columns,
    num_channels,
    width,
    temperature,
    shift,
    has_weights: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_width: tl.constexpr,
    block_channels: tl.constexpr,
):
    ln_2: tl.constexpr = 0.6931471805599453
    entry = table + 7 * tl.program_id(0)
    rows = tl.load(entry) + tl.arange(0, block_rows)
    is_row = rows < tl.load(entry + 1)
    first_anchor = tl.load(entry + 2)
    shared, shared_end = tl.load(entry + 3), tl.load(entry + 4)
    others, others_end = tl.load(entry + 5), tl.load(entry + 6)
    at = tl.arange(0, block_width)
    is_at = at < width
    here = rows.to(tl.int64)[:, None] * width + at[None, :]
    is_here = is_row[:, None] & is_at[None, :]
    anchors = tl.load(scaled + here, mask=is_here, other=0.0)

    # Other classes: the sum of exp(s), and that of exp(s) times the vectors.
    total = tl.zeros([block_rows], tl.float32)
    product = tl.zeros([block_rows, block_width], tl.float32)
    for start in range(0, num_columns, block_columns):
        column = start + tl.arange(0, block_columns)
        is_column = column < num_columns
        there = column.to(tl.int64)[:, None] * width + at[None, :]
        vector = tl.load(vectors + there, mask=is_column[:, None] & is_at[None, :], other=0.0)
        similarity = tl.dot(anchors, tl.trans(vector))
        if has_weights:
            similarity += tl.load(log2_weights + column, mask=is_column, other=0.0)[None, :]
        is_own = ((column >= shared) & (column < shared_end)) | (
            (column >= others) & (column < others_end)
        )
        is_negative = is_column & (is_own == 0)
        factor = tl.exp2(tl.where(is_negative[None, :], similarity, float("-inf")))
        factor = factor.to(vector.dtype)
        total += tl.sum(factor.to(tl.float32), axis=1)
        product += tl.dot(factor, vector)
    tl.store(slopes + here, product, mask=is_here)
    log_total = tl.log2(total) * ln_2 + shift

    # The own class: w * log(1 + exp(log_total - s)), but for an anchor's own copy.
    loss = tl.zeros([block_rows], tl.float32)
    pull = tl.zeros([block_rows], tl.float32)
    positive = tl.zeros([block_rows, block_width], tl.float32)
    for part in tl.static_range(2):
        first, end = (shared, shared_end) if part == 0 else (others, others_end)
        copy = rows - first_anchor + shared if part == 0 else rows * 0 - 1
        for start in range(first, end, block_columns):
            column = start + tl.arange(0, block_columns)
            is_column = column < end
            there = column.to(tl.int64)[:, None] * width + at[None, :]
            vector = tl.load(vectors + there, mask=is_column[:, None] & is_at[None, :], other=0.0)
            similarity = tl.dot(anchors, tl.trans(vector)) * ln_2
            is_positive = is_column[None, :] & (column[None, :] != copy[:, None])
            margin = tl.where(is_positive, log_total[:, None] - similarity, float("-inf"))
            weight = tl.zeros([block_rows, block_columns], tl.float32)
            for channel in range(0, num_channels, block_channels):
                c = channel + tl.arange(0, block_channels)
                is_c = c < num_channels
                w = tl.load(
                    weights + rows[:, None] * num_channels + c[None, :],
                    mask=is_row[:, None] & is_c[None, :],
                    other=0.0,
                )
                p = tl.load(
                    probs + column[:, None] * num_channels + c[None, :],
                    mask=is_column[:, None] & is_c[None, :],
                    other=0.0,
                )
                weight += tl.dot(w, tl.trans(p), input_precision="tf32x3")
            small = tl.exp(-tl.abs(margin))
            loss += tl.sum(weight * (tl.maximum(margin, 0.0) + tl.log(1 + small)), axis=1)
            factor = weight * tl.where(margin > 0, 1.0, small) / (1 + small)
            factor = factor.to(vector.dtype)
            pull += tl.sum(factor.to(tl.float32), axis=1)
            positive += tl.dot(factor, vector)
    tl.debug_barrier()  # what other threads have stored of the product
    product = tl.load(slopes + here, mask=is_here, other=0.0)
    slope = product * (pull / tl.maximum(total, 1.1754943508222875e-38))[:, None] - positive
    tl.store(slopes + here, slope / temperature, mask=is_here)
    tl.store(losses + tl.program_id(0), tl.sum(loss, axis=0))
