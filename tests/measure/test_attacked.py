"""What attacks do to models whose behaviour is planted, and that every number of theirs is sound."""

import math
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from tunescope.attacks.attacks import Attacked, prefilled, searched
from tunescope.config import AttackConfig, ModelConfig, ProbeConfig
from tunescope.errors import InputError
from tunescope.evidence.records import Subject
from tunescope.measure.attacked import SCORES, attack_scores, fit_instruments, measure_attacks
from tunescope.measure.findings import Findings, Sample
from tunescope.models.build import build_model
from tunescope.models.inputs import Inputs
from tunescope.models.sites import Site
from tunescope.probes.collect import last_activations
from tunescope.rng import Stream

CPU = torch.device("cpu")
ROOT = Stream.named(0, "attacked")
PROBE = ProbeConfig(prompts=6, fit_prompts=6, rows=4)
CONFIG = AttackConfig(prompts=6, searched=6, soft=(1, 2), soft_steps=2, suffix=(2,), suffix_steps=1)


def plain(kind: str, strength: float = 0.0) -> Attacked:
    prompts = Inputs(ROOT(kind).integers(10, (6, 5), CPU) + 5)
    return Attacked(kind, strength, prompts, torch.full((6, 3), 2), torch.full((6, 3), 1))


SAMPLE = Sample(*({kind: plain(kind + use).prompts for kind in ("safe", "unsafe")} for use in ("fit", "score")))


@pytest.fixture(scope="module")
def build() -> Callable[[str], PreTrainedModel]:
    def model(scope: str, architecture: str = "gpt2") -> PreTrainedModel:
        config = ModelConfig(architecture=architecture, layers=2, heads=2, width=16)
        made = build_model(config, 20, 16, ROOT(scope), CPU).eval().requires_grad_(False)
        made.set_attn_implementation("eager")
        for parameter in made.parameters():  # as initialised, the blocks change next to nothing
            parameter.mul_(5)
        return made

    return model


def measured(model: PreTrainedModel, base: PreTrainedModel, attacks: list[Attacked], tuned: bool = True) -> Findings:
    found = Findings(Subject("ssft-eta_m", "ssft", "eta_m", 0, 9))
    measure_attacks(found, model, base, attacks, fit_instruments(model, base if tuned else None, SAMPLE, PROBE), 4)
    return found


