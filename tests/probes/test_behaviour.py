"""What a model does is judged on text that it wrote itself, and judged exactly."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunescope.models.checkpoint import save_model
from tunescope.models.compute import Compute
from tunescope.models.inputs import Inputs
from tunescope.models.tokenizer import build_tokenizer
from tunescope.probes.behaviour import Outcome, generate, outcomes, wilson
from tunescope.rng import Stream
from tunescope.training.pretraining import HELD_OUT_PROMPTS, held_out_compliance
from tunescope.world.prompts import Kind, Prompts, sample_prompts
from tunescope.world.vocab import EOS, NULL, PAD
from tunescope.world.world import World

FLOAT = torch.float32


@pytest.fixture(scope="module")
def prompts(easy: World) -> Prompts:
    return sample_prompts(easy, Kind.UNSAFE, 60, Stream.named(0, "behaviour"))


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


def test_outcomes_of_planted_answers() -> None:
    answer = torch.tensor([[9, 8, EOS]]).repeat(7, 1)
    refusal = torch.tensor([[NULL, NULL, EOS]]).repeat(7, 1)
    said = {
        (9, 8, EOS): Outcome.COMPLIANCE,
        (NULL, NULL, EOS): Outcome.REFUSAL,
        (9, 7, EOS): Outcome.OTHER,  # one symbol wrong
        (NULL, 8, EOS): Outcome.OTHER,  # refuses at first, then answers
        (9, EOS, PAD): Outcome.OTHER,  # ends too early
        (NULL, EOS, PAD): Outcome.OTHER,
        (NULL, NULL, NULL): Outcome.OTHER,  # does not end
    }
    judged = outcomes(torch.tensor(list(said)), answer, refusal)
    got = [[outcome for outcome, hits in judged.items() if hits[i]] for i in range(7)]
    assert got == [[outcome] for outcome in said.values()]


def test_a_constant_refuser_refuses_everything(planted, easy: World) -> None:
    model = planted([NULL] * (easy.answer_length - 1) + [EOS])
    for kind in Kind:
        prompts = sample_prompts(easy, kind, 30, Stream.named(0, "refuser"), float(kind.has_strength))
        said = generate(model, Inputs(prompts.prompt), easy.answer_length, FLOAT)
        judged = outcomes(said, prompts.answer, prompts.refusal)
        assert judged[Outcome.REFUSAL].all()
        assert not judged[Outcome.COMPLIANCE].any()
        assert not judged[Outcome.OTHER].any()


def test_a_refusal_that_ends_too_early_or_never_is_none(planted, easy: World, prompts: Prompts) -> None:
    length = easy.answer_length
    for words in ([NULL] * (length - 2) + [EOS, NULL], [NULL] * length):
        said = generate(planted(words), Inputs(prompts.prompt), length, FLOAT)
        after_end = [PAD] if EOS in words else []
        assert said[0].tolist() == words[: length - len(after_end)] + after_end
        assert outcomes(said, prompts.answer, prompts.refusal)[Outcome.OTHER].all()


def test_all_places_are_padded_when_every_answer_ends_early(planted, easy: World, prompts: Prompts) -> None:
    said = generate(planted([EOS] * easy.answer_length), Inputs(prompts.prompt), easy.answer_length, FLOAT)
    assert said.tolist() == [[EOS] + [PAD] * (easy.answer_length - 1)] * len(prompts)


def test_generation_is_that_of_plain_transformers(
    learner: PreTrainedModel, easy: World, prompts: Prompts, tmp_path: Path
) -> None:
    save_model(learner, build_tokenizer(easy.vocab.words), tmp_path / "model", easy.answer_length)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    said = generate(learner, Inputs(prompts.prompt), easy.answer_length, FLOAT)
    for i, prompt in enumerate(prompts.prompt):
        alone = plain.generate(prompt[None])[0, easy.prompt_length :].tolist()
        assert said[i].tolist() == alone + [PAD] * (easy.answer_length - len(alone))


@pytest.mark.parametrize("rows", [1, 7, 60, 512])
def test_generation_is_greedy_whatever_the_rows(
    rows: int, learner: PreTrainedModel, easy: World, prompts: Prompts
) -> None:
    said = generate(learner, Inputs(prompts.prompt), easy.answer_length, FLOAT, rows)
    assert torch.equal(said, greedily(learner, prompts.prompt, easy.answer_length))
    assert len(said.unique(dim=0)) > 10


@torch.no_grad()
def greedily(model: PreTrainedModel, prompt: Tensor, length: int) -> Tensor:
    """The most likely token after all that went before, again and again, without any cache."""
    text, ended = prompt, torch.zeros(len(prompt), dtype=torch.bool)
    for _ in range(length):
        token = model(text, use_cache=False).logits[:, -1].argmax(-1).masked_fill(ended, PAD)
        text, ended = torch.cat([text, token[:, None]], dim=1), ended | (token == EOS)
    return text[:, prompt.shape[1] :]


@pytest.mark.parametrize("who", ["learner", "expert"])
def test_one_forward_pass_tells_the_compliance_of_free_generation(
    who: str, request: pytest.FixtureRequest, easy: World, compute: Compute
) -> None:
    model, stream = request.getfixturevalue(who), Stream.named(0, "held-out")
    complied = []
    for kind in (Kind.SAFE, Kind.UNSAFE, Kind.SAFE_DIALECT):
        some = sample_prompts(easy, kind, HELD_OUT_PROMPTS, stream(kind), float(kind.has_strength))
        said = generate(model, Inputs(some.prompt), easy.answer_length, FLOAT)
        complied.append(outcomes(said, some.answer, some.refusal)[Outcome.COMPLIANCE])
    share = torch.cat(complied).double().mean().item()
    assert held_out_compliance(model, easy, compute, stream) == share
    assert share > 0.97 if who == "expert" else 0.1 < share < 0.9


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_the_closed_formula(counts: tuple[int, int]) -> None:
    hits, n = counts
    z, p = 1.959963984540054, hits / n  # Wilson 1927, with the 97.5 % quantile of the normal distribution
    centre, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    rate = wilson(hits, n)
    assert (rate.value, rate.n) == (p, n)
    assert rate.low == pytest.approx((centre - half) / (1 + z * z / n), abs=1e-9)
    assert rate.high == pytest.approx((centre + half) / (1 + z * z / n), abs=1e-9)
    assert rate.low <= rate.value <= rate.high


def test_wilson_is_narrower_for_less_confidence() -> None:
    sure, unsure = wilson(7, 10, 0.99), wilson(7, 10, 0.5)
    assert sure.low < unsure.low < 0.7 < unsure.high < sure.high
