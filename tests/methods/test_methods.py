"""Terms and methods: a contract for every entry of METHODS, and which loss a term calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ucd_ray import losses
from ucd_ray.config import SECTIONS
from ucd_ray.errors import ConfigError
from ucd_ray.methods import METHOD_DEFAULTS, METHODS, Batch, Term
from ucd_ray.methods.cross_entropy import CrossEntropy, UnbiasedCE
from ucd_ray.methods.distillation import FeatureKD, OutputKD, UnbiasedKD
from ucd_ray.methods.importance import Fisher, PathIntegral, RiemannianWalk
from ucd_ray.methods.memory import Memory
from ucd_ray.methods.pod import POD
from ucd_ray.methods.prototypes import Prototypes
from ucd_ray.methods.regularizers import EWC
from ucd_ray.methods.sdr import Attraction, Matching
from ucd_ray.methods.together import weighted
from ucd_ray.methods.ucd import UCD
from ucd_ray.models import SegOutput
from ucd_ray.recipe import Recipe, method_keys

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
    f"{m}:{type(t).__name__}": t for m, terms in METHODS.items() for t in terms if "+" not in m
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


def test_ucd_can_take_trusted_pseudo_labels_for_truth_as_the_published_code() -> None:
    given = make_batch()
    relabelled = given.labels.masked_fill(given.labels == 0, 1)
    relabelled[:, 8:] = torch.where(given.labels[:, 8:] == 0, 255, given.labels[:, 8:])
    batch = make_batch(relabelled=relabelled)
    truth = torch.where((relabelled == 255) & (given.labels != 255), 0, relabelled)
    expected = UCD()(make_batch_of(truth))
    assert UCD(labels="relabelled")(batch) == expected
    assert UCD()(batch) == UCD()(given) != expected


def make_batch_of(labels: Tensor) -> Batch:
    batch = make_batch()
    batch.labels.copy_(labels)
    return batch


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


def values_of(terms: tuple[Term, ...], batch: Batch) -> tuple[list[float], Tensor]:
    """The summands and the gradient of their sum."""
    values = weighted(terms, batch)
    (gradient,) = torch.autograd.grad(torch.stack(values).sum(), batch.new.logits)
    return [value.item() for value in values], gradient


@pytest.mark.parametrize("reduction", ["mean", "valid"])
@pytest.mark.parametrize("kd", [UnbiasedKD(), UnbiasedKD(temperature=2.0, class_reduction="sum")])
def test_mib_in_one_pass_equals_its_terms_one_by_one(kd: UnbiasedKD, reduction: Any) -> None:
    terms: tuple[Term, ...] = (UnbiasedCE(weight=2.0, reduction=reduction), kd)
    batch = make_batch()
    together, gradient = values_of(terms, batch)
    apart = [term.weighted(batch) for term in terms]
    (expected,) = torch.autograd.grad(torch.stack(apart).sum(), batch.new.logits)
    assert together == pytest.approx([value.item() for value in apart], rel=1e-6)
    torch.testing.assert_close(gradient, expected)


def test_one_pass_is_taken_for_mib_and_left_where_a_switch_changes_a_term(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def pass_(*args: Any, **knobs: Any) -> Any:
        calls.append(1)
        return losses.unbiased_losses(*args, **knobs)

    monkeypatch.setattr("ucd_ray.methods.together.unbiased_losses", pass_)
    weighted(METHODS["mib+ucd"], make_batch())
    assert len(calls) == 1
    relabelled = torch.zeros(2, 16, 16, dtype=torch.long)
    for batch in (make_batch(head="sigmoid"), make_batch(relabelled=relabelled)):
        weighted(METHODS["mib"], batch)
    weighted((UnbiasedCE(), UnbiasedKD(pixels="old")), make_batch())
    weighted((UnbiasedCE(), UnbiasedKD(resolution="features")), make_batch())
    weighted(METHODS["lwf"], make_batch())
    assert len(calls) == 1


# Switches.


def test_sigmoid_heads_turn_lwf_into_lwf_mc() -> None:
    batch = make_batch(head="sigmoid")
    logits, labels = batch.new.logits.detach(), batch.labels
    one_hot = torch.zeros_like(logits).scatter_(1, labels.clamp(max=OLD + NEW - 1)[:, None], 1.0)
    by_class = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, one_hot, reduction="none"
    )
    expected = (by_class.sum(1) * (labels != 255)).mean()
    torch.testing.assert_close(CrossEntropy()(batch).detach(), expected)
    published = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[:, :OLD], batch.teacher.logits.detach().sigmoid()
    )
    kd = METHODS["lwf-mc"][1]
    torch.testing.assert_close(kd.weighted(batch).detach(), 10 * OLD * published)


@pytest.mark.parametrize("term", [UnbiasedCE(), UnbiasedKD()])
def test_unbiased_terms_have_a_sigmoid_form_of_their_own(term: Term) -> None:
    sigmoid, softmax = term(make_batch(head="sigmoid")), term(make_batch())
    assert sigmoid.isfinite()
    assert sigmoid != softmax


def test_classification_learns_pseudo_labels_and_the_others_do_not() -> None:
    given = make_batch()
    relabelled = given.labels.masked_fill(given.labels == 0, 1)
    batch = make_batch(relabelled=relabelled)
    assert CrossEntropy()(batch) == losses.cross_entropy(batch.new.logits, relabelled)
    for term in (OutputKD(pixels="old"), UCD(), *METHODS["sdr"][2:]):
        assert term(batch) == term(given)


def test_a_pseudo_label_of_an_old_class_is_no_background_for_the_unbiased_form() -> None:
    given = make_batch()
    relabelled = given.labels.masked_fill(given.labels == 0, 1)
    batch = make_batch(relabelled=relabelled)
    plain = losses.cross_entropy(batch.new.logits, relabelled, reduction="none")
    unbiased = losses.unbiased_cross_entropy(
        batch.new.logits, given.labels, num_old=OLD, reduction="none"
    )
    expected = torch.where(relabelled == 1, plain, unbiased).mean()
    torch.testing.assert_close(UnbiasedCE()(batch), expected)


def test_the_adaptive_factor_weighs_images() -> None:
    weights = torch.tensor([0.0, 0.5])
    batch = make_batch(image_weights=weights)
    loss_map = losses.cross_entropy(batch.new.logits, batch.labels, reduction="none")
    torch.testing.assert_close(CrossEntropy()(batch), 0.5 * loss_map[1].sum() / loss_map.numel())


def test_distillation_at_feature_resolution_compares_small_logits() -> None:
    batch = make_batch()
    new, old = batch.new.small_logits, batch.teacher.small_logits
    expected = losses.output_distillation(new, old)
    torch.testing.assert_close(OutputKD(resolution="features")(batch), expected)
    masked = OutputKD(resolution="features", pixels="old")(batch)
    loss_map = losses.output_distillation(new, old, reduction="none")
    small = torch.nn.functional.interpolate(
        batch.labels[:, None].double(), size=(4, 4), mode="nearest-exact"
    )[:, 0]
    torch.testing.assert_close(masked, loss_map[small < OLD].mean())


# PLOP and SDR.


def test_pod_is_the_mean_over_six_maps_with_its_factors() -> None:
    term, batch = POD(weight=3.0, logit_weight=5.0), make_batch()
    new, old = batch.new, batch.teacher
    summed = new.small_logits[:, :OLD].clone()
    summed[:, 0] += new.small_logits[:, OLD:].sum(1)
    features = losses.local_pod([*new.stages, new.features], [*old.stages, old.features])
    (logits,) = losses.local_pod([summed], [old.small_logits])
    growth = ((OLD + NEW) / NEW) ** 0.5
    number = len(new.stages) + 2
    expected = growth / number * (3 * torch.stack(features).sum() + 5 * logits)
    torch.testing.assert_close(term.weighted(batch), expected)


def test_pod_needs_maps_that_can_be_cut() -> None:
    with pytest.raises(
        ConfigError, match=r"pod.scales \(4\) is more than the 3 rows .*crop \(48\)"
    ):
        Recipe.from_flat({"scenario": "shapes-8-4", "method": "plop", "data.crop": 48})


def test_matching_takes_old_pixels_from_the_old_model_or_from_complete_labels() -> None:
    batch = make_batch()
    memory = batch.memories["prototypes"]
    assert isinstance(memory, Prototypes)
    small = torch.nn.functional.interpolate(
        batch.labels[:, None].double(), size=(4, 4), mode="nearest-exact"
    )[:, 0].long()
    guess = batch.teacher.small_logits.argmax(1)
    errors = []
    for label in range(1, OLD):
        chosen = (small == 0) & (guess == label)
        if chosen.any():
            mean = batch.new.body.movedim(1, -1)[chosen].mean(0)
            errors.append((mean - memory.means[label]).square().mean())
    assert errors
    expected = torch.stack(errors).mean()
    torch.testing.assert_close(Matching()(batch).double(), expected.double())
    complete = make_batch(complete=True)
    complete.labels[:] = 1
    mean = complete.new.body.mean((0, 2, 3))
    expected = (mean - memory.means[1]).square().mean()
    torch.testing.assert_close(Matching()(complete).double(), expected.double())


def test_the_published_slip_of_attraction_is_an_option() -> None:
    batch = make_batch()
    assert Attraction(form="authors")(batch) < Attraction()(batch)


def test_a_frozen_old_network_has_nothing_to_penalise() -> None:
    batch = make_batch(parameters={})
    value = EWC()(batch)
    value.backward()  # type: ignore[no-untyped-call]
    assert value == 0
