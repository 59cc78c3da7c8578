"""The fit loop: what a step is, and that a run stopped anywhere goes on bit for bit as if it had not been."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from tunescope.config import PretrainConfig
from tunescope.errors import InputError
from tunescope.models.compute import Compute
from tunescope.rng import Stream
from tunescope.tasks.world.batches import pretraining_batch
from tunescope.tasks.world.world import World
from tunescope.training import fit as fit_module
from tunescope.training.fit import Row, Schedule, TrainingDivergedError, fit
from tunescope.training.optimizers import adamw, muon_and_adamw
from tunescope.training.schedules import settle_then_cool, warmup_cosine

STEPS = 9


def constant(steps: int, scale: float = 1.0) -> Schedule:
    return lambda step, _: scale if step < steps else None


def nothing(_: int) -> Row:
    return {}


def sgd(model: PreTrainedModel, lr: float = 1.0) -> list[Optimizer]:
    """With it, what a step changes is the gradient."""
    return [torch.optim.SGD(model.parameters(), lr=lr)]


def flat(model: PreTrainedModel) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture
def losses_of(easy: World, compute: Compute) -> Callable[..., Callable[[int], Iterator[Tensor]]]:
    """Cross-entropy of a batch per step, in so many parts; `asked` takes down the steps."""

    def losses(model: PreTrainedModel, parts: int = 1, asked: list[int] | None = None):
        def of(step: int) -> Iterator[Tensor]:
            if asked is not None:
                asked.append(step)
            tokens = pretraining_batch(easy, 12, Stream.named(0, "fit", step), 0.0).tokens
            for part in tokens.tensor_split(parts):
                yield -compute.logps(model, part).sum() / tokens[:, 1:].numel()

        return of

    return losses


OPTIMIZERS = {
    "adamw": lambda model: [adamw(list(model.parameters()), 1e-2, 1e-2)],
    "muon and adamw": lambda model: muon_and_adamw(model, PretrainConfig(), torch.float32),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_stopped_run_goes_on_bit_for_bit(
    name: str, architecture: str, new_model, losses_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "SAVE_SECONDS", -1.0)  # after every step
    resume = tmp_path / "stages" / "state"

    def run(resume: Path | None, stop_at: int | None = None, asked: list[int] | None = None):
        def measure(step: int) -> Row:
            if step == stop_at:
                raise KeyboardInterrupt
            return {"right": step / 5} if step % 2 else {}

        model = new_model(architecture=architecture)
        schedule = settle_then_cool(STEPS, 2, 4, "right", settled=1.0)  # which reads the history
        arguments = {"measure": measure, "total": STEPS, "label": "test", "resume": resume}
        return model, fit(model, OPTIMIZERS[name](model), losses_of(model, asked=asked), schedule, **arguments)

    whole, history = run(None)
    for stop in (1, 3, 8):
        with pytest.raises(KeyboardInterrupt):
            run(resume, stop)
    asked: list[int] = []
    resumed, resumed_history = run(resume, asked=asked)
    assert asked == [7, 8]  # step 8 was done but not yet saved
    assert resumed_history == history
    assert [row["step"] for row in history] == list(range(1, STEPS + 1))
    assert whole.state_dict().keys() == resumed.state_dict().keys()
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key


def test_state_is_written_now_and_then_and_only_if_asked_for(
    new_model, losses_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = new_model()
    arguments = {"measure": nothing, "total": 2, "label": "test"}
    fit(model, sgd(model), losses_of(model), constant(2), **arguments, resume=tmp_path / "state")
    assert not list(tmp_path.iterdir())  # over before it was due
    monkeypatch.setattr(fit_module, "SAVE_SECONDS", -1.0)
    fit(model, sgd(model), losses_of(model), constant(2), **arguments)
    assert not list(tmp_path.iterdir())
    fit(model, sgd(model), losses_of(model), constant(2), **arguments, resume=tmp_path / "state")
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


def test_a_save_that_fails_leaves_the_state_before_it(
    new_model, losses_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "SAVE_SECONDS", -1.0)
    model, resume = new_model(), tmp_path / "state"
    arguments = {"measure": nothing, "label": "test", "resume": resume}
    fit(model, sgd(model), losses_of(model), constant(2), total=2, **arguments)
    before = resume.read_bytes()

    def half(tensors: object, path: Path, *_: object) -> None:
        Path(path).write_bytes(before[:99])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fit_module, "save_file", half)
    with pytest.raises(OSError, match="No space left"):
        fit(model, sgd(model), losses_of(model), constant(4), total=4, **arguments)
    assert resume.read_bytes() == before
    assert list(tmp_path.iterdir()) == [resume]


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b[:5], lambda b: b"", lambda b: b"not a state at all"])
def test_a_damaged_state_is_refused_by_name(
    damage: Callable[[bytes], bytes], new_model, losses_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "SAVE_SECONDS", -1.0)
    model, resume = new_model(), tmp_path / "state"
    arguments = {"measure": nothing, "total": 1, "label": "test", "resume": resume}
    fit(model, sgd(model), losses_of(model), constant(1), **arguments)
    resume.write_bytes(damage(resume.read_bytes()))
    with pytest.raises(InputError, match="delete it to start this training again") as caught:
        fit(model, sgd(model), losses_of(model), constant(2), **arguments)
    assert str(caught.value).startswith(f"{resume}: ")


@pytest.mark.parametrize(
    "bad",
    [
        lambda model: flat_sum(model) * float("nan"),
        lambda model: flat_sum(model) + float("inf"),
        lambda model: (flat_sum(model) * 0).sqrt(),  # a loss of 0 whose gradient is not finite
    ],
)
def test_divergence_stops_the_run_and_leaves_the_weights(bad: Callable, new_model, losses_of) -> None:
    model = new_model()
    good = losses_of(model)
    after_one_step: list[Tensor] = []

    def losses(step: int) -> Iterator[Tensor]:
        if step == 0:
            yield from good(step)
        else:
            after_one_step.append(flat(model))
            yield bad(model)

    with pytest.raises(TrainingDivergedError, match=r"tuning x: .*not finite at step 1; lower the learning rate"):
        fit(model, sgd(model, 0.1), losses, constant(5), measure=nothing, total=5, label="tuning x")
    assert torch.equal(flat(model), after_one_step[0])


def flat_sum(model: PreTrainedModel) -> Tensor:
    return torch.stack([parameter.sum() for parameter in model.parameters()]).sum()


@pytest.mark.parametrize("parts", [2, 5, 12])
def test_parts_of_a_loss_add_up_to_the_whole(parts: int, new_model, losses_of) -> None:
    models = [new_model(), new_model()]
    rows = [
        fit(model, sgd(model), losses_of(model, n), constant(1), measure=nothing, total=1, label="test", clip=1e9)[0]
        for model, n in zip(models, (1, parts), strict=True)
    ]
    assert rows[1]["loss"] == pytest.approx(rows[0]["loss"], rel=1e-6)
    start = flat(new_model())
    whole, summed = (start - flat(model) for model in models)
    assert whole.norm() > 0.1
    torch.testing.assert_close(summed, whole, rtol=1e-5, atol=1e-6)


def test_a_step_is_as_long_as_rate_schedule_and_clip_allow(new_model, losses_of) -> None:
    start, model = flat(new_model()), new_model()
    rows = fit(
        model, sgd(model, 0.5), losses_of(model), constant(1, 0.25), measure=nothing, total=1, label="test", clip=0.01
    )
    assert (flat(model) - start).norm().item() == pytest.approx(0.5 * 0.25 * 0.01, rel=1e-3)
    assert rows == [{"step": 1, "loss": rows[0]["loss"], "lr_scale": 0.25}]


def test_every_step_follows_the_schedule_and_is_measured_once(new_model, losses_of) -> None:
    model, measured, rates = new_model(), [], []
    optimizers = [torch.optim.SGD([p], lr=lr) for p, lr in zip(model.parameters(), (0.1, 0.4), strict=False)]

    def measure(step: int) -> Row:
        measured.append(step)
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
        return {"twice": 2.0 * step}

    assert not model.eval().training
    rows = fit(model, optimizers, losses_of(model), warmup_cosine(4, 2, 0.0), measure=measure, total=4, label="test")
    assert measured == [1, 2, 3, 4]
    assert [row["twice"] for row in rows] == [2.0, 4.0, 6.0, 8.0]
    assert [row["lr_scale"] for row in rows] == pytest.approx([0.5, 1.0, 1.0, 0.0])
    for got, scale in zip(rates, (0.5, 1.0, 1.0, 0.0), strict=True):
        assert got == pytest.approx([0.1 * scale, 0.4 * scale])
    assert not model.training


def test_dropout_is_off_so_that_the_same_batches_give_the_same_model(new_model, losses_of) -> None:
    """A model from elsewhere may have dropout, which would draw from torch's own generator."""
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = new_model()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        fit(model, sgd(model), losses_of(model), constant(2), measure=nothing, total=2, label="test")
        ends.append(flat(model))
    assert torch.equal(*ends)


def test_a_schedule_that_ends_at_once_changes_nothing(new_model, losses_of) -> None:
    model = new_model()
    before = flat(model)
    assert fit(model, sgd(model), losses_of(model), constant(0), measure=nothing, total=0, label="test") == []
    assert torch.equal(flat(model), before)


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_the_rest(new_model) -> None:
    for architecture in ("gpt2", "llama"):
        model = new_model(architecture=architecture)
        muon, rest = muon_and_adamw(model, PretrainConfig(lr=1e-3, muon_lr=2e-2, weight_decay=0.5), torch.float32)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        by_muon = {names[id(p)] for p in muon.param_groups[0]["params"]}
        by_adamw = {names[id(p)] for p in rest.param_groups[0]["params"]}
        inside = {n for n, p in model.named_parameters() if p.ndim == 2 and (".h." in n or ".layers." in n)}
        assert by_muon == inside
        assert by_adamw == set(names.values()) - inside
        assert [group["lr"] for o in (muon, rest) for group in o.param_groups] == [2e-2, 1e-3]
        assert [group["weight_decay"] for o in (muon, rest) for group in o.param_groups] == [0.5, 0.5]
