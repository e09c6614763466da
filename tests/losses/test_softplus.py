"""log(1 + exp(x)), which a CPU makes of faster operations than torch's own."""

from __future__ import annotations

import math

import pytest
import torch

from ucd_ray.losses.contrastive_vectors import softplus


@pytest.mark.parametrize("spare", [True, False])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 5e-6), (torch.float64, 1e-13)])
def test_softplus_is_right_where_it_is_tiny_and_where_it_is_large(
    dtype: torch.dtype, rtol: float, spare: bool
) -> None:
    x = torch.linspace(-80, 200, 28001, dtype=dtype)
    out = torch.empty_like(x)
    found = softplus(x, out, torch.empty_like(x) if spare else None)
    assert found is out
    exact = [math.log1p(math.exp(-abs(v))) + max(v, 0.0) for v in x.double().tolist()]
    wanted = torch.tensor(exact, dtype=torch.float64)
    torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=0)


def test_softplus_of_infinities() -> None:
    x = torch.tensor([-torch.inf, torch.inf, 0.0])
    assert softplus(x, torch.empty(3)).tolist() == [0.0, torch.inf, pytest.approx(math.log(2))]
