"""What the three sample counts of UCD cost in accuracy and save in time.

    python benchmarks/sample_counts.py --plot docs/sample-counts.png

Eight crops of 32 x 32 positions, drawn like a segmentation: regions of a few classes each, some much
larger than others, a share of background; features are a direction per class, one per region and
noise. New classes have labels, old ones the old model's guesses. Each cap is drawn several times and
compared with the exact loss of the same features (caps that the batch does not exceed are left
out): bias and standard deviation in per cent of it, and
the cosine between the gradients: of the features, and of the weights of a 1 x 1 convolution that
makes them, where pixels add up as in training. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ucd_ray.losses import contrastive_distillation

CROPS, SIDE, WIDTH = 8, 32, 256
NUM_OLD, NUM_NEW = 16, 5  # channels of the old model, new classes: VOC 15-5
REGIONS = 6  # per crop
BACKGROUND = 0.35  # share of the regions
KNOBS = ("max_anchors", "max_old", "max_per_class")
CAPS = (64, 256, 512, 1024, 2048, 4096)


class Inputs(NamedTuple):
    new_features: Tensor
    old_features: Tensor
    old_logits: Tensor
    labels: Tensor


class Result(NamedTuple):
    """Of one cap; loss and deviation in per cent of the exact loss, time in ms."""

    knob: str
    cap: int
    milliseconds: float
    deviation: float
    bias: float
    feature_cosine: float
    weight_cosine: float


def make_inputs(rng: torch.Generator) -> Inputs:
    """Crops cut into the cells of random points; each cell has a class."""
    points = torch.rand((CROPS, REGIONS, 2), generator=rng) * SIDE
    grid = torch.stack(torch.meshgrid(*[torch.arange(SIDE) + 0.5] * 2, indexing="ij"), dim=-1)
    cells = torch.cdist(grid.view(1, -1, 2).expand(CROPS, -1, -1), points).argmin(dim=2)
    num_classes = NUM_OLD + NUM_NEW
    frequency = 1 / torch.arange(1.0, num_classes)  # few classes fill most of the crops
    frequency = frequency[torch.randperm(num_classes - 1, generator=rng)]
    shown = torch.multinomial(frequency.expand(CROPS, -1), 3, generator=rng) + 1
    of_cell = shown.gather(1, torch.randint(0, 3, (CROPS, REGIONS), generator=rng))
    of_cell[torch.rand((CROPS, REGIONS), generator=rng) < BACKGROUND] = 0
    classes = of_cell.gather(1, cells)  # [CROPS, SIDE * SIDE]

    directions = F.normalize(torch.randn((num_classes, WIDTH), generator=rng), dim=1)
    regions = F.normalize(torch.randn((CROPS, REGIONS, WIDTH), generator=rng), dim=2)
    clean = directions[classes] + 0.7 * regions[torch.arange(CROPS)[:, None], cells]
    noise = torch.randn((2, *clean.shape), generator=rng) / WIDTH**0.5
    new, old = clean + noise

    # Where a class is new to the old model, it sees background.
    guess = torch.where(classes < NUM_OLD, classes, 0)
    logits = torch.randn((*guess.shape, NUM_OLD), generator=rng)
    logits += 4 * F.one_hot(guess, NUM_OLD)
    labels = torch.where(classes >= NUM_OLD, classes, 0)

    def maps(pixels: Tensor) -> Tensor:
        return pixels.view(CROPS, SIDE, SIDE, -1).movedim(-1, 1)

    features = maps(new).requires_grad_()
    return Inputs(features, maps(old), maps(logits), labels.view(CROPS, SIDE, SIDE))


def run(inputs: Inputs, generator: torch.Generator, **caps: int) -> tuple[float, Tensor, float]:
    """Loss, gradient and milliseconds of one forward and backward."""
    start = time.perf_counter()
    loss = contrastive_distillation(*inputs, num_old=NUM_OLD, generator=generator, **caps)
    (gradient,) = torch.autograd.grad(loss, inputs.new_features)
    return loss.item(), gradient, 1e3 * (time.perf_counter() - start)


def weight_gradient(inputs: Inputs, gradient: Tensor) -> Tensor:
    """[WIDTH, WIDTH], of the weights of a 1 x 1 convolution, at the identity."""
    return torch.einsum("bdhw,behw->de", gradient, inputs.new_features.detach())


def cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def measure(
    inputs: Inputs, exact: float, gradient: Tensor, knob: str, cap: int, draws: int
) -> Result | None:
    """None if the batch does not exceed the cap."""
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    expected = weight_gradient(inputs, gradient)
    losses, feature_cosines, weight_cosines, times = [], [], [], []
    for _ in range(draws):
        loss, sampled, milliseconds = run(inputs, generator, **{knob: cap})
        if torch.equal(generator.get_state(), before):
            return None
        losses.append(loss)
        feature_cosines.append(cosine(sampled, gradient))
        weight_cosines.append(cosine(weight_gradient(inputs, sampled), expected))
        times.append(milliseconds)
    return Result(
        knob,
        cap,
        statistics.median(times),
        100 * statistics.pstdev(losses) / exact,
        100 * (statistics.fmean(losses) - exact) / exact,
        statistics.fmean(feature_cosines),
        statistics.fmean(weight_cosines),
    )


def table_of(results: list[Result], exact_ms: float) -> Table:
    table = Table(box=box.MARKDOWN)
    table.add_column("cap")
    for title in ("", "ms", "speed-up", "std %", "bias %", "cosine, features", "cosine, weights"):
        table.add_column(title, justify="right")
    table.add_row("none (exact)", "", f"{exact_ms:.0f}", "1.0", "0", "0", "1", "1")
    for result in results:
        values = (
            f"{result.deviation:.2f}",
            f"{result.bias:+.2f}",
            f"{result.feature_cosine:.3f}",
            f"{result.weight_cosine:.3f}",
        )
        speed = f"{result.milliseconds:.0f}", f"{exact_ms / result.milliseconds:.1f}"
        table.add_row(f"`{result.knob}`", f"{result.cap:,}", *speed, *values)
    return table


def plot(results: list[Result], exact_ms: float, file: Path) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    for knob in KNOBS:
        rows = [result for result in results if result.knob == knob]
        caps = [row.cap for row in rows]
        axes[0].plot(caps, [exact_ms / row.milliseconds for row in rows], "o-", label=knob)
        axes[1].plot(caps, [row.deviation for row in rows], "o-")
        axes[2].plot(caps, [row.bias for row in rows], "o-")
        axes[3].plot(caps, [row.feature_cosine for row in rows], "o:", alpha=0.6)
        axes[3].plot(caps, [row.weight_cosine for row in rows], "o-", color=f"C{KNOBS.index(knob)}")
    titles = (
        "speed-up over the exact loss",
        "standard deviation of the loss, %",
        "bias of the loss, %",
        "cosine with the exact gradient\n(solid: weights, dotted: features)",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="cap", xscale="log", xticks=CAPS, xticklabels=CAPS)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=20, help="of each cap")
    parser.add_argument("--seed", type=int, default=0, help="of the features")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="write a PNG")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    inputs = make_inputs(torch.Generator().manual_seed(args.seed))
    truth, guess = inputs.labels, inputs.old_logits.argmax(1)
    classes = torch.where(truth == 0, guess, truth)
    num_anchors, num_old = int((classes > 0).sum()), int(((truth == 0) & (guess > 0)).sum())
    sizes = sorted(classes[classes > 0].bincount().tolist(), reverse=True)
    generator = torch.Generator()
    exact, gradient, _ = run(inputs, generator)
    exact_ms = statistics.median(run(inputs, generator)[2] for _ in range(7))
    measured = [
        measure(inputs, exact, gradient, knob, cap, args.draws) for knob in KNOBS for cap in CAPS
    ]
    results = [result for result in measured if result is not None]

    console = Console(width=110)
    console.print(
        f"{num_anchors:,} anchors, {num_anchors:,} + {num_old:,} contrast vectors, largest classes "
        f"{sizes[:5]}, exact loss {exact:.3f}, {args.draws} draws of each cap"
    )
    console.print(table_of(results, exact_ms))
    if args.plot:
        plot(results, exact_ms, args.plot)


if __name__ == "__main__":
    main()
