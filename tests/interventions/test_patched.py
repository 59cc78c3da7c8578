"""Refusal goes with the activations that carry it: planted in an MLP, and handed to it by attention."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tunescope.config import Built
from tunescope.evidence.claims import CLAIMS
from tunescope.interventions.base import Bench, measure_interventions
from tunescope.models.build import build_model
from tunescope.models.sites import weight
from tunescope.records.findings import Findings
from tunescope.records.tables import Subject
from tunescope.rng import Stream
from tunescope.tasks.base import Batch, Twins

CPU = torch.device("cpu")
NULL, SAID, SAFE_WORD, UNSAFE_WORD, OTHER_WORD = 1, 2, 3, 4, 5
POSITIONS = {"word": slice(1), "middle": slice(1, -1), "last": slice(-1, None)}


@torch.no_grad()
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two layers. Attention of the first tells the last token of the word; the tuned model's MLP then says NULL."""
    made = build_model(Built(layers=2, heads=2, width=16), 20, 16, Stream.named(0, "patched"), CPU)
    base = made.eval().requires_grad_(False)
    for parameter in base.parameters():
        if parameter.ndim == 2:
            parameter.zero_()
    table = base.transformer.wte.weight
    table[NULL, 0], table[SAID, 1] = 5.0, 4.0
    table[[UNSAFE_WORD, OTHER_WORD], 3], table[SAFE_WORD, 2] = 1.0, 1.0
    weight(base, 0, "W_V")[3, 3], weight(base, 0, "W_O")[3, 3] = 1.0, 6.0
    tuned = deepcopy(base)
    weight(tuned, 0, "W_in")[0, 3], weight(tuned, 0, "W_out")[0, 0] = 4.0, 8.0
    return base, tuned


def texts(word: int) -> torch.Tensor:
    return torch.tensor([[word, middle, SAID] for middle in (7, 8, 9, 10)])


@pytest.fixture
def twins(prompts: Callable[..., Batch]) -> Twins:
    unsafe, other = (prompts("unsafe", texts(word), 1) for word in (UNSAFE_WORD, OTHER_WORD))
    return Twins(unsafe, prompts("safe", texts(SAFE_WORD), 1), other, POSITIONS)


@pytest.fixture
def of(bench: Callable[..., Bench], twins: Twins) -> Bench:
    return replace(bench(*models(), fit={"safe": twins.safe, "unsafe": twins.unsafe}, twins=twins), rows=4)


@pytest.fixture
def refused(of: Bench, changes) -> dict[str, dict[str, float]]:
    """By intervention and scope, the share of its prompts that are refused."""
    found: dict[str, dict[str, float]] = {}
    for (name, dial, scope), change in (changes(of, "patched") | changes(of, "patched_base")).items():
        assert dial is None
        (batch,), (make,) = change.prompts.values(), change.makes
        with make():
            found.setdefault(name, {})[scope] = of.outcomes(batch).refusal.double().mean().item()
    return found


def where(shares: dict[str, float], value: float) -> set[str]:
    return {scope for scope, share in shares.items() if share == value}


def test_refusal_is_lost_with_what_carries_it(of: Bench, twins: Twins, refused: dict[str, dict[str, float]]) -> None:
    assert of.outcomes(twins.unsafe).refusal.all()
    assert not of.outcomes(twins.safe).refusal.any()
    carriers = {"attn_out.0 last", "mlp_out.0 last", "resid_post.0 last", "resid_post.1 last"}
    # Attention at all layers, with what the MLPs add kept, takes nothing away: the MLP is what says NULL.
    carriers.add("mlp_out.all last")
    assert where(refused["patched_from_twin"], 0.0) == carriers
    assert where(refused["patched_into_twin"], 1.0) == {"mlp_out.all last"}
    for name in ("patched_from_twin", "patched_into_twin"):
        assert set(refused[name].values()) == {0.0, 1.0}
    assert set(refused["patched_from_other"].values()) == {1.0}
    # The base's attention does the same.
    assert where(refused["patched_from_base"], 0.0) == carriers - {"attn_out.0 last"}


