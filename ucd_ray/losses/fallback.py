"""A fast way to compute something that not every machine can go, and the plain way beside it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def falls_back(fast: Callable[P, T], plain: Callable[P, T], told: str) -> Callable[P, T]:
    """`fast` until it fails, of a compiler or for want of one, then `plain` for good.

    told: the beginning of the warning, which the error ends; running out of memory is no such failure
    """
    works = True

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal works
        if works:
            try:
                return fast(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of the compiler, Triton or the C compiler it starts
                works = False
                warnings.warn(f"{told}: {error}", stacklevel=2)
        return plain(*args, **kwargs)

    return call
