"""Weight regularisers: parameters that mattered for old classes stay where they were (EWC, PI, RW).

As in MiB's code (arXiv 2002.00718): the penalty is sum_n I_n (theta_n - theta_n_old)^2 over the
parameters of the old model, with an importance I that is min-max normalised per tensor.  They differ in
the importance.  Equal on all workers, because gradients are averaged before they are looked at.

The penalty is a stiff spring: with Nesterov momentum 0.9 an update overshoots for good above about
weight * largest importance = 0.68 / learning rate.  The published weights belong to a rate of 0.001.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from ucd_ray.methods.term import Batch, Term

if TYPE_CHECKING:
    from torch import Tensor

    from ucd_ray.methods.importance import Importance


class Regularizer(Term):
    """The quadratic penalty; subclasses say where the importance comes from."""

    normalise: bool = True
    """Scale the importance of each parameter tensor to 0..1 (published)."""

    def memory(self) -> Importance:
        """The importance of every parameter."""
        raise AssertionError(f"{type(self).__name__} has no importance")

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import quadratic_penalty

        memory: Importance = batch.memories[self.section]  # type: ignore[assignment]
        importance = {
            name: value for name, value in memory.importance.items() if name in batch.parameters
        }
        if not importance:  # everything old is frozen
            return batch.new.logits.sum() * 0
        return quadratic_penalty(batch.parameters, batch.old_parameters, importance)


class EWC(Regularizer):
    """Elastic weight consolidation: the importance is a running Fisher diagonal (arXiv 1612.00796).

    One pass over the images of the step before, with its final weights, batch by batch:
    F <- decay * g^2 + (1 - decay) * F, from ones.  The published code updates it during training, where
    the last batches, whose weights are almost the final ones, dominate.
    """

    section: ClassVar[str] = "ewc"

    weight: Annotated[float, Field(ge=0)] = 500.0
    """Factor of the penalty (published: 500; 100 in PLOP's code, 1000 in SDR's)."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Weight of a new batch's squared gradient (published: 0.9, so the last batches count)."""

    def memory(self) -> Importance:
        """A pass before every step."""
        from ucd_ray.methods.importance import Fisher

        return Fisher(decay=self.decay, normalise=self.normalise)


class PI(Regularizer):
    """Path integral: how much a parameter's way lowered the loss (arXiv 1703.04200)."""

    section: ClassVar[str] = "pi"
    watches: ClassVar[bool] = True

    weight: Annotated[float, Field(ge=0)] = 500.0
    """Factor of the penalty (published: 500; 100 in PLOP's code, 1000 in SDR's)."""
    damping: Annotated[float, Field(gt=0)] = 0.001
    """Added to the squared way, by which the path is divided (the paper's: 0.001 to 0.1).  MiB's code has
    1e-20, which gives the elements that hardly moved all the importance of their tensor."""

    def memory(self) -> Importance:
        """Watches training, of step 0 as well."""
        from ucd_ray.methods.importance import PathIntegral

        return PathIntegral(weight=self.weight, damping=self.damping, normalise=self.normalise)


class RW(Regularizer):
    """Riemannian walk: a running Fisher diagonal plus a path score (arXiv 1801.10112)."""

    section: ClassVar[str] = "rw"
    watches: ClassVar[bool] = True

    weight: Annotated[float, Field(ge=0)] = 100.0
    """Factor of the penalty (published: 100; 1000 in SDR's code)."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Weight of a new update's squared gradient in the Fisher diagonal (published: 0.9)."""
    interval: Annotated[int, Field(gt=0)] = 10
    """Updates between two additions to the path score (published: 10)."""

    def memory(self) -> Importance:
        """Watches training, of step 0 as well."""
        from ucd_ray.methods.importance import RiemannianWalk

        return RiemannianWalk(
            decay=self.decay,
            interval=self.interval,
            weight=self.weight,
            normalise=self.normalise,
        )
