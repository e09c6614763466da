"""The catalogue as clients see it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class ScenarioView(BaseModel):
    """A data set, and which classes are learned at which step."""

    name: str
    dataset: str
    background: bool = Field(description="Whether class 0 is scored.")
    steps: list[list[int]] = Field(description="Class ids by step, background left out.")
    search_space: str = Field(description="What is searched unless the request says otherwise.")


class Scenarios(BaseModel):
    """The published scenarios; `<dataset>-<A>-<B>` with other numbers works as well."""

    scenarios: list[ScenarioView]


class MethodName(BaseModel):
    """A method in short."""

    name: str
    terms: list[str] = Field(description="Sections of its loss terms.")


class Methods(BaseModel):
    """All methods."""

    methods: list[MethodName]


class TermView(BaseModel):
    """One summand of the loss of a method."""

    section: str = Field(description="What its keys begin with.")
    name: str
    meaning: str
    first_step: int = Field(description="The first step at which it acts.")


class ParameterView(BaseModel):
    """One key of the recipes of a method."""

    default: Any
    meaning: str
    first_step: int = Field(description="At which it first acts; -1: it changes no number.")
    allowed: dict[str, Any] = Field(description="JSON Schema of its values.")
    searched: dict[str, Any] | None = Field(
        description="How it varies in the search space of the scenario; null: it does not."
    )


class MethodView(BaseModel):
    """A method and everything that can be set or searched in it."""

    name: str
    terms: list[TermView]
    parameters: dict[str, ParameterView] = Field(description="By flat key.")


class DatasetView(BaseModel):
    """A data set that the service can use under its name, as `data.source`."""

    name: str
    dataset: str | None = Field(description="Its kind; null: it was not prepared yet.")
    classes: list[str] | None = Field(description="Names, background first.")
    train: int | None = Field(description="Images.")
    val: int | None = Field(description="Images.")
    fingerprint: str | None = Field(description="Of its content.")
    problem: str | None = Field(description="Why it cannot be used.")


class Datasets(BaseModel):
    """What is registered."""

    datasets: list[DatasetView]
    weights: list[str] = Field(description="Names of pretrained weights, as `model.weights`.")
