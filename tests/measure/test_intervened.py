"""What is done to dW is seen in what the model does: a planted refusal comes and goes with it."""

from copy import deepcopy

import pytest
import torch
from transformers import PreTrainedModel

from tunescope.attacks.attacks import Attacked
from tunescope.config import InterveneConfig, ModelConfig
from tunescope.evidence.claims import CLAIMS
from tunescope.evidence.records import Subject
from tunescope.measure.findings import Findings
from tunescope.measure.intervened import measure_interventions
from tunescope.measure.interventions import direction_changes, inner_layers, scalings, standing_spaces, weight_changes
from tunescope.models.build import build_model
from tunescope.models.inputs import Inputs
from tunescope.models.logps import follows
from tunescope.models.sites import input_site, weight, weight_names
from tunescope.rng import Stream

CPU = torch.device("cpu")
ROOT = Stream.named(0, "intervened")
NULL, SAID = 1, 2
CONFIG = InterveneConfig(prompts=4, alphas=(0.0, 0.25, 0.5, 0.75, 1.0, 1.5), ranks=(1,), reads=(1, 2), draws=2)


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
    fit = {kind: attacked.prompts for kind, attacked in prompts.items()}
    found = Findings(Subject("ssft-eta_m", "ssft", "eta_m", 0, 9))
    changed = [
        *scalings(base, tuned, CONFIG),
        *weight_changes(base, tuned, {"dpo": deepcopy(tuned)}, fit, CONFIG, 3, ROOT("changes")),
        *direction_changes(tuned, fit, refused, CONFIG, 3, ROOT("changes")),
    ]
    measure_interventions(found, tuned, changed, prompts, 4)
    return found


def refused(model: PreTrainedModel, prompts: Inputs) -> torch.Tensor:
    return follows(model, prompts, torch.full((len(prompts), 3), NULL))


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
    assert rates(found, "refusal_truncated") == {("blocks", 1): 1}
    assert set(rates(found, "refusal_in_random_space").values()) == {1}
    assert set(rates(found, "refusal_matrices").values()) == {0}
    assert rates(found, "refusal_off_unsafe_inputs") == {("blocks", 1): 1, ("blocks", 2): 1}
    assert rates(found, "refusal_off_random_inputs") == {("blocks", 2): 1}
    assert set(rates(found, "refusal_in_null_space").values()) == {1}
    assert set(rates(found, "refusal_rotated").values()) == {0}
    assert set(rates(found, "refusal_with_dpo").values()) == {1}


def test_scores_are_prompt_by_prompt(found: Findings) -> None:
    of = {(s.metric, s.kind): s.values.tolist() for s in found.scores}
    assert len(of) == len(found.scores)  # of several dials one alone is scored
    assert of["refused_rotated", "unsafe"] == of["refused_matrices", "unsafe"] == [0.0] * 4
    assert of["refused_in_null_space", "unsafe"] == of["refused_in_random_space", "unsafe"] == [1.0] * 4
    assert of["refusal_lost_off_unsafe_inputs", "unsafe"] == [0.0] * 4
    assert of["compliance_lost_beyond", "safe"] == [0.0] * 4  # it never answered
    assert len(of["refusal_lost_at_half", "unsafe"]) == 4


def test_the_scores_are_those_that_claims_are_made_of(found: Findings) -> None:
    of_claims = {
        name for claim in CLAIMS if claim.figure in ("alpha", "interventions") for name in (claim.metric, claim.control)
    }
    assert {s.metric for s in found.scores} == of_claims - {"benign"}


def test_draws_are_no_prompts(found: Findings) -> None:
    n = {r.metric: r.n for r in found.records if r.kind == "unsafe"}
    assert set(n.values()) == {4}  # no more prompts than there are


# A planted reader and a planted direction

WIDTH = 16
SAFE_MEAN, UNSAFE_MEAN = 3, 4  # tokens that stand for the two kinds


