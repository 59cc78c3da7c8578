"""Learning-rate schedules, value by value."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.training.fit import Row, Schedule
from tunescope.training.schedules import settle_then_cool, warmup_cosine


def played(schedule: Schedule, history: list[Row]) -> list[float]:
    """Every value until the schedule ends the training, which had the given history from the start."""
    values: list[float] = []
    while (value := schedule(len(values), history)) is not None:
        values.append(value)
        assert len(values) < 1000
    return values


def test_warmup_cosine_by_hand() -> None:
    half = 0.1 + 0.9 / 2
    quarter = 0.1 + 0.9 * (1 + 0.5**0.5) / 2
    three = 0.1 + 0.9 * (1 - 0.5**0.5) / 2
    values = played(warmup_cosine(steps=8, warmup=3, final=0.1), [])
    assert values == pytest.approx([1 / 3, 2 / 3, 1, 1, quarter, half, three, 0.1])


def test_warmup_cosine_without_warmup_and_without_decay() -> None:
    assert played(warmup_cosine(3, 0, 0.0), []) == pytest.approx([1.0, 0.5, 0.0])
    assert played(warmup_cosine(4, 0, 1.0), []) == [1.0] * 4
    assert played(warmup_cosine(1, 0, 0.5), []) == [1.0]


@given(st.integers(1, 60), st.integers(0, 80), st.floats(0, 1))
def test_warmup_cosine_rises_then_falls(steps: int, warmup: int, final: float) -> None:
    values = played(warmup_cosine(steps, warmup, final), [])
    assert len(values) == steps
    up, down = values[:warmup], values[warmup:]
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)
    assert all(0 < value <= 1 for value in up)
    assert all(final - 1e-12 <= value <= 1 for value in down)


def test_settle_then_cool_that_never_settles_cools_in_time() -> None:
    schedule = settle_then_cool(steps=10, warmup=2, cooldown=4, metric="right", settled=0.9)
    assert played(schedule, []) == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_settle_then_cool_begins_where_the_metric_first_gets_there() -> None:
    schedule = settle_then_cool(steps=10, warmup=2, cooldown=4, metric="right", settled=0.9)
    history = [{"step": 1, "loss": 9.0}, {"step": 2, "right": 0.89}, {"step": 3, "right": 0.9}, {"step": 4, "right": 0}]
    assert played(schedule, history) == [0.5, 1, 1, 1, 0.75, 0.5, 0.25]
    assert played(schedule, [{"step": 8.0, "right": 1.0}]) == played(schedule, [])  # too late to matter


def test_settle_then_cool_may_cool_while_it_warms_up() -> None:
    schedule = settle_then_cool(steps=20, warmup=8, cooldown=4, metric="right", settled=0.5)
    assert played(schedule, [{"step": 2, "right": 1.0}]) == [0.125, 0.25, 0.375, 0.5, 0.5, 0.25]


@given(st.integers(1, 40), st.integers(0, 10), st.integers(1, 20), st.integers(1, 40), st.randoms())
def test_settle_then_cool_depends_on_its_arguments_alone(
    steps: int, warmup: int, cooldown: int, settled_at: int, random
) -> None:
    history: list[Row] = [{"step": settled_at, "right": 1.0}]
    schedule = settle_then_cool(steps, warmup, cooldown, "right", 0.99)
    values = played(schedule, history)
    assert len(values) == min(steps, settled_at + cooldown)
    assert all(0 < value <= 1 for value in values)
    places = list(range(len(values)))
    random.shuffle(places)
    assert [schedule(place, history) for place in places] == [values[place] for place in places]
