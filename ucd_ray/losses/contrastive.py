"""UCD: uncertainty-aware contrastive distillation between pixels of a batch.

We follow the method as read from the published code (its version "v2"); the printed equations of
the paper were not available to us, so the formula below is our reading, not a quotation.

With unit vectors, anchors a_i (new model, foreground pixels) and contrast vectors k (the anchors
themselves and the old model's vectors at pseudo-labelled pixels), s_ik = <a_i, k> / temperature:

    L_i = 1/|P(i)| * sum over k in P(i) of  W_ik * log(1 + exp(lneg_i + shift - s_ik))
    lneg_i = log of the sum over other-class k of exp(s_ik)

P(i) holds the same-class k without the anchor's own copy; L is the mean over anchors with
positives. shift is 0 in the standard form. The published code subtracts the row maximum, which is
the anchor's match with its own copy, 1/temperature, from the positives after the negatives were
summed: that is shift = 1/temperature, the "authors" form.

When columns k are sampled, each stands for v_k = one over its inclusion probability of them: lneg_i
sums v_k * exp(s_ik), and the mean over P(i) becomes sum(v_k * ...) / sum(v_k) over the drawn k.
When rows i are sampled, the sum over anchors weighs them the same way and is still divided by the
number of all anchors with positives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.losses.common import compute_dtype
from ucd_ray.losses.contrastive_kernel import Contrast
from ucd_ray.losses.contrastive_plan import IGNORED, make_plan

FORMS = ("standard", "authors")


def contrastive_distillation(
    new_features: Tensor,
    old_features: Tensor,
    old_logits: Tensor,
    labels: Tensor,
    *,
    num_old: int,
    temperature: float = 0.07,
    uncertainty: bool = True,
    form: str = "standard",
    max_anchors: int | None = None,
    max_old: int | None = None,
    max_per_class: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Pull same-class pixels of the batch together, push others apart (UCD).

    new_features: [B, D, h, w], the only input that gets a gradient, and only as anchors
    old_features: [B, D, h, w]
    old_logits: [B, num_old, h, w], the old model's small logits
    labels: [B, H, W] of any size, integers: channel indices, 255 ignored; shrunk to the nearest
        pixel, since interpolated ids would invent classes at borders. Above 0 they are truth; 0
        takes the old model's argmax, which may be background; background and 255 take no part.
    num_old: channels of the old model, background included
    uncertainty: weight a positive pair of an old class by the probability that the old model gives
        to "same class", <p_i, p_k>; pairs of a new class (label >= num_old) always weigh 1
    form: "standard", or "authors" for the published code's shift of the negatives
    max_anchors: draw at most so many anchors, class-balanced, each with the weight that makes the
        loss and its gradient unbiased. All pixels stay in the contrast set.
    max_per_class: draw at most so many of each class as the new model's part of the contrast set
    max_old: draw at most so many old-model vectors, class-balanced. These two estimate the sums
        over columns consistently, with a bias that shrinks as the cap grows. 0 leaves the old
        vectors out, which is another loss and no estimate.
    generator: draws anchors, then new, then old columns, and only those whose cap is exceeded.
        Caps of None use all positions, the published behaviour.
    Returns a scalar in nats; 0, still connected to new_features, if no foreground pixel has a
    positive.

    A batch-level term: it contrasts the pixels that this process holds. Two workers see two
    smaller batches, with fewer negatives, so the mean of their gradients is not the gradient of one
    worker with both halves. The published code does not gather vectors over GPUs either.

    Cost: two matrix products, anchors x contrast vectors x D, in tiles; memory grows with the
    number of pixels, never with their pairs. Computed in float32 (float64 stays), on CUDA subject
    to `torch.backends.cuda.matmul`. Under bfloat16 autocast on CUDA, or with bfloat16 features
    there, the factors of the products are bfloat16, sums float32, and one kernel does it all unless
    D is above 256 or the temperature below 0.02. Relative error in float32 at
    temperature 0.07 and above: 1e-6 of the value, 5e-6 of the gradient's largest entry; at 0.01
    cosines are magnified 100 times, and 1e-5 and 5e-5 hold.

    Raises ConfigError for values out of range or inputs that do not fit each other.
    """
    _check_knobs(temperature, form, max_anchors, max_old, max_per_class)
    _check_inputs(new_features, old_features, old_logits, labels, num_old)
    half = _multiplies_in_half(new_features)
    fused = half and _is_fused(new_features.shape[1], temperature)
    with torch.autocast(new_features.device.type, enabled=False):
        truth = _shrink(labels, new_features.shape[-2:]).flatten()
        with torch.no_grad():
            logits = old_logits.movedim(1, -1).flatten(0, 2)
            plan = make_plan(
                truth,
                logits.argmax(dim=1),
                max_anchors=max_anchors,
                max_old=max_old,
                max_per_class=max_per_class,
                generator=generator,
                may_be_whole=not fused,
            )
            _check_labels(plan.lowest, plan.highest)
            probs = logits.to(compute_dtype(new_features)).softmax(dim=1)
            sure = torch.zeros_like(probs[:1])
            sure[:, 0] = 1.0  # <sure, sure> = 1
            probs = (
                probs.where((truth < num_old)[:, None], sure)
                if uncertainty
                else sure.expand_as(probs)
            )
        loss: Tensor = Contrast.apply(
            new_features,
            old_features,
            probs,
            plan,
            temperature,
            1 / temperature if form == "authors" else 0.0,
            half,
            fused,
        )
        return loss


