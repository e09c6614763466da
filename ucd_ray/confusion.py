"""Confusion matrices as they travel and are stored, and summed over groups of classes.  Needs no torch.

A confusion matrix is [C, C] counts of pixels, rows truth, columns prediction, in channel order
(0 background, then classes in learning order).
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

COUNTS = np.dtype("<u8")  # most bytes are zero, and so cost nothing once compressed


def pack(confusion: ArrayLike) -> str:
    """The matrix as text: about 1 kB for 21 classes, 15 kB for 151.

    confusion: [C, C] counts
    """
    return base64.b64encode(zlib.compress(np.asarray(confusion, COUNTS).tobytes())).decode()


def unpack(content: bytes) -> NDArray[np.int64]:
    """The [C, C] int64 matrix of a packed one whose text was decoded."""
    counts = np.frombuffer(zlib.decompress(content), COUNTS)
    classes = math.isqrt(len(counts))
    return counts.reshape(classes, classes).astype(np.int64)


def decoded(text: str) -> bytes:
    """The bytes of a packed matrix, a quarter shorter than its text."""
    return base64.b64decode(text)


def summed(confusion: NDArray[np.int64], sizes: Sequence[int]) -> NDArray[np.int64]:
    """[G, G] counts between groups of neighbouring channels.

    confusion: [C, C]
    sizes: channels of each of the G groups, C in all
    """
    starts = np.cumsum([0, *sizes[:-1]])
    rows = np.add.reduceat(confusion, starts, axis=0)
    return np.asarray(np.add.reduceat(rows, starts, axis=1))


def shares(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """[C, C] percent of the truth pixels of each row; NaN in rows without any."""
    truth = confusion.sum(1, keepdims=True).astype(float)
    return 100 * confusion / np.where(truth > 0, truth, np.nan)
