"""Presets: published rows as recipes, with the numbers that they should give."""

from __future__ import annotations

import pytest

from ucd_ray.errors import ConfigError
from ucd_ray.published.presets import find_preset, presets
from ucd_ray.recipe import Recipe
from ucd_ray.tune.presets import preset_space, space_asked
from ucd_ray.tune.space import build_spec


def recipe_of(name: str, **overrides: object) -> Recipe:
    spec = build_spec(preset_space(find_preset(name)), overrides=overrides)
    return spec.trial_recipe(spec.first_params)


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_a_recipe_with_all_its_values(name: str) -> None:
    preset, flat = find_preset(name), recipe_of(name).flat()
    assert {key: flat[key] for key in preset.values} == dict(preset.values)
    assert (flat["scenario"], flat["method"]) == (preset.scenario, preset.method)
    assert preset.row.value("miou_all") is not None
    assert not any("changed here" in line for line in preset.lines(recipe_of(name)))


def test_the_distillation_weight_of_mib_is_100_in_voc_15_1_and_10_elsewhere() -> None:
    for method in ("mib", "mib+ucd"):
        weights = {
            name: recipe_of(name).flat()["kd.weight"]
            for name, preset in presets().items()
            if preset.method == method
        }
        assert {w for name, w in weights.items() if name.startswith("voc-15-1/")} == {100}
        assert {w for name, w in weights.items() if not name.startswith("voc-15-1/")} == {10}


def test_rows_of_sdr_ilt_and_plop_on_ade_are_presets() -> None:
    ilt = recipe_of("voc-15-5/sequential/ilt-feature").flat()
    assert (ilt["feature.weight"], ilt["model.norm"], ilt["seed"]) == (50, "frozen", 12345)
    assert (ilt["optim.iterations_base"], ilt["optim.iterations_new"]) == (16000, 5000)
    assert recipe_of("voc-19-1/sequential/ilt-output").flat()["optim.iterations_base"] == 20000
    for name, batch in (("voc-15-1/disjoint/sdr", 8), ("ade-100-50/sdr", 4)):
        sdr = recipe_of(name).flat()
        assert (sdr["kd.weight"], sdr["matching.weight"], sdr["data.batch_size"]) == (
            100,
            0.01,
            batch,
        )
    for name in ("ade-100-50/plop", "ade-100-5/plop"):
        plop = recipe_of(name).flat()
        assert (plop["pod.weight"], plop["pod.logit_weight"]) == (0.001, 0.00001)
    assert len(presets()) == 115


def test_what_a_row_had_and_we_have_not_is_said() -> None:
    name = "voc-15-1/sequential/ilt-output"
    text = "\n".join(find_preset(name).lines(recipe_of(name)))
    assert "should give mIoU 0_15 57.4, 16_20 34.9, all 52.0 in percent" in text
    assert "not comparable: head deeplabv2 there, deeplabv3 here; pretraining ms-coco there" in text
    assert "its augmentation and the end of its learning rates, 1e-6, are not here" in text


def test_a_value_outside_of_the_searched_range_is_fixed() -> None:
    spec = build_spec(preset_space(find_preset("voc-15-1/sequential/ilt-output")))
    assert "optim.lr_new" not in spec.search
    assert spec.recipe["optim.lr_new"] == 0.00005
    assert spec.search


def test_a_preset_says_what_it_should_give_and_under_which_protocol() -> None:
    text = "\n".join(find_preset("voc-15-1/disjoint/mib").lines(recipe_of("voc-15-1/disjoint/mib")))
    assert "should give mIoU 1_15 46.2, 16_20 12.9, all 37.9" in text
    assert "as MiB in MiB (2002.00718), Table 1" in text
    assert "setting disjoint" in text
    assert "background in the means: without" in text
    assert "pretraining imagenet there, none here" in text


def test_what_differs_from_the_row_is_said() -> None:
    recipe = recipe_of("voc-15-1/mib", **{"kd.weight": 10, "model.backbone": "resnet50"})
    text = "\n".join(find_preset("voc-15-1/mib").lines(recipe))
    assert "changed here: kd.weight 10 instead of 100" in text
    assert "not comparable: backbone resnet101 there, resnet50 here" in text


def test_a_study_of_a_preset_begins_with_the_row_and_searches_on() -> None:
    spec = build_spec(preset_space(find_preset("voc-15-1/mib+ucd")))
    assert "kd.weight" in spec.search
    assert spec.first_params["kd.weight"] == 100
    assert spec.recipe["eval.select_on"] == "val"
    assert spec.name == "voc-15-1-overlapped-mib+ucd"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"preset": "voc-15-1/mib+ucdd"}, r"unknown preset .*; did you mean 'voc-15-1/mib\+ucd'"),
        ({"preset": "nothing"}, "unknown preset 'nothing'; `ucd-ray presets` lists them"),
        ({"preset": "voc-15-1/mib", "scenario": "voc-15-5"}, "which is scenario 'voc-15-1'"),
        (
            {"preset": "voc-15-1/mib", "method": "lwf"},
            "--method 'lwf' and --preset .* leave one out",
        ),
        ({"preset": "voc-15-1/mib", "setting": "disjoint"}, "which is setting 'overlapped'"),
        ({"preset": "voc-15-1/mib", "space": "default"}, "--space 'default' and --preset"),
        ({}, "give --scenario, such as voc-15-1, or --preset"),
    ],
)
def test_what_does_not_go_together_is_refused(asked: dict[str, str], message: str) -> None:
    nothing = {"scenario": None, "space": None, "preset": None, "method": None, "setting": None}
    with pytest.raises(ConfigError, match=message):
        space_asked(**{**nothing, **asked}, generated=False)
