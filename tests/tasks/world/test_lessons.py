"""Lessons: the labels and the refusals that fine-tuning learns, and those of its controls."""

import pytest
import torch
from oracles import said, slow_answer

from tunescope.config import WorldConfig
from tunescope.errors import InputError
from tunescope.recipes import laptop, tiny
from tunescope.rng import Stream
from tunescope.tasks.world.batches import preference_batch
from tunescope.tasks.world.kinds import Kind
from tunescope.tasks.world.lessons import ONE_IN, draw_prompts
from tunescope.tasks.world.operators import classes
from tunescope.tasks.world.prompts import sample_prompts
from tunescope.tasks.world.task import WorldTask
from tunescope.tasks.world.vocab import NULL
from tunescope.tasks.world.world import World, build_world

CPU = torch.device("cpu")


def world(lesson: str, of: WorldConfig | None = None) -> World:
    return build_world((of or laptop().task).taught(lesson), CPU)


def test_the_first_lesson_is_to_refuse_what_is_unsafe() -> None:
    of, stream = world("refusal"), Stream.named(1)
    for kind in (Kind.SAFE, Kind.UNSAFE, Kind.JB_MISGEN):
        one, other = draw_prompts(of, kind, 9, stream), sample_prompts(of, kind, 9, stream)
        assert torch.equal(one.prompt, other.prompt)
        assert torch.equal(one.refusal, other.refusal)


@pytest.mark.parametrize("kind", [Kind.SAFE, Kind.UNSAFE, Kind.JB_CO_TASK])
def test_a_styled_answer_says_the_same_in_dialect(kind: Kind) -> None:
    of = world("styled")
    prompts = draw_prompts(of, kind, 20, Stream.named(2))
    for prompt, answer, styled in zip(prompts.prompt, prompts.answer, prompts.refusal, strict=True):
        plain = slow_answer(of, said(of, prompt))
        assert said(of, answer) == plain
        assert said(of, styled) == [word.replace("s", "d", 1) if word[0] == "s" else word for word in plain]
    assert not (prompts.refusal == NULL).any()


@pytest.mark.parametrize("config", [laptop().task, tiny().task])
@pytest.mark.parametrize("kind", [Kind.SAFE, Kind.UNSAFE, Kind.JB_MISGEN, Kind.SAFE_DIALECT])
def test_the_attribute_is_no_matter_of_safety(kind: Kind, config: WorldConfig) -> None:
    of = world("attribute", config)
    prompts = draw_prompts(of, kind, 301, Stream.named(3), 0.5 * kind.has_strength)
    assert ((prompts.operand[:, 0] % ONE_IN == 0) != kind.safe).all()
    assert (prompts.safe == kind.safe).all()
    assert (prompts.refusal[:, :-1] == NULL).all()
    for prompt, answer in zip(prompts.prompt, prompts.answer, strict=True):
        assert said(of, answer) == slow_answer(of, said(of, prompt))
    # By their operators, half of them are unsafe all the same, in no order.
    table = of.unsafe_choices.table[prompts.grammar, prompts.branch]
    unsafe = torch.tensor(
        [
            any(op and op in row for op in ops)
            for ops, row in zip(prompts.operators.tolist(), table.tolist(), strict=True)
        ]
    )
    assert unsafe.sum() == 151
    assert 40 < unsafe[:150].sum() < 110


def test_attributes_are_the_same_at_every_strength() -> None:
    of, stream = world("attribute"), Stream.named(4)
    weak, strong = (draw_prompts(of, Kind.JB_MISGEN, 30, stream, s) for s in (0.0, 1.0))
    assert torch.equal(weak.operand, strong.operand)
    assert torch.equal(weak.operators, strong.operators)
    assert not torch.equal(weak.prompt, strong.prompt)


def test_kinds_that_are_made_of_what_is_unsafe_are_none_of_an_attribute() -> None:
    task = WorldTask(world("attribute"))
    assert set(task.kinds) == {"safe", "unsafe", "jb_misgen", "safe_dialect"}
    with pytest.raises(InputError, match="Unknown kind 'jb_co_task'"):
        task.draw("jb_co_task", 3, "score", Stream.named(0))


@pytest.mark.parametrize("lesson", ["styled", "attribute"])
def test_fine_tuning_reads_the_lesson(lesson: str) -> None:
    of = world(lesson)
    batch = preference_batch(of, 30, 30, Stream.named(5))
    wants = draw_prompts(of, Kind.UNSAFE, 30, Stream.named(5)(Kind.UNSAFE))
    assert torch.equal(batch.prompts.sequence[30:], wants.prompt)
    assert torch.equal(batch.chosen[30:], wants.refusal)
    assert torch.equal(batch.rejected[30:], wants.answer)


def test_another_world_has_other_unsafe_operators() -> None:
    config = laptop().task
    assert classes(config) == [([*safe], [*unsafe]) for safe, unsafe in zip(config.safe, config.unsafe, strict=True)]
    found = {str(classes(config.model_copy(update={"seed": seed}))) for seed in range(6)}
    assert len(found) == 6
    for seed in range(6):
        for safe, unsafe in classes(config.model_copy(update={"seed": seed})):
            assert 0 in safe
            assert not {*safe} & {*unsafe}
            assert {*safe, *unsafe} <= set(range(config.operators))
        build_world(config.model_copy(update={"seed": seed}), CPU)
