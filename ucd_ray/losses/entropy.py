"""What PLOP trusts of the old model: its entropy, a threshold per class, pseudo-labels.

`form="authors"` gives the numbers of the published code, which normalises twice and takes its
medians with the wrong running sum; `form="standard"` is what the paper describes.  Nothing here has
a gradient, and every pixel and image stands alone: ranks do not matter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ucd_ray.errors import ConfigError
from ucd_ray.losses.common import check_choice, check_shape, in_full_precision

FORMS = ("standard", "authors")
IGNORED = 255


def normalised_entropy(
    logits: Tensor, *, form: str = "standard", num_channels_now: int | None = None
) -> Tensor:
    """How undecided the softmax is at every pixel, from 0 to 1.

    logits: [B, C, H, W] of the old model
    num_channels_now: channels of the new model, for the authors' form only
    Returns [B, H, W]: u = -sum_c p_c log p_c / log C, zeros if C is 1. The published code takes the
    mean over classes instead of the sum and divides again by log(num_channels_now): its u is
    1 / (C log(num_channels_now)) at most.
    Raises ConfigError for an unknown form or fewer channels now than C.
    """
    check_choice("form", form, FORMS)
    check_shape("logits", logits, "B", "C", "H", "W")
    channels = logits.shape[1]
    if form == "authors" and (num_channels_now is None or num_channels_now < channels):
        raise ConfigError(
            f"num_channels_now ({num_channels_now}) must be at least the {channels} channels of "
            "the logits: it counts the channels of the new model"
        )
    log_probs = in_full_precision(logits).detach().log_softmax(dim=1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=1)
    if channels == 1:
        return entropy
    share = entropy / math.log(channels)
    if form == "authors" and num_channels_now is not None:
        share = share / (channels * math.log(num_channels_now))
    return share.clamp(0, 1)


def histogram_medians(histogram: Tensor, *, form: str = "standard") -> Tensor:
    """Median of each class's values in [0, 1], from their counts in equal bins.

    histogram: [C, bins] counts
    Returns [C] float64, 0 for a class without values. In the bin that holds half of the counts the
    median lies where a straight line reaches the half. The published code adds a bin's number to
    its running sum, not the bin's count: its median lies in the first bin with running <= half <=
    running + count, or is measured from the last bin if there is none, and may leave [0, 1].
    Raises ConfigError for an unknown form.
    """
    check_choice("form", form, FORMS)
    check_shape("histogram", histogram, "C", "bins")
    counts = histogram.to(torch.float64)
    bins = counts.shape[1]
    half = counts.sum(dim=1, keepdim=True) / 2
    if form == "standard":
        before = counts.cumsum(dim=1) - counts
        found = before + counts >= half
        fallback = before[:, -1:]
    else:
        number = torch.arange(bins, dtype=torch.float64, device=counts.device)
        before = (number.cumsum(0) - number).expand_as(counts)
        found = (before <= half) & (half <= before + counts)
        fallback = number.sum().expand_as(half)
    # argmax finds the first of equals.
    chosen = found.int().argmax(dim=1, keepdim=True)
    ended = ~found.any(dim=1, keepdim=True)
    chosen = chosen.masked_fill(ended, bins - 1)
    running = torch.where(ended, fallback, before.gather(1, chosen))
    count = counts.gather(1, chosen)
    inside = torch.where(count > 0, (half - running) / count.where(count > 0, 1.0), 0.0)
    return ((chosen + inside) / bins * (half > 0)).squeeze(1)


def pseudo_labels(
    labels: Tensor,
    old_logits: Tensor,
    uncertainty: Tensor | None = None,
    thresholds: Tensor | None = None,
    *,
    num_old: int,
    form: str = "standard",
) -> tuple[Tensor, Tensor]:
    """Give background pixels the old model's class where it is confident, else 255.

    labels: [B, H, W] int64, channel indices or 255; all but 0 stay
    old_logits: [B, num_old, H, W]; their argmax, which may be background, is the pseudo-label
    uncertainty: [B, H, W], has to be below the threshold of the pseudo-label's class
    thresholds: [num_old]; None trusts every pseudo-label
    Returns the new labels [B, H, W], and for each image the share of its background pixels that
    is trusted [B] (PLOP's adaptive factor): 1 without thresholds and for an image without
    background. The published code adds 1e-6 to the denominator, which makes the last one 0.
    Raises ConfigError for an unknown form, thresholds without uncertainty and other shapes.
    """
    check_choice("form", form, FORMS)
    check_shape("labels", labels, "B", "H", "W")
    batch, height, width = labels.shape
    check_shape("old_logits", old_logits, batch, num_old, height, width)
    guesses = old_logits.argmax(dim=1)
    background = labels == 0
    if thresholds is None:
        ones = torch.ones(batch, dtype=torch.float32, device=labels.device)
        return torch.where(background, guesses, labels), ones
    check_shape("thresholds", thresholds, num_old)
    if uncertainty is None:
        raise ConfigError("thresholds need an uncertainty; normalised_entropy(old_logits) is one")
    check_shape("uncertainty", uncertainty, batch, height, width)
    trusted = background & (uncertainty < thresholds[guesses])
    targets = torch.where(trusted, guesses, labels.masked_fill(background, IGNORED))
    num_trusted, num_background = (mask.sum(dim=(1, 2)).float() for mask in (trusted, background))
    if form == "authors":
        return targets, num_trusted / (num_background + 1e-6)
    factor = num_trusted / num_background.clamp(min=1)
    return targets, factor.where(num_background > 0, 1.0)
