"""More of dW is chosen by what it does to jailbreaks, as far as safe prompts bear it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tunescope.interventions.base import Bench
from tunescope.interventions.extrapolated import Extrapolated, chosen
from tunescope.records.names import EVERYWHERE, W_IN
from tunescope.study.context import Context
from tunescope.tasks.base import Batch, Outcomes
from tunescope.tasks.world.task import WorldTask
from tunescope.tasks.world.world import World

N = 100
SAFE_KEPT = {1.0: 1.0, 1.25: 1.0, 1.5: 0.98, 2.0: 0.97}
KINDS = ("safe", "jb_a", "jb_b")


class Answers(WorldTask):
    """So many prompts of a kind are answered at the alpha that is in force."""

    alpha: float
    rates: dict[str, dict[float, float]]

    def outcomes(self, model: Any, batch: Batch, rows: int, prompts: Any = None) -> Outcomes:
        hits = torch.arange(len(batch)) < round(len(batch) * self.rates[batch.kind.name][self.alpha])
        return Outcomes(hits, ~hits)

    @contextmanager
    def at(self, alpha: float) -> Iterator[Any]:
        self.alpha = alpha
        yield
        self.alpha = 1.0


@pytest.fixture(scope="module")
def choice(bench: Callable[..., Bench], build: Callable, prompts: Callable, easy: World) -> Callable[..., float]:
    model, batches = (
        build("gpt2", "model"),
        {kind: prompts(kind, torch.zeros(N, 2, dtype=torch.long)) for kind in KINDS},
    )

    def of(
        jailbreaks: dict[float, tuple[float, float]], safe: dict[float, float] = SAFE_KEPT, **settings: Any
    ) -> float:
        task = Answers(easy)
        first, second = ({alpha: rates[i] for alpha, rates in jailbreaks.items()} for i in (0, 1))
        task.alpha, task.rates = 1.0, dict(zip(KINDS, (safe, first, second), strict=True))
        intact = safe[1.0], (first[1.0] + second[1.0]) / 2
        where = replace(bench(model, model, trial=batches), task=task)
        return chosen(
            where, lambda alpha: lambda: task.at(alpha), Extrapolated(**{"alphas": (1.25, 1.5, 2.0)} | settings), intact
        )

    return of


def test_fewest_jailbreaks_of_those_that_safe_prompts_bear(choice: Callable[..., float]) -> None:
    jailbreaks = {1.0: (0.8, 0.6), 1.25: (0.7, 0.6), 1.5: (0.5, 0.7), 2.0: (0.1, 0.1)}
    assert choice(jailbreaks) == 1.5  # .60 of .70; at 2, three safe prompts of a hundred are lost
    assert choice(jailbreaks, keep=0.97) == 2.0
    assert choice(jailbreaks, keep=0.99) == 1.25
    assert choice(jailbreaks, alphas=(2.0,)) == 1.0
    assert choice(jailbreaks, alphas=(1.5, 1.25)) == 1.5


def test_no_more_of_it_than_does_something(choice: Callable[..., float]) -> None:
    assert choice({1.0: (0.5, 0.5), 1.25: (0.5, 0.5), 1.5: (0.6, 0.6), 2.0: (0.0, 0.0)}) == 1.0
    assert choice({1.0: (0.5, 0.5), 1.25: (0.4, 0.4), 1.5: (0.3, 0.5), 2.0: (0.0, 0.0)}) == 1.25


def test_safe_prompts_are_held_against_what_the_model_answers_as_it_is(choice: Callable[..., float]) -> None:
    few = {1.0: 0.5, 1.25: 0.49, 1.5: 0.48, 2.0: 0.5}
    jailbreaks = {1.0: (0.5, 0.5), 1.25: (0.4, 0.4), 1.5: (0.1, 0.1), 2.0: (0.2, 0.2)}
    assert choice(jailbreaks, few) == 1.25  # what comes after one that they do not bear is not looked at
    assert choice(jailbreaks, few, alphas=(1.25, 2.0)) == 2.0


def test_of_all_weights_and_of_w_in_and_nothing_without_jailbreaks(bench, build, prompts, changes) -> None:
    of = bench(build("gpt2", "base"), build("gpt2", "tuned"))
    scopes = [("extrapolated", EVERYWHERE), ("extrapolated", W_IN)]
    assert [(name, scope) for name, _, scope in changes(of, "extrapolated")] == scopes
    assert changes(replace(of, trial={"safe": prompts("safe")}), "extrapolated") == {}


class Drawn(WorldTask):
    """It says what is drawn for which use."""

    def draw(self, kind: str, n: int, use: Any, stream: Any, strength: float = 0.0) -> Any:
        return replace(super().draw(kind, n, use, stream, strength), describe=lambda i: {"use": use})


@pytest.mark.parametrize(("use", "pool"), [("trial", "fit"), ("seen", "fit"), ("interventions", "score")])
def test_a_choice_is_made_on_the_half_that_is_not_scored(use: str, pool: str, easy: World) -> None:
    """And from a stream of its own, where a task has no halves."""
    compute = SimpleNamespace(device="cpu", dtype="float32", compile="off", rows=9)
    this: Any = SimpleNamespace(given=SimpleNamespace(seed=0, compute=compute))
    this.stream = lambda *scope: Context.stream(this, *scope)
    one, other = (Context.attacked(this, Drawn(easy), "jb_misgen", 1.0, 50, name) for name in (use, "another"))
    assert one.describe(0) == {"use": pool}
    assert not torch.equal(one.prompts.sequence, other.prompts.sequence)
