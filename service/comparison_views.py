"""Trials and studies beside each other, as clients see them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class MeasuredView(BaseModel):
    """One replicate of a trial."""

    seed: int
    class_order: int
    value: float


class SideView(BaseModel):
    """The best trial of one study."""

    study: str = Field(description="Name in the library.")
    complete: int = Field(description="Trials that it is the best of.")
    trial: int
    value: float
    params: dict[str, Any] = Field(description="Values under their flat keys.")
    count: int = Field(description="Replicates.")
    mean: float
    std: float | None = Field(description="Of the sample; null for a single value.")
    low: float | None = Field(description="Of the 95 % interval of the mean.")
    high: float | None = Field(description="The same.")
    measured: list[MeasuredView]


class DifferenceView(BaseModel):
    """The difference of two means, first minus second."""

    test: str = Field(description="paired or welch.")
    counts: tuple[int, int] = Field(description="Values of both that it used.")
    difference: float
    low: float = Field(description="Of the 95 % interval of the difference.")
    high: float = Field(description="The same.")
    p: float = Field(description="That means as far apart come by chance, two-sided.")


class ComparisonView(BaseModel):
    """Whether the best trials of two studies differ, and in what the studies do."""

    studies: tuple[SideView, SideView]
    comparison: DifferenceView | None = Field(description="Null: there are too few replicates.")
    distinguishable: bool
    verdict: str = Field(description="The same in one sentence.")
    differing: dict[str, tuple[Any, Any]] = Field(description="What else differs, by key.")


class StandingView(BaseModel):
    """The best trials of a study with replicates."""

    sentences: list[str] = Field(
        description="Mean and interval of the best, and whether the second differs; empty for a study "
        "whose trials are measured once."
    )