def _multiplies_in_half(features: Tensor) -> bool:
    device = features.device.type
    if torch.is_autocast_enabled(device):
        half = torch.get_autocast_dtype(device) == torch.bfloat16
    else:
        half = features.dtype == torch.bfloat16
    return device == "cuda" and half and features.dtype != torch.float64


def _is_fused(width: int, temperature: float) -> bool:
    """Whether one kernel does it all: needs Triton, which PyTorch brings where it supports CUDA."""
    try:
        from ucd_ray.losses import contrastive_fused
    except ImportError:
        return False
    return contrastive_fused.fits(width, temperature)


def _shrink(labels: Tensor, size: torch.Size) -> Tensor:
    """Labels [B, H, W] at feature size, by the nearest pixel centre."""
    rows, columns = (
        ((2 * torch.arange(small, device=labels.device) + 1) * large) // (2 * small)
        for small, large in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[:, rows[:, None], columns].long()


def _check_knobs(
    temperature: float,
    form: str,
    max_anchors: int | None,
    max_old: int | None,
    max_per_class: int | None,
) -> None:
    if form not in FORMS:
        raise ConfigError(f"unknown form '{form}'; {did_you_mean(form, FORMS)}")
    if not 0 < temperature < math.inf:
        raise ConfigError(f"temperature ({temperature}) must be above 0 and finite")
    for name, cap in (("max_anchors", max_anchors), ("max_per_class", max_per_class)):
        if cap is not None and cap < 1:
            raise ConfigError(f"{name} ({cap}) must be at least 1, or None for all")
    if max_old is not None and max_old < 0:
        raise ConfigError(f"max_old ({max_old}) must be at least 0, or None for all")


def _check_inputs(
    new_features: Tensor,
    old_features: Tensor,
    old_logits: Tensor,
    labels: Tensor,
    num_old: int,
) -> None:
    if new_features.dim() != 4 or not new_features.is_floating_point():
        raise ConfigError(
            f"new_features {tuple(new_features.shape)} {new_features.dtype} must be [B, D, h, w], "
            "floating point"
        )
    if old_features.shape != new_features.shape:
        raise ConfigError(
            f"old_features {tuple(old_features.shape)} must have the shape of new_features "
            f"{tuple(new_features.shape)}"
        )
    batch, _, height, width = new_features.shape
    if num_old < 1 or old_logits.shape != (batch, num_old, height, width):
        raise ConfigError(
            f"old_logits {tuple(old_logits.shape)} must be [B, num_old, h, w] = "
            f"{(batch, num_old, height, width)}: the old model's small logits, at feature size"
        )
    if labels.dim() != 3 or len(labels) != batch or labels.numel() == 0:
        raise ConfigError(f"labels {tuple(labels.shape)} must be [B, H, W] with B = {batch}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ConfigError(f"labels are {labels.dtype}; they must be integers, such as torch.int64")


def _check_labels(lowest: int, highest: int) -> None:
    for value in (lowest, highest):
        if not 0 <= value <= IGNORED:
            raise ConfigError(
                f"labels hold {value}; they must be channel indices from 0 to {IGNORED - 1}, or "
                f"{IGNORED} where a pixel is ignored"
            )
