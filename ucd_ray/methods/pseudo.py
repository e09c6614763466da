"""Pseudo-labels: what the old model sees in the background (PLOP, arXiv 2011.11390)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ucd_ray.config import PseudoConfig
from ucd_ray.losses import histogram_medians, normalised_entropy, pseudo_labels
from ucd_ray.methods.memory import Memory, Visit
from ucd_ray.methods.term import Batch

BINS = {"standard": 10_000, "authors": 100}


class Medians(Memory):
    """Per class the median of the old model's entropy over background pixels that it gives that class.

    One pass over the images of the step to come, as histograms that are added up over ranks.
    """

    name: ClassVar[str] = "medians"
    parts: ClassVar[tuple[str, ...]] = ("medians",)
    cumulative: ClassVar[bool] = False

    medians: dict[str, Tensor]  # entropy: [num_old]

    def __init__(self, config: PseudoConfig) -> None:
        super().__init__()
        self.form = config.form

    @torch.no_grad()
    def collect(self, visit: Visit) -> None:
        """Counts the entropies of all background pixels."""
        bins, num_old = BINS[self.form], sum(visit.classes_per_step[: visit.step])
        channels = num_old + visit.classes_per_step[visit.step]
        histogram = torch.zeros(())
        for images, labels in visit.coming:
            logits = visit.model(images).logits
            entropy = normalised_entropy(logits, form=self.form, num_channels_now=channels)
            background = labels == 0
            bin_ = (entropy[background] * bins).long().clamp(0, bins - 1)
            cell = logits.argmax(1)[background] * bins + bin_
            counts = cell.bincount(minlength=num_old * bins)
            histogram = counts.double() + histogram.to(counts.device)
        visit.ranks.sum(histogram)
        self.medians["entropy"] = histogram_medians(histogram.view(num_old, bins), form=self.form)


def with_pseudo_labels(batch: Batch, config: PseudoConfig) -> Batch:
    """The batch with the old model's classes at background pixels, for its classification terms.

    The same batch at step 0, without pseudo-labels, and where old classes are labelled anyway.
    """
    if config.mode == "none" or batch.old is None or batch.complete:
        return batch
    old = batch.old.logits
    uncertainty = thresholds = None
    if config.mode == "entropy":
        medians = batch.memories["medians"]
        assert isinstance(medians, Medians)
        thresholds = medians.medians["entropy"].clamp(min=config.threshold)
        channels = batch.new.logits.shape[1]
        uncertainty = normalised_entropy(old, form=config.form, num_channels_now=channels)
    targets, factor = pseudo_labels(
        batch.labels, old, uncertainty, thresholds, num_old=batch.num_old, form=config.form
    )
    return replace(batch, relabelled=targets, image_weights=factor if config.adaptive else None)
