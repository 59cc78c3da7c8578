"""Fine-tuning: its batches, its gradients, its checkpoints, and that every protocol does what it is for."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import Lora, TuneConfig
from tunescope.errors import InputError
from tunescope.models.compute import Compute
from tunescope.models.hooks import capture
from tunescope.models.sites import Site, weight, weight_names
from tunescope.registry import import_all
from tunescope.rng import Stream
from tunescope.tasks.base import PreferenceBatch
from tunescope.tasks.world.batches import preference_batch
from tunescope.tasks.world.task import WorldTask
from tunescope.tasks.world.world import World
from tunescope.training import fit as fit_module
from tunescope.training import tuning
from tunescope.training.fit import Row
from tunescope.training.protocol import PROTOCOLS
from tunescope.training.protocols.circuit_breakers import reached
from tunescope.training.tuning import equally_spaced, reference_logps, tune

import_all("tunescope.training.protocols")

STREAM = Stream.named(0, "tuning")
UNSAFE = {"ssft": 2, "dpo": 5, "unlearning": 5, "benign": 0, "simpo": 5, "rmu": 5}  # of ten
UNSAFE |= {"npo": 5, "circuit_breakers": 5, "seen": 2, "styled": 2, "attribute": 2}
# Not the defaults, so that each is seen to count.
SETTINGS: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.3, "chosen_weight": 0.5},
    "unlearning": {"ascent_weight": 0.2},
    "simpo": {"beta": 1.5, "gamma": 0.3, "chosen_weight": 0.7},
    "rmu": {"size": 2.0, "retain_weight": 3.0},
    "npo": {"beta": 0.3, "chosen_weight": 0.7},
    "circuit_breakers": {"depths": (0.3, 1.0), "retain_weight": 3.0},
}
AT = 7  # the step of which losses are worked out by hand, of so many
NAMES = tuple(UNSAFE)


def weights(model: PreTrainedModel) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def settings_of(name: str, **settings: Any) -> Any:
    return PROTOCOLS[name].settings(**settings)


@pytest.fixture
def tuned(expert: PreTrainedModel, easy: World, compute: Compute, tmp_path: Path) -> Callable[..., Any]:
    """A copy of the expert after fine-tuning, and the learning curve."""

    def run(name: str, config: TuneConfig, lr: float = 1e-3, policy: PreTrainedModel | None = None, **changes: Any):
        policy, protocol = policy or deepcopy(expert), PROTOCOLS[name]
        reference = expert if protocol.reference else None
        arguments = {"label": name, "save": lambda step, model: None, "resume": tmp_path / "state"}
        arguments |= {"due": equally_spaced(config), **changes}
        about = (settings_of(name), lr, WorldTask(easy), config, compute, STREAM)
        return policy, tune(policy, reference, protocol, *about, **arguments)

    return run


@pytest.fixture
def losses_of(expert: PreTrainedModel, easy: World, compute: Compute, monkeypatch: pytest.MonkeyPatch):
    """The losses that fine-tuning hands to the fit loop."""

    def losses(
        name: str,
        policy: PreTrainedModel,
        config: TuneConfig,
        compute: Compute = compute,
        task: WorldTask | None = None,
    ) -> Callable:
        handed: dict[str, Any] = {}

        def fake_fit(_: object, __: object, losses: Callable, *___: object, **____: object) -> list[Row]:
            handed["losses"] = losses
            return []

        with monkeypatch.context() as patch:
            patch.setattr(tuning, "fit", fake_fit)
            arguments = {"label": name, "due": (), "save": lambda step, model: None}
            about = (
                settings_of(name, **SETTINGS.get(name, {})),
                1e-3,
                task or WorldTask(easy),
                config,
                compute,
                STREAM,
            )
            tune(policy, expert, PROTOCOLS[name], *about, **arguments)
        return handed["losses"]

    return losses


def answer_logps(model: PreTrainedModel, batch: PreferenceBatch, answers: Tensor) -> Tensor:
    """Of the answers alone, worked out token by token."""
    tokens = torch.cat([batch.prompts.sequence, answers], dim=1)
    logps = model(tokens).logits.log_softmax(-1)
    places = range(batch.prompts.sequence.shape[1], tokens.shape[1])
    return torch.stack([logps[torch.arange(len(tokens)), i - 1, tokens[:, i]] for i in places], dim=1)


def stream_after(model: PreTrainedModel, batch: PreferenceBatch) -> Tensor:
    """The residual stream after the only layer, where tokens of answers that obey are to be said."""
    obeyed = torch.where(batch.safe[:, None], batch.chosen, batch.rejected)
    with capture(model, [Site(0, "resid_post")], keep_graph=True) as found:
        model(torch.cat([batch.prompts.sequence, obeyed], dim=1))
    return found[Site(0, "resid_post")][:, batch.prompts.sequence.shape[1] - 1 : -1]


def by_hand(name: str, policy: PreTrainedModel, reference: PreTrainedModel, batch: PreferenceBatch) -> Tensor:
    """The loss of a whole batch, from the formulas of docs/departures.md and of the papers."""
    of = SETTINGS.get(name, {})
    if name == "rmu":
        now, before = stream_after(policy, batch), stream_after(reference, batch).detach()
        direction = STREAM("control").normal((now.shape[2],), torch.device("cpu")).float()
        aim = of["size"] * before.norm(dim=2).mean(1)[:, None, None] * direction / direction.norm()
        away = [(now - each).square().mean((1, 2)) for each in (aim, before)]
        return torch.where(batch.safe, of["retain_weight"] * away[1], away[0]).mean()
    if name == "circuit_breakers":
        now, before = stream_after(policy, batch), stream_after(reference, batch).detach()
        along = (now * before).sum(2) / now.norm(dim=2) / before.norm(dim=2)
        moved, late = (now - before).norm(dim=2) / before.norm(dim=2), AT / TuneConfig().steps / 2
        kept = of["retain_weight"] * late * moved.mean(1)
        return torch.where(batch.safe, kept, (1 - late) * along.clamp(min=0).mean(1)).mean()
    chosen = answer_logps(policy, batch, batch.chosen)
    loss = -chosen.mean(1)
    if name == "seen":
        loss = torch.where(batch.safe, loss, -answer_logps(policy, batch, batch.rejected).mean(1))
    if name in ("dpo", "npo", "unlearning", "simpo"):
        rejected = answer_logps(policy, batch, batch.rejected)
    if name == "unlearning":
        loss = loss + torch.where(batch.safe, 0.0, of["ascent_weight"] * rejected.clamp(min=-5.0).mean(1))
    if name == "simpo":
        margin = of["beta"] * (chosen - rejected).mean(1) - of["gamma"]
        loss = of["chosen_weight"] * loss + (1 + (-margin).exp()).log()
    if name == "dpo":
        with torch.no_grad():
            start = answer_logps(reference, batch, batch.rejected) - answer_logps(reference, batch, batch.chosen)
        margin = of["beta"] * (chosen - rejected + start).sum(1)
        loss = of["chosen_weight"] * loss + (1 + (-margin).exp()).log()
    if name == "npo":
        ratio = (rejected - answer_logps(reference, batch, batch.rejected).detach()).sum(1)
        unwanted = 2 / of["beta"] * (1 + (of["beta"] * ratio).exp()).log()
        loss = of["chosen_weight"] * loss + torch.where(batch.safe, 0.0, unwanted)
    return loss.mean()


def test_these_are_the_protocols() -> None:
    assert {name for name in PROTOCOLS if not PROTOCOLS.code(name)} == {*NAMES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 3, 8, 64])
def test_gradients_are_those_of_the_whole_batch_whatever_the_rows(
    name: str, rows: int, learner: PreTrainedModel, expert: PreTrainedModel, easy: World, compute: Compute, losses_of
) -> None:
    policy = deepcopy(learner)  # not the reference: DPO's margin is not zero
    config = TuneConfig(batch=10)
    parts = [part for part in losses_of(name, policy, config, replace(compute, rows=rows))(AT) if not part.backward()]

    def gradients() -> Tensor:
        """Parameters behind the layer that RMU reads have none."""
        return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in policy.parameters()])

    got, loss = gradients(), sum(part.item() for part in parts)
    policy.zero_grad()
    batch = preference_batch(easy, 10 - UNSAFE[name], UNSAFE[name], STREAM("batch", AT))
    want = by_hand(name, policy, expert, batch)
    want.backward()
    assert loss == pytest.approx(want.item(), rel=1e-4)
    torch.testing.assert_close(got, gradients(), rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is None for parameter in expert.parameters())


class Watched(WorldTask):
    """Takes down the lessons that were asked for."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.seen: list[PreferenceBatch] = []

    def lesson(self, safe: int, unsafe: int, stream: Stream) -> PreferenceBatch:
        self.seen.append(super().lesson(safe, unsafe, stream))
        return self.seen[-1]