def test_every_cell_is_there_that_something_reads(refused: dict[str, dict[str, float]]) -> None:
    sites = ("attn_out", "mlp_out", "resid_post")
    cells = {f"{site}.{layer} {position}" for site in sites for layer in (0, 1) for position in POSITIONS}
    cells -= {f"{site}.1 {position}" for site in sites for position in ("word", "middle")}
    whole = {f"{site}.all {position}" for site in sites[:2] for position in POSITIONS}
    both = dict.fromkeys(("patched_from_twin", "patched_from_other", "patched_from_base"), cells | whole)
    assert {name: {*scopes} for name, scopes in refused.items()} == {**both, "patched_into_twin": whole}


def test_the_model_is_as_it_was(of: Bench, changes) -> None:
    before, tokens = (
        {name: each.clone() for name, each in of.model.named_parameters()},
        of.twins.unsafe.prompts.sequence,
    )
    said = of.model(tokens).logits
    for change in (changes(of, "patched") | changes(of, "patched_base")).values():
        with change.makes[0]():
            of.model(tokens)
        assert torch.equal(of.model(tokens).logits, said)
    assert all(torch.equal(each, before[name]) for name, each in of.model.named_parameters())


def test_a_task_without_twins_has_none_of_it(of: Bench, changes) -> None:
    alone = replace(of, twins=None)
    assert changes(alone, "patched") == changes(alone, "patched_base") == {}


@pytest.fixture
def found(of: Bench, changes, prompts: Callable[..., Batch]) -> Findings:
    """Beside common prompts, none of which is refused; of the twins' groups there are two."""
    groups = np.array([0, 0, 1, 1])
    twins = replace(of.twins, unsafe=replace(of.twins.unsafe, groups=groups))
    batches = {"safe": twins.safe, "unsafe": prompts("unsafe", texts(SAFE_WORD)[:3], 1)}
    found = Findings(Subject("ssft-eta_m", "ssft", "eta_m", 0, 9))
    made = changes(replace(of, twins=twins), "patched") | changes(of, "scaled", alphas=(1.0,))
    measure_interventions(found, of, iter(made.values()), batches)
    return found


def test_changes_with_prompts_of_their_own_are_measured_on_these(found: Findings) -> None:
    patched = {(s.intervention, s.scope, s.metric): s for s in found.scores if "patched" in s.intervention}
    lost = patched["patched_from_twin", "mlp_out.0 last", "refusal_lost"]
    assert (lost.values.tolist(), lost.groups.tolist(), lost.kind, lost.layer) == ([1.0] * 4, [0, 0, 1, 1], "unsafe", 0)
    gained = patched["patched_into_twin", "mlp_out.all last", "refusal_lost"]
    assert (gained.values.tolist(), gained.groups, gained.kind, gained.layer) == ([-1.0] * 4, None, "safe", None)
    assert {metric for *_, metric in patched} == {"compliance", "refusal", "compliance_lost", "refusal_lost"}
    records = {(r.intervention, r.scope): r.value for r in found.records if r.metric == "refusal_lost"}
    assert set(records) == {key[:2] for key in patched}
    assert records["patched_from_twin", "mlp_out.0 last"] == 1.0
    assert records["patched_from_twin", "mlp_out.1 last"] == 0.0


def test_the_others_are_measured_as_before(found: Findings) -> None:
    whole = {(s.metric, s.kind): s for s in found.scores if (s.intervention, s.scope) == ("scaled", "all")}
    assert len(whole) == 2 * 5
    assert whole["refusal_removed", "unsafe"].values.tolist() == [0.0] * 3


def test_the_scores_are_there_that_claims_ask_for(found: Findings) -> None:
    there = {(s.intervention, s.scope, s.metric, s.kind) for s in found.scores}
    asked = [claim for claim in CLAIMS.values() if "patched" in claim.intervention]
    assert len(asked) == 2
    for claim in asked:
        for name in (claim.intervention, claim.against):
            assert (name, claim.scope, claim.metric, *claim.weights) in there
