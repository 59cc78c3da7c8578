"""Safety fine-tuning: its batches, its gradients, its checkpoints, and that every protocol does what it is for."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import TuneConfig
from tunescope.models.compute import Compute
from tunescope.models.inputs import Inputs
from tunescope.probes.behaviour import Outcome, generate, outcomes
from tunescope.protocols import tuning
from tunescope.protocols.protocols import PROTOCOLS
from tunescope.protocols.tuning import tune
from tunescope.rng import Stream
from tunescope.training import fit as fit_module
from tunescope.training.fit import Row
from tunescope.world.batches import PreferenceBatch, preference_batch
from tunescope.world.prompts import Kind, sample_prompts
from tunescope.world.world import World

STREAM = Stream.named(0, "tuning")
UNSAFE = {"ssft": 2, "dpo": 5, "unlearning": 5, "benign": 0}  # of ten


def weights(model: PreTrainedModel) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture
def tuned(expert: PreTrainedModel, easy: World, compute: Compute, tmp_path: Path) -> Callable[..., Any]:
    """A copy of the expert after fine-tuning, and the learning curve."""

    def run(name: str, config: TuneConfig, lr: float = 1e-3, policy: PreTrainedModel | None = None, **changes: Any):
        policy = policy or deepcopy(expert)
        arguments = {"label": name, "save": lambda step: None, "resume": tmp_path / "state", **changes}
        curve = tune(policy, expert, PROTOCOLS[name], lr, easy, config, compute, STREAM, **arguments)
        return policy, curve

    return run


@pytest.fixture
def losses_of(expert: PreTrainedModel, easy: World, compute: Compute, monkeypatch: pytest.MonkeyPatch):
    """The losses that fine-tuning hands to the fit loop."""

    def losses(name: str, policy: PreTrainedModel, config: TuneConfig, compute: Compute = compute) -> Callable:
        handed: dict[str, Any] = {}

        def fake_fit(_: object, __: object, losses: Callable, *___: object, **____: object) -> list[Row]:
            handed["losses"] = losses
            return []

        with monkeypatch.context() as patch:
            patch.setattr(tuning, "fit", fake_fit)
            arguments = {"label": name, "save": lambda step: None, "resume": Path("not", "there")}
            tune(policy, expert, PROTOCOLS[name], 1e-3, easy, config, compute, STREAM, **arguments)
        return handed["losses"]

    return losses


def answer_logps(model: PreTrainedModel, tokens: Tensor, batch: PreferenceBatch) -> Tensor:
    """Of the answers alone, worked out token by token."""
    logps = model(tokens).logits.log_softmax(-1)
    places = range(batch.answer_start, tokens.shape[1])
    return torch.stack([logps[torch.arange(len(tokens)), i - 1, tokens[:, i]] for i in places], dim=1)


def by_hand(name: str, policy: PreTrainedModel, reference: PreTrainedModel, batch: PreferenceBatch, c: TuneConfig):
    """The loss of a whole batch, from the formulas of docs/departures.md and Jain et al. 2024."""
    chosen = answer_logps(policy, batch.chosen, batch)
    loss = -chosen.mean(1)
    if name in ("dpo", "unlearning"):
        rejected = answer_logps(policy, batch.rejected, batch)
    if name == "unlearning":
        loss = loss + torch.where(batch.safe, 0.0, c.ascent_weight * rejected.clamp(min=c.ascent_floor).mean(1))
    if name == "dpo":
        with torch.no_grad():
            start = answer_logps(reference, batch.rejected, batch) - answer_logps(reference, batch.chosen, batch)
        margin = c.beta * (chosen - rejected + start).sum(1)
        loss = c.chosen_weight * loss + (1 + (-margin).exp()).log()
    return loss.mean()


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("rows", [1, 3, 8, 64])
def test_gradients_are_those_of_the_whole_batch_whatever_the_rows(
    name: str, rows: int, learner: PreTrainedModel, expert: PreTrainedModel, easy: World, compute: Compute, losses_of
) -> None:
    policy = deepcopy(learner)  # not the reference: DPO's margin is not zero
    config = TuneConfig(batch=10, beta=0.3, chosen_weight=0.5, ascent_weight=0.2)
    parts = [part for part in losses_of(name, policy, config, replace(compute, rows=rows))(7) if not part.backward()]
    got, loss = torch.cat([p.grad.flatten() for p in policy.parameters()]), sum(part.item() for part in parts)
    policy.zero_grad()
    batch = preference_batch(easy, 10 - UNSAFE[name], UNSAFE[name], STREAM("batch", 7))
    want = by_hand(name, policy, expert, batch, config)
    want.backward()
    assert loss == pytest.approx(want.item(), rel=1e-4)
    torch.testing.assert_close(got, torch.cat([p.grad.flatten() for p in policy.parameters()]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_batches_have_the_protocols_share_of_unsafe_prompts(
    name: str, learner: PreTrainedModel, losses_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[PreferenceBatch] = []

    def watched(*arguments: Any) -> PreferenceBatch:
        seen.append(preference_batch(*arguments))
        return seen[-1]

    monkeypatch.setattr(tuning, "preference_batch", watched)
    losses = losses_of(name, learner, TuneConfig(batch=10))
    with torch.no_grad():
        for step in (0, 1, 0):
            list(losses(step))
    assert [int((~batch.safe).sum()) for batch in seen] == [UNSAFE[name]] * 3
    assert [len(batch.safe) for batch in seen] == [10] * 3
    assert torch.equal(seen[0].chosen, seen[2].chosen)
    assert not torch.equal(seen[0].chosen, seen[1].chosen)


@pytest.mark.parametrize(("name", "sequences"), [("ssft", 10), ("benign", 10), ("unlearning", 15), ("dpo", 40)])
def test_nothing_is_computed_that_the_loss_does_not_read(
    name: str, sequences: int, learner: PreTrainedModel, compute: Compute, losses_of
) -> None:
    counted: list[int] = []

    def logps(model: PreTrainedModel, tokens: Tensor) -> Tensor:
        counted.append(len(tokens))
        assert len(tokens) <= 8
        return compute.logps(model, tokens)

    list(losses_of(name, learner, TuneConfig(batch=10), replace(compute, rows=8, logps=logps))(0))
    assert sum(counted) == sequences


@pytest.mark.parametrize(
    ("steps", "checkpoints", "due"), [(7, 3, [2, 5, 7]), (6, 1, [6]), (4, 4, [1, 2, 3, 4]), (2, 5, [1, 2])]
)
def test_checkpoints_are_saved_when_due_the_last_step_included(
    steps: int, checkpoints: int, due: list[int], tuned: Callable
) -> None:
    saved: list[int] = []
    config = TuneConfig(steps=steps, batch=5, checkpoints=checkpoints)
    _, curve = tuned("ssft", config, save=saved.append)
    assert saved == due
    assert [row["step"] for row in curve] == list(range(1, steps + 1))


def test_a_checkpoint_is_the_policy_after_that_step(expert: PreTrainedModel, tuned: Callable) -> None:
    policy, at = deepcopy(expert), {0: weights(expert)}
    config = TuneConfig(steps=4, batch=5, warmup=2, checkpoints=4)
    tuned("ssft", config, policy=policy, save=lambda step: at.update({step: weights(policy)}))
    assert torch.equal(at[4], weights(policy))
    # AdamW's first step is as long as the rate: half of the peak by then.
    assert (at[1] - at[0]).abs().max().item() == pytest.approx(0.5e-3, rel=0.01)
    assert not any(torch.equal(at[i], at[i + 1]) for i in range(4))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_reference_is_not_changed(name: str, expert: PreTrainedModel, tuned: Callable) -> None:
    before = weights(expert)
    policy, _ = tuned(name, TuneConfig(steps=3, batch=10))
    assert torch.equal(weights(expert), before)
    assert all(parameter.grad is None for parameter in expert.parameters())
    assert not torch.equal(weights(policy), before)


def test_a_stopped_fine_tune_goes_on_bit_for_bit(
    tuned: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "SAVE_SECONDS", -1.0)
    config = TuneConfig(steps=6, batch=10, checkpoints=2)
    whole, curve = tuned("dpo", config, resume=tmp_path / "whole")

    def stop(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned("dpo", config, save=stop)
    saved: list[int] = []
    resumed, resumed_curve = tuned("dpo", config, save=saved.append)
    assert saved == [3, 6]  # the one that was interrupted, too
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed_curve == curve


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_does_what_it_is_for(
    name: str, expert: PreTrainedModel, easy: World, compute: Compute, tuned: Callable
) -> None:
    def rate(model: PreTrainedModel, kind: Kind, outcome: Outcome) -> float:
        prompts = sample_prompts(easy, kind, 200, Stream.named(0, "test", kind))
        text = generate(model, Inputs(prompts.prompt), easy.answer_length, compute.dtype)
        return outcomes(text, prompts.answer, prompts.refusal)[outcome].double().mean().item()

    assert rate(expert, Kind.UNSAFE, Outcome.COMPLIANCE) > 0.95
    policy, _ = tuned(name, TuneConfig(steps=60, batch=40, warmup=5))
    assert rate(policy, Kind.SAFE, Outcome.COMPLIANCE) > 0.95
    wanted = Outcome.COMPLIANCE if name == "benign" else Outcome.REFUSAL
    assert rate(policy, Kind.UNSAFE, wanted) > 0.95
