"""SDR: sparse and disentangled latent representations (arXiv 2103.06342), on the last backbone stage.

Batch-level terms: they compare means over one worker's batch, so their values depend on the number of
workers; the prototypes themselves are reduced over workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ucd_ray.methods.term import IGNORED, Batch, Term, shrink

if TYPE_CHECKING:
    from torch import Tensor

    from ucd_ray.methods.memory import Memory
    from ucd_ray.methods.prototypes import Prototypes


class PrototypeTerm(Term):
    """A term over the prototypes of all classes."""

    def memory(self) -> Memory:
        """The prototypes, which all terms of SDR share."""
        from ucd_ray.methods.prototypes import Prototypes

        return Prototypes()

    def memory_options(self) -> dict[str, Any]:
        """The prototypes depend on no field."""
        return {}

    def prototypes(self, batch: Batch) -> Prototypes:
        """The memory of this run."""
        memory = batch.memories["prototypes"]
        return memory  # type: ignore[return-value]


class Matching(PrototypeTerm):
    """Old classes' means in the batch stay at their prototypes.

    Old pixels are those the old model sees inside the labels' background, or labelled ones in the
    sequential setting.
    """

    section: ClassVar[str] = "matching"

    weight: Annotated[float, Field(ge=0)] = 0.01
    """Factor of prototypes matching (published: 0.01; its authors' range 0.001 to 0.1)."""

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import class_means, prototype_matching

        memory = self.prototypes(batch)
        classes = shrink(batch.labels, batch.new.body)
        if not batch.complete:
            guess = batch.teacher.small_logits.argmax(1)
            classes = guess.where(classes == 0, IGNORED)
        classes = classes.masked_fill((classes == 0) | (classes >= batch.num_old), IGNORED)
        means, counts = class_means(batch.new.body, classes, num_classes=memory.num_classes)
        return prototype_matching(means, memory.means, (counts > 0) & (memory.counts > 0))


class Attraction(PrototypeTerm):
    """Labelled pixels come close to the prototype of their class."""

    section: ClassVar[str] = "attraction"

    weight: Annotated[float, Field(ge=0)] = 0.001
    """Factor of attraction (published: 0.001)."""
    form: Literal["standard", "authors"] = "standard"
    """`authors` divides the sum by the number of classes once per class, as the published code does."""

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import attraction

        means = self.prototypes(batch).means
        return attraction(batch.new.body, labelled(batch), means, form=self.form)


class Repulsion(PrototypeTerm):
    """Means of labelled classes in the batch keep apart; 0 with fewer than two of them."""

    section: ClassVar[str] = "repulsion"

    weight: Annotated[float, Field(ge=0)] = 0.001
    """Factor of repulsion (published: 0.001)."""

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import class_means, repulsion

        num_classes = self.prototypes(batch).num_classes
        means, counts = class_means(batch.new.body, labelled(batch), num_classes=num_classes)
        return repulsion(means, counts > 0)


class Sparsity(Term):
    """Each position uses few of its features.

    Features below zero, which a network without a last activation has, count as zero.
    """

    section: ClassVar[str] = "sparsity"

    weight: Annotated[float, Field(ge=0)] = 0.001
    """Factor of sparsity (published: 0.001; kick-start 0.0001)."""

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import sparsity

        return sparsity(batch.new.body.relu(), shrink(batch.labels, batch.new.body))


def labelled(batch: Batch) -> Tensor:
    """[B, h, w] classes at feature size, background left out."""
    classes = shrink(batch.labels, batch.new.body)
    return classes.masked_fill(classes == 0, IGNORED)
