"""The chunked contrastive loss beside a plain dense one: time, peak extra memory, ratios.

    python benchmarks/contrastive.py --images 6 --side 32 --device cuda

Both run forward and backward on the same random inputs, in turn, in one process. Only the ratios
carry over to another machine.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ucd_ray.losses import contrastive_distillation

MIB = 2**20
Loss = Callable[[Tensor], Tensor]


def dense_loss(
    new_features: Tensor,
    old_features: Tensor,
    old_logits: Tensor,
    labels: Tensor,
    *,
    num_old: int,
    temperature: float = 0.07,
) -> Tensor:
    """The standard form with whole [M, K] matrices, left to autograd."""

    def rows(maps: Tensor, mask: Tensor) -> Tensor:
        return maps.movedim(1, -1)[mask]

    classes = torch.where(labels == 0, old_logits.argmax(1), labels)
    foreground = (classes > 0) & (labels != 255)
    pseudo = foreground & (labels == 0)
    probs = old_logits.softmax(1)
    anchors = F.normalize(rows(new_features, foreground), dim=1)
    keys = torch.cat([anchors.detach(), F.normalize(rows(old_features, pseudo), dim=1)])
    anchor_label, key_label = classes[foreground], torch.cat([classes[foreground], classes[pseudo]])
    anchor_prob = rows(probs, foreground)
    weight = anchor_prob @ torch.cat([anchor_prob, rows(probs, pseudo)]).T
    weight = torch.where((anchor_label[:, None] >= num_old) & (key_label >= num_old), 1.0, weight)

    similarity = anchors @ keys.T / temperature
    same = anchor_label[:, None] == key_label
    negatives = similarity.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    positive = same.clone()
    positive.fill_diagonal_(False)
    terms = (torch.logaddexp(similarity, negatives) - similarity) * weight * positive
    count = positive.sum(1)
    return (terms.sum(1) / count.clamp(min=1)).sum() / (count > 0).sum()


def run(loss: Loss, features: Tensor) -> tuple[Tensor, Tensor]:
    """The value and gradient of one forward and backward."""
    value = loss(features)
    (gradient,) = torch.autograd.grad(value, features)
    synchronise(features.device)
    return value.detach(), gradient


def seconds_of(loss: Loss, features: Tensor) -> float:
    synchronise(features.device)
    start = time.perf_counter()
    run(loss, features)
    return time.perf_counter() - start


def extra_mib_of(loss: Loss, features: Tensor) -> float:
    """Peak of the memory that torch allocates during one run, in MiB."""
    if features.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(features.device)
        before = torch.cuda.memory_allocated(features.device)
        run(loss, features)
        return (torch.cuda.max_memory_allocated(features.device) - before) / MIB
    # Allocations and frees in order of time; the process's size would count reused memory as 0.
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run(loss, features)
    events = profile.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    peak: int = max(itertools.accumulate(event.nbytes() for event in changes))
    return peak / MIB


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2, help="images per batch")
    parser.add_argument("--side", type=int, default=32, help="feature side: crop / output stride")
    parser.add_argument("--width", type=int, default=256, help="feature width")
    parser.add_argument("--num-old", type=int, default=16, help="channels of the old model")
    parser.add_argument("--num-new", type=int, default=5, help="new classes")
    parser.add_argument("--truth", type=float, default=0.5, help="share of pixels with a new class")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    device = torch.device(args.device)
    torch.manual_seed(0)
    size = (args.side, args.side)
    maps = (args.images, args.width, *size)
    features = torch.randn(maps, device=device, requires_grad=True)
    old_features = torch.randn(maps, device=device)
    old_logits = 3 * torch.randn(args.images, args.num_old, *size, device=device)
    labels = torch.randint(args.num_old, args.num_old + args.num_new, (args.images, *size))
    labels = labels.masked_fill(torch.rand(labels.shape) >= args.truth, 0).to(device)
    rest = (old_features, old_logits, labels)
    losses: dict[str, Loss] = {
        "chunked": lambda x: contrastive_distillation(x, *rest, num_old=args.num_old),
        "dense": lambda x: dense_loss(x, *rest, num_old=args.num_old),
    }

    results = {name: run(loss, features) for name, loss in losses.items()}  # also warms up
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(args.repeats):
        for name, loss in losses.items():
            times[name].append(seconds_of(loss, features))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    extra = {name: extra_mib_of(loss, features) for name, loss in losses.items()}

    anchors = int(((labels > 0) | (old_logits.argmax(1) > 0)).sum())
    columns = anchors + int(((labels == 0) & (old_logits.argmax(1) > 0)).sum())
    print(f"{anchors} anchors x {columns} contrast vectors of width {args.width} on {device}")
    for name in losses:
        print(f"{name:8} {seconds[name] * 1e3:10.1f} ms {extra[name]:10.1f} MiB extra")
    print(
        f"ratio    {seconds['dense'] / seconds['chunked']:10.2f} x  "
        f"{extra['dense'] / extra['chunked']:10.2f} x    (dense / chunked)"
    )
    (value, gradient), (plain_value, plain_gradient) = results["chunked"], results["dense"]
    print(
        f"relative difference: value {((value - plain_value) / plain_value).abs():.1e}, gradient "
        f"{(gradient - plain_gradient).norm() / plain_gradient.norm():.1e}"
    )


if __name__ == "__main__":
    main()
