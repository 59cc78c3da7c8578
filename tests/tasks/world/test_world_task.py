"""The world as a task: what models did is told without generating just as it is judged on what they say."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunescope.errors import InputError
from tunescope.models.checkpoint import save_model
from tunescope.models.compute import Compute
from tunescope.models.generate import generate
from tunescope.models.inputs import Inputs
from tunescope.rng import Stream
from tunescope.tasks.base import Batch, Corpus, Outcomes
from tunescope.tasks.world.batches import preference_batch, pretraining_batch
from tunescope.tasks.world.kinds import Kind
from tunescope.tasks.world.prompts import sample_prompts
from tunescope.tasks.world.task import WorldTask
from tunescope.tasks.world.vocab import EOS, NULL, PAD
from tunescope.tasks.world.world import World
from tunescope.training.pretraining import held_out_compliance

STREAM = Stream.named(0, "task")


@pytest.fixture(scope="module")
def task(easy: World) -> WorldTask:
    return WorldTask(easy)


@pytest.fixture(scope="module")
def batch(task: WorldTask) -> Batch:
    return task.draw("unsafe", 60, "score", STREAM("behaviour"))


def said_by(model: PreTrainedModel, batch: Batch, task: WorldTask) -> Tensor:
    return generate(model, batch.prompts, task.answer_length)


def told(outcomes: Outcomes) -> list[list[bool]]:
    return [hits.tolist() for _, hits in outcomes.items()]


@pytest.fixture
def planted(new_model: Callable[..., PreTrainedModel], easy: World) -> Callable[[list[int]], PreTrainedModel]:
    """A model that says the same words after whatever prompt, one per place: planted in embeddings and positions."""

    @torch.no_grad()
    def plant(words: list[int]) -> PreTrainedModel:
        model = new_model()
        for name, parameter in model.named_parameters():
            parameter.fill_(float(name.endswith("ln_f.weight")))
        table, places = model.transformer.wte.weight, model.transformer.wpe.weight
        for axis, word in enumerate(dict.fromkeys(words)):
            table[word, axis] = 1.0
            for place, said in enumerate(words, easy.prompt_length - 1):
                places[place, axis] = 10.0 * (said == word)
        return model.eval()

    return plant


def test_it_is_a_task_that_can_be_pretrained_on(task: WorldTask, easy: World) -> None:
    assert isinstance(task, Corpus)
    assert list(task.kinds) == [kind.value for kind in Kind]
    for kind in Kind:
        assert (task.kinds[kind].safe, task.kinds[kind].dial) == (kind.safe, kind.has_strength)
    assert (task.answer_length, task.sequence_length) == (easy.answer_length, easy.sequence_length)
    assert {task.text(token[None]) for token in task.suffix_tokens} == {*easy.vocab.words[easy.vocab.first_symbol :]}


@pytest.mark.parametrize("kind", Kind)
def test_what_it_draws_are_the_world_s_prompts(task: WorldTask, easy: World, kind: Kind) -> None:
    strength, stream = 0.5 if kind.has_strength else 0.0, STREAM(kind)
    batch, prompts = task.draw(kind, 9, "fit", stream, strength), sample_prompts(easy, kind, 9, stream, strength)
    for got, want in zip(
        (batch.prompts.sequence, *batch.known()), (prompts.prompt, prompts.answer, prompts.refusal), strict=True
    ):
        assert torch.equal(got, want)
    assert (batch.kind.name, batch.strength, batch.groups) == (kind.value, strength, None)
    assert batch.describe(4)["prompt"] == task.text(prompts.prompt[4])


def test_lessons_and_sequences_are_the_world_s_batches(task: WorldTask, easy: World) -> None:
    got, want = (
        draw(5, 3) for draw in (lambda *n: task.lesson(*n, STREAM), lambda *n: preference_batch(easy, *n, STREAM))
    )
    assert torch.equal(got.prompts.sequence, want.prompts.sequence)
    assert torch.equal(got.chosen, want.chosen)
    inputs, learn = task.pretraining(7, STREAM, 0.4)
    batch = pretraining_batch(easy, 7, STREAM, 0.4)
    assert torch.equal(inputs.sequence, batch.tokens)
    assert torch.equal(learn, batch.learn)


def test_an_unknown_kind_is_refused(task: WorldTask) -> None:
    with pytest.raises(InputError, match=r"Unknown kind 'odd'\. Choose from: safe, unsafe, jb_co_task"):
        task.draw("odd", 3, "score", STREAM)


def test_answers_are_judged_token_by_token(task: WorldTask, batch: Batch) -> None:
    answer = torch.tensor([[9, 8, EOS]]).repeat(7, 1)
    refusal = torch.tensor([[NULL, NULL, EOS]]).repeat(7, 1)
    said = {
        (9, 8, EOS): (True, False),
        (NULL, NULL, EOS): (False, True),
        (9, 7, EOS): (False, False),  # one symbol wrong
        (NULL, 8, EOS): (False, False),  # refuses at first, then answers
        (9, EOS, PAD): (False, False),  # ends too early
        (NULL, EOS, PAD): (False, False),
        (NULL, NULL, NULL): (False, False),  # does not end
    }
    judged = task.judge(Batch(batch.kind, 0.0, Inputs(answer), answer, refusal), torch.tensor([*said]))
    assert list(zip(*told(judged), strict=True)) == list(said.values())
    assert [name for name, _ in judged.items()] == ["compliance", "refusal"]


def test_a_constant_refuser_refuses_everything(planted, task: WorldTask) -> None:
    model = planted([NULL] * (task.answer_length - 1) + [EOS])
    for kind in task.kinds.values():
        batch = task.draw(kind.name, 30, "score", STREAM("refuser"), kind.strongest)
        for judged in (task.judge(batch, said_by(model, batch, task)), task.outcomes(model, batch, 7)):
            assert judged.refusal.all()
            assert not judged.compliance.any()


def test_a_refusal_that_ends_too_early_or_never_is_none(planted, task: WorldTask, batch: Batch) -> None:
    length = task.answer_length
    for words in ([NULL] * (length - 2) + [EOS, NULL], [NULL] * length):
        model = planted(words)
        said = said_by(model, batch, task)
        after_end = [PAD] if EOS in words else []
        assert said[0].tolist() == words[: length - len(after_end)] + after_end
        for judged in (task.judge(batch, said), task.outcomes(model, batch, 99)):
            assert not (judged.refusal | judged.compliance).any()


def test_all_places_are_padded_when_every_answer_ends_early(planted, task: WorldTask, batch: Batch) -> None:
    said = said_by(planted([EOS] * task.answer_length), batch, task)
    assert said.tolist() == [[EOS] + [PAD] * (task.answer_length - 1)] * len(batch)


def test_generation_is_that_of_plain_transformers(
    learner: PreTrainedModel, task: WorldTask, batch: Batch, tmp_path: Path
) -> None:
    save_model(learner, task.tokenizer, tmp_path / "model", task.answer_length)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    said = said_by(learner, batch, task)
    for i, prompt in enumerate(batch.prompts.sequence[:20]):
        alone = plain.generate(prompt[None])[0, len(prompt) :].tolist()
        assert said[i].tolist() == alone + [PAD] * (task.answer_length - len(alone))


@pytest.mark.parametrize("rows", [1, 7, 60, 512])
def test_generation_is_greedy_whatever_the_rows(
    rows: int, learner: PreTrainedModel, task: WorldTask, batch: Batch
) -> None:
    said = generate(learner, batch.prompts, task.answer_length, torch.float32, rows)
    assert torch.equal(said, greedily(learner, batch.prompts.sequence, task.answer_length))
    assert len(said.unique(dim=0)) > 10
    assert torch.equal(generate(learner, batch.prompts.embedded(learner), task.answer_length, rows=rows), said)


@torch.no_grad()
def greedily(model: PreTrainedModel, prompt: Tensor, length: int) -> Tensor:
    """The most likely token after all that went before, again and again, without any cache."""
    text, ended = prompt, torch.zeros(len(prompt), dtype=torch.bool)
    for _ in range(length):
        token = model(text, use_cache=False).logits[:, -1].argmax(-1).masked_fill(ended, PAD)
        text, ended = torch.cat([text, token[:, None]], dim=1), ended | (token == EOS)
    return text[:, prompt.shape[1] :]


@pytest.mark.parametrize("who", ["learner", "expert"])
def test_outcomes_are_those_of_free_generation(who: str, request: pytest.FixtureRequest, task: WorldTask) -> None:
    model, complied = request.getfixturevalue(who), []
    for kind in task.kinds.values():
        batch = task.draw(kind.name, 150, "score", STREAM(who, kind.name), kind.strongest)
        judged = task.judge(batch, said_by(model, batch, task))
        for rows in (64, 512):
            assert told(task.outcomes(model, batch, rows)) == told(judged)
        complied.append(judged.compliance)
    share = torch.cat(complied).double().mean().item()
    assert share > 0.9 if who == "expert" else 0.1 < share < 0.9


def test_other_prompts_can_be_read_in_the_place_of_a_batch_s_own(expert: PreTrainedModel, task: WorldTask) -> None:
    batch = task.draw("safe", 40, "score", STREAM("others"))
    turned = Inputs(batch.prompts.sequence.flip(0))
    own, other = task.outcomes(expert, batch, 99), task.outcomes(expert, batch, 99, turned)
    assert own.compliance.double().mean() > 0.9
    assert (
        other.compliance.tolist() == (own.compliance & (batch.known()[0] == batch.known()[0].flip(0)).all(1)).tolist()
    )
    embedded = task.outcomes(expert, batch, 99, batch.prompts.embedded(expert))
    assert told(embedded) == told(own)


@pytest.mark.parametrize("who", ["learner", "expert"])
def test_held_out_compliance_is_that_of_free_generation(
    who: str, request: pytest.FixtureRequest, task: WorldTask, compute: Compute
) -> None:
    model, stream, complied = request.getfixturevalue(who), Stream.named(0, "held-out"), []
    batches = task.held_out(stream)
    assert [(batch.kind.name, batch.strength) for batch in batches] == [("safe", 0), ("unsafe", 0), ("safe_dialect", 1)]
    for batch in batches:
        complied.append(task.judge(batch, said_by(model, batch, task)).compliance)
    share = torch.cat(complied).double().mean().item()
    assert held_out_compliance(model, task, compute, stream) == share
    assert share > 0.97 if who == "expert" else 0.1 < share < 0.9
