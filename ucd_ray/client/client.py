"""The routes of the service as typed calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import httpx

from ucd_ray.client import stream
from ucd_ray.client.http import Http
from ucd_ray.client.sent import Content, path_of, plain, results_query, with_key
from ucd_ray.client.token import find_token
from ucd_ray.errors import RequestRefused
from ucd_ray.service.trial_views import Done, Line, StepView, TrialView
from ucd_ray.service.views import PlanView, StudyView

if TYPE_CHECKING:
    import pyarrow as pa

How = Literal["drain", "checkpoint", "kill"]
PAGE = 200


class Client:
    """One user of a service.  Every call raises RequestRefused or ServiceError.

    server: its URL; token: None: of UCD_RAY_TOKEN or a file (see `find_token`)
    patience_s: how long a request is tried again while the service is away or busy
    """

    def __init__(
        self,
        server: str,
        *,
        token: str | None = None,
        patience_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        token = token or find_token()
        self.http = Http(server, token, patience_s=patience_s, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        self.http.client.close()

    # Studies.

    def create(self, asked: Content, *, key: str | None = None) -> StudyView:
        """Starts a study: `tune` or `spec` and more, as POST /v1/studies takes it.

        key: of the request, to send it again later; None: a fresh one, which covers our own retries
        """
        sent = self.http.send("POST", "/v1/studies", json=plain(asked), headers=with_key(key))
        return StudyView.model_validate_json(sent.content)

    def plan(self, asked: Content) -> PlanView:
        """What that study would do and cost.  Nothing is started."""
        query = {"validate_only": "true"}
        sent = self.http.send("POST", "/v1/studies", json=plain(asked), params=query)
        return PlanView.model_validate_json(sent.content)

    def clone(
        self, study: str, asked: Content | None = None, *, key: str | None = None
    ) -> StudyView:
        """Starts a copy of a study from its first trial; asked: `name`, `spec`, `external_id`."""
        path = f"{path_of(study)}:clone"
        sent = self.http.send("POST", path, json=plain(asked or {}), headers=with_key(key))
        return StudyView.model_validate_json(sent.content)

    def finetune(self, study: str, *, key: str | None = None) -> StudyView:
        """Starts a study that trains the best trial's recipe without distillation, or finds it again."""
        sent = self.http.send("POST", f"{path_of(study)}:finetune", headers=with_key(key))
        return StudyView.model_validate_json(sent.content)

    def study(self, study: str) -> StudyView:
        """One study, by its id."""
        return StudyView.model_validate_json(self.http.send("GET", path_of(study)).content)

    def studies(
        self,
        *,
        filter: str = "",
        order_by: str = "create_time desc",
        deleted: bool = False,
        full: bool = False,
    ) -> Iterator[StudyView]:
        """All studies that this user may see, page by page.  full: with their specs"""
        query = {
            "filter": filter,
            "order_by": order_by,
            "show_deleted": str(deleted).lower(),
            "view": "FULL" if full else "BASIC",
        }
        for item in self._pages("/v1/studies", "studies", query):
            yield StudyView.model_validate(item)

    def find(self, name: str) -> StudyView:
        """The study with an id or a name.  Raises RequestRefused (404, 409 if several have the name)."""
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        found = list(self.studies(filter=f'name="{quoted}"', full=True))
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(f"{study.id} (of {study.owner})" for study in found)
            raise RequestRefused(
                f"{len(found)} studies have the name '{name}'; give the id of one: {ids}",
                409,
                "AMBIGUOUS",
            )
        try:
            return self.study(name)
        except RequestRefused as refused:
            if refused.status != 404:
                raise
            told = f"there is no study '{name}' on {self.http.server}; `ucd-ray study list` has all"
            raise RequestRefused(told, 404, "NOT_FOUND") from None

    def change(
        self, study: str, *, if_match: str | None = None, **fields: Any
    ) -> tuple[StudyView, bool]:
        """Changes budgets, parallelism, priority, labels or `space`.

        Returns the study, and whether its driver has carried an edit out already.
        if_match: ETag; the change is refused (412) if the study has another one by now
        """
        headers = {"If-Match": if_match} if if_match else {}
        sent = self.http.send(
            "PATCH", path_of(study), json=fields, headers=headers, repeatable=False
        )
        return StudyView.model_validate_json(sent.content), sent.status_code == 200

    def pause(self, study: str) -> StudyView:
        """Stops running trials at their next checkpoint; nothing is held until it is resumed."""
        return self._act(study, "pause")

    def resume(self, study: str) -> StudyView:
        """Goes on with a paused, stopped or failed study."""
        return self._act(study, "resume")

    def stop(self, study: str, how: How = "checkpoint") -> StudyView:
        """Ends a study."""
        return self._act(study, "stop", {"how": how})

    def undelete(self, study: str) -> StudyView:
        """Brings a deleted study back."""
        return self._act(study, "undelete")

    def delete(self, study: str, *, force: bool = False) -> StudyView:
        """Deletes a study; its results go after some weeks.  force: stops it first"""
        query = {"force": str(force).lower()}
        sent = self.http.send("DELETE", path_of(study), params=query, repeatable=False)
        return StudyView.model_validate_json(sent.content)

    def _act(self, study: str, verb: str, content: Any = None) -> StudyView:
        path = f"{path_of(study)}:{verb}"
        sent = self.http.send("POST", path, json=content, repeatable=False)
        return StudyView.model_validate_json(sent.content)

    def _pages(self, path: str, name: str, query: dict[str, Any]) -> Iterator[Any]:
        token: str | None = None
        while True:
            params = {**query, "page_size": PAGE, "page_token": token}
            page = self.http.send("GET", path, params=params).json()
            yield from page[name]
            token = page["next_page_token"]
            if token is None:
                return

    # Trials.

    def trials(
        self, study: str, *, filter: str = "", order_by: str = "number"
    ) -> Iterator[TrialView]:
        """The trials of a study, page by page."""
        query = {"filter": filter, "order_by": order_by}
        for item in self._pages(f"{path_of(study)}/trials", "trials", query):
            yield TrialView.model_validate(item)

    def trial(self, study: str, number: int) -> TrialView:
        """One trial."""
        sent = self.http.send("GET", f"{path_of(study)}/trials/{number}")
        return TrialView.model_validate_json(sent.content)

    def steps(self, study: str, number: int) -> list[StepView]:
        """What was measured after each step of a trial."""
        sent = self.http.send("GET", f"{path_of(study)}/trials/{number}/steps")
        return [StepView.model_validate(step) for step in sent.json()["steps"]]

    def queue_trial(self, study: str, params: Mapping[str, Any]) -> Done:
        """Queues a trial with these params."""
        return self._told(f"{path_of(study)}/trials", {"params": dict(params)})

    def stop_trial(self, study: str, number: int) -> Done:
        """Ends one open or queued trial."""
        return self._told(f"{path_of(study)}/trials/{number}:stop")

    def retry_trial(self, study: str, number: int) -> Done:
        """Queues a new trial with the params of one that has ended."""
        return self._told(f"{path_of(study)}/trials/{number}:retry")

    def _told(self, path: str, content: Any = None) -> Done:
        sent = self.http.send("POST", path, json=content, repeatable=False)
        return Done.model_validate_json(sent.content)

    def events(
        self, study: str, *, after: int = 0, number: int | None = None, follow: bool = True
    ) -> Iterator[Line | stream.StudyState]:
        """Events in order, each once, across broken connections; see `stream.events`."""
        return stream.events(self.http, study, after=after, number=number, follow=follow)

    # Results.

    def table(self, study: str, view: str = "trials", **query: Any) -> pa.Table:
        """A table of a study; query: filter, order_by, columns, limit ... of GET .../results."""
        import pyarrow as pa

        content = self.http.send(
            "GET", f"{path_of(study)}/results", params=results_query(view, "arrow-stream", query)
        ).content
        return pa.ipc.open_stream(pa.BufferReader(content)).read_all()

    def pieces(
        self, study: str, view: str = "trials", *, form: str, **query: Any
    ) -> Iterator[bytes]:
        """The same in another form (csv, json, parquet, arrow, markdown ...), piece by piece."""
        path = f"{path_of(study)}/results"
        return self._pieces(path, results_query(view, form, query))

    def published(self, scenario: str, *, form: str) -> Iterator[bytes]:
        """The published rows of a scenario."""
        return self._pieces("/v1/published", {"scenario": scenario, "format": form})

    def best(self, study: str, *, trial: int | None = None, form: str = "yaml") -> str:
        """The recipe of the best trial, for `ucd-ray train --recipe FILE`.  form: yaml or json"""
        query = {"trial": trial, "format": form}
        return self.http.send("GET", f"{path_of(study)}/best", params=query).text

    def comparison(self, study: str, other: str) -> dict[str, Any]:
        """Whether the best trials of two studies differ, as GET .../comparison tells it."""
        path, query = f"{path_of(study)}/comparison", {"other": other}
        found: dict[str, Any] = self.http.send("GET", path, params=query).json()
        return found

    def standing(self, study: str) -> list[str]:
        """How sure the best trial is, and whether it differs from the second; in sentences."""
        found: dict[str, Any] = self.http.send("GET", f"{path_of(study)}/standing").json()
        return [str(sentence) for sentence in found["sentences"]]

    def report(self, study: str) -> bytes:
        """Tables and charts of a study in one HTML file."""
        return self.http.send("GET", f"{path_of(study)}/report").content

    def plot(self, study: str, kind: str, *, form: str, objective: str | None = None) -> bytes:
        """A chart.  form: json (of plotly.js), svg or png"""
        query = {"format": form, "objective": objective}
        return self.http.send("GET", f"{path_of(study)}/plots/{kind}", params=query).content

    def download_checkpoint(
        self, study: str, number: int, path: Path, *, step: int | None = None
    ) -> None:
        """Writes the trained network of a trial as `.safetensors`.  Raises ConfigError too."""
        from ucd_ray.tune.formats import replaced

        with replaced(path) as sink:
            place = f"{path_of(study)}/trials/{number}/checkpoint"
            for piece in self._pieces(place, {"step": step}):
                sink.write(piece)

    def _pieces(self, path: str, query: Mapping[str, Any]) -> Iterator[bytes]:
        with self.http.streamed(path, params=query, headers={}) as response:
            yield from response.iter_bytes()
