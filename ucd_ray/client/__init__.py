"""A client of the service: what `ucd-ray` does on a cluster, over HTTP.

with Client("https://ucd-ray.example.org") as client:
    study = client.create({"tune": {"scenario": "voc-15-5", "values": {"data.source": "voc"}}})
    for event in client.events(study.id):
        ...
    table = client.table(study.id)
"""

from __future__ import annotations

from ucd_ray.client.client import Client
from ucd_ray.client.stream import StudyState
from ucd_ray.service.trial_views import Done, Line, StepView, TrialView
from ucd_ray.service.views import PlanView, StudyView

__all__ = [
    "Client",
    "Done",
    "Line",
    "PlanView",
    "StepView",
    "StudyState",
    "StudyView",
    "TrialView",
]
