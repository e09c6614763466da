"""Texts that must have a form, which is told in words to who gives another."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


@dataclass(frozen=True)
class Worded:
    """A text's form, as metadata of `Annotated[str, ...]`: the schema has the pattern, errors the words."""

    pattern: str
    told: str

    def _check(self, text: str) -> str:
        if not re.fullmatch(self.pattern, text):
            raise PydanticCustomError("string_pattern_mismatch", "{told}", {"told": self.told})
        return text

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Checks the text."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Tells the pattern."""
        return {**handler(schema), "pattern": self.pattern}


def name_of(longest: int) -> Worded:
    """The form of names with at most so many characters."""
    return Worded(
        rf"^[A-Za-z0-9][A-Za-z0-9._+-]{{0,{longest - 1}}}$",
        f"a name has 1 to {longest} letters (a to z, A to Z), digits and . _ + -, and begins with a letter "
        "or digit",
    )