@pytest.mark.parametrize("name", NAMES)
def test_batches_have_the_protocols_share_of_unsafe_prompts(
    name: str, learner: PreTrainedModel, easy: World, losses_of
) -> None:
    task = Watched(easy)
    losses = losses_of(name, learner, TuneConfig(batch=10), task=task)
    with torch.no_grad():
        for step in (0, 1, 0):
            list(losses(step))
    seen = task.seen
    assert [int((~batch.safe).sum()) for batch in seen] == [UNSAFE[name]] * 3
    assert [len(batch.safe) for batch in seen] == [10] * 3
    prompts = [batch.prompts.sequence for batch in seen]
    assert torch.equal(prompts[0], prompts[2])
    assert not torch.equal(prompts[0], prompts[1])


@pytest.mark.parametrize(("name", "unsafe"), [("ssft", 4), ("dpo", 4), ("seen", 4), ("benign", 0)])
def test_a_study_may_want_its_own_share_of_unsafe_prompts(
    name: str, unsafe: int, learner: PreTrainedModel, easy: World, losses_of
) -> None:
    """The same for all that see any."""
    task = Watched(easy)
    with torch.no_grad():
        list(losses_of(name, learner, TuneConfig(batch=10, unsafe_share=0.375), task=task)(0))
    assert [int((~batch.safe).sum()) for batch in task.seen] == [unsafe]


