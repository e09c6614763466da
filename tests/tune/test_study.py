"""Which specs are those of the same study."""

from __future__ import annotations

import pytest

from tests.tune.test_bridge import spec_of
from ucd_ray.tune.registration import differences


def test_a_study_of_a_version_that_knew_fewer_fields_goes_on() -> None:
    wanted = spec_of().model_dump(mode="json")
    stored = {k: v for k, v in wanted.items() if k not in ("seeds", "class_orders", "racing")}
    assert differences(stored, wanted) == []


@pytest.mark.parametrize("field", ["seeds", "class_orders"])
def test_seeds_and_class_orders_of_a_study_stay(field: str) -> None:
    stored, wanted = (spec_of(**{field: n}).model_dump(mode="json") for n in (1, 3))
    assert differences(stored, wanted) == [f"{field} (1 there, 3 here)"]


def test_racing_may_be_changed() -> None:
    stored, wanted = (spec_of(racing=p).model_dump(mode="json") for p in (0.3, None))
    assert differences(stored, wanted) == []
