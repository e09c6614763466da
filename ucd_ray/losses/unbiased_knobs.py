"""What both ways to compute the unbiased losses of a piece share."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Knobs(NamedTuple):
    """Arguments of `unbiased_losses`."""

    num_old: int
    ignore_index: int
    alpha: float
    temperature: float

    @property
    def sharpness(self) -> float:
        """What the old logits are multiplied with before the teacher's softmax."""
        return self.alpha / self.temperature


def kinds(labels: Tensor, knobs: Knobs) -> tuple[Tensor, Tensor]:
    """[b, n] bool: pixels that are not ignored, and those of them with a new class."""
    is_valid = labels != knobs.ignore_index
    return is_valid, is_valid & (labels >= knobs.num_old)


def sharpened(old: Tensor, knobs: Knobs) -> Tensor:
    """The old logits of which the teacher is the softmax."""
    return old if knobs.sharpness == 1 else old * knobs.sharpness
