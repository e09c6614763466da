"""JSON Schemas (draft 2020-12) of what users write, made from the classes that read it."""

from __future__ import annotations

from typing import Any

from ucd_ray.config import Config
from ucd_ray.tune.space import SearchSpace
from ucd_ray.tune.spec import StudySpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMAS: dict[str, type[Config]] = {"study": StudySpec, "space": SearchSpace}


def schema_of(name: str) -> dict[str, Any]:
    """The schema of a study's spec (`study`), or of a search-space file (`space`)."""
    return {"$schema": DIALECT, **SCHEMAS[name].model_json_schema()}
