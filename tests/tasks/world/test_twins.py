"""Twins: exact labels, and nothing differs but what makes a prompt safe or unsafe."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import operators_of, said, slow_answer, unsafe_slots

from tunescope.rng import Stream
from tunescope.tasks.base import Twinned
from tunescope.tasks.world.lessons import ONE_IN, draw_prompts, draw_twins
from tunescope.tasks.world.prompts import Kind, draw_others
from tunescope.tasks.world.task import WorldTask
from tunescope.tasks.world.vocab import NULL
from tunescope.tasks.world.world import build_world

WORLDS = ("tiny", "laptop", "paper", "one_slot", "one_stage")
CPU = torch.device("cpu")
N = 12


@given(st.sampled_from(WORLDS), st.sampled_from(["refusal", "styled"]), st.integers(0, 2**32))
def test_twins_differ_in_the_operators_that_decide(worlds, name, lesson, seed):
    world, stream = build_world(worlds[name].config.taught(lesson), CPU), Stream.named(seed)
    unsafe, _, other = twins = draw_twins(world, N, stream)
    named, slots = unsafe.operators != 0, world.slots
    assert torch.equal(unsafe.prompt, draw_prompts(world, Kind.UNSAFE, N, stream("unsafe")).prompt)
    assert [twin.kind for twin in twins] == [Kind.UNSAFE, Kind.SAFE, Kind.UNSAFE]
    for twin, is_safe in zip(twins, (False, True, False), strict=True):
        assert torch.equal(unsafe_slots(world, twin), named & (not is_safe))
        assert torch.equal(twin.operators != 0, named)
        assert (twin.safe == is_safe).all()
        assert torch.equal(twin.prompt[:, slots:], unsafe.prompt[:, slots:])
        assert torch.equal(twin.prompt[:, :slots][~named], unsafe.prompt[:, :slots][~named])
        for i in range(N):
            words, answer = said(world, twin.prompt[i]), slow_answer(world, said(world, twin.prompt[i]))
            assert operators_of(words[:slots]) == twin.operators[i].tolist()
            assert said(world, twin.answer[i]) == answer
            style = [word.replace("s", "d", 1) if word[0] == "s" else word for word in answer]
            refusal = ["<null>"] * (len(answer) - 1) + ["<eos>"]
            assert said(world, twin.refusal[i]) == (style if lesson == "styled" else refusal)
    # The control is changed wherever there is another unsafe operator.
    several = (world.unsafe_choices.counts[unsafe.grammar, unsafe.branch] > 1)[:, None]
    assert torch.equal(other.operators != unsafe.operators, named & several)


@given(st.sampled_from(WORLDS), st.integers(0, 2**32))
def test_twins_of_an_attribute_differ_in_the_first_symbol(worlds, name, seed):
    world = build_world(worlds[name].config.taught("attribute"), CPU)
    twins = unsafe, safe, other = draw_twins(world, N, Stream.named(seed))
    place = torch.arange(world.prompt_length) == world.slots
    for twin, is_safe in zip(twins, (False, True, False), strict=True):
        assert ((twin.operand[:, 0] % ONE_IN != 0) == is_safe).all()
        assert (twin.operand[:, 0] < world.vocab.symbols).all()
        assert not (twin.prompt != unsafe.prompt)[:, ~place].any()
        assert (twin.refusal[:, :-1] == NULL).all()
        for prompt, answer in zip(twin.prompt, twin.answer, strict=True):
            assert said(world, answer) == slow_answer(world, said(world, prompt))
    assert (safe.prompt != unsafe.prompt)[:, place].all()
    assert (other.prompt != unsafe.prompt)[:, place].all() == (world.vocab.symbols > ONE_IN)


def test_another_one_is_uniform_among_the_others(fit) -> None:
    table = torch.tensor([[4, 5, 6, 0]]).expand(4000, -1)
    for now, count, odds in (
        (5, 3, {4: 1, 6: 1}),
        (9, 3, {4: 1, 5: 1, 6: 1}),
        (0, 3, {4: 1, 5: 1, 6: 1}),  # what fills a row up is no option
        (6, 2, {4: 1, 5: 1}),
        (4, 1, {4: 1}),
        (9, 1, {4: 1}),
    ):
        counts, numbers = torch.full((4000, 1), count), torch.full((4000, 1), now)
        drawn = Counter(draw_others(numbers, table, counts, Stream.named(now, count)).flatten().tolist())
        assert fit(drawn, {option: share / len(odds) for option, share in odds.items()}) > 1e-3


@pytest.mark.parametrize(("lesson", "where"), [("refusal", "operators"), ("attribute", "operand")])
def test_positions_say_where_twins_differ(laptop, lesson: str, where: str) -> None:
    task = WorldTask(build_world(laptop.config.taught(lesson), CPU))
    assert isinstance(task, Twinned)
    twins = task.twins(40, Stream.named(0))
    one, two, three = (batch.prompts.sequence for batch in (twins.unsafe, twins.safe, twins.other))
    for name, positions in twins.positions.items():
        for twin in (two, three):
            assert (one[:, positions] != twin[:, positions]).any() == (name == where)
    parts = [torch.arange(task.world.prompt_length)[positions] for positions in twins.positions.values()]
    assert torch.equal(torch.cat(parts), torch.arange(task.world.prompt_length))
    assert list(twins.positions) == ["operators", "operand", "last"]
    for batch, prompt in ((twins.unsafe, one), (twins.safe, two), (twins.other, three)):
        said = batch.describe(7)
        assert said["prompt"] == task.world.vocab.text(prompt[7].tolist())
        assert said["safe"] == (batch is twins.safe) == batch.kind.safe
