"""Benches: a model, its base, and what an intervention may look at."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from live import LiveWeights
from tunescope.config import Built
from tunescope.errors import InapplicableError
from tunescope.interventions.base import INTERVENTIONS, Bench, Intervention
from tunescope.models.build import build_model
from tunescope.models.compute import Compute
from tunescope.models.inputs import Inputs
from tunescope.models.pair import Pair
from tunescope.registry import import_all
from tunescope.rng import Stream
from tunescope.tasks.base import Batch, Kind, Twins
from tunescope.tasks.world.task import WorldTask
from tunescope.tasks.world.world import World

import_all("tunescope.interventions")
CPU = torch.device("cpu")
ROOT = Stream.named(0, "interventions")
NULL, SAID = 1, 2  # what the refusals and the answers are made of


@pytest.fixture(scope="session")
def build() -> Callable[..., PreTrainedModel]:
    """An untrained model, the same for the same scope."""

    def model(architecture: str, scope: str, width: int = 16, layers: int = 2) -> PreTrainedModel:
        config = Built(architecture=architecture, layers=layers, heads=2, width=width)
        return build_model(config, 20, 16, ROOT(scope), CPU).eval().requires_grad_(False)

    return model


@pytest.fixture(scope="session")
def prompts() -> Callable[..., Batch]:
    """Prompts of a kind, drawn at random if none are given, whose answers are all SAID and refusals all NULL."""

    def batch(kind: str, tokens: torch.Tensor | None = None, length: int = 3) -> Batch:
        tokens = ROOT(kind).integers(10, (4, 5), CPU) + 5 if tokens is None else tokens
        said = (torch.full((len(tokens), length), word) for word in (SAID, NULL))
        about = Kind(kind, "compliance" if kind == "safe" else "refusal", dial=kind.startswith("jb_"))
        return Batch(about, about.strongest, Inputs(tokens), *said)

    return batch


@pytest.fixture(scope="session")
def bench(prompts: Callable[..., Batch], easy: World, compute: Compute) -> Callable[..., Bench]:
    def made(
        base: PreTrainedModel,
        tuned: PreTrainedModel,
        others: Mapping[str, PreTrainedModel] | None = None,
        fit: Mapping[str, Batch] | None = None,
        trial: Mapping[str, Batch] | None = None,
        twins: Twins | None = None,
    ) -> Bench:
        pair = Pair(LiveWeights(base), LiveWeights(tuned))
        fit = fit or {kind: prompts(kind) for kind in ("safe", "unsafe")}
        trial = trial or {kind: prompts(kind) for kind in ("safe", "jb_misgen")}
        weights = {name: LiveWeights(other) for name, other in (others or {}).items()}
        about = {"draws": 2, "rows": 3, "stream": ROOT("changes"), "compute": compute, "twins": twins}
        return Bench(tuned, pair, WorldTask(easy), fit, trial, weights, **about)

    return made


@pytest.fixture(scope="session")
def changes() -> Callable[..., dict[tuple[str, float | None, str], Intervention]]:
    """What an intervention does, by name, dial and scope."""

    def of(bench: Bench, name: str, **settings: Any) -> dict[tuple[str, float | None, str], Intervention]:
        kind = INTERVENTIONS[name]
        made: list[Intervention] = []
        with suppress(InapplicableError):
            made.extend(kind.make(bench, kind.settings(**settings)))
        found = {(each.name, each.dial, each.scope): each for each in made}
        assert len(found) == len(made)
        return found

    return of
