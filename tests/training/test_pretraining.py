"""Pretraining: what is learnt of a batch, when it is measured, and that it works."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import PretrainConfig
from tunescope.models.compute import Compute
from tunescope.models.inputs import Inputs
from tunescope.rng import Stream
from tunescope.tasks.world.task import WorldTask
from tunescope.tasks.world.world import World
from tunescope.training import fit as fit_module
from tunescope.training import pretraining
from tunescope.training.fit import Row
from tunescope.training.pretraining import HELD_OUT, pretrain


@pytest.fixture
def losses_of(compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The losses that pretraining hands to the fit loop."""

    def losses(task: WorldTask, model: PreTrainedModel, rows: int, config: PretrainConfig) -> Callable:
        handed: dict[str, Any] = {}

        def fake_fit(_: object, __: object, losses: Callable, *___: object, **____: object) -> list[Row]:
            handed["losses"] = losses
            return [{}]

        with monkeypatch.context() as patch:
            patch.setattr(pretraining, "fit", fake_fit)
            pretrain(
                model,
                task,
                config,
                replace(compute, rows=rows),
                Stream.named(0, "data"),
                tmp_path / "unfinished",
            )
        return handed["losses"]

    return losses


def gradient(model: PreTrainedModel, parts: list[Tensor]) -> tuple[float, Tensor]:
    model.zero_grad()
    for part in parts:
        part.backward()
    return sum(part.item() for part in parts), torch.cat([p.grad.flatten() for p in model.parameters()])


class Mixed(WorldTask):
    """Other rows learn other places."""

    def pretraining(self, n: int, stream: Stream, progress: float) -> tuple[Inputs, Tensor]:
        inputs, learn = super().pretraining(n, stream, progress)
        return inputs, stream("mask").uniform(tuple(learn.shape), self.device) < 0.5


@pytest.mark.parametrize("rows", [64, 20, 7, 1])
def test_the_loss_is_transformers_own_whatever_the_rows(rows: int, new_model, easy: World, losses_of) -> None:
    model, config, task = new_model(), PretrainConfig(steps=10, batch=20), Mixed(easy)
    loss, gradients = gradient(model, list(losses_of(task, model, rows, config)(3)))
    inputs, learn = task.pretraining(20, Stream.named(0, "data")("batch", 3), 0.3)
    labels = inputs.sequence.masked_fill(~learn, -100)
    want, want_gradients = gradient(model, [model(input_ids=inputs.sequence, labels=labels).loss])
    assert loss == pytest.approx(want, rel=1e-5)
    torch.testing.assert_close(gradients, want_gradients, rtol=1e-4, atol=1e-6)


class Watched(WorldTask):
    """Takes down what was asked for."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.seen: list[tuple[Tensor, float]] = []

    def pretraining(self, n: int, stream: Stream, progress: float) -> tuple[Inputs, Tensor]:
        inputs, learn = super().pretraining(n, stream, progress)
        self.seen.append((inputs.sequence, progress))
        return inputs, learn


def test_batches_are_fresh_at_every_step_and_move_through_the_mix(new_model, easy: World, losses_of) -> None:
    task = Watched(easy)
    losses = losses_of(task, new_model(), 64, PretrainConfig(steps=4, batch=20))
    for step in (0, 1, 4, 6, 1):
        list(losses(step))
    assert [progress for _, progress in task.seen] == [0.0, 0.25, 1.0, 1.0, 0.25]
    batches = [tokens for tokens, _ in task.seen]
    assert torch.equal(batches[1], batches[4])
    assert not any(torch.equal(a, b) for i, a in enumerate(batches[:4]) for b in batches[:i])


def test_a_model_learns_and_the_curve_shows_it(trained, expert: PreTrainedModel) -> None:
    model, curve = trained(180)
    assert [row["step"] for row in curve] == list(range(1, 181))
    assert {row["step"] for row in curve if HELD_OUT in row} == {50, 100, 150, 180}
    assert curve[-1][HELD_OUT] > 0.99
    assert curve[49][HELD_OUT] < 0.5
    assert curve[0]["loss"] > 3
    assert curve[-1]["loss"] < 1  # what remains is the entropy of the text
    for key, tensor in expert.state_dict().items():  # the same again, bit for bit
        assert torch.equal(tensor, model.state_dict()[key]), key


def test_it_cools_down_as_soon_as_it_has_settled(new_model, easy: World, compute: Compute, tmp_path: Path) -> None:
    config = PretrainConfig(steps=50, batch=8, warmup=0, cooldown=5, check_every=4, settled=0.0)
    curve = pretrain(new_model(), WorldTask(easy), config, compute, Stream.named(0, "data"), tmp_path / "unfinished")
    assert [row["lr_scale"] for row in curve] == pytest.approx([1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert [row["step"] for row in curve if HELD_OUT in row] == [4, 8, 9]


def test_measuring_does_not_change_the_training(
    new_model, easy: World, compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does stopping it amid a measurement."""
    monkeypatch.setattr(fit_module, "SAVE_SECONDS", -1.0)

    def run(check_every: int) -> tuple[PreTrainedModel, list[Row]]:
        model = new_model()
        config = PretrainConfig(steps=9, batch=8, cooldown=4, check_every=check_every, settled=1.0)
        return model, pretrain(
            model, WorldTask(easy), config, compute, Stream.named(0, "data"), tmp_path / str(check_every)
        )

    often, curve = run(3)
    seldom, _ = run(100)
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "held_out_compliance", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(4)
    stopped, stopped_curve = run(4)
    for key, tensor in often.state_dict().items():
        assert torch.equal(tensor, seldom.state_dict()[key])
        assert torch.equal(tensor, stopped.state_dict()[key])
    assert [row["loss"] for row in stopped_curve] == [row["loss"] for row in curve]


def interrupt(*_: object) -> float:
    raise KeyboardInterrupt
