"""UCD as an autograd function: forward keeps the gradient of the features, backward scales it.

The contrast vectors are constants, so both matrix products of the gradient are made in the forward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ucd_ray.losses.contrastive_plan import Plan
from ucd_ray.losses.contrastive_tiles import tiled_losses
from ucd_ray.losses.contrastive_vectors import gather
from ucd_ray.losses.contrastive_whole import whole_losses
from ucd_ray.losses.fallback import falls_back


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
        fused: bool,
    ) -> Tensor:
        """Return the loss, a scalar, and keep its gradient.

        new_features, old_features: [B, D, h, w]
        probs: [B * h * w, C], inner products of which weigh the positive pairs
        shift: added to the logarithm of the negatives
        half: multiply in bfloat16 and add in float32; only CUDA can
        fused: and do so in one kernel
        """
        anchors, lengths, columns = gather(new_features, old_features, probs, plan, half)
        weights = probs[plan.anchors] * plan.scales[:, None].to(probs.dtype)
        slopes, parts = torch.empty_like(anchors), [anchors.new_zeros(())]
        arithmetic: Callable[..., Any] = whole_losses if plan.is_whole else tiled_losses
        if fused:
            arithmetic = _fused_or_tiled()
        for rows, loss, slope in arithmetic(
            anchors, weights, columns, plan.groups, temperature, shift
        ):
            parts.append(loss)
            along = (slope * anchors[rows]).sum(dim=1, keepdim=True)
            slope.addcmul_(along, anchors[rows], value=-1)
            torch.mul(slope, lengths[rows], out=slopes[rows])
        ctx.save_for_backward(slopes, plan.anchors)
        ctx.shape, ctx.dtype = new_features.shape, new_features.dtype
        return torch.stack(parts).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        slopes, at = ctx.saved_tensors
        batch, width, height, breadth = ctx.shape
        gradient = slopes.new_zeros(batch * height * breadth, width, dtype=ctx.dtype)
        gradient.index_copy_(0, at, (slopes * grad_outputs[0]).to(ctx.dtype))
        gradient = gradient.view(batch, height, breadth, width).movedim(-1, 1)
        return gradient, None, None, None, None, None, None, None


@functools.cache
def _fused_or_tiled() -> Callable[..., Any]:
    from ucd_ray.losses.contrastive_fused import fused_losses

    def listed(losses: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: list(losses(*arguments))

    told = "the fused kernel of UCD failed, its products are tiled"
    return falls_back(listed(fused_losses), listed(tiled_losses), told)
