"""The tiled contrastive loss beside the plain dense formula: time, peak memory, share of the floor.

    python benchmarks/contrastive.py --sizes 4096 8192 12288 --largest 24576
    python benchmarks/contrastive.py --sizes 4096 8192 --background 0.73
    python benchmarks/contrastive.py --sizes 4096 --classes 2
    python benchmarks/contrastive.py --device cuda --dtype bfloat16

A size is a number of positions of the batch, 1024 to a crop. Those that are not background are the
anchors; half of them have a label, the others the old model's guess, so there are 1.5 times as many
contrast vectors. Times are medians of runs in turn, forward and backward. Peak memory is that of a
fresh process per measurement over its size when the inputs exist and a small loss has been run
(Linux; on CUDA what the allocator counts, without a new process). The floor is the time of the two
matrix products, A K^T and G K, at the rate measured between the runs. Only ratios carry over to
another machine.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ucd_ray.losses import contrastive_distillation

MB = 1e6
# (time, memory) that dense over tiled must reach: in general, with background, with two classes.
REQUIRED = {4096: (7.0, 15.0), 8192: (8.0, 30.0), 12288: (12.0, 70.0)}
REQUIRED_BACKGROUND, REQUIRED_TWO_CLASSES = 3.0, 5.0
REQUIRED_FLOOR = {"cpu": 0.65, "cuda": 0.5}
FLOOR_BLOCK = {"cpu": (2048, 4096), "cuda": (8192, 16384)}  # rows and columns, for its rate
DENSE_MATRICES = 12  # size of the dense formula in matrices of anchors x columns, measured
Loss = Callable[..., Tensor]


class Problem(NamedTuple):
    """One row of the table."""

    positions: int
    background: float
    classes: int
    width: int
    device: str
    dtype: torch.dtype

    @property
    def anchors(self) -> int:
        return round(self.positions * (1 - self.background))

    @property
    def columns(self) -> int:
        return self.anchors + self.anchors // 2


class Inputs(NamedTuple):
    new_features: Tensor
    old_features: Tensor
    old_logits: Tensor
    labels: Tensor
    num_old: int


def make_inputs(problem: Problem) -> Inputs:
    """Random features of problem.classes classes, three quarters of them old."""
    rng = torch.Generator().manual_seed(0)
    side = 32 if problem.positions >= 1024 else 8
    images = problem.positions // side**2
    num_new = max(1, problem.classes // 4)
    num_old = 1 + problem.classes - num_new
    maps = (images, problem.width, side, side)
    new, old = (
        torch.randn(maps, generator=rng).to(problem.dtype, memory_format=torch.channels_last)
        for _ in range(2)
    )
    guess = torch.randint(1, num_old, (images * side**2,), generator=rng)
    labels = torch.randint(num_old, num_old + num_new, guess.shape, generator=rng)
    order = torch.randperm(len(guess), generator=rng)
    labels[order[: problem.anchors // 2]] = 0
    background = order[problem.anchors :]
    labels[background], guess[background] = 0, 0
    logits = torch.randn((len(guess), num_old), generator=rng)
    logits[torch.arange(len(guess)), guess] = logits.amax(dim=1) + 2
    logits = logits.view(images, side, side, num_old).movedim(-1, 1).contiguous()
    tensors = [new, old, logits, labels.view(images, side, side)]
    new, old, logits, labels = (tensor.to(problem.device) for tensor in tensors)
    return Inputs(new.requires_grad_(), old, logits, labels, num_old)


def dense(new: Tensor, old: Tensor, logits: Tensor, labels: Tensor, num_old: int) -> Tensor:
    """The standard form with whole matrices of anchors x columns, left to autograd."""
    new, old, logits = (maps.movedim(1, -1).flatten(0, 2) for maps in (new, old, logits))
    truth = labels.flatten()
    classes = torch.where(truth == 0, logits.argmax(1), truth)
    foreground = (classes > 0) & (truth != 255)
    pseudo = foreground & (truth == 0)
    anchors = F.normalize(new[foreground], dim=1)
    keys = torch.cat([anchors.detach(), F.normalize(old[pseudo], dim=1)])
    rows, columns = classes[foreground], torch.cat([classes[foreground], classes[pseudo]])
    probs = logits.softmax(1)
    weight = probs[foreground] @ torch.cat([probs[foreground], probs[pseudo]]).T
    weight = torch.where((rows[:, None] >= num_old) & (columns >= num_old), 1.0, weight)
    same = rows[:, None] == columns
    similarity = anchors @ keys.T / 0.07
    negatives = similarity.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    positive = same.clone().fill_diagonal_(False)
    terms = weight * (torch.logaddexp(similarity, negatives) - similarity)
    count = positive.sum(1)
    return ((terms * positive).sum(1) / count.clamp(min=1)).sum() / (count > 0).sum()


def tiled(new: Tensor, old: Tensor, logits: Tensor, labels: Tensor, num_old: int) -> Tensor:
    return contrastive_distillation(new, old, logits, labels, num_old=num_old)


LOSSES: dict[str, Loss] = {"dense": dense, "tiled": tiled}


def run(loss: Loss, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The value and gradient of one forward and backward."""
    value = loss(*inputs)
    (gradient,) = torch.autograd.grad(value, inputs.new_features)
    synchronise(inputs.labels.device)
    return value.detach(), gradient


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def floor_of(problem: Problem) -> Callable[[], float]:
    """A function that measures how long both products take, from blocks of them."""
    most_rows, most_columns = FLOOR_BLOCK[problem.device]
    rows, columns = min(problem.anchors, most_rows), min(problem.columns, most_columns)
    options = {"device": problem.device, "dtype": problem.dtype}
    anchors, vectors, block = (
        torch.randn(shape, **options)
        for shape in ((rows, problem.width), (columns, problem.width), (rows, columns))
    )
    product, similarity = torch.empty_like(anchors), torch.empty_like(block)

    def products() -> None:
        torch.mm(anchors, vectors.T, out=similarity)
        torch.mm(block, vectors, out=product)
        synchronise(anchors.device)

    def measure() -> float:
        times = [seconds_of(products) for _ in range(6)]
        share = rows * columns / (problem.anchors * problem.columns)
        return statistics.median(times) / share

    return measure


