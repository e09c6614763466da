"""The sections of a recipe: every value that shapes a run, with its unit, range and default.

A field's docstring is its documentation everywhere: `ucd-ray config --explain`, the REST schema and
the README are made from it.  `acts_from` says from which step of a scenario a field matters; the step
cache leaves later fields out of a step's key.  `NEVER` marks what cannot change a number.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

NEVER = -1


def acts_from(step: int) -> Any:
    """Field metadata: the first step at which the field has an effect (NEVER: it has none)."""
    return Field(json_schema_extra={"acts_from": step})


class Config(BaseModel):
    """Frozen, refuses unknown keys; a field is described by the docstring under it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @classmethod
    def acts_from(cls, field: str) -> int:
        """First step at which `field` acts: 0 unless it says otherwise, NEVER if it never does."""
        extra = cls.model_fields[field].json_schema_extra
        value = extra.get("acts_from", 0) if isinstance(extra, dict) else 0
        return int(value) if isinstance(value, int) else 0


class DataConfig(Config):
    """Images: where they come from and how training sees them."""

    source: Annotated[str | None, acts_from(NEVER)] = None
    """Directory of the data set, of a prepared one, or `generated`; only `shapes` needs none."""
    split_lists: Annotated[str | None, acts_from(NEVER)] = None
    """Directory with one list of image ids per step (`step0.txt`, `step1.txt` ...), for splits that
    are published as lists: the disjoint settings of ADE20K and Cityscapes."""
    batch_size: Annotated[int, Field(gt=0)] = 24
    """Images per optimizer update, over all workers."""
    micro_batch: Annotated[int | None, Field(gt=0)] = None
    """Images per forward pass of one worker; gradients are accumulated up to the batch size.
    Null: the worker's whole share at once."""
    micro_batch_new: Annotated[int | None, Field(gt=0), acts_from(1)] = None
    """The same in the steps after the base step, where the old model takes memory too.
    Null: as in the base step."""
    crop: Annotated[int, Field(ge=32, le=2048)] = 512
    """Side of the square training crop, in pixels."""
    scale_min: Annotated[float, Field(gt=0)] = 0.5
    """Smallest crop area before resizing, as a fraction of the image area (published: 0.5)."""
    scale_max: Annotated[float, Field(gt=0)] = 2.0
    """Largest crop area as a fraction of the image area; a crop that does not fit becomes the
    largest central one (published: 2.0)."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of a horizontal flip."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of each step's training images kept for scoring when `eval.select_on` is holdout."""
    loader_workers: Annotated[int, Field(ge=0), acts_from(NEVER)] = 0
    """Processes that load images, for each training worker.  0: in the training process."""

    @model_validator(mode="after")
    def _scales_in_order(self) -> DataConfig:
        if self.scale_min > self.scale_max:
            raise ValueError(f"scale_min ({self.scale_min}) is above scale_max ({self.scale_max})")
        return self


class ModelConfig(Config):
    """The network: a timm backbone, a DeepLabV3 head, one classifier per step."""

    backbone: str = "resnet101"
    """Backbone name: resnet101, resnet50, resnet18, mobilenetv2_100 or any timm model with
    `features_only`."""
    output_stride: Literal[8, 16] = 16
    """Image size divided by feature size."""
    width: Annotated[int, Field(ge=8, le=2048)] = 256
    """Channels of the head, that is of the features which the classifiers and UCD read."""
    weights: Annotated[str | None, acts_from(NEVER)] = None
    """File of pretrained backbone weights, `pretrained` (downloads by name) or null (random)."""
    weights_mean: tuple[float, float, float] | None = None
    """Mean of the pretrained network's input, for pixels in 0..1; null: from the file's .json."""
    weights_std: tuple[float, float, float] | None = None
    """Standard deviation of the pretrained network's input; null: from the file's .json."""
    base: Annotated[str | None, acts_from(NEVER)] = None
    """File of a trained segmentation network that is taken as step 0, which is then not trained; null:
    step 0 is trained.  Nothing of `weights` is loaded beside it."""
    base_classes: Annotated[str | None, acts_from(NEVER)] = None
    """File with the class names of `base` in the order of its channels, background first: one a line or
    a YAML list."""
    norm: Literal["batch", "sync", "frozen"] = "batch"
    """Batch normalisation: of each worker, synchronised over workers, or frozen statistics."""
    freeze: Annotated[Literal["none", "encoder", "old"], acts_from(1)] = "none"
    """What is not trained after step 0: nothing, the backbone with its norms (ILT's E_F), or all but
    the newest classifier."""
    head: Literal["softmax", "sigmoid"] = "softmax"
    """What the classifiers give: one softmax over all classes, or a sigmoid per class; classification
    and output distillation follow.  A base step of its own; sigmoid in lwf-mc."""
    background_init: Annotated[bool, acts_from(1)] = False
    """New classifiers start from the background's weights (MiB); on in mib and its combinations."""