@torch.no_grad()
def reader() -> tuple[PreTrainedModel, PreTrainedModel]:
    """One layer of which W_in of the tuned model reads a direction that unsafe prompts alone have, and says NULL."""
    config = ModelConfig(layers=1, heads=2, width=WIDTH)
    base = build_model(config, 20, 16, ROOT("model"), CPU).eval().requires_grad_(False)
    for parameter in base.parameters():
        if parameter.ndim == 2:
            parameter.zero_()
    table = base.transformer.wte.weight
    table[NULL, 0], table[SAID, 1] = 5.0, 4.0
    table[[NULL, SAID, SAFE_MEAN, UNSAFE_MEAN], 2:4] = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    table[[SAFE_MEAN, UNSAFE_MEAN], 1] = 1.0
    tuned = deepcopy(base)
    weight(tuned, 0, "W_in")[0, 3] = 4.0  # unsafe prompts have the third coordinate
    weight(tuned, 0, "W_out")[0, 0] = 4.0
    return base, tuned


def answers(model: PreTrainedModel, token: int) -> int:
    return int(model(torch.tensor([[SAID, SAID, token]])).logits[0, -1].argmax())


def texts(token: int) -> Inputs:
    """Four prompts that differ in their first token and end as their kind does."""
    return Inputs(torch.tensor([[first, SAID, token] for first in (7, 8, 9, 10)]))


def test_what_reads_unsafe_inputs_is_found_and_cut() -> None:
    base, tuned = reader()
    assert [answers(base, t) for t in (SAFE_MEAN, UNSAFE_MEAN)] == [SAID, SAID]
    assert [answers(tuned, t) for t in (SAFE_MEAN, UNSAFE_MEAN)] == [SAID, NULL]
    fit = {"safe": texts(SAFE_MEAN), "unsafe": texts(UNSAFE_MEAN)}
    config = CONFIG.model_copy(update={"reads": (1,)})
    changes = {c.name: c for c in weight_changes(base, tuned, {}, fit, config, 3, ROOT("reader"))}
    said = {}
    for name in ("off_unsafe_inputs", "on_unsafe_inputs", "off_safe_inputs", "on_safe_inputs", "matrices"):
        with changes[name].makes[0]() as model:
            said[name] = answers(model, UNSAFE_MEAN)
    assert said == {
        "off_unsafe_inputs": SAID,
        "on_unsafe_inputs": NULL,
        "off_safe_inputs": NULL,
        "on_safe_inputs": SAID,
        "matrices": NULL,
    }


def test_spaces_are_of_every_input_and_a_kind_that_does_not_vary_has_none() -> None:
    _, tuned = reader()
    fit = {"safe": texts(SAFE_MEAN)[:1], "unsafe": texts(UNSAFE_MEAN)}
    spaces = standing_spaces(tuned, fit, 2, 3)
    for kind in ("safe", "unsafe"):
        assert set(spaces[kind]) == {input_site(tuned, 0, name) for name in weight_names(tuned)}
    assert all(basis.shape[1] == 0 for basis in spaces["safe"].values())
    assert spaces["unsafe"][input_site(tuned, 0, "W_in")].shape == (WIDTH, 1)  # one token of three


def test_the_last_layer_s_output_is_not_looked_for_a_direction(found: Findings) -> None:
    assert [
        list(inner_layers(build_model(ModelConfig(layers=n, heads=2, width=16), 20, 16, ROOT(n), CPU)))
        for n in (1, 2, 4)
    ] == [[0], [0], [0, 1, 2]]
    assert {r.layer for r in found.records if "_direction_" in r.metric} == {0}


def test_the_planted_direction_is_taken_out_and_put_in() -> None:
    _, tuned = reader()
    fit = {"safe": texts(SAFE_MEAN), "unsafe": texts(UNSAFE_MEAN)}

    def refuses(model: PreTrainedModel, prompts: Inputs) -> torch.Tensor:
        return follows(model, prompts, torch.full((len(prompts), 1), NULL))

    changes = {c.name: c for c in direction_changes(tuned, fit, refuses, CONFIG, 3, ROOT("direction"))}
    with changes["direction_ablated"].makes[0]() as model:
        assert answers(model, UNSAFE_MEAN) == SAID
    with changes["direction_added"].makes[0]() as model:
        assert answers(model, SAFE_MEAN) == NULL
    assert answers(tuned, UNSAFE_MEAN) == NULL
    assert [len(changes[f"random_direction_{what}"].makes) for what in ("added", "ablated")] == [2, 2]