def times_of(
    problem: Problem, names: list[str], repeats: int
) -> tuple[dict[str, float], tuple[float, float]]:
    """Median seconds of each loss and of the floor; relative differences of value and gradient."""
    inputs, measure_floor = make_inputs(problem), floor_of(problem)
    results = {name: run(LOSSES[name], inputs) for name in names}  # also warms up
    times: dict[str, list[float]] = {name: [] for name in (*names, "floor")}
    for _ in range(repeats):
        for name in names:
            times[name].append(seconds_of(lambda name=name: run(LOSSES[name], inputs)))
        times["floor"].append(measure_floor())
    (value, gradient), (expected, expected_gradient) = results["tiled"], results[names[0]]
    difference = (
        float((value - expected).abs() / expected),
        float((gradient - expected_gradient).abs().max() / expected_gradient.abs().max()),
    )
    return {name: statistics.median(values) for name, values in times.items()}, difference


def peak_of(problem: Problem, name: str, threads: int) -> float:
    """Bytes that one run needs over its inputs; call it in a fresh process."""
    torch.set_num_threads(threads)
    device = torch.device(problem.device)
    run(LOSSES[name], make_inputs(problem._replace(positions=256)))
    inputs = make_inputs(problem)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run(LOSSES[name], inputs)
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes the present size
    before = psutil.Process().memory_info().rss
    run(LOSSES[name], inputs)
    status = Path("/proc/self/status").read_text()
    peak_kib = int(status.split("VmHWM:")[1].split()[0])
    return peak_kib * 1024 - before


