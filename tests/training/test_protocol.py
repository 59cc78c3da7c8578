"""A step of fine-tuning: what a protocol is told of its prompts, whatever their lengths and whoever is beside them."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import ComputeConfig, Config, NoSettings
from tunescope.errors import InputError
from tunescope.models.compute import Compute, resolve
from tunescope.models.inputs import IGNORED, Inputs, padded
from tunescope.models.sites import Site
from tunescope.registry import import_all
from tunescope.rng import Stream
from tunescope.tasks.base import PreferenceBatch
from tunescope.tasks.world.batches import preference_batch
from tunescope.tasks.world.vocab import PAD
from tunescope.tasks.world.world import World
from tunescope.training.losses import nll
from tunescope.training.protocol import PROTOCOLS, Protocol, Step, protocol
from tunescope.training.tuning import _parts

import_all("tunescope.training.protocols")
CPU = torch.device("cpu")
STREAM = Stream.named(0, "protocol")
LAYER = Site(0, "resid_pre"), Site(0, "resid_post")
NAMES = ("ssft", "benign", "dpo", "npo", "simpo", "unlearning", "rmu", "circuit_breakers")


@pytest.fixture(scope="module")
def even(easy: World) -> PreferenceBatch:
    return preference_batch(easy, 3, 3, STREAM)


@pytest.fixture(scope="module")
def ragged(even: PreferenceBatch) -> PreferenceBatch:
    """Answers cut short, each elsewhere, and prompts padded to several lengths."""
    n = len(even.safe)
    chosen, rejected = (
        padded([row[: length(i)] for i, row in enumerate(answers.tolist())], CPU)
        for answers, length in ((even.chosen, lambda i: 1 + i % 4), (even.rejected, lambda i: 4 - i % 3))
    )
    tokens = even.prompts.sequence
    mask = torch.cat([torch.zeros(n, 2, dtype=torch.long), torch.ones_like(tokens)], dim=1)
    mask[::2, :3] = 0  # these lose their first token, too
    whole = torch.cat([torch.full((n, 2), PAD), tokens], dim=1)
    prompts = Inputs(whole.masked_fill(mask == 0, PAD), (mask.cumsum(1) - 1).clamp(min=0), mask)
    return PreferenceBatch(prompts, chosen, rejected, even.safe)


def alone(batch: PreferenceBatch) -> Iterator[PreferenceBatch]:
    """Each prompt by itself, without any padding."""
    for i in range(len(batch.safe)):
        tokens = batch.prompts.sequence[i]
        tokens = tokens if batch.prompts.mask is None else tokens[batch.prompts.mask[i] == 1]
        answers = (answer[i][answer[i] != IGNORED][None] for answer in (batch.chosen, batch.rejected))
        yield PreferenceBatch(Inputs(tokens[None]), *answers, batch.safe[[i]])


def loss(
    name: str,
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    batch: PreferenceBatch,
    compute: Compute,
    whole: PreferenceBatch | None = None,
):
    entry = PROTOCOLS[name]
    return entry.loss(Step(policy, reference, batch, entry, compute, STREAM, 0.5, whole), entry.settings())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["even", "ragged"])
def test_no_prompt_changes_the_loss_of_another(
    name: str,
    which: str,
    request: pytest.FixtureRequest,
    learner: PreTrainedModel,
    expert: PreTrainedModel,
    compute: Compute,
) -> None:
    batch = request.getfixturevalue(which)
    with torch.no_grad():
        together = loss(name, learner, expert, batch, compute)
        each = torch.cat([loss(name, learner, expert, part, compute, batch) for part in alone(batch)])
    assert together.shape == batch.safe.shape
    torch.testing.assert_close(together, each, rtol=1e-4, atol=1e-4)
    assert len(together.unique()) == len(together)


@pytest.mark.parametrize("which", ["even", "ragged"])
def test_logits_are_those_of_the_wanted_answers(
    which: str, request: pytest.FixtureRequest, learner: PreTrainedModel, compute: Compute
) -> None:
    batch = request.getfixturevalue(which)
    step = Step(learner, None, batch, PROTOCOLS["ssft"], compute, STREAM, 0.5)
    logits, chosen = step.chosen_logits()
    assert torch.equal(chosen, batch.chosen[:, : chosen.shape[1]])
    said = chosen != IGNORED
    logps = logits.log_softmax(2).gather(2, chosen.clamp(min=0)[:, :, None]).squeeze(2).where(said, 0.0)
    torch.testing.assert_close(logps, step.policy_chosen_logps[:, : chosen.shape[1]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_under_autocast_losses_are_the_same_but_for_rounding(
    name: str, even: PreferenceBatch, learner: PreTrainedModel, expert: PreTrainedModel, compute: Compute
) -> None:
    half = resolve(ComputeConfig(device="cpu", dtype="bfloat16", compile="off"))
    with torch.no_grad():
        found, want = (loss(name, learner, expert, even, of) for of in (half, compute))
    assert found.dtype == torch.float32
    assert not torch.equal(found, want)
    torch.testing.assert_close(found, want, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("read", ["unsafe", "all"])
def test_log_probabilities_are_of_answers_alone_as_far_as_they_are_read(
    read: Any, ragged: PreferenceBatch, learner: PreTrainedModel, expert: PreTrainedModel, compute: Compute
) -> None:
    entry = Protocol("p", 0.5, lambda step, settings: step.policy_chosen_logps.sum(1), read, "logps", NoSettings)
    with torch.no_grad():
        step = Step(learner, expert, ragged, entry, compute, STREAM, 0.5)
        assert step.chosen_lengths.tolist() == [1, 2, 3, 4, 1, 2]
        assert step.rejected_lengths.tolist() == [4, 3, 2, 4, 3, 2]
        seen = {"unsafe": [False] * 3 + [True] * 3, "all": [True] * 6}[read]
        for model, chosen, rejected in (
            (learner, step.policy_chosen_logps, step.policy_rejected_logps),
            (expert, step.reference_chosen_logps, step.reference_rejected_logps),
        ):
            for i, part in enumerate(alone(ragged)):
                for logps, answer, there in ((chosen, part.chosen, True), (rejected, part.rejected, seen[i])):
                    want = by_hand(model, part.prompts.sequence, answer) if there else torch.zeros(0)
                    torch.testing.assert_close(logps[i, : len(want)], want, rtol=1e-4, atol=1e-4)
                    assert not logps[i, len(want) :].any()


def by_hand(model: PreTrainedModel, prompt: Tensor, answer: Tensor) -> Tensor:
    """Of one answer, token by token."""
    tokens = torch.cat([prompt, answer], dim=1)[0]
    logps = model(tokens[None]).logits[0].log_softmax(-1)
    return torch.stack([logps[i - 1, tokens[i]] for i in range(prompt.shape[1], len(tokens))])


def test_activations_are_of_the_places_that_say_the_answers_that_obey(
    ragged: PreferenceBatch, learner: PreTrainedModel, expert: PreTrainedModel, compute: Compute
) -> None:
    step, sites = Step(learner, expert, ragged, PROTOCOLS["rmu"], compute, STREAM, 0.5), LAYER
    policy, reference, learnt = step.activations(*sites)
    assert policy.requires_grad
    assert not reference.requires_grad
    last = int(ragged.prompts.lengths.max()) - 1  # padding that all have is not read
    obeying = [1, 2, 3, 4, 3, 2]  # chosen, and rejected of unsafe prompts
    assert [row.nonzero().squeeze(1).tolist() for row in learnt] == [list(range(last, last + n)) for n in obeying]
    for i, part in enumerate(alone(ragged)):
        of = Step(learner, expert, part, PROTOCOLS["rmu"], compute, STREAM, 0.5)
        for j, site in enumerate(sites):
            (own,), (own_reference,), (where,) = of.activations(site)
            torch.testing.assert_close(policy[j, i][learnt[i]], own[0][where], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(reference[j, i][learnt[i]], own_reference[0][where], rtol=1e-4, atol=1e-4)


def test_both_models_are_read_once_and_only_if_asked_for(
    even: PreferenceBatch, learner: PreTrainedModel, expert: PreTrainedModel, compute: Compute
) -> None:
    read: list[PreTrainedModel] = []

    def logps(model: PreTrainedModel, *more: Any) -> Tensor:
        read.append(model)
        return compute.logps(model, *more)

    step = Step(learner, expert, even, PROTOCOLS["dpo"], replace(compute, logps=logps), STREAM, 0.5)
    assert read == []
    assert step.policy_chosen_logps.requires_grad
    assert step.policy_rejected_logps.requires_grad
    assert read == [learner]
    assert not step.reference_chosen_logps.requires_grad
    assert not step.reference_rejected_logps.requires_grad
    assert read == [learner, expert]


def test_a_protocol_that_reads_the_reference_or_unwanted_answers_must_say_so(
    even: PreferenceBatch, learner: PreTrainedModel, compute: Compute
) -> None:
    step = Step(learner, None, even, PROTOCOLS["ssft"], compute, STREAM, 0.5)
    for ask in (
        lambda: step.reference,
        lambda: step.reference_chosen_logps,
        lambda: step.activations(Site(0, "resid_post")),
    ):
        with pytest.raises(ValueError, match="protocol ssft: reads the reference"):
            ask()
    for ask in (lambda: step.policy_rejected_logps, lambda: step.reference_rejected_logps):
        with pytest.raises(ValueError, match="protocol ssft: reads unwanted answers"):
            ask()
    assert step.policy_chosen_logps.shape == even.chosen.shape


def test_what_is_registered_can_be_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for kept in ("_entries", "_modules"):
        monkeypatch.setattr(PROTOCOLS, kept, dict(getattr(PROTOCOLS, kept)))

    class Own(Config):
        weight: float = 2.0

    @protocol("own", unsafe_share=0.3, rejected="unsafe", settings=Own)
    def own(step: Step, settings: Own) -> Tensor:
        return settings.weight * nll(step.policy_chosen_logps, step.chosen_lengths)

    assert PROTOCOLS["own"] == Protocol("own", 0.3, own, "unsafe", "", Own)
    with pytest.raises(InputError, match="Unknown protocol 'owm'"):
        PROTOCOLS["owm"]


@pytest.mark.parametrize(
    ("name", "share", "rejected", "reference"),
    [
        ("ssft", 0.2, "", ""),
        ("benign", 0.0, "", ""),
        ("unlearning", 0.5, "unsafe", ""),
        ("simpo", 0.5, "all", ""),
        ("dpo", 0.5, "all", "logps"),
        ("rmu", 0.5, "", "model"),
        ("npo", 0.5, "unsafe", "logps"),
        ("circuit_breakers", 0.5, "", "model"),
    ],
)
def test_protocols_read_what_their_papers_say(name: str, share: float, rejected: str, reference: str) -> None:
    entry = PROTOCOLS[name]
    assert (entry.name, entry.unsafe_share, entry.rejected, entry.reference) == (name, share, rejected, reference)


@pytest.mark.parametrize("name", ["ssft", "benign"])
def test_plain_fine_tuning_learns_the_chosen_answer_alone(
    name: str, ragged: PreferenceBatch, learner: PreTrainedModel, compute: Compute
) -> None:
    with torch.no_grad():
        entry = PROTOCOLS[name]
        got = entry.loss(Step(learner, None, ragged, entry, compute, STREAM, 0.5), entry.settings())
        want = [-by_hand(learner, part.prompts.sequence, part.chosen).sum() * 6 / 13 for part in alone(ragged)]
    torch.testing.assert_close(got, torch.stack(want), rtol=1e-4, atol=1e-4)


def test_every_token_of_a_step_counts_the_same(
    ragged: PreferenceBatch, learner: PreTrainedModel, expert: PreTrainedModel, compute: Compute
) -> None:
    with torch.no_grad():
        step = Step(learner, expert, ragged, PROTOCOLS["seen"], compute, STREAM, 0.5)
        chosen, rejected = step.policy_chosen_logps, step.policy_rejected_logps
        found = {name: loss(name, learner, expert, ragged, compute).mean() for name in ("ssft", "seen")}
    # Six prompts: wanted answers of 13 tokens; those that obey of 6 and, of the unsafe ones, of 9.
    torch.testing.assert_close(found["ssft"], -chosen.sum() / 13)
    torch.testing.assert_close(found["seen"], -(chosen[ragged.safe].sum() + rejected[~ragged.safe].sum()) / 15)


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_step_hold_prompts_of_like_length_and_add_up_to_it(
    name: str, ragged: PreferenceBatch, learner: PreTrainedModel, expert: PreTrainedModel, compute: Compute
) -> None:
    entry = PROTOCOLS[name]
    parts = [*_parts(ragged, entry, replace(compute, rows=4))]
    spans = [part.prompts.lengths + (part.chosen != IGNORED).sum(1) for part in parts]
    assert len(parts) == (3 if entry.rejected else 2)
    if not entry.rejected:
        assert all(a.max() <= b.min() for a, b in pairwise(spans))
    with torch.no_grad():
        whole = loss(name, learner, expert, ragged, compute)
        each = [loss(name, learner, expert, part, compute, ragged) for part in parts]
    torch.testing.assert_close(torch.cat(each).sum(), whole.sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rejected": "both"}, "rejected: 'both'; choose from '', 'unsafe', 'all'"),
        ({"reference": "logp"}, "reference: 'logp'; choose from '', 'logps', 'model'"),
        ({"unsafe_share": 5}, "unsafe_share: 5; a share from 0 to 1"),
    ],
)
def test_wrong_arguments_are_told_when_a_protocol_is_registered(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"protocol mine: {said}"):
        protocol("mine", **{"unsafe_share": 0.5, **wrong})
    assert "mine" not in PROTOCOLS