class PseudoConfig(Config):
    """Pseudo-labels: the old model's classes at background pixels, for the classification terms."""

    mode: Annotated[Literal["none", "argmax", "entropy"], acts_from(1)] = "none"
    """None; the old model's argmax; or, where its entropy is above the class's median, ignored (PLOP)."""
    threshold: Annotated[float, Field(ge=0, le=1), acts_from(1)] = 0.001
    """Smallest threshold of a class, as normalised entropy (published: 0.001)."""
    adaptive: Annotated[bool, acts_from(1)] = False
    """Weight an image's classification loss by the trusted fraction of its background (PLOP)."""
    form: Annotated[Literal["standard", "authors"], acts_from(1)] = "standard"
    """`authors` reproduces three slips of the published code: the entropy's mean instead of its sum over
    classes, medians that add bin borders, and weight 0 for an image without background."""


class OptimConfig(Config):
    """SGD with Nesterov momentum and a poly schedule, restarted at every step."""

    lr_base: Annotated[float, Field(gt=0)] = 0.01
    """Learning rate at the start of step 0."""
    lr_new: Annotated[float, Field(gt=0), acts_from(1)] = 0.001
    """Learning rate at the start of every later step."""
    epochs_base: Annotated[int, Field(gt=0)] = 30
    """Passes over the images of step 0; not used when iterations_base is given."""
    epochs_new: Annotated[int, Field(gt=0), acts_from(1)] = 30
    """Passes over the images of a later step; not used when iterations_new is given."""
    iterations_base: Annotated[int | None, Field(gt=0)] = None
    """Optimizer updates of step 0.  Null: epochs_base decides."""
    iterations_new: Annotated[int | None, Field(gt=0), acts_from(1)] = None
    """Optimizer updates of each later step.  Null: epochs_new decides."""
    head_lr_factor: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of head and classifiers, as a multiple of the backbone's (published: 1)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2 penalty on all weights."""
    poly_power: Annotated[float, Field(ge=0)] = 0.9
    """The learning rate falls as (1 - iteration / iterations) ** poly_power."""


class EvalConfig(Config):
    """How mIoU is measured."""

    select_on: Literal["holdout", "val"] = "holdout"
    """What search and pruning see: a hold-out of the training images, or (as the papers) val, in
    which case all training images are trained on."""
    mode: Literal["full", "crop"] = "full"
    """Whole images one by one, or short side resized to `size` and a central crop of `size`."""
    size: Annotated[int, Field(ge=32)] = 512
    """Side of the central crop in mode crop, in pixels (published: 512)."""
    max_images: Annotated[int, Field(gt=0), acts_from(NEVER)] = 500
    """At most this many images are scored after an epoch; the end of a step scores all."""
    unseen: Literal["background", "ignore"] = "background"
    """Truth pixels of classes not learned yet count as background (PLOP, UCD) or not (MiB)."""


class ComputeConfig(Config):
    """How it is computed."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast type; auto: bfloat16 on CUDA cards that have it, else float32."""
    channels_last: bool = True
    """Memory layout of images and maps; faster on CUDA and CPU alike."""
    deterministic: bool = False
    """Same seed, same numbers on the same machine, at the price of speed on CUDA."""


SECTIONS: dict[str, type[Config]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "pseudo": PseudoConfig,
    "optim": OptimConfig,
    "eval": EvalConfig,
    "compute": ComputeConfig,
}
