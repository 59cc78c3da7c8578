"""Overlap of fine-tunes: a direction planted in two of them is found there, and nowhere else; noise has none."""

from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from live import LiveWeights
from tunescope.config import Built
from tunescope.models.build import build_model
from tunescope.models.pair import Pair
from tunescope.models.sites import weight, weight_names
from tunescope.probes.overlap import Overlaps, measure_overlaps, overlaps
from tunescope.records.findings import Findings
from tunescope.records.tables import Subject
from tunescope.rng import Stream

CPU = torch.device("cpu")
ROOT = Stream.named(0, "overlap")
WIDTH = 32
LABELS = ("one", "other", "control")
METHODS = {"one": ("other",), "other": ("one",), "control": ("one", "other")}


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return build_model(Built(architecture="gpt2", layers=2, heads=2, width=WIDTH), 20, 8, ROOT("base"), CPU)


@torch.no_grad()
def tuned(base: PreTrainedModel, scope: str, planted: float = 0.0) -> Pair:
    """Noise in every matrix, and in W_in of layer 1 one direction written and read, the same in all fine-tunes."""
    model = deepcopy(base)
    for layer in range(2):
        for name in weight_names(model):
            w = weight(model, layer, name)
            w.add_(ROOT(scope, layer, name).normal(tuple(w.shape), CPU).float(), alpha=0.01)
    w = weight(model, 1, "W_in")
    written, read = (ROOT(side).normal((size,), CPU).float() for side, size in zip("uv", w.shape, strict=True))
    w.add_(torch.outer(written, read), alpha=planted)
    return Pair(LiveWeights(base), LiveWeights(model))


def measured(of: Overlaps, methods: Mapping[str, tuple[str, ...]] = METHODS) -> dict[str, Findings]:
    found = {label: Findings(Subject(label, label, "eta", 0, 9)) for label in LABELS}
    measure_overlaps(found, of, methods)
    return found


def scores(found: Findings) -> dict[str, np.ndarray]:
    return {each.metric: each.values for each in found.scores}


def test_a_shared_direction_is_found_where_it_was_planted_and_nowhere_else(base: PreTrainedModel) -> None:
    sizes = dict(zip(LABELS, (1.0, 0.5, 0.0), strict=True))
    pairs = [tuned(base, label, planted) for label, planted in sizes.items()]
    found = overlaps(pairs, 1, CPU)
    place = weight_names(base).index("W_in") + len(weight_names(base))
    assert (found.shared[:, 0, 1, place] > 0.98).all()
    assert (found.shared[:, :2, 2, place] < 0.25).all()
    elsewhere = [number for number in range(found.shared.shape[-1]) if number != place]
    assert found.shared[:, 0, 1, elsewhere].mean() < 3 / WIDTH
    by_model = measured(found)
    for metric, d in (("log_write_overlap", 4 * WIDTH), ("log_read_overlap", WIDTH)):
        assert scores(by_model["one"])[metric][place] == pytest.approx(np.log(d), abs=0.02)
        assert scores(by_model["control"])[metric][place] < np.log(d / 4)


def test_noise_overlaps_as_chance_has_it(base: PreTrainedModel) -> None:
    found = overlaps([tuned(base, label) for label in LABELS], 6, CPU)
    for label, findings in measured(found).items():
        for values in scores(findings).values():
            assert len(values) == 2 * len(weight_names(base))
            assert abs(values.mean()) < 0.12, label
    upper = found.shared[:, [0, 0, 1], [1, 2, 2]] / found.chance[:, [0, 0, 1], [1, 2, 2]]
    assert upper.mean().item() == pytest.approx(1, abs=0.05)


def test_directions_that_are_rounding_do_not_count(base: PreTrainedModel) -> None:
    """A change of rank 1 in float32, of which eight directions are asked for."""
    models = [deepcopy(base) for _ in range(2)]
    with torch.no_grad():
        for model in models:
            weight(model, 0, "W_in")[:, 0].add_(0.1)
    pairs = [Pair(LiveWeights(base), LiveWeights(model)) for model in models]
    found = overlaps(pairs, 8, CPU)
    place = weight_names(base).index("W_in")
    assert found.shared[:, 0, 1, place].tolist() == pytest.approx([1, 1])
    assert found.chance[:, 0, 1, place].tolist() == [1 / (4 * WIDTH), 1 / WIDTH]
    assert found.shared[:, 0, 1].isnan().sum() == found.shared[:, 0, 1].numel() - 2  # nothing else has changed


def test_records_and_scores_by_hand() -> None:
    """Two matrices, of which the control has not changed the second: no score is of that."""
    shared = torch.ones(2, 3, 3, 2, dtype=torch.float64)
    for (i, j), values in {(0, 1): (0.6, 0.4), (0, 2): (0.2, torch.nan), (1, 2): (0.4, torch.nan)}.items():
        shared[:, [i, j], [j, i]] = torch.tensor(values, dtype=torch.float64)
    shared[:, 2, 2, 1] = torch.nan
    found = measured(Overlaps(shared, shared * 0 + 0.1), METHODS | {"control": ("one", "other")})
    records = {(r.metric, r.scope, r.control): r.value for r in found["one"].records}
    write = {key[1:]: value for key, value in records.items() if key[0] == "write_overlap"}
    assert write == pytest.approx(
        {("other", ""): 0.5, ("other", "haar"): 0.1, ("control", ""): 0.2, ("control", "haar"): 0.1}
    )
    assert len(records) == 8
    logs = {label: np.exp(scores(findings)["log_read_overlap"]).tolist() for label, findings in found.items()}
    assert logs == {"one": pytest.approx([6]), "other": pytest.approx([6]), "control": pytest.approx([3])}


def test_without_safety_methods_beside_it_a_model_has_no_score() -> None:
    found = measured(Overlaps(*torch.full((2, 2, 3, 3, 4), 0.1).double()), METHODS | {"control": ()})
    assert found["control"].scores == []
    assert len(found["control"].records) == 8