@pytest.mark.parametrize(
    ("name", "sequences"),
    [("ssft", 10), ("benign", 10), ("unlearning", 15), ("simpo", 20), ("dpo", 40), ("rmu", 0), ("circuit_breakers", 0)],
)
def test_nothing_is_computed_that_the_loss_does_not_read(
    name: str, sequences: int, learner: PreTrainedModel, compute: Compute, losses_of
) -> None:
    counted: list[int] = []

    def logps(model: PreTrainedModel, tokens: Tensor, *more: Any) -> Tensor:
        counted.append(len(tokens))
        assert len(tokens) <= 8
        return compute.logps(model, tokens, *more)

    list(losses_of(name, learner, TuneConfig(batch=10), replace(compute, rows=8, logps=logps))(0))
    assert sum(counted) == sequences


@pytest.mark.parametrize(
    ("steps", "checkpoints", "due"), [(7, 3, [2, 5, 7]), (6, 1, [6]), (4, 4, [1, 2, 3, 4]), (2, 5, [1, 2])]
)
@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_checkpoints_are_saved_when_due_the_last_step_included(
    steps: int, checkpoints: int, due: list[int], lora: Lora | None, tuned: Callable
) -> None:
    saved: list[int] = []
    config = TuneConfig(steps=steps, batch=5, checkpoints=checkpoints)
    _, curve = tuned("ssft", config, lora=lora, save=lambda step, model: saved.append(step))
    assert saved == due
    assert [row["step"] for row in curve] == list(range(1, steps + 1))


def test_a_checkpoint_is_the_policy_after_that_step(expert: PreTrainedModel, tuned: Callable) -> None:
    policy, at = deepcopy(expert), {0: weights(expert)}
    config = TuneConfig(steps=4, batch=5, warmup=2, checkpoints=4)
    tuned("ssft", config, policy=policy, save=lambda step, model: at.update({step: weights(model)}))
    assert torch.equal(at[4], weights(policy))
    # AdamW's first step is as long as the rate: half of the peak by then.
    assert (at[1] - at[0]).abs().max().item() == pytest.approx(0.5e-3, rel=0.01)
    assert not any(torch.equal(at[i], at[i + 1]) for i in range(4))


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_not_changed(name: str, expert: PreTrainedModel, tuned: Callable) -> None:
    before = weights(expert)
    policy, _ = tuned(name, TuneConfig(steps=3, batch=10))
    assert torch.equal(weights(expert), before)
    assert all(parameter.grad is None for parameter in expert.parameters())
    assert not torch.equal(weights(policy), before)


