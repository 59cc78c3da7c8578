"""Batches: whatever is taken out of one keeps prompts, answers, groups and descriptions together."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import InputError
from tunescope.models.inputs import Index, Inputs
from tunescope.tasks.base import Batch, Kind

N = 7
KIND = Kind("jb_misgen", "refusal", dial=True)


def numbered(n: int = N) -> Batch:
    """Everything of prompt i is made of i."""
    i = torch.arange(n)[:, None]
    positions, mask = (torch.arange(4) + 10 * i), torch.ones(n, 4, dtype=torch.long)
    return Batch(
        KIND,
        0.5,
        Inputs(i + torch.zeros(1, 4, dtype=torch.long), positions, mask),
        i + torch.zeros(1, 2, dtype=torch.long),
        -i + torch.zeros(1, 2, dtype=torch.long),
        groups=np.arange(n) // 2,
        given=1,
        describe=lambda i: {"number": i},
    )


def assert_are(batch: Batch, numbers: list[int]) -> None:
    assert len(batch) == len(numbers)
    assert batch.prompts.sequence[:, 0].tolist() == numbers
    assert batch.prompts.positions is not None
    assert batch.prompts.mask is not None
    assert batch.prompts.positions[:, 0].tolist() == [10 * i for i in numbers]
    assert len(batch.prompts.mask) == len(numbers)
    answer, refusal = batch.known()
    assert (answer[:, 1].tolist(), refusal[:, 1].tolist()) == (numbers, [-i for i in numbers])
    assert batch.groups is not None
    assert batch.groups.tolist() == [i // 2 for i in numbers]
    assert [batch.describe(at)["number"] for at in range(len(batch))] == numbers
    assert (batch.kind, batch.strength, batch.given) == (KIND, 0.5, 1)


ENDS = st.none() | st.integers(-9, 9)
INDICES = st.one_of(
    st.builds(slice, ENDS, ENDS, st.none() | st.integers(1, 3)),
    st.lists(st.integers(-N, N - 1), max_size=9).map(lambda i: torch.tensor(i, dtype=torch.long)),
    st.lists(st.booleans(), min_size=N, max_size=N).map(torch.tensor),
)


def taken(n: int, index: Index) -> list[int]:
    return torch.arange(n)[index].tolist()


@given(INDICES)
def test_what_is_taken_belongs_together(index: Index) -> None:
    assert_are(numbered()[index], taken(N, index))


@given(INDICES, st.data())
def test_what_is_taken_twice_does_too(index: Index, data: st.DataObject) -> None:
    first = taken(N, index)
    again = data.draw(st.lists(st.integers(0, len(first) - 1), max_size=5) if first else st.just([]))
    assert_are(numbered()[index][torch.tensor(again, dtype=torch.long)], [first[i] for i in again])


@pytest.mark.parametrize(("n", "left"), [(3, 3), (7, 7), (99, 7)])
def test_the_first_of_them(n: int, left: int) -> None:
    assert_are(numbered().first(n), list(range(left)))


def test_what_a_task_does_not_know_stays_unknown() -> None:
    bare = Batch(KIND, 0.0, Inputs(torch.zeros(4, 3, dtype=torch.long)))[torch.tensor([2, 0])]
    assert (len(bare), bare.answer, bare.refusal, bare.groups, bare.describe(1)) == (2, None, None, None, {})
    for lacking in (bare, replace(numbered(), answer=None), replace(numbered(), refusal=None)):
        with pytest.raises(InputError, match="jb_misgen prompts: this task knows no answers"):
            lacking.known()


@pytest.mark.parametrize(("wanted", "safe"), [("compliance", True), ("refusal", False)])
@pytest.mark.parametrize(("dial", "strongest"), [(True, 1.0), (False, 0.0)])
def test_a_kind_knows_whether_it_is_safe_and_how_strong_it_gets(
    wanted: str, safe: bool, dial: bool, strongest: float
) -> None:
    kind = Kind("x", wanted, dial)
    assert (kind.safe, kind.strongest) == (safe, strongest)
