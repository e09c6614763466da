"""Weight regularisers against loops over entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ucd_ray.errors import ConfigError
from ucd_ray.losses import min_max, path_importance, quadratic_penalty, running_fisher, walk_score

SHAPES = {"weight": (2, 3), "bias": (3,), "scale": ()}


def sample(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)
        for name, shape in SHAPES.items()
    }


def penalised(dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], ...]:
    importance = {name: value.abs() for name, value in sample(2, dtype).items()}
    return (
        {n: p.requires_grad_() for n, p in sample(0, dtype).items()},
        sample(1, dtype),
        importance,
    )


def by_entries(parameters: Any, anchors: Any, importance: Any) -> Tensor:
    terms = []
    for name in importance:
        for p, a, i in zip(
            parameters[name].reshape(-1),
            anchors[name].reshape(-1),
            importance[name].reshape(-1),
            strict=True,
        ):
            terms.append(i * (p - a) * (p - a))
    return torch.stack(terms).sum()


def test_penalty_and_its_gradient_equal_loops_over_entries() -> None:
    parameters, anchors, importance = penalised()
    actual, expected = (f(parameters, anchors, importance) for f in (quadratic_penalty, by_entries))
    assert actual.item() == pytest.approx(expected.item(), rel=1e-12)
    leaves = list(parameters.values())
    for gradient, exact in zip(
        torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(gradient, exact, rtol=1e-12, atol=1e-12)


def test_gradcheck_of_the_penalty() -> None:
    parameters, anchors, importance = penalised()
    assert torch.autograd.gradcheck(
        lambda *values: quadratic_penalty(
            values, list(anchors.values()), list(importance.values())
        ),
        tuple(parameters.values()),
    )


def test_sequences_are_taken_pairwise() -> None:
    by_name = penalised()
    in_order = [list(group.values()) for group in by_name]
    assert quadratic_penalty(*in_order).item() == quadratic_penalty(*by_name).item()


def test_parameters_without_importance_take_no_part() -> None:
    parameters, anchors, importance = penalised()
    value = quadratic_penalty(parameters, anchors, importance).item()
    wider = {**parameters, "new": torch.ones(3)}
    assert (
        quadratic_penalty(wider, {**anchors, "frozen": torch.ones(2)}, importance).item() == value
    )


def test_only_parameters_get_a_gradient() -> None:
    parameters, anchors, importance = penalised()
    for tensor in (*anchors.values(), *importance.values()):
        tensor.requires_grad_()
    quadratic_penalty(parameters, anchors, importance).backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is not None for tensor in parameters.values())
    assert all(tensor.grad is None for tensor in (*anchors.values(), *importance.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_penalty_of_half_precision_is_a_finite_float32(dtype: torch.dtype) -> None:
    parameter = torch.full((9,), 300.0, dtype=dtype, requires_grad=True)
    anchor, importance = torch.full_like(parameter, -300.0), torch.ones_like(parameter)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        value = quadratic_penalty([parameter], [anchor], [importance])
    value.backward()  # type: ignore[no-untyped-call]
    assert value.dtype == torch.float32
    assert value.item() == 9 * 600.0**2
    assert parameter.grad is not None
    assert (parameter.grad == 1200).all()


@pytest.mark.parametrize("absent", ["parameters", "anchors"])
def test_an_importance_without_parameter_or_anchor_is_refused(absent: str) -> None:
    parameters, anchors, importance = penalised()
    del {"parameters": parameters, "anchors": anchors}[absent]["bias"]
    with pytest.raises(ConfigError, match=rf"{absent} lacks bias, .* the 3 entries of importance"):
        quadratic_penalty(parameters, anchors, importance)


def test_other_shapes_and_no_parameters_are_refused() -> None:
    a, b = torch.ones(3), torch.ones(2)
    with pytest.raises(ConfigError, match=r"the anchor of parameter number 0 has the shape \[2\]"):
        quadratic_penalty([a], [b], [a])
    with pytest.raises(ConfigError, match=r"the importance of parameter number 0 .* \[3\]"):
        quadratic_penalty([a], [a], [b])
    with pytest.raises(ConfigError, match="got no importance"):
        quadratic_penalty([], [], [])


def slow_min_max(values: Tensor) -> list[float]:
    entries = values.reshape(-1).tolist()
    return [(x - min(entries)) / (max(entries) - min(entries)) for x in entries]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_min_max_scales_to_zero_and_one(scale: float) -> None:
    values = scale * sample(0)["weight"]
    torch.testing.assert_close(
        min_max(values).reshape(-1),
        torch.tensor(slow_min_max(values), dtype=torch.float64),
        rtol=1e-10,
        atol=0,
    )


@pytest.mark.parametrize("value", [0.0, -3.0, 1e30])
def test_min_max_of_a_constant_is_zero(value: float) -> None:
    assert (min_max(torch.full((2, 2), value)) == 0).all()


def slow_fisher(fisher: float, gradient: float) -> float:
    return 0.9 * gradient**2 + (1 - 0.9) * fisher


def slow_path(path: float, moved: float) -> float:
    return max(0.0, path / (moved**2 + 1e-20))


def slow_score(path: float, fisher: float, moved: float) -> float:
    return max(0.0, path / (0.5 * fisher * moved**2 + 1e-20))


@pytest.mark.parametrize(
    ("fast", "slow", "count"),
    [
        (lambda f, g: running_fisher(f.abs(), g, 0.9), lambda f, g: slow_fisher(abs(f), g), 2),
        (path_importance, slow_path, 2),
        (
            lambda p, f, m: walk_score(p, f.abs(), m),
            lambda p, f, m: slow_score(p, abs(f), m),
            3,
        ),
    ],
)
def test_statistics_equal_their_formula_entry_by_entry(
    fast: Callable[..., Tensor], slow: Callable[..., float], count: int
) -> None:
    tensors = [sample(seed)["weight"] for seed in range(count)]
    entries = zip(*(tensor.flatten().tolist() for tensor in tensors), strict=True)
    expected = torch.tensor([slow(*numbers) for numbers in entries], dtype=torch.float64)
    torch.testing.assert_close(fast(*tensors).flatten(), expected, rtol=1e-12, atol=1e-12)
    assert (expected > 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_statistics_of_weights_that_did_not_move_are_zero(dtype: torch.dtype) -> None:
    still = torch.zeros(3, dtype=dtype)
    for value in (path_importance(still, still), walk_score(still, still, still)):
        assert value.dtype == torch.float32
        assert (value == 0).all()


def test_a_weight_that_moved_against_its_gradient_has_no_importance() -> None:
    uphill, moved = -torch.ones(2), torch.ones(2)
    assert (path_importance(uphill, moved) == 0).all()
    assert (walk_score(uphill, torch.ones(2), moved) == 0).all()


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_impossible_decay_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match=rf"decay \({decay}\) must lie between 0 and 1"):
        running_fisher(torch.ones(2), torch.ones(2), decay)