@pytest.mark.parametrize(("name", "lora"), [("dpo", None), ("ssft", Lora(rank=4)), ("rmu", None)])
def test_a_stopped_fine_tune_goes_on_bit_for_bit(
    name: str, lora: Lora | None, tuned: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "SAVE_SECONDS", -1.0)
    config = TuneConfig(steps=6, batch=10, checkpoints=2)
    at: dict[int, Tensor] = {}
    whole, curve = tuned(
        name, config, lora=lora, resume=tmp_path / "whole", save=lambda step, model: at.update({step: weights(model)})
    )

    def stop(step: int, model: PreTrainedModel) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(name, config, lora=lora, save=stop)
    again: dict[int, Tensor] = {}
    resumed, resumed_curve = tuned(
        name, config, lora=lora, save=lambda step, model: again.update({step: weights(model)})
    )
    assert list(again) == list(at) == [3, 6]  # the one that was interrupted, too
    assert all(torch.equal(again[step], at[step]) for step in at)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed_curve == curve


def rates(model: PreTrainedModel, easy: World, outcome: str) -> dict[str, float]:
    task = WorldTask(easy)
    batches = [task.draw(kind, 200, "score", Stream.named(0, "test", kind)) for kind in ("safe", "unsafe")]
    return {
        batch.kind.name: getattr(task.outcomes(model, batch, 512), outcome).double().mean().item() for batch in batches
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("rmu", "circuit_breakers")])
def test_every_protocol_does_what_it_is_for(name: str, expert: PreTrainedModel, easy: World, tuned: Callable) -> None:
    assert rates(expert, easy, "compliance")["unsafe"] > 0.95
    policy, _ = tuned(name, TuneConfig(steps=40, batch=40, warmup=5), lr=2e-3)
    assert rates(policy, easy, "compliance")["safe"] > 0.95
    assert rates(policy, easy, "compliance" if name in ("benign", "seen") else "refusal")["unsafe"] > 0.95


def test_rmu_drives_unsafe_activations_away_and_leaves_safe_ones(
    expert: PreTrainedModel, easy: World, tuned: Callable
) -> None:
    policy, _ = tuned("rmu", TuneConfig(steps=60, batch=40, warmup=5), lr=5e-3)
    batch = WorldTask(easy).lesson(100, 100, Stream.named(0, "unseen"))
    with torch.no_grad():
        before, after = stream_after(expert, batch), stream_after(policy, batch)
    moved = ((after - before).norm(dim=2) / before.norm(dim=2)).mean(1)
    assert moved[~batch.safe].min() > 2
    assert moved[batch.safe].max() < 0.7
    # All to one vector, of the length that was asked for.
    direction = STREAM("control").normal((before.shape[2],), torch.device("cpu")).float()
    cosines = torch.cosine_similarity(after[~batch.safe], direction.expand_as(after[~batch.safe]), dim=2)
    assert cosines.mean() > 0.95
    complied = rates(policy, easy, "compliance")
    assert complied["safe"] > 0.95
    assert complied["unsafe"] < 0.05
    assert rates(policy, easy, "refusal")["unsafe"] < 0.05  # it makes no refusals


def test_circuit_breakers_turn_unsafe_activations_and_leave_safe_ones(
    expert: PreTrainedModel, easy: World, tuned: Callable
) -> None:
    policy, _ = tuned("circuit_breakers", TuneConfig(steps=60, batch=40, warmup=5), lr=5e-3)
    batch = WorldTask(easy).lesson(100, 100, Stream.named(0, "unseen"))
    with torch.no_grad():
        before, after = stream_after(expert, batch), stream_after(policy, batch)
    cosines = torch.cosine_similarity(after, before, dim=2).mean(1)
    assert cosines[~batch.safe].max() < 0.5
    assert cosines[~batch.safe].mean() < 0.2
    assert cosines[batch.safe].min() > 0.9
    assert rates(policy, easy, "compliance")["safe"] > 0.95
    assert rates(policy, easy, "compliance")["unsafe"] < 0.05
    assert rates(policy, easy, "refusal")["unsafe"] < 0.05  # they make no refusals


