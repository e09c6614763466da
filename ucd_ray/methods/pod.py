"""PLOP's local POD: pooled statistics of intermediate maps (arXiv 2011.11390)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from ucd_ray.errors import ConfigError
from ucd_ray.methods.term import Batch, Term

if TYPE_CHECKING:
    from torch import Tensor


class POD(Term):
    """The mean over six maps of the distance between old and new pooled squares.

    Maps: the last four backbone stages before their last activation, what the classifiers read, and the
    small logits, whose new classes are added to the background.  Each distance is multiplied by
    sqrt(classes so far / new classes), background included.  A mean over images: two workers with half
    a batch each give the same gradient.
    """

    section: ClassVar[str] = "pod"
    needs_stages: ClassVar[bool] = True

    weight: Annotated[float, Field(ge=0)] = 0.01
    """Factor of the five feature maps (published: 0.01 on VOC, 0.001 on ADE20K)."""
    logit_weight: Annotated[float, Field(ge=0)] = 0.0005
    """Factor of the map of logits (published: 0.0005 on VOC, 0.00001 on ADE20K)."""
    scales: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] = (1, 2, 4)
    """Into how many strips per side a map is cut (published: 1, 2, 4)."""

    def check(self, crop: int, output_stride: int) -> None:
        """A map cannot be cut into more strips than it has rows."""
        side = math.ceil(crop / output_stride)
        if max(self.scales) > side:
            raise ConfigError(
                f"pod.scales ({max(self.scales)}) is more than the {side} rows of a map: data.crop "
                f"({crop}) / model.output_stride ({output_stride}); use smaller scales or a larger crop"
            )

    def weighted(self, batch: Batch) -> Tensor:
        """Both kinds of maps with their factors."""
        features, logits = self._distances(batch)
        return self.weight * features + self.logit_weight * logits

    def __call__(self, batch: Batch) -> Tensor:
        """The scalar without factors."""
        features, logits = self._distances(batch)
        return features + logits

    def _distances(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the feature maps and what the map of logits contribute to the mean over maps."""
        from ucd_ray.losses import background_sum, local_pod

        new, old = batch.new, batch.teacher
        distances = local_pod(
            [*new.stages, new.features, background_sum(new.small_logits, batch.num_old)],
            [*old.stages, old.features, old.small_logits],
            scales=self.scales,
        )
        channels = new.small_logits.shape[1]
        growth = math.sqrt(channels / (channels - batch.num_old))
        scale = growth / len(distances)
        *features, logits = distances
        return scale * sum(features[1:], features[0]), scale * logits
