"""The library's sentences for users of HTTP: studies as their owners named them, requests for commands."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ucd_ray.service.states import ENDED, PAUSED

if TYPE_CHECKING:
    from ucd_ray.service.studies import StudyRow

# Commands of the library's sentences, and the requests that do the same.
REQUESTS = {
    "study (?:run|resume) STUDY": "POST URL:resume",
    "study stop STUDY": "POST URL:stop",
    "study show STUDY": "GET URL",
    r"study cancel STUDY (\d+)": r"POST URL/trials/\1:stop",
    "study edit STUDY --trials N": 'PATCH URL {"trials": N}',
    r"study best STUDY --trial (\d+) --export recipe\.yaml": r"GET URL/best?trial=\1",
    "results STUDY --filter pareto=true": "GET URL/results?filter=pareto=true",
}
NOBODY = re.compile("; nothing runs it: `[^`]+` does")


def worded(text: str, studies: Iterable[StudyRow]) -> str:
    """A sentence about these studies, for who does not know the library's names and commands."""
    for study in studies:
        if study.state not in (PAUSED, *ENDED):  # it takes its turn by itself
            text = NOBODY.sub("", text)
        for command, request in REQUESTS.items():
            pattern = f"`ucd-ray {command.replace('STUDY', re.escape(study.name))}`"
            told = f"`{request.replace('URL', f'/v1/studies/{study.id}')}`"
            text = re.sub(pattern, told, text)
        text = text.replace(f"'{study.name}'", f"'{study.title}'")
    return text
