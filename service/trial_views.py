"""Trials as clients see them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

Number = float | None


class TrialView(BaseModel):
    """One trial."""

    number: int
    state: str = Field(
        description="QUEUED, WAITING, RUNNING, COMPLETE, PRUNED, FAILED, INFEASIBLE or CANCELLED."
    )
    code: str | None = Field(description="Why it waits or how it ended, for programs.")
    reason: str | None = Field(description="The same in words.")
    value: Number = Field(description="The first objective, of a complete trial.")
    values: dict[str, Number] | None = Field(description="All objectives.")
    params: dict[str, Any] = Field(description="Values under their flat keys.")
    intermediate_values: dict[str, Number] = Field(
        description="What the pruner saw, by epochs since step 0; or by replicate."
    )
    revision: int = Field(description="Of the study, when the trial began.")
    seconds: Number = Field(description="Spent so far.")
    started: Number = Field(description="Seconds since 1970.")
    ended: Number = Field(description="Seconds since 1970.")


class TrialPage(BaseModel):
    """Some trials."""

    trials: list[TrialView]
    next_page_token: str | None = Field(description="Of the next page; null: this is the last.")


class ClassView(BaseModel):
    """One class after one step."""

    class_id: int
    class_name: str | None
    iou: Number = Field(description="Percent; null without truth pixels.")
    forgetting: Number = Field(description="Points below its best earlier IoU.")


class StepView(BaseModel):
    """What was measured after one step of one replicate of a trial."""

    replicate: int
    step: int
    cached: bool = Field(description="It came from the step cache.")
    seconds: float
    images: int
    iterations: int
    select: dict[str, Number] = Field(description="Means on the images that search looks at.")
    val: dict[str, Number] = Field(description="Means on the validation images, in percent.")
    classes: dict[str, list[ClassView]] | None = Field(
        None, description="By images (select, val); only where one step is asked for."
    )


class Steps(BaseModel):
    """Steps of a trial, replicate after replicate."""

    steps: list[StepView]


class Done(BaseModel):
    """What came of a command."""

    done: bool = Field(description="False: it was noted, and the study's driver will carry it out.")
    detail: str = Field(description="In words.")
    trial: int | None = Field(None, description="Number of the trial that it is about.")


class Line(BaseModel):
    """One line of a log."""

    id: int
    time: float = Field(description="Seconds since 1970.")
    number: int | None = Field(description="Of the trial.")
    kind: str
    text: str
    data: dict[str, Any] | None = Field(description="What it says, for programs.")


class Lines(BaseModel):
    """Lines of a log."""

    lines: list[Line]
    next: int = Field(description="`since` of the lines that follow.")