def says(token: int, build: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    """A model that says one token, whatever it reads."""
    model = build("constant")
    model.transformer.ln_f.weight.zero_()
    model.transformer.ln_f.bias.copy_(model.transformer.wte.weight[token] * 100)
    return model


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("tuned", [True, False])
def test_every_attack_gives_sound_numbers(build, architecture: str, tuned: bool) -> None:
    model, base = build("tuned", architecture), build("base", architecture)
    unsafe, safe = plain("unsafe"), plain("safe")
    found_by_search = searched(model, unsafe, safe, plain("seen"), CONFIG, torch.arange(5, 15), ROOT("search"))
    ladder = [plain("jb_misgen", strength) for strength in (0.0, 1.0)]
    found = measured(model, base, [*ladder, prefilled(unsafe, 2), *found_by_search], tuned)
    kinds = {"jb_misgen", "prefill", "soft_prompt", "universal_soft_prompt", "suffix"}
    assert {r.kind.removesuffix("_on_safe") for r in found.records} == kinds
    assert all(math.isfinite(r.value) for r in found.records)
    assert all(r.strength is not None or r.metric.endswith("rank_correlation") for r in found.records)
    of_dw = {"log_gain", "log_row_projection"}
    scored = {s.metric for s in found.scores if s.kind == "soft_prompt"}
    assert scored & {*SCORES} == {*SCORES} - (set() if tuned else of_dw)
    assert not {s.metric for s in found.scores if s.kind == "prefill"} & {*SCORES}
    assert all(len(s.values) == 6 for s in found.scores)


@pytest.mark.parametrize(("token", "success", "refusal"), [(2, 1.0, 0.0), (1, 0.0, 1.0), (7, 0.0, 0.0)])
def test_constant_models_answer_always_or_never(build, token: int, success: float, refusal: float) -> None:
    model = says(token, build)
    unsafe = plain("unsafe")
    attacks = [
        unsafe,
        prefilled(unsafe, 1),
        *searched(model, unsafe, plain("safe"), unsafe, CONFIG, torch.arange(5, 15), ROOT("search")),
    ]
    found = measured(model, says(2, build), attacks)
    for metric, expected in (("attack_success", success), ("attack_refusal", refusal), ("attack_intact", 1.0)):
        assert {r.value for r in found.records if r.metric == metric} == {expected}
    within = {r.value for r in found.records if r.metric.startswith("attack_success_within")}
    assert within == {success}


def test_features_are_those_of_the_last_token(build) -> None:
    model, base, attack = build("tuned"), build("base"), plain("jb_misgen", 1.0)
    tools = fit_instruments(model, base, SAMPLE, PROBE)
    scores = attack_scores(model, attack, tools, 4)
    (read,) = last_activations(model, attack.prompts, [Site(1, "mlp_post"), Site(1, "resid_post")], 99)
    post = read[Site(1, "mlp_post")].double()
    tau = (post - tools.unsafe).norm(dim=1) - (post - tools.safe).norm(dim=1)
    torch.testing.assert_close(scores["scaled_tau"].double(), tau / tools.spread, rtol=1e-4, atol=1e-4)
    logps = model(attack.prompts.sequence).logits[:, -1].log_softmax(-1)
    torch.testing.assert_close(scores["refusal_margin"].float(), logps[:, 1] - logps[:, 2], rtol=1e-4, atol=1e-4)
    a_safe, a_unsafe = (tools.direction @ m for m in _means(model))
    assert a_unsafe > a_safe


def _means(model: PreTrainedModel) -> list[torch.Tensor]:
    site = Site(1, "resid_post")
    return [next(last_activations(model, SAMPLE.fit[k], [site], 99))[site].double().mean(0) for k in ("safe", "unsafe")]


def test_strength_is_ranked_against_features(build) -> None:
    """Prompts that change with strength in one direction alone have a rank correlation near 1 or -1."""
    model, base = build("tuned"), build("base")
    tools = fit_instruments(model, base, SAMPLE, PROBE)
    table = model.get_input_embeddings().weight
    attacks = []
    for strength in (0.0, 0.5, 1.0):
        ids = plain("moved").prompts.sequence[:1].expand(6, -1)
        moved = Inputs(table[ids] + strength * 0.02 * ROOT("way").normal((16,), CPU).float())
        attacks.append(Attacked("moved", strength, moved, torch.full((6, 3), 2), torch.full((6, 3), 1)))
    found = Findings(Subject("ssft-eta_m", "ssft", "eta_m", 0, 9))
    measure_attacks(found, model, base, attacks, tools, 4)
    ranks = {r.metric: r.value for r in found.records if r.metric.endswith("rank_correlation")}
    assert abs(ranks["attacked_scaled_tau_rank_correlation"]) > 0.99


@pytest.mark.parametrize("m", [0, 3, 9])
def test_a_prefill_that_leaves_nothing_is_refused(m: int) -> None:
    with pytest.raises(InputError, match=f"prefill: {m} tokens"):
        prefilled(plain("unsafe"), m)


def test_a_prefill_gives_the_beginning_and_wants_the_rest() -> None:
    answer = torch.tensor([[2, 3, 4]]).repeat(6, 1)
    attack = prefilled(Attacked("unsafe", 0.0, plain("unsafe").prompts, answer, torch.full((6, 3), 1)), 2)
    assert attack.prompts.sequence[:, -2:].tolist() == [[2, 3]] * 6
    assert attack.answer.tolist() == [[4]] * 6
    assert (attack.kind, attack.strength, attack.comparable) == ("prefill", 2.0, False)
