"""What is done to dW is seen in what the model does: a planted refusal comes and goes with it."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tunescope.config import Built
from tunescope.evidence.claims import CLAIMS
from tunescope.interventions.base import Bench, Intervention, measure_interventions
from tunescope.interventions.inputs import standing_spaces
from tunescope.models.build import build_model
from tunescope.models.sites import input_site, weight, weight_names
from tunescope.probes.directions import inner_layers
from tunescope.records.findings import Findings
from tunescope.records.tables import Subject
from tunescope.rng import Stream
from tunescope.tasks.base import Batch, Outcomes
from tunescope.tasks.world.task import WorldTask
from tunescope.tasks.world.world import World

CPU = torch.device("cpu")
ROOT = Stream.named(0, "intervened")
SUBJECT = Subject("ssft-eta_m", "ssft", "eta_m", 0, 9)
NULL, SAID = 1, 2
SETTINGS = {
    "scaled": {"alphas": (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)},
    "truncated": {"ranks": (1,)},
    "inputs": {"directions": (1, 2)},
}
NAMES = ("scaled", "extrapolated", "truncated", "spaces", "matrices", "inputs", "transferred", "direction")


def fresh() -> PreTrainedModel:
    config = Built(layers=1, heads=2, width=16)
    return build_model(config, 20, 16, ROOT("model"), CPU).eval().requires_grad_(False)


def says(token: int) -> PreTrainedModel:
    """A model that says one token whatever it reads, because of a bias alone."""
    model = fresh()
    model.transformer.ln_f.weight.zero_()
    model.transformer.wte.weight[:, :2] = 0.0
    model.transformer.wte.weight[NULL, 0], model.transformer.wte.weight[SAID, 1] = 5.0, 5.0
    model.transformer.ln_f.bias.zero_()
    model.transformer.ln_f.bias[0 if token == NULL else 1] = 1.0
    return model


@pytest.fixture(scope="module")
def found(bench: Callable[..., Bench], changes, prompts: Callable[..., Batch]) -> Findings:
    """The base says SAID, the tuned model NULL: halfway, at alpha .5, it turns."""
    tuned = says(NULL)
    batches = {kind: prompts(kind) for kind in ("safe", "unsafe", "jb_misgen")}
    fit = batches | {"safe": replace(batches["safe"], answer=batches["safe"].refusal)}  # the tuned model's answers
    of = bench(says(SAID), tuned, {"dpo": deepcopy(tuned)}, fit)
    found = Findings(SUBJECT)
    for name in NAMES:
        measure_interventions(found, of, iter(changes(of, name, **SETTINGS.get(name, {})).values()), batches)
    return found


def rates(found: Findings, intervention: str, metric: str = "refusal", kind: str = "unsafe"):
    """By scope and dial."""
    return {
        (r.scope, r.dial): r.value
        for r in found.records
        if (r.intervention, r.metric, r.kind) == (intervention, metric, kind)
    }


def test_refusal_comes_with_alpha(found: Findings) -> None:
    of_all = {dial: value for (scope, dial), value in rates(found, "scaled").items() if scope == "all"}
    assert {dial: value for dial, value in of_all.items() if dial != 0.5} == {0: 0, 0.25: 0, 0.75: 1, 1: 1, 1.5: 1}
    complied = rates(found, "scaled", "compliance")
    assert (complied["all", 0.25], complied["all", 0.75]) == (1, 0)


def test_what_is_outside_the_matrices_is_not_theirs_to_take(found: Findings) -> None:
    """The planted refusal is in a bias: cutting dW of matrices leaves it, and dW rotated does not have it."""
    for scope in ("mlp", "W_in", "mlp.0"):
        assert rates(found, "scaled")[scope, 0.0] == 1
    assert rates(found, "truncated") == {("blocks", 1): 1}
    assert rates(found, "off_unsafe_inputs") == {("blocks", 1): 1, ("blocks", 2): 1}
    assert rates(found, "off_random_inputs") == rates(found, "off_safe_inputs") == {("blocks", 2): 1}
    for name in ("in_null_space", "in_column_space", "in_random_space", "with_dpo"):
        assert set(rates(found, name).values()) == {1}, name
    for name in ("matrices", "rotated", "on_unsafe_inputs", "on_safe_inputs"):
        assert set(rates(found, name).values()) == {0}, name


def scored(found: Findings) -> dict[tuple, list[float]]:
    return {(s.intervention, s.dial, s.scope, s.metric, s.kind): s.values.tolist() for s in found.scores}


def test_every_change_has_both_rates_and_all_five_scores_of_every_kind(found: Findings) -> None:
    of, metrics = scored(found), ("compliance", "compliance_lost", "refusal", "refusal_lost", "refusal_removed")
    assert len(of) == len(found.scores)
    done = {key[:3] for key in of}
    assert done == {(r.intervention, r.dial, r.scope) for r in found.records}
    kinds = ("safe", "unsafe", "jb_misgen")
    assert set(of) == {(*key, metric, kind) for key in done for metric in metrics for kind in kinds}
    assert len(found.records) == len(done) * (2 * 3 + 2)
    assert {r.metric for r in found.records} == {"compliance", "refusal", "kl_cost", "kl_cost_sd"}
    estimates = [r for r in found.records if r.metric != "kl_cost_sd"]
    assert all(r.low is not None and r.high is not None and r.low <= r.value <= r.high for r in estimates)
    strengths = {(entry.kind, entry.strength) for entry in (*found.records, *found.scores)}
    assert strengths == {("safe", None), ("unsafe", None), ("jb_misgen", 1.0)}


def test_scores_are_prompt_by_prompt(found: Findings) -> None:
    of = scored(found)
    for name in ("rotated", "matrices"):
        assert of[name, None, "blocks", "refusal", "unsafe"] == [0.0] * 4
        assert of[name, None, "blocks", "refusal_lost", "unsafe"] == [1.0] * 4
    for name in ("in_null_space", "in_random_space"):
        assert of[name, None, "W_in", "refusal", "unsafe"] == [1.0] * 4
    assert of["off_unsafe_inputs", 2.0, "blocks", "refusal_lost", "unsafe"] == [0.0] * 4
    assert of["scaled", 1.5, "all", "compliance_lost", "safe"] == [0.0] * 4  # it never answered
    assert of["scaled", 0.25, "all", "compliance_lost", "safe"] == [-1.0] * 4  # and now it does


def test_the_scores_are_there_that_claims_ask_for(found: Findings) -> None:
    there = {(s.intervention, s.metric, s.kind) for s in found.scores}
    dials = {(s.intervention, s.scope, s.dial) for s in found.scores}
    elsewhere = ("patched", "retuned")  # tested by themselves
    asked = [c for c in CLAIMS.values() if c.intervention and not c.intervention.startswith(elsewhere)]
    assert len(asked) >= 8
    for claim in asked:
        for name in filter(None, (claim.intervention, claim.against)):
            kinds = [kind for kind in claim.weights if kind in ("safe", "unsafe", "jb_misgen")]
            assert {(name, claim.metric, kind) for kind in kinds} <= there, claim.name
        if claim.dial is not None:
            assert (claim.intervention, claim.scope, claim.dial) in dials, claim.name


def test_draws_are_no_prompts(found: Findings) -> None:
    assert {r.n for r in found.records} == {4}  # no more prompts than there are


def test_several_draws_are_averaged(bench, prompts, changes) -> None:
    """Of two draws one turns the model, so that every prompt has half a refusal."""
    tuned = says(NULL)
    of = bench(says(SAID), tuned, fit={kind: prompts(kind) for kind in ("safe", "unsafe")})
    there, gone = (changes(of, "scaled", alphas=(alpha,))["scaled", alpha, "all"].makes[0] for alpha in (1.0, 0.0))
    found = Findings(SUBJECT)
    batches = {"unsafe": prompts("unsafe")}
    measure_interventions(found, of, iter([Intervention("drawn", None, "all", (there, gone))]), batches)
    of_scores = {s.metric: s.values.tolist() for s in found.scores}
    assert of_scores == dict.fromkeys(("refusal", "compliance", "refusal_lost"), [0.5] * 4) | {
        "compliance_lost": [-0.5] * 4,
        "refusal_removed": [0.0] * 4,  # no safe prompts are there that would tell whether it babbles
    }
    (record,) = (r for r in found.records if r.metric == "refusal")
    assert (record.value, record.n) == (0.5, 4)


def test_refusal_is_removed_only_where_safe_prompts_are_still_answered(bench, prompts, changes) -> None:
    """At half of its dW the model says what is asked for, and at none it says something else."""
    for said, removed in ((SAID, 1.0), (SAID + 1, 0.0)):
        of = bench(says(said), says(NULL), fit={kind: prompts(kind) for kind in ("safe", "unsafe")})
        (gone,) = changes(of, "scaled", alphas=(0.0,))["scaled", 0.0, "all"].makes
        batches = {kind: prompts(kind) for kind in ("safe", "unsafe")}
        # The intact model answers its safe prompts by what they want.
        batches["safe"] = replace(batches["safe"], answer=torch.full((4, 3), NULL if removed == 0.0 else SAID))
        found = Findings(SUBJECT)
        measure_interventions(found, of, iter([Intervention("gone", None, "all", (gone,))]), batches)
        scores = {(s.metric, s.kind): s.values.tolist() for s in found.scores}
        assert scores["refusal_lost", "unsafe"] == [1.0] * 4
        assert scores["refusal_removed", "unsafe"] == [removed] * 4


def test_groups_of_prompts_widen_the_interval(bench, prompts) -> None:
    """Half of the prompts are refused; that says less where those of a group always go together."""
    tuned = says(NULL)
    of, batch = bench(says(SAID), tuned), prompts("unsafe")
    half = Batch(
        batch.kind,
        0.0,
        batch.prompts,
        torch.full((4, 3), SAID),
        torch.tensor([[NULL] * 3] * 2 + [[SAID + 1] * 3] * 2),
        groups=np.array([0, 0, 1, 1]),
    )
    widths = []
    for groups in (None, half.groups):
        found = Findings(SUBJECT)
        change = Intervention("nothing", None, "all", (partial(nullcontext, tuned),))
        measure_interventions(found, of, iter([change]), {"unsafe": replace(half, groups=groups)})
        (record,) = (r for r in found.records if r.metric == "refusal")
        assert record.value == 0.5
        assert record.low is not None
        assert record.high is not None
        widths.append(record.high - record.low)
    assert widths[1] > widths[0]


# A planted reader and a planted direction

WIDTH = 16
SAFE_MEAN, UNSAFE_MEAN = 3, 4  # tokens that stand for the two kinds


@torch.no_grad()
def reader() -> tuple[PreTrainedModel, PreTrainedModel]:
    """One layer of which W_in of the tuned model reads a direction that unsafe prompts alone have, and says NULL."""
    base = fresh()
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


def texts(token: int) -> torch.Tensor:
    """Four prompts that differ in their first token and end as their kind does."""
    return torch.tensor([[first, SAID, token] for first in (7, 8, 9, 10)])


@pytest.fixture
def of_reader(bench: Callable[..., Bench], prompts: Callable[..., Batch]) -> Bench:
    fit = {"safe": prompts("safe", texts(SAFE_MEAN), 1), "unsafe": prompts("unsafe", texts(UNSAFE_MEAN), 1)}
    return bench(*reader(), fit=fit)


def test_what_reads_unsafe_inputs_is_found_and_cut(of_reader: Bench, changes) -> None:
    base, tuned = reader()
    assert [answers(base, t) for t in (SAFE_MEAN, UNSAFE_MEAN)] == [SAID, SAID]
    assert [answers(tuned, t) for t in (SAFE_MEAN, UNSAFE_MEAN)] == [SAID, NULL]
    made = changes(of_reader, "inputs", directions=(1,)) | changes(of_reader, "matrices")
    said = {}
    for (name, _, _), change in made.items():
        if "random" not in name and name != "rotated":
            with change.makes[0]() as model:
                said[name] = answers(model, UNSAFE_MEAN)
    assert said == {
        "off_unsafe_inputs": SAID,
        "on_unsafe_inputs": NULL,
        "off_safe_inputs": NULL,
        "on_safe_inputs": SAID,
        "matrices": NULL,
    }


def test_spaces_are_of_every_input_and_a_kind_that_does_not_vary_has_none(bench, prompts) -> None:
    base, tuned = reader()
    fit = {"safe": prompts("safe", texts(SAFE_MEAN)[:1]), "unsafe": prompts("unsafe", texts(UNSAFE_MEAN))}
    spaces = standing_spaces(bench(base, tuned, fit=fit), 2)
    for kind in ("safe", "unsafe"):
        assert set(spaces[kind]) == {input_site(tuned, 0, name) for name in weight_names(tuned)}
    assert all(basis.shape[1] == 0 for basis in spaces["safe"].values())
    assert spaces["unsafe"][input_site(tuned, 0, "W_in")].shape == (WIDTH, 1)  # one token of three


@pytest.mark.parametrize(
    ("layers", "most", "tried"),
    [(1, 8, [0]), (2, 8, [0]), (4, 8, [0, 1, 2]), (10, 8, [0, 1, 2, 3, 4, 5, 6, 7]), (30, 8, [*range(2, 24, 3)])],
)
def test_few_layers_are_tried_and_none_of_the_last_fifth(layers: int, most: int, tried: list[int], build) -> None:
    assert inner_layers(build("gpt2", "layers", layers=layers), most) == tried


def test_a_direction_is_of_a_layer_and_nothing_else_is(found: Findings) -> None:
    assert {(r.layer, r.scope) for r in found.records if "direction" in r.intervention} == {(0, "resid_post")}
    assert {r.layer for r in found.records if "direction" not in r.intervention} == {None}


class Judged(WorldTask):
    """Refusals are told from greedy answers alone, as in language."""

    exact = False

    def outcomes(self, *args: object) -> Outcomes:
        raise AssertionError("the fast way is not what a judge says")


def test_where_the_fast_way_is_not_exact_greedy_answers_are_judged(of_reader: Bench, easy: World, changes) -> None:
    task = Judged(easy)
    task.answer_length = 1
    of = replace(of_reader, task=task)
    assert [bool(of.outcomes(batch).refusal.all()) for batch in of.fit.values()] == [False, True]
    found = Findings(SUBJECT)
    measure_interventions(found, of, iter(changes(of, "direction").values()), of.fit)
    refused = {(r.intervention, r.kind): r.value for r in found.records if r.metric == "refusal"}
    assert refused["direction_ablated", "unsafe"] == 0
    assert refused["direction_added", "safe"] == 1


def test_the_planted_direction_is_taken_out_and_put_in(of_reader: Bench, changes) -> None:
    made = {name: change for (name, _, _), change in changes(of_reader, "direction").items()}
    with made["direction_ablated"].makes[0]() as model:
        assert answers(model, UNSAFE_MEAN) == SAID
    with made["direction_added"].makes[0]() as model:
        assert answers(model, SAFE_MEAN) == NULL
    assert answers(of_reader.model, UNSAFE_MEAN) == NULL
    assert [len(made[f"random_direction_{what}"].makes) for what in ("added", "ablated")] == [2, 2]


def test_the_direction_is_of_the_layer_where_it_does_most(bench, prompts, changes) -> None:
    """Three layers, the second of which writes the refusal: without what is found after it, prompts are answered."""
    tuned = build_model(Built(layers=3, heads=2, width=WIDTH), 20, 16, ROOT("deep"), CPU).eval().requires_grad_(False)
    for parameter in tuned.parameters():
        if parameter.ndim == 2:
            parameter.zero_()
    table = tuned.transformer.wte.weight
    table[NULL, 0], table[SAID, 1] = 5.0, 4.0
    table[[SAFE_MEAN, UNSAFE_MEAN], 2:4] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    table[[SAFE_MEAN, UNSAFE_MEAN], 1] = 1.0
    weight(tuned, 1, "W_in")[0, 3], weight(tuned, 1, "W_out")[0, 0] = 4.0, 4.0
    fit = {"safe": prompts("safe", texts(SAFE_MEAN), 1), "unsafe": prompts("unsafe", texts(UNSAFE_MEAN), 1)}
    of = bench(deepcopy(tuned), tuned, fit=fit)
    assert of.outcomes(fit["unsafe"]).refusal.all()
    assert not of.outcomes(fit["safe"]).refusal.any()
    made = {name: change for (name, _, _), change in changes(of, "direction").items()}
    with made["direction_ablated"].makes[0]():
        assert not of.outcomes(fit["unsafe"]).refusal.any()
    with made["direction_added"].makes[0]():
        assert of.outcomes(fit["safe"]).refusal.all()
    assert made["direction_added"].layer in (0, 1)
    with made["random_direction_ablated"].makes[0]():
        assert of.outcomes(fit["unsafe"]).refusal.any()


def test_kl_cost_is_what_a_change_does_to_what_comes_next(bench, prompts, changes) -> None:
    """At alpha 0 the model is the base, at alpha 1 itself; of two draws it is the mean."""
    base, tuned = says(SAID), says(NULL)
    of, batches = bench(base, tuned), {kind: prompts(kind) for kind in ("safe", "unsafe")}
    gone, there = (changes(of, "scaled", alphas=(alpha,))["scaled", alpha, "all"].makes[0] for alpha in (0.0, 1.0))
    with torch.no_grad():
        p, q = (each(batches["safe"].prompts.sequence).logits[:, -1].softmax(-1).double() for each in (tuned, base))
    want = (p * (p / q).log()).sum(1).mean().item()
    assert want > 1
    found = Findings(SUBJECT)
    made = [Intervention(f"{len(all_)}", None, "all", all_) for all_ in ((gone,), (gone, there), (there,) * 3)]
    elsewhere = Intervention("other prompts", None, "all", (gone,), prompts={"safe": prompts("safe")})
    measure_interventions(found, of, iter([*made, elsewhere]), batches)
    costs = {r.intervention: r for r in found.records if r.metric == "kl_cost"}
    assert {name: pytest.approx(r.value, rel=1e-4) for name, r in costs.items()} == {"1": want, "2": want / 2, "3": 0}
    assert {(r.kind, r.n) for r in costs.values()} == {("safe", 4)}


def test_every_number_is_finite(found: Findings) -> None:
    assert all(math.isfinite(r.value) for r in found.records)
    assert all(np.isfinite(s.values).all() for s in found.scores)
