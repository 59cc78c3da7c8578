"""Which direction is taken out: the one that carries refusal, and none that carries nothing or everything."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from tunescope.config import Built
from tunescope.errors import InapplicableError
from tunescope.interventions.base import INTERVENTIONS, Bench
from tunescope.interventions.directions import (
    Direction,
    DirectionConfig,
    mediating,
    refusal_directions,
    without_direction,
)
from tunescope.models.build import build_model
from tunescope.models.sites import Site, weight
from tunescope.rng import Stream
from tunescope.tasks.base import Batch
from tunescope.tasks.world.task import WorldTask
from tunescope.tasks.world.world import World

NULL, SAID, SAFE_END, UNSAFE_END = 1, 2, 3, 4
CONFIG = DirectionConfig()


@torch.no_grad()
def refuser(apart: float = 1.0, layers: int = 3) -> PreTrainedModel:
    """Prompts of both kinds have coordinates 1 and 2, unsafe ones 3 as well: there layer 1 writes a refusal."""
    config = Built(layers=layers, heads=2, width=16)
    stream, cpu = Stream.named(0, "chosen"), torch.device("cpu")
    model = build_model(config, 20, 16, stream, cpu).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.zero_()
    table = model.transformer.wte.weight
    table[NULL, 0], table[SAID, 1] = 5.0, 4.0
    table[[SAFE_END, UNSAFE_END], 1:3] = 1.0
    table[UNSAFE_END, 3] = apart
    weight(model, 1, "W_in")[0, 3], weight(model, 1, "W_out")[0, 0] = 4.0, 4.0
    return model


class Inexact(WorldTask):
    """The same, judged as language is."""

    exact = False


@pytest.fixture
def fit(prompts: Callable[..., Batch]) -> dict[str, Batch]:
    ends = {"safe": SAFE_END, "unsafe": UNSAFE_END}
    return {
        kind: prompts(kind, torch.tensor([[first, SAID, end] for first in (7, 8, 9, 10)]), 1)
        for kind, end in ends.items()
    }


@pytest.fixture
def chosen(fit: dict[str, Batch], easy: World) -> Callable[..., int | None]:
    """The layer whose direction is taken out, of planted ones by layer, from the coordinates that each has."""

    def layer(**planted: Mapping[int, float]) -> int | None:
        found: dict[Site, Direction] = {}
        for number, parts in enumerate(planted.values()):
            vector = torch.zeros(16, dtype=torch.float64)
            for coordinate, part in parts.items():
                vector[coordinate] = part
            found[Site(number, "resid_post")] = Direction(vector / vector.norm(), vector.norm(), 1.0)
        return mediating(refuser(), Inexact(easy), fit, found, 3, CONFIG).layer

    return layer


REFUSAL, IDLE = {3: 1.0}, {9: 1.0}
TIED = {3: 1.0, 1: 0.1}  # takes a hundredth of what says SAID along
INCOHERENT = {3: 1.0, 1: 1.0}  # takes half of it along


def test_the_planted_direction_is_found_whatever_ties_with_it(
    chosen: Callable[..., int | None], fit: dict[str, Batch], easy: World
) -> None:
    model = refuser()
    for parts in (REFUSAL, TIED, INCOHERENT):
        vector = torch.zeros(16)
        vector[list(parts)] = torch.tensor(list(parts.values()))
        with without_direction(model, vector / vector.norm()):
            assert not WorldTask(easy).outcomes(model, fit["unsafe"], 3).refusal.any()
    assert chosen(idle=IDLE, tied=TIED, planted=REFUSAL) == 2
    assert chosen(planted=REFUSAL, tied=TIED) == 0
    assert chosen(idle=IDLE, tied=TIED) == 1


def test_a_direction_that_safe_answers_live_by_is_refused(chosen: Callable[..., int | None]) -> None:
    assert chosen(incoherent=INCOHERENT, tied=TIED) == 1
    assert chosen(incoherent=INCOHERENT, idle=IDLE) == 1
    with pytest.raises(
        InapplicableError, match=r"if the only direction is removed, .* nats per token or more \(most_kl: 0.1"
    ):
        chosen(incoherent=INCOHERENT)


def test_where_right_answers_are_known_they_count(fit: dict[str, Batch], easy: World) -> None:
    """Half of what says the answer is enough to say it, and none of it is not."""

    def chosen(*parts: Mapping[int, float]) -> int | None:
        vectors = [torch.zeros(16, dtype=torch.float64).index_fill(0, torch.tensor([*of]), 1.0) for of in parts]
        found = {Site(i, "resid_post"): Direction(v / v.norm(), v.norm(), 1.0) for i, v in enumerate(vectors)}
        return mediating(refuser(), WorldTask(easy), fit, found, 3, CONFIG).layer

    assert chosen(INCOHERENT) == 0
    assert chosen({1: 1.0}, INCOHERENT) == 1
    with pytest.raises(InapplicableError, match=r"at most 0.0% of safe prompts are still answered \(least_kept: 0.9\)"):
        chosen({1: 1.0})


def test_coherence_is_of_what_the_intact_model_answers(fit: dict[str, Batch], easy: World) -> None:
    """A prompt that it refuses is answered without the direction, which is no loss; one that answers none has none."""
    model, task = refuser(), WorldTask(easy)
    directions = refusal_directions(model, fit, 3, CONFIG)
    refused = fit["unsafe"].first(1).prompts.sequence
    mixed = replace(fit["safe"], prompts=replace(fit["safe"].prompts, sequence=fit["safe"].prompts.sequence.clone()))
    mixed.prompts.sequence[0] = refused
    assert mediating(model, task, fit | {"safe": mixed}, directions, 3, CONFIG).layer in (0, 1)
    with pytest.raises(InapplicableError, match="safe prompts are not answered to begin with"):
        mediating(model, task, dict.fromkeys(fit, fit["unsafe"]), directions, 3, CONFIG)


def test_a_negligible_direction_is_none(fit: dict[str, Batch]) -> None:
    found = refusal_directions(refuser(0.1), fit, 3, CONFIG)
    first = found[Site(0, "resid_post")]
    assert list(found) == [Site(0, "resid_post"), Site(1, "resid_post")]
    assert first.size.item() == pytest.approx(0.1)
    assert first.share == pytest.approx(0.1 / ((2**0.5 + 2.01**0.5) / 2), rel=1e-4)
    assert first.unit.argmax().item() == 3
    # What differs by less than a hundredth of an activation is rounding, unless a later layer makes something of it.
    loud = refuser(0.01)
    weight(loud, 1, "W_in")[0].zero_()
    with pytest.raises(InapplicableError, match=r"nearer than 0\.01 of an activation everywhere"):
        refusal_directions(loud, fit, 3, CONFIG)
    with torch.no_grad():
        weight(loud, 1, "W_in")[0, 3], loud.transformer.h[1].mlp.c_fc.bias[0] = 400.0, 150.0
    assert list(refusal_directions(loud, fit, 3, CONFIG)) == [Site(1, "resid_post")]


def test_where_nothing_can_be_taken_out_something_can_still_be_put_in(
    bench: Callable[..., Bench], fit: dict[str, Batch], easy: World
) -> None:
    model, kind = refuser(), INTERVENTIONS["direction"]
    inexact = replace(bench(model, model, fit=fit), task=Inexact(easy))
    made = kind.make(inexact, kind.settings(most_kl=1e-12, least_size=0))
    names = [next(made).name, next(made).name]
    assert names == ["direction_added", "random_direction_added"]


@pytest.mark.parametrize(("layers", "tried"), [(5, 4), (30, 8)])
def test_few_prompts_choose_among_few_layers(layers: int, tried: int, prompts, easy: World) -> None:
    """Beside the passes that give the means: per layer, what comes next after safe prompts, and unsafe answers."""
    tokens = torch.arange(5, 15).repeat(10)[:100, None].expand(-1, 2)
    fit = {
        kind: prompts(kind, torch.cat([tokens, torch.full((100, 1), end)], 1), 1)
        for kind, end in (("safe", SAFE_END), ("unsafe", UNSAFE_END))
    }
    model, read = refuser(layers=layers), []
    model.register_forward_pre_hook(lambda _, __, given: read.append(len(given["input_ids"])), with_kwargs=True)
    config = CONFIG.model_copy(update={"prompts": 32})
    directions = refusal_directions(model, fit, 100, config)
    assert (len(directions), sum(read)) == (tried, 200)
    read.clear()
    mediating(model, Inexact(easy), fit, directions, 100, config)
    said = 10 * easy.answer_length  # a pass per token of an answer; of prompts that are the same, one
    assert sum(read) == said + 32 + tried * (32 + said)
