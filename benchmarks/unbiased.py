"""Unbiased cross-entropy and distillation in one pass, beside the plain chain: time and memory.

    python benchmarks/unbiased.py --images 2 --crop 512

Forward and backward, float32. Times are medians of interleaved runs in one process. Peak memory is
the growth of a fresh process over its inputs (both logits, labels), so it includes the gradient of
the new logits, which alone is 1.0 times their bytes; on CUDA it is what torch allocates. Only the
ratios carry over to another machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ucd_ray.losses import unbiased_cross_entropy, unbiased_distillation, unbiased_losses

CASES = {21: 16, 151: 101}  # channels of the new model: of the old model
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MIN_SPEEDUP = {21: 4.0, 151: 5.0}
MAX_MEMORY = 2.2
STRIDE = 16  # image pixels per feature pixel
KD_WEIGHT = 10.0
Losses = Callable[[list[Tensor], Tensor], tuple[Tensor, Tensor]]


def plain_losses(logits: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both losses as one would write them down, left to autograd."""
    new, old = logits[:2]
    num_old = old.shape[1]
    log_probs = new.log_softmax(1)
    merged = torch.cat([log_probs[:, :num_old].logsumexp(1, True), log_probs[:, num_old:]], 1)
    ignored = labels == 255
    target = (labels - num_old + 1).clamp(min=0).masked_fill(ignored, 0)
    ce = -merged.gather(1, target[:, None]).squeeze(1).masked_fill(ignored, 0).mean()
    unknown = torch.cat([log_probs[:, :1], log_probs[:, num_old:]], 1).logsumexp(1, True)
    student = torch.cat([unknown, log_probs[:, 1:num_old]], 1)
    kd = -(old.softmax(1) * student).sum(1).mean() / num_old
    return ce, kd


def separate_losses(logits: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    new, old = logits[:2]
    ce = unbiased_cross_entropy(new, labels, num_old=old.shape[1])
    return ce, unbiased_distillation(new, old)


def one_pass(logits: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    return unbiased_losses(logits[0], logits[1], labels)


def at_feature_size(logits: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Another loss: the distillation compares the logits before they are upsampled."""
    new, old, small_new, small_old = logits
    ce = unbiased_cross_entropy(new, labels, num_old=old.shape[1])
    return ce, unbiased_distillation(small_new, small_old)


LOSSES: dict[str, Losses] = {
    "plain chain": plain_losses,
    "separate functions": separate_losses,
    "one pass": one_pass,
    f"CE + KD at 1/{STRIDE} size": at_feature_size,
}


def inputs(
    images: int, channels: int, crop: int, layout: str, device: str
) -> tuple[list[Tensor], Tensor]:
    """New, old, small new and small old logits, and labels with a tenth of them ignored."""
    torch.manual_seed(0)
    logits = []
    for size in (crop, crop // STRIDE):
        for width in (channels, CASES[channels]):
            # Filled in place: a temporary would count as memory that the loss may then reuse.
            maps = torch.empty(
                images, width, size, size, device=device, memory_format=LAYOUTS[layout]
            )
            logits.append(maps.normal_(std=3).requires_grad_(width == channels))
    labels = torch.randint(channels, (images, crop, crop), device=device)
    labels[:, : crop // 10] = 255
    return logits, labels


def run(loss: Losses, logits: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum and the gradient of the new logits."""
    ce, kd = loss(logits, labels)
    total = ce + KD_WEIGHT * kd
    leaves = [maps for maps in logits if maps.requires_grad]
    gradient = torch.autograd.grad(total, leaves, allow_unused=True)[0]
    if labels.is_cuda:
        torch.cuda.synchronize()
    return total.detach(), gradient


def seconds_of(loss: Losses, logits: list[Tensor], labels: Tensor) -> float:
    start = time.perf_counter()
    run(loss, logits, labels)
    return time.perf_counter() - start


def peak_growth(
    name: str, images: int, channels: int, crop: int, layout: str, device: str
) -> float:
    """Peak bytes of one run in this process over its inputs; for a fresh process."""
    run(LOSSES[name], *inputs(1, channels, 2 * STRIDE, layout, device))  # loads libraries
    logits, labels = inputs(images, channels, crop, layout, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        cuda_before: int = torch.cuda.memory_allocated()
        run(LOSSES[name], logits, labels)
        peak: int = torch.cuda.max_memory_allocated()
        return peak - cuda_before
    # Not ru_maxrss: a process starts with the peak of the one that started it.
    before = memory_of_process("VmRSS")
    run(LOSSES[name], logits, labels)
    return memory_of_process("VmHWM") - before


def memory_of_process(field: str) -> float:
    """Bytes of VmRSS, the present size, or VmHWM, its peak so far, from the Linux kernel."""
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(status.split(field + ":")[1].split()[0])


def in_fresh_process(name: str, channels: int, layout: str, args: argparse.Namespace) -> float:
    """`peak_growth` there, in units of the new logits' bytes; CUDA's allocator counts here."""
    logits_bytes: int = 4 * args.images * channels * args.crop**2
    if args.device == "cuda":
        return peak_growth(name, args.images, channels, args.crop, layout, "cuda") / logits_bytes
    case = [str(args.images), str(channels), str(args.crop), layout, args.device]
    command = [sys.executable, str(Path(__file__)), "--peak", name, *case]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout) / logits_bytes


def measure(channels: int, layout: str, args: argparse.Namespace, table: Table) -> None:
    """Adds the rows of one case."""
    logits, labels = inputs(args.images, channels, args.crop, layout, args.device)
    for name in ("separate functions", "one pass"):
        pairs = zip(
            run(LOSSES[name], logits, labels), run(plain_losses, logits, labels), strict=True
        )
        for ours, plain in pairs:
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-9)
    times: dict[str, list[float]] = {name: [] for name in LOSSES}
    for _ in range(args.repeats):
        for name, loss in LOSSES.items():
            times[name].append(seconds_of(loss, logits, labels))
    plain_s = statistics.median(times["plain chain"])
    del logits, labels
    for name in LOSSES:
        seconds = statistics.median(times[name])
        is_ours = name == "one pass"
        table.add_row(
            f"{channels} ({CASES[channels]}) {layout}",
            name,
            f"{1e3 * seconds:.1f}",
            f"{plain_s / seconds:.1f}",
            f">= {MIN_SPEEDUP[channels]:.0f}" if is_ours else "",
            f"{in_fresh_process(name, channels, layout, args):.2f}",
            f"<= {MAX_MEMORY}" if is_ours else "",
        )
    table.add_section()


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2, help="images per batch")
    parser.add_argument("--crop", type=int, default=512, help="image side in pixels")
    parser.add_argument("--channels", type=int, nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        name, images, channels, crop, layout, device = args.peak
        print(peak_growth(name, int(images), int(channels), int(crop), layout, device))
        return

    table = Table(
        title=f"{args.images} x {args.crop} x {args.crop} on {args.device}, forward and backward",
        caption="peak: growth over the inputs, gradient included, in bytes of the new logits",
    )
    for column in ("channels (old)", "", "ms", "times faster", "required", "peak", "required "):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for channels in args.channels:
        for layout in args.layouts:
            measure(channels, layout, args, table)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