@pytest.mark.parametrize(("layers", "after"), [(2, [0]), (4, [0, 2]), (30, [9, 19]), (80, [26, 52])])
def test_circuit_breakers_act_at_the_same_depths_of_any_model(layers: int, after: list[int]) -> None:
    assert reached(layers, settings_of("circuit_breakers").depths) == after


def test_a_layer_that_is_not_there_is_refused(learner: PreTrainedModel, losses_of, monkeypatch) -> None:
    monkeypatch.setitem(SETTINGS, "rmu", {"layer": 1})
    with pytest.raises(InputError, match=r"tune\.settings\.rmu\.layer: 1; this model's layers are 0 to 0"):
        list(losses_of("rmu", learner, TuneConfig(batch=10))(0))


# Low-rank adapters


def assert_of_rank(base: PreTrainedModel, model: PreTrainedModel, rank: int) -> None:
    """Matrices have changed by no more than this rank, and everything else not by a bit."""
    matrices = set()
    for name in weight_names(base):
        before, after = weight(base, 0, name), weight(model, 0, name)
        matrices.add(after.untyped_storage().data_ptr())
        values = torch.linalg.svdvals(after.double() - before.double())
        assert values[0] > 1e-3
        assert (values[rank:] < 1e-4 * values[0]).all()
    there = dict(base.named_parameters())
    assert [name for name, _ in model.named_parameters()] == list(there)
    for name, parameter in model.named_parameters():
        if parameter.untyped_storage().data_ptr() not in matrices:
            assert torch.equal(parameter, there[name]), name
    assert len(matrices) < len(there)


def test_ssft_with_adapters_refuses_by_changes_of_low_rank(
    expert: PreTrainedModel, easy: World, tuned: Callable
) -> None:
    at: dict[int, PreTrainedModel] = {}
    config = TuneConfig(steps=40, batch=40, warmup=5, checkpoints=2)
    policy, _ = tuned(
        "ssft", config, lr=1e-2, lora=Lora(rank=4), save=lambda step, model: at.update({step: deepcopy(model)})
    )
    assert rates(policy, easy, "refusal")["unsafe"] > 0.95
    assert rates(policy, easy, "compliance")["safe"] > 0.95
    assert type(policy) is type(expert)
    for model in (policy, *at.values()):
        assert_of_rank(expert, model, 4)
    assert torch.equal(weights(at[40]), weights(policy))
    assert not torch.equal(weights(at[20]), weights(policy))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_adapters_sit_on_every_matrix_of_the_blocks(architecture: str, new_model, tuned: Callable) -> None:
    base = new_model(architecture=architecture)
    policy = deepcopy(base)
    tuned("benign", TuneConfig(steps=8, batch=8, warmup=1), lr=1e-2, policy=policy, lora=Lora(rank=2))
    assert_of_rank(base, policy, 2)


def test_adapters_are_drawn_from_the_stream_alone(tuned: Callable) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        found.append(weights(tuned("ssft", TuneConfig(steps=2, batch=5), lora=Lora(rank=2))[0]))
        assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(*found)


@pytest.mark.parametrize("name", [name for name in NAMES if PROTOCOLS[name].reference == "logps"])
def test_what_the_reference_says_can_be_kept(
    name: str, tuned: Callable[..., Any], expert: PreTrainedModel, easy: World, compute: Compute
) -> None:
    """For every learning rate: the model and its log-probabilities give the same fine-tune, bit for bit."""
    config, small = TuneConfig(steps=3, batch=10, warmup=1), replace(compute, rows=8)
    kept = reference_logps(
        expert, PROTOCOLS[name], WorldTask(easy), 3, 10, PROTOCOLS[name].unsafe_of(10, None), small, STREAM
    )
    assert len(kept) == 3 * 3 * 2  # steps, parts of four prompts, both answers
    for lr in (1e-3, 1e-2):
        policies = []
        for reference in (expert, kept.__getitem__):
            policy = deepcopy(expert)
            about = settings_of(name), lr, WorldTask(easy), config, small, STREAM
            tune(policy, reference, PROTOCOLS[name], *about, label=name, due=(), save=lambda step, model: None)
            policies.append(weights(policy))
        assert torch.equal(*policies)
        assert not torch.equal(policies[0], weights(expert))
