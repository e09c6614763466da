"""Colours of class ids in pictures of masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def palette() -> NDArray[np.uint8]:
    """[256, 3] RGB of every id: the bit-interleaved colours of Pascal VOC; 0 black, 255 light grey."""
    ids = np.arange(256)
    colors = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    colors[255] = 224
    return colors
