"""The page of an experiment, from its record alone: no number is typed by hand."""

from __future__ import annotations

from benchmarks.tuning_pays.rows import Record, complete_trials, num_steps
from benchmarks.tuning_pays.sentences import answer, beside_note
from benchmarks.tuning_pays.tables import (
    beside_table,
    paired_table,
    params_table,
    rows_table,
    steps_table,
    trials_table,
)


def markdown(record: Record, *, name: str, others: list[Record], remarks: str) -> str:
    """The whole page.

    name: of its pictures; others: records of other scenarios to set beside this one; remarks: written
    by hand, shown apart
    """
    parts = [f"# Does tuning pay? {record['scenario']}", preface(record)]
    parts += ["## What the numbers say", "\n".join(f"- {s}" for s in answer(record))]
    parts += ["## Rows", rows_table(record), ROWS_NOTE.format(joint=joint_note(record))]
    if record["runs"]:
        parts.append(f"![mIoU of every row with its interval]({name}-rows.png)")
    parts += ["## Paired with the published params", paired_table(record), PAIRED_NOTE]
    if num_steps(record) > 2:
        parts += ["## Step by step", steps_table(record)]
    parts += ["## The study", params_table(record), importance_note(record)]
    parts.append(f"![trials over their epochs; importance of the params]({name}-study.png)")
    parts.append(trials_table(record))
    for other in others:
        title = f"## Beside {other['scenario']}: {num_steps(other)} steps instead of {num_steps(record)}"
        parts += [title, beside_table(record, other), beside_note(record, other)]
    if remarks:
        parts += ["## Remarks", "Written by hand, after reading the above.", remarks.strip()]
    parts += ["## Again", again(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


ROWS_NOTE = """mIoU in percent on val, without background, after the last step; "base step": after step 0;
forgetting in points. Mean over seeds ± standard deviation, in brackets Student's 95 % interval of the
mean. {joint} Every row but the first has published params. None of the other methods was tuned, so the
first row against theirs says what tuning does, not which method is better."""

FEW = 2  # complete trials a searched param, below which importances are mostly chance

PAIRED_NOTE = """Row minus `mib+ucd` with its published params, seed by seed: both have the same base step,
image order and augmentation, as far as the row's params leave them alone. Mean, 95 % interval and p of the
paired t-test. Only the first row is a question that was asked before looking; the others are not corrected
for being many."""


def preface(record: Record) -> str:
    """What was run, and how much of it is there."""
    study, wanted = record["study"], record["seeds"] * len(record["rows"])
    (base, new), (batch, crop) = study["iterations"], study["crops"]
    done = len(record["runs"])
    seeds = ", ".join(map(str, range(1, record["seeds"] + 1)))
    text = (
        f"A study of {len(study['trials'])} trials searches {len(study['search'])} params of `mib+ucd` "
        f"({study['sampler']} sampler, {study['pruner']} pruner), scored by {study['objective']} on a "
        f"hold-out of {study['images']['holdout']} training images. Then every row below is trained on "
        f"all training images and scored on the {study['images']['val']} images of val, which had no "
        f"part in the search, with the seeds {seeds}, none of which the study used ({study['seed']}). "
        f"Network: {study['network']} with pretrained weights; {base} updates of {batch} crops of {crop} "
        f"px for step 0 and {new} for each later step."
    )
    if record["quick"]:
        text += " **This is `--quick`: too few trials, seeds and updates for a conclusion.**"
    if done < wanted:
        text += f" **Unfinished: {done} of {wanted} runs so far.**"
    return text


def importance_note(record: Record) -> str:
    """How to read the importances."""
    done = len(complete_trials(record))
    keys = len(record["study"]["search"])
    text = (
        f"Importance: share of the objective's variance (PED-ANOVA), from {done} complete trials in "
        f"{keys} params: a hint where to look, no measurement."
    )
    few = done < FEW * keys
    return text + (" **So few trials say next to nothing about single params.**" if few else "")


def again(record: Record) -> str:
    """The command that makes this page."""
    quick = " --quick" if record["quick"] else ""
    more = f" --trials {len(record['study']['trials'])} --seeds {record['seeds']}"
    versions = ", ".join(f"{name} {value}" for name, value in record["machine"].items())
    return (
        f"    python -m benchmarks.tuning_pays --data DIR --weights FILE --scenario {record['scenario']} "
        f"--out docs/results{quick or more}\n\nMade from the `.json` beside this page, which holds "
        f"every run and trial. {versions}."
    )


def joint_note(record: Record) -> str:
    """What joint had."""
    base, new = record["study"]["iterations"]
    total = base + (num_steps(record) - 1) * new
    return f"`joint` has all classes at once and as many updates, {total}."
