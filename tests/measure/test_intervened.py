"""What is done to dW is seen in what the model does: a planted refusal comes and goes with it."""

from copy import deepcopy

import pytest
import torch
from transformers import PreTrainedModel

from tunescope.attacks.attacks import Attacked
from tunescope.config import InterveneConfig, ModelConfig
from tunescope.evidence.records import Subject
from tunescope.measure.findings import Findings
from tunescope.measure.intervened import interventions, measure_interventions
from tunescope.models.build import build_model
from tunescope.models.inputs import Inputs
from tunescope.rng import Stream

CPU = torch.device("cpu")
ROOT = Stream.named(0, "intervened")
NULL, SAID = 1, 2
CONFIG = InterveneConfig(prompts=4, alphas=(0.0, 0.25, 0.5, 0.75, 1.0, 1.5), ranks=(1,))


def says(token: int) -> PreTrainedModel:
    """A model that says one token whatever it reads, because of a bias alone."""
    config = ModelConfig(layers=1, heads=2, width=16)
    model = build_model(config, 20, 16, ROOT("model"), CPU).eval().requires_grad_(False)
    model.transformer.ln_f.weight.zero_()
    model.transformer.wte.weight[:, :2] = 0.0
    model.transformer.wte.weight[NULL, 0], model.transformer.wte.weight[SAID, 1] = 5.0, 5.0
    model.transformer.ln_f.bias.zero_()
    model.transformer.ln_f.bias[0 if token == NULL else 1] = 1.0
    return model


@pytest.fixture(scope="module")
def found() -> Findings:
    """The base says SAID, the tuned model NULL: halfway, at alpha .5, it turns."""
    base, tuned = says(SAID), says(NULL)
    prompts = {
        kind: Attacked(kind, 0.0, Inputs(ROOT(kind).integers(10, (4, 5), CPU) + 5), *_answers())
        for kind in ("safe", "unsafe", "jb_misgen")
    }
    found = Findings(Subject("ssft-eta_m", "ssft", "eta_m", 0, 9))
    changed = list(interventions(base, tuned, {"dpo": deepcopy(tuned)}, CONFIG, ROOT("changes")))
    measure_interventions(found, tuned, changed, prompts, 4)
    return found


def _answers() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((4, 3), SAID), torch.full((4, 3), NULL)


def rates(found: Findings, metric: str, kind: str = "unsafe") -> dict[tuple[str, float | None], float]:
    return {(r.site, r.strength): r.value for r in found.records if (r.metric, r.kind) == (metric, kind)}


def test_refusal_comes_with_alpha(found: Findings) -> None:
    of_all = {dial: value for (site, dial), value in rates(found, "refusal_scaled").items() if site == "all"}
    assert {dial: value for dial, value in of_all.items() if dial != 0.5} == {0: 0, 0.25: 0, 0.75: 1, 1: 1, 1.5: 1}
    complied = rates(found, "compliance_scaled")
    assert (complied["all", 0.25], complied["all", 0.75]) == (1, 0)


def test_what_is_outside_the_matrices_is_not_theirs_to_take(found: Findings) -> None:
    """The planted refusal is in a bias: cutting dW of matrices leaves it, and dW rotated does not have it."""
    for site in ("mlp", "W_in", "mlp.0"):
        assert rates(found, "refusal_scaled")[site, 0.0] == 1
    assert rates(found, "refusal_truncated") == {("all", 1): 1}
    assert set(rates(found, "refusal_in_null_space").values()) == {1}
    assert set(rates(found, "refusal_rotated").values()) == {0}
    assert set(rates(found, "refusal_with_dpo").values()) == {1}


def test_scores_are_changes_prompt_by_prompt(found: Findings) -> None:
    of = {(s.metric, s.kind): s.values.tolist() for s in found.scores}
    assert of["refused_intact", "unsafe"] == [1.0] * 4
    assert of["refused_rotated", "unsafe"] == [0.0] * 4
    assert of["refused_in_null_space", "unsafe"] == of["refused_in_column_space", "unsafe"] == [1.0] * 4
    assert of["compliance_lost_beyond", "safe"] == [0.0] * 4  # it never answered
    assert len(of["refusal_lost_at_half", "unsafe"]) == 4
    assert {s.metric for s in found.scores} == {
        "refused_intact",
        "refusal_lost_at_half",
        "compliance_lost_beyond",
        "refused_in_null_space",
        "refused_in_column_space",
        "refused_rotated",
    }
