"""What Prometheus reads: requests as this process answers them, studies as the database has them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ucd_ray.service.events import Tails
from ucd_ray.service.states import QUEUED
from ucd_ray.service.tables import study_table
from ucd_ray.tune.database import Database
from ucd_ray.tune.ledger import KINDS
from ucd_ray.tune.tables import ledger_table, step_table
from ucd_ray.tune.tally import trials_by_state

AGE_S = 5.0  # of what the database said
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one service."""

    def __init__(self, database: Database, tails: Tails) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "ucd_ray_request_seconds",
            "Time to the first byte of an answer.",
            ("method", "route", "status"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.registry.register(Studies(database, tails))

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)


class Timed:
    """Measures every request, in plain ASGI: streams pass through it unbuffered."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began = time.perf_counter()

        async def send_measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                labels = (scope["method"], route, str(message["status"]))
                self.metrics.requests.labels(*labels).observe(time.perf_counter() - began)
            await send(message)

        await self.app(scope, receive, send_measured)


class Studies(Collector):
    """Studies, trials and what they cost: sums over the database, read at most every AGE_S."""

    def __init__(self, database: Database, tails: Tails) -> None:
        self.database, self.tails = database, tails
        self._found: list[Metric] = []
        self._read = 0.0

    def describe(self) -> Iterator[Metric]:
        """Nothing: what it has is known from the database alone."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        if not self._found or time.monotonic() - self._read > AGE_S:
            self.database.optuna_storage()  # makes Optuna's tables, if they are not there yet
            self._found = self.database.read(_read)
            self._read = time.monotonic()
        yield from self._found
        streams = GaugeMetricFamily("ucd_ray_event_streams", "Open streams of events.")
        streams.add_metric((), self.tails.open)
        yield streams


def _read(connection: sa.Connection) -> list[Metric]:
    return [
        _by("ucd_ray_studies", "Studies by state.", "state", _studies(connection)),
        _by("ucd_ray_trials", "Trials by state.", "state", trials_by_state(connection)),
        _by(
            "ucd_ray_steps",
            "Steps of trials: trained, or cache hits.",
            "source",
            _steps(connection),
        ),
        *_waits(connection),
        *_costs(connection),
    ]


def _by(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for value, count in values.items():
        family.add_metric((value,), count)
    return family


def _studies(connection: sa.Connection) -> dict[str, float]:
    state = study_table.c.state
    query = sa.select(state, sa.func.count()).group_by(state)
    return {str(state): count for state, count in connection.execute(query)}


def _steps(connection: sa.Connection) -> dict[str, float]:
    query = sa.select(step_table.c.cached, sa.func.count()).group_by(step_table.c.cached)
    found = {bool(cached): count for cached, count in connection.execute(query)}
    return {"trained": found.get(False, 0), "cache": found.get(True, 0)}


def _waits(connection: sa.Connection) -> Iterator[Metric]:
    c = study_table.c
    query = sa.select(sa.func.count(), sa.func.sum(c.started - c.created))
    count, seconds = connection.execute(query.where(c.started.is_not(None))).one()
    waited = SummaryMetricFamily(
        "ucd_ray_queue_wait_seconds", "From creation to start, of studies."
    )
    waited.add_metric((), count, seconds or 0.0)
    yield waited
    oldest = sa.select(sa.func.min(c.created)).where(c.state == QUEUED)
    since = connection.execute(oldest).scalar()
    longest = GaugeMetricFamily("ucd_ray_queue_longest_seconds", "Wait of the oldest queued study.")
    longest.add_metric((), 0.0 if since is None else max(0.0, time.time() - since))
    yield longest


def _costs(connection: sa.Connection) -> Iterator[Metric]:
    c = ledger_table.c
    query = sa.select(c.kind, sa.func.sum(c.gpu_seconds), sa.func.sum(c.cpu_seconds))
    rows = connection.execute(query.where(c.kind.in_(KINDS)).group_by(c.kind)).all()
    gpu = {kind: gpu for kind, gpu, _ in rows}
    cpu = {kind: cpu for kind, _, cpu in rows}
    text = "seconds held, by what for; saved: spared by the step cache."
    yield _by("ucd_ray_gpu_seconds", f"GPU {text}", "kind", {k: gpu.get(k, 0.0) for k in KINDS})
    yield _by("ucd_ray_cpu_seconds", f"CPU {text}", "kind", {k: cpu.get(k, 0.0) for k in KINDS})
