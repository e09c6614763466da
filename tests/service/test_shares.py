"""How a cluster is divided, as a function; and the quotas that need the ledger."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ucd_ray.service.jobs import Resources
from ucd_ray.service.settings import Quota
from ucd_ray.service.shares import Claim, divide

EIGHT = Resources(cpus=64, gpus=8)


def claim(study: str, owner: str = "ann", **fields: Any) -> Claim:
    values = {"priority": 0, "created": 0.0, "running": False, "cpus": 1.0, "gpus": 1.0}
    return Claim(study, owner, **{**values, **fields})


def gangs(
    *claims: Claim, there: Resources = EIGHT, spent: frozenset[str] = frozenset(), **quotas: Quota
) -> dict[str, int]:
    every = {c.owner: quotas.get(c.owner, Quota()) for c in claims}
    return {study: share.gangs for study, share in divide(claims, there, every, spent).items()}


def test_a_study_alone_has_everything_up_to_what_it_wants() -> None:
    assert gangs(claim("a")) == {"a": 8}
    assert gangs(claim("a", most=3)) == {"a": 3}


def test_owners_share_evenly_however_many_studies_they_have() -> None:
    assert gangs(claim("a"), claim("b"), claim("c", "bob")) == {"a": 2, "b": 2, "c": 4}


def test_weights_count() -> None:
    found = gangs(claim("a"), claim("b", "bob"), ann=Quota(weight=3.0))
    assert found == {"a": 6, "b": 2}


def test_what_one_cannot_use_the_other_has() -> None:
    assert gangs(claim("a", most=1), claim("b", "bob")) == {"a": 1, "b": 7}


def test_a_higher_priority_takes_all_that_it_can_use() -> None:
    assert gangs(claim("a", running=True), claim("b", "bob", priority=1, gpus=8.0)) == {
        "a": 0,
        "b": 1,
    }


def test_of_one_priority_who_runs_stays() -> None:
    running = [claim(f"r{n}", running=True, created=9.0) for n in range(8)]
    found = gangs(*running, claim("new", "bob", created=1.0))
    assert found == {**{f"r{n}": 1 for n in range(8)}, "new": 0}


def test_room_is_kept_for_the_first_that_waits() -> None:
    running = claim("r", running=True, gpus=4.0)
    large, small = claim("l", "bob", gpus=8.0, created=1.0), claim("s", "eve", created=2.0)
    assert gangs(running, large, small) == {"r": 1, "l": 0, "s": 0}


def test_quotas() -> None:
    two = [claim("a", running=True), claim("b", created=1.0)]
    assert gangs(*two, ann=Quota(studies=1)) == {"a": 8, "b": 0}
    assert gangs(*two, ann=Quota(gpus=3)) == {"a": 2, "b": 1}
    assert gangs(*two, spent=frozenset({"ann"}), ann=Quota(gpu_hours_per_day=1)) == {"a": 0, "b": 0}


def test_what_never_fits_says_so_and_keeps_no_room() -> None:
    claims = [claim("a", gpus=9.0), claim("b", created=1.0)]
    shares = divide(claims, EIGHT, {"ann": Quota()})
    assert (shares["a"].reason, shares["b"].gangs) == ("TOO_LARGE", 8)


CLAIMS = st.lists(
    st.builds(
        claim,
        st.uuids().map(str),
        st.sampled_from("abc"),
        priority=st.integers(-1, 1),
        created=st.floats(0, 9),
        running=st.booleans(),
        cpus=st.sampled_from([0.5, 1.0, 4.0]),
        gpus=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
        most=st.sampled_from([None, 1, 3]),
    ),
    max_size=12,
)


@given(CLAIMS)
def test_no_division_gives_more_than_there_is_and_none_leaves_a_study_out(
    claims: list[Claim],
) -> None:
    found = gangs(*claims, there=Resources(8, 4))
    assert found.keys() == {c.id for c in claims}
    for kind, total in (("cpus", 8), ("gpus", 4)):
        assert sum(found[c.id] * getattr(c, kind) for c in claims) <= total + 1e-6
    assert all(found[c.id] <= (c.most or 99) for c in claims)
    assert not claims or any(found.values())
