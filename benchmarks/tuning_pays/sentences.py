"""What an experiment says, in sentences that follow from its numbers."""

from __future__ import annotations

from statistics import median

from benchmarks.tuning_pays.rows import (
    PUBLISHED,
    SHOWN,
    TUNED,
    Record,
    complete_trials,
    difference,
    groups,
    kept,
    num_steps,
    of_row,
    size,
)


def answer(record: Record) -> list[str]:
    """What the record says, in sentences that follow from its numbers."""
    sentences = [pays(record)]
    if not is_published(record):
        sentences += [promised(record), where(record)]
    sentences += [beside(record, "mib", "UCD at its published params"), to_joint(record)]
    sentences += [order(record), searched(record), cost(record)]
    return [sentence for sentence in sentences if sentence]


def pays(record: Record) -> str:
    """Tuned against published, on what the study maximised."""
    if is_published(record):
        return "**Tuning found nothing better**: the best trial has the published params."
    found = difference(record, TUNED, PUBLISHED, "miou_all")
    if found is None:
        return "No seed has both the tuned and the published params yet."
    if found.count < 2:
        return f"**One seed: the tuned params are {points(found.mean)} the published ones; no interval.**"
    numbers = f"{found} points of mIoU over all classes, {found.count} seeds"
    if found.p:
        numbers += f", {found.p}"
    if not found.is_distinguishable:
        return (
            f"**Tuned and published params are not distinguishable**: {numbers}. So few seeds would show "
            f"only a mean difference above {found.half:.1f} points."
        )
    verb = "Tuning pays" if found.mean > 0 else "The tuned params are worse than the published ones"
    return f"**{verb}**: {numbers}."


def is_published(record: Record) -> bool:
    """Whether no trial was better than that of the published params."""
    return bool(record["study"]["best"]["number"] == 0)


def promised(record: Record) -> str:
    """What the hold-out promised, and what val and other seeds left of it."""
    done = complete_trials(record)
    first = next((trial for trial in done if trial["number"] == 0), None)
    found = difference(record, TUNED, PUBLISHED, "miou_all")
    if first is None or found is None:
        return ""
    gain = max(trial["value"] for trial in done) - first["value"]
    return (
        f"On the study's hold-out the best of {len(done)} complete trials was {points(gain)} the published "
        f"params, with one seed; a best of many is too good on average. On val, trained on all "
        f"images, it is {points(found.mean)} them."
    )


def where(record: Record) -> str:
    """Which classes the tuned params gain or lose on."""
    parts = []
    for metric, name in zip(SHOWN[:2] + SHOWN[3:], (*groups(record), "forgetting"), strict=True):
        found = difference(record, TUNED, PUBLISHED, metric)
        if found is not None:
            parts.append(f"{name} {found}{found.doubt}")
    return f"Tuned minus published: {'; '.join(parts)}." if parts else ""


def beside(record: Record, other: str, what: str) -> str:
    """What the published params add to another row."""
    found = difference(record, PUBLISHED, other, "miou_all")
    if found is None:
        return ""
    return f"{what} adds {found} points to `{other}`{found.doubt}."


def to_joint(record: Record) -> str:
    """How far both are from training all classes at once."""
    parts = []
    for row, name in ((PUBLISHED, "published"), (TUNED, "tuned")):
        if row == TUNED and is_published(record):
            continue
        found = difference(record, row, "joint", "miou_all")
        if found is not None:
            parts.append(f"{name} params {found}")
    return f"Beside joint training, all classes: {'; '.join(parts)}." if parts else ""


def order(record: Record) -> str:
    """The rows by mIoU over all classes, and which are level with the best."""
    means = {row: of_row(record, row, "miou_all") for row in record["rows"]}
    ranked = sorted(
        ((found.mean, row) for row, found in means.items() if found is not None), reverse=True
    )
    if len(ranked) < 2:
        return ""
    best = ranked[0][1]
    level = [
        row
        for _, row in ranked[1:]
        if (found := difference(record, best, row, "miou_all")) is not None
        and found.count > 1
        and not found.is_distinguishable
    ]
    shown = ", ".join(f"{row} ({mean:.1f})" for mean, row in ranked)
    tail = f" Not distinguishable from the first: {', '.join(level)}." if level else ""
    return f"From best to worst: {shown}.{tail}"


def searched(record: Record) -> str:
    """How far the study got: where trials were pruned, and which choices none of them had."""
    study = record["study"]
    pruned = [trial for trial in study["trials"] if trial["state"] == "PRUNED"]
    if not pruned:
        return ""
    epochs = max(len(curve) for curve in study["curves"].values())
    middle = median(len(study["curves"][str(trial["number"])]) for trial in pruned)
    were, when = ("was", "after") if len(pruned) == 1 else ("were", "half of them after at most")
    text = (
        f"{len(pruned)} of {len(study['trials'])} trials {were} pruned, {when} {middle:.0f} of "
        f"{epochs} epochs"
    )
    missed = [
        f"`{key}` {choice}"
        for key, parameter in study["search"].items()
        for choice in parameter.get("choices", ())
        if all(trial[key] != choice for trial in study["trials"])
    ]
    return f"{text}; no trial had {', '.join(missed)}." if missed else f"{text}."


def cost(record: Record) -> str:
    """Training time of the study and of the rows."""
    trials = record["study"]["trials"]
    hours = sum(trial["seconds"] or 0 for trial in trials) / 3600
    rows = sum(sum(run["seconds"]) for run in record["runs"]) / 3600
    later = sum(sum(run["seconds"][1:]) for run in record["runs"]) / 3600
    return (
        f"Training took {hours:.1f} h for the trials of the study and {later:.1f} h for the later steps of "
        f"the rows; without shared base steps the rows would have taken {rows:.1f} h."
    )


def beside_note(record: Record, other: Record) -> str:
    """What changes with the number of steps, in sentences that follow from the numbers."""
    few, many = num_steps(other), num_steps(record)
    parts = []
    for row in record["rows"]:
        before, after = kept(other, row), kept(record, row)
        if row != "joint" and before and after:
            parts.append(f"{row} {before.mean:.0f} to {after.mean:.0f} %")
    sentences = [f"- Base classes kept, from {few} to {many} steps: {'; '.join(parts)}."]
    for one in (other, record):
        gain = difference(one, TUNED, PUBLISHED, "miou_all")
        if gain is not None:
            sentences.append(f"- Tuned minus published, {one['scenario']}: {gain}{gain.doubt}.")
    for one in (other, record):
        gap = difference(one, PUBLISHED, "joint", "miou_all")
        if gap is not None:
            sentences.append(f"- Published minus joint, {one['scenario']}: {gap}.")
    sentences.append(
        f"- More steps are not all that differs: step 0 has {size(other)[0]} classes there and "
        f"{size(record)[0]} here."
    )
    return "\n".join(sentences)


def points(difference: float) -> str:
    """A difference in words."""
    return f"{abs(difference):.1f} points {'above' if difference >= 0 else 'below'}"
