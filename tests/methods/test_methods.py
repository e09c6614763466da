"""Terms and methods: a contract for every entry of METHODS, and which loss a term calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ucd_ray import losses
from ucd_ray.config import SECTIONS
from ucd_ray.methods import METHOD_DEFAULTS, METHODS, Batch, Term
from ucd_ray.methods.cross_entropy import CrossEntropy, UnbiasedCE
from ucd_ray.methods.distillation import FeatureKD, OutputKD, UnbiasedKD
from ucd_ray.methods.importance import Fisher, PathIntegral, RiemannianWalk
from ucd_ray.methods.memory import Memory
from ucd_ray.methods.prototypes import Prototypes
from ucd_ray.methods.ucd import UCD
from ucd_ray.models import SegOutput
from ucd_ray.recipe import method_keys

OLD, NEW = 3, 2  # channels of the old model, classes of this step


def output(channels: int, seed: int) -> SegOutput:
    """Random maps of 2 images of 16 pixels, features at stride 4, that take gradients."""
    generator = torch.Generator().manual_seed(seed)

    def maps(channels: int, side: int) -> Tensor:
        return torch.randn(2, channels, side, side, generator=generator, requires_grad=True)

    body, stage = maps(8, 4), maps(4, 8)
    return SegOutput(
        maps(channels, 16), maps(channels, 4), maps(6, 4), body, [stage, body], [stage, body]
    )


def make_batch(step: int = 1, **values: Any) -> Batch:
    labels = torch.randint(0, OLD + NEW, (2, 16, 16), generator=torch.Generator().manual_seed(3))
    labels[:, :2] = 255
    labels[(labels > 0) & (labels < OLD)] = 0
    new = output(OLD + NEW, 0)
    if step == 0:
        return Batch(labels, new, None, 1, **values)
    # As if the logits were a network's parameters, for the terms that look at these.
    parameters = {"w": new.logits}
    importance = {"w": torch.rand(new.logits.shape)}
    memories: dict[str, Memory] = {"prototypes": prototypes()}
    for kind in (Fisher, PathIntegral, RiemannianWalk):
        memories[kind.name] = kind.__new__(kind)
        memories[kind.name].importance = importance  # type: ignore[attr-defined]
    anchors = {"w": torch.zeros_like(new.logits)}
    values = {"memories": memories, "parameters": parameters, "old_parameters": anchors, **values}
    return Batch(labels, new, output(OLD, 1), OLD, **values)


def prototypes() -> Prototypes:
    memory = Prototypes()
    memory.sums["body"] = torch.randn(OLD + NEW, 8, generator=torch.Generator().manual_seed(4))
    memory.count["body"] = torch.ones(OLD + NEW)
    return memory


TERMS = {
    f"{m}:{type(t).__name__}": t
    for m, terms in METHODS.items()
    for t in terms
    if "+" not in m
}


@pytest.mark.parametrize("method", METHODS)
def test_the_terms_of_a_method_have_sections_of_their_own(method: str) -> None:
    sections = [term.section for term in METHODS[method]]
    assert len(set(sections)) == len(sections)
    assert not set(sections) & set(SECTIONS)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_classifies_at_every_step(method: str) -> None:
    for step in (0, 1, 2):
        acting = [term.at(step) for term in METHODS[method]]
        assert any(isinstance(term, CrossEntropy) for term in acting)


@pytest.mark.parametrize("method", METHOD_DEFAULTS)
def test_what_a_method_brings_along_are_keys_that_it_has(method: str) -> None:
    assert set(METHOD_DEFAULTS[method]) <= set(method_keys(method))


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_a_finite_scalar_whose_gradient_reaches_the_new_model_only(name: str) -> None:
    batch = make_batch()
    value = TERMS[name](batch)
    assert value.shape == ()
    assert value.isfinite()
    value.backward()  # type: ignore[no-untyped-call]
    new, old = batch.new, batch.teacher
    reached = [t.grad for t in (new.logits, new.small_logits, new.features, new.body)]
    assert any(g is not None and g.abs().sum() > 0 for g in reached)
    assert [t.grad for t in (old.logits, old.small_logits, old.features, old.body)] == [None] * 4


@pytest.mark.parametrize("name", TERMS)
def test_a_term_acts_from_its_first_step_on(name: str) -> None:
    term = TERMS[name]
    assert (term.at(0) is not None) == (term.first_step == 0)
    assert term.at(1) == term.at(5) == term


@pytest.mark.parametrize("name", TERMS)
def test_a_term_runs_at_the_first_step_it_acts_in(name: str) -> None:
    term = TERMS[name].at(0)
    if term is not None:
        assert term(make_batch(step=0)).isfinite()


@pytest.mark.parametrize("name", TERMS)
def test_a_replaced_value_is_validated(name: str) -> None:
    term = TERMS[name]
    assert term.replace(weight=7.5).weight == 7.5
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        term.replace(weight=-1)


def test_the_classification_terms_call_their_losses() -> None:
    batch = make_batch()
    logits, labels = batch.new.logits, batch.labels
    assert CrossEntropy()(batch) == losses.cross_entropy(logits, labels)
    assert UnbiasedCE()(batch) == losses.unbiased_cross_entropy(logits, labels, num_old=OLD)


def test_unbiased_cross_entropy_is_plain_at_the_base_step_with_its_weight() -> None:
    assert UnbiasedCE(weight=2).at(0) == CrossEntropy(weight=2)
    assert type(UnbiasedCE().at(0)) is CrossEntropy


@pytest.mark.parametrize(
    ("term", "loss"),
    [(OutputKD, losses.output_distillation), (UnbiasedKD, losses.unbiased_distillation)],
)
def test_output_distillation_passes_its_knobs_on(term: type[OutputKD], loss: Any) -> None:
    batch = make_batch()
    expected = loss(batch.new.logits, batch.teacher.logits, alpha=1.5, temperature=2.0)
    assert term(alpha=1.5, temperature=2.0)(batch) == expected
    assert term()(batch) != expected


def test_feature_distillation_compares_the_last_backbone_stage() -> None:
    batch = make_batch()
    expected = (batch.new.body - batch.teacher.body).square().mean()
    torch.testing.assert_close(FeatureKD()(batch), expected)


# What differs from the defaults.
UCD_VALUES: dict[str, Any] = {
    "temperature": 0.5,
    "uncertainty": False,
    "form": "authors",
    "max_anchors": 7,
    "max_old": 5,
    "max_per_class": 4,
}


@pytest.mark.parametrize("changed", UCD_VALUES)
def test_ucd_passes_every_knob_on(changed: str) -> None:
    batch = make_batch()

    def loss(**values: Any) -> Tensor:
        return losses.contrastive_distillation(
            batch.new.features,
            batch.teacher.features,
            batch.teacher.small_logits,
            batch.labels,
            num_old=OLD,
            generator=torch.Generator().manual_seed(5),
            **values,
        )

    def term(**values: Any) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return UCD(**values)(Batch(batch.labels, batch.new, batch.old, OLD, generator))

    one = {changed: UCD_VALUES[changed]}
    assert term(**one) == loss(**one)
    assert term(**one) != term()


def test_a_distillation_term_needs_an_old_model() -> None:
    with pytest.raises(AssertionError, match="step 0"):
        UnbiasedKD()(make_batch(step=0))


def test_the_base_term_has_no_value() -> None:
    with pytest.raises(AssertionError, match="has no value"):
        Term()(make_batch())


def test_the_masked_class_sum_of_ilt_equals_a_loop_over_pixels_without_new_classes() -> None:
    batch = make_batch()
    term = OutputKD(weight=1.0, class_reduction="sum", pixels="old")
    new, old = batch.new.logits.detach(), batch.teacher.logits.detach()
    values = []
    for b, y, x in (batch.labels < OLD).nonzero().tolist():  # neither new classes nor 255
        teacher, student = old[b, :, y, x].softmax(0), new[b, :OLD, y, x].log_softmax(0)
        values.append(-(teacher * student).sum())
    torch.testing.assert_close(term(batch).detach(), torch.stack(values).mean())


def test_the_masked_term_without_old_pixels_is_zero_and_connected() -> None:
    batch = make_batch()
    batch.labels.fill_(OLD)
    value = OutputKD(pixels="old")(batch)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == 0
    assert batch.new.logits.grad is not None


def test_ilt_averages_cross_entropy_over_valid_pixels() -> None:
    batch = make_batch()
    valid = batch.labels != 255
    mean, over_valid = CrossEntropy()(batch), CrossEntropy(reduction="valid")(batch)
    torch.testing.assert_close(over_valid, mean * valid.numel() / valid.sum())
