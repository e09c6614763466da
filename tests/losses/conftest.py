"""What tests of losses share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ucd_ray.losses import contrastive_plan


@pytest.fixture(scope="module", params=["tiles", "whole"])
def arithmetic(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to compute UCD; batches as small as in tests would take one only."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "tiles":
            patch.setitem(contrastive_plan.FEW, "cpu", 0)
            patch.setitem(contrastive_plan.FEW, "cuda", 0)
        yield