def in_fresh_process(problem: Problem, name: str, threads: int) -> float:
    if problem.device == "cuda":
        return peak_of(problem, name, threads)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(peak_of, problem, name, threads).result()


def dense_fits(problem: Problem) -> bool:
    needed = DENSE_MATRICES * 4 * problem.anchors * problem.columns
    if problem.device == "cuda":
        return needed < torch.cuda.mem_get_info()[0]
    return needed < psutil.virtual_memory().available


def required(problem: Problem) -> tuple[float, float]:
    """The ratios to reach, NaN where there is none; on CUDA only the floor is asked for."""
    if problem.device == "cuda":
        return math.nan, math.nan
    if problem.background:
        return REQUIRED_BACKGROUND, math.nan
    if problem.classes == 2:
        return REQUIRED_TWO_CLASSES, math.nan
    return REQUIRED.get(problem.positions, (math.nan, math.nan))


def beside(value: float, limit: float) -> str:
    if math.isnan(limit):
        return f"{value:.1f}"
    return f"{value:.1f} ({'≥' if value >= limit else 'below'} {limit:g})"


def row_of(problem: Problem, with_dense: bool, repeats: int, threads: int) -> list[str]:
    names = ["dense", "tiled"] if with_dense else ["tiled"]
    seconds, (value_error, gradient_error) = times_of(problem, names, repeats)
    peaks = {name: in_fresh_process(problem, name, threads) for name in names}
    time_limit, memory_limit = required(problem)
    share = seconds["floor"] / seconds["tiled"]
    row = [f"{problem.positions:,}", f"{problem.anchors:,} x {problem.columns:,}"]
    row.append(f"{seconds['tiled'] * 1e3:.1f}")
    row.append(f"{seconds['dense'] * 1e3:.1f}" if with_dense else "-")
    row.append(beside(seconds["dense"] / seconds["tiled"], time_limit) if with_dense else "-")
    row.append(f"{peaks['tiled'] / MB:.0f}")
    row.append(f"{peaks['dense'] / MB:.0f}" if with_dense else "-")
    row.append(beside(peaks["dense"] / peaks["tiled"], memory_limit) if with_dense else "-")
    limit = REQUIRED_FLOOR[problem.device]
    row.append(f"{share:.0%} ({'≥' if share >= limit else 'below'} {limit:.0%})")
    row.append(f"{value_error:.0e} / {gradient_error:.0e}" if with_dense else "-")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[4096, 8192, 12288])
    parser.add_argument("--largest", type=int, nargs="*", default=[], help="sizes without dense")
    parser.add_argument("--background", type=float, default=0.0, help="share of the positions")
    parser.add_argument("--classes", type=int, default=20, help="foreground classes, 2 or more")
    parser.add_argument("--width", type=int, default=256, help="of the features")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        choices=list(FLOOR_BLOCK),
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    console = Console(width=150)
    table = Table(
        title=f"{args.classes} classes, {args.background:.0%} background, width {args.width}, "
        f"{args.dtype} on {args.device}, {args.threads} threads"
    )
    for title in ("positions", "anchors x columns"):
        table.add_column(title, justify="right")
    for title in ("tiled ms", "dense ms", "dense / tiled", "tiled MB", "dense MB", "dense / tiled"):
        table.add_column(title, justify="right")
    table.add_column("of the floor", justify="right")
    table.add_column("difference, value / gradient", justify="right")
    for positions in [*args.sizes, *args.largest]:
        problem = Problem(
            positions,
            args.background,
            args.classes,
            args.width,
            args.device,
            getattr(torch, args.dtype),
        )
        fits = dense_fits(problem)
        if not fits and positions not in args.largest:
            console.print(f"{positions:,}: dense left out, it does not fit in the free memory")
        with_dense = fits and positions not in args.largest
        table.add_row(*row_of(problem, with_dense, args.repeats, args.threads))
    console.print(table)


if __name__ == "__main__":
    main()
