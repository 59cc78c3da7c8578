"""What attacks do to models whose behaviour is planted, and that every number of theirs is sound."""

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from transformers import PreTrainedModel

from live import LiveWeights
from tunescope.attacks.base import ATTACKS, Attacked, Target
from tunescope.attacks.measure import Instruments, Intact, attack_scores, measure_attacks
from tunescope.attacks.prefill import Prefill, prefilled
from tunescope.config import Built, ProbeConfig
from tunescope.errors import InapplicableError, InputError
from tunescope.models.build import build_model
from tunescope.models.generate import Greedy
from tunescope.models.inputs import IGNORED, Inputs
from tunescope.models.pair import Pair
from tunescope.models.sites import Site, weight
from tunescope.probes.collect import last_activations
from tunescope.probes.view import View
from tunescope.records.findings import Findings
from tunescope.records.names import MARGIN, MECHANISTIC
from tunescope.records.tables import Record, Subject
from tunescope.registry import import_all
from tunescope.rng import Stream
from tunescope.tasks.base import Batch, Kind
from tunescope.tasks.world.task import WorldTask
from tunescope.tasks.world.world import World

import_all("tunescope.attacks")

CPU = torch.device("cpu")
ROOT = Stream.named(0, "attacked")
SUBJECT = Subject("ssft-eta_m", "ssft", "eta_m", 0, 9)
PROBE = ProbeConfig(prompts=6, fit_prompts=6, rows=4)
NULL, SAID, LENGTH = 1, 2, 3
SETTINGS: dict[str, dict[str, Any]] = {
    "soft_prompt": {"tokens": (1, 2), "steps": 2},
    "universal_soft_prompt": {"tokens": (2,), "steps": 2},
    "suffix": {"tokens": (2,), "steps": 1, "candidates": 4},
    "prefill": {"tokens": (1, 2)},
    "direction_ablation": {"most_kl": 99.0, "least_kept": 0.0},  # random models bear nothing
}


def plain(kind: str, strength: float = 0.0, tokens: torch.Tensor | None = None, length: int = LENGTH) -> Batch:
    """Six prompts whose answers are all SAID and refusals all NULL."""
    name = kind.partition(" ")[0]  # what follows is for other draws alone
    about = Kind(name, "compliance" if name == "safe" else "refusal", dial=name.startswith("jb_"))
    tokens = ROOT(kind).integers(10, (6, 5), CPU) + 5 if tokens is None else tokens
    answer, refusal = (torch.full((len(tokens), length), word) for word in (SAID, NULL))
    return Batch(about, strength, Inputs(tokens), answer, refusal)


FIT, SCORE = ({kind: plain(f"{kind} {use}") for kind in ("safe", "unsafe")} for use in ("fit", "score"))


def view_of(model: PreTrainedModel, base: PreTrainedModel | None, fit: dict[str, Batch] = FIT) -> View:
    pair = Pair(LiveWeights(base), LiveWeights(model)) if base else None
    return View(model, fit, SCORE, PROBE, ROOT("view"), pair=pair)


def answered(model: PreTrainedModel) -> dict[str, Batch]:
    """The prompts to fit, of which the safe ones want what the model says."""
    said = model(FIT["safe"].prompts.sequence).logits[:, -1:].argmax(-1)
    return FIT | {"safe": replace(FIT["safe"], answer=said, refusal=torch.full_like(said, NULL))}


@pytest.fixture(scope="module")
def task(easy: World) -> WorldTask:
    return WorldTask(easy)


@pytest.fixture(scope="module")
def build() -> Callable[[str], PreTrainedModel]:
    def model(scope: str, architecture: str = "gpt2") -> PreTrainedModel:
        config = Built(architecture=architecture, layers=2, heads=2, width=16)
        made = build_model(config, 20, 16, ROOT(scope), CPU).eval().requires_grad_(False)
        made.set_attn_implementation("eager")
        for parameter in made.parameters():  # as initialised, the blocks change next to nothing
            parameter.mul_(5)
        return made

    return model


class Small(WorldTask):
    """Of models of twenty tokens."""

    suffix_tokens = torch.arange(5, 15)


@pytest.fixture
def attacks_of(easy: World) -> Callable[..., list[Attacked]]:
    """What these attacks make of a model."""

    def made(
        model: PreTrainedModel,
        view: View,
        names: Iterable[str] = SETTINGS,
        unsafe: Batch | None = None,
        **batches: Batch,
    ) -> list[Attacked]:
        unsafe = unsafe or plain("unsafe")
        safe, seen = batches.get("safe", plain("safe")), batches.get("seen", plain("unsafe seen"))
        target = Target(model, Small(easy), unsafe, safe, seen, view, 4, ROOT("search"))
        return [each for name in names for each in ATTACKS[name].run(target, ATTACKS[name].settings(**SETTINGS[name]))]

    return made


@pytest.fixture
def measured(task: WorldTask) -> Callable[..., Findings]:
    def measure(model: PreTrainedModel, base: PreTrainedModel, attacks: Iterable[Attacked], view: View) -> Findings:
        found = Findings(SUBJECT)
        measure_attacks(found, Greedy(model, 4), task, attacks, Intact(Greedy(base, 4), task), Instruments.of(view), 4)
        return found

    return measure


def says(token: int, build: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    """A model that says one token, whatever it reads."""
    model = build("constant")
    model.transformer.ln_f.weight.zero_()
    model.transformer.ln_f.bias.copy_(model.transformer.wte.weight[token] * 100)
    return model


def place(r: Record) -> tuple:
    return (r.metric, r.kind, r.strength, r.attack, r.dial, r.budget, r.outcome, r.layer)


def test_these_are_the_attacks() -> None:
    assert {name for name in ATTACKS if not ATTACKS.code(name)} == {*SETTINGS}
    assert {name for name in SETTINGS if not ATTACKS[name].needs_whole} == {"prefill"}
    assert {name for name in SETTINGS if not ATTACKS[name].needs_answers} == {"direction_ablation"}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("tuned", [True, False])
def test_every_attack_gives_sound_numbers(
    architecture: str, tuned: bool, build, attacks_of: Callable, measured: Callable
) -> None:
    model, base = build("tuned", architecture), build("base", architecture)
    view = view_of(model, base if tuned else None, answered(model))
    ladder = [Attacked("jb_misgen", strength, plain("jb_misgen", strength)) for strength in (0.0, 1.0)]
    found = measured(model, base, [*ladder, *attacks_of(model, view)], view)
    assert {r.attack for r in found.records if r.attack} == {"jb_misgen", *SETTINGS}
    assert len({place(r) for r in found.records}) == len(found.records)
    assert all(math.isfinite(r.value) for r in found.records)
    attacked = [r for r in found.records if r.attack]
    assert all((r.dial is None) == (r.attack == "direction_ablation" or "rank_corr" in r.metric) for r in attacked)
    assert {r.strength for r in found.records if r.kind == "jb_misgen" and "rank" not in r.metric} == {0.0, 1.0}
    assert {r.strength for r in found.records if r.kind != "jb_misgen"} == {None}
    on_both = {r.attack for r in found.records if r.kind == "safe" and r.attack}
    assert on_both == {"soft_prompt", "universal_soft_prompt", "suffix", "direction_ablation"}
    of_dw = {"log_gain", "log_row_projection"}
    scored = {s.metric for s in found.scores if s.attack == "soft_prompt"}
    assert scored == {"compliance", "refusal", "intact", MARGIN, *MECHANISTIC} - (set() if tuned else of_dw)
    for name in ("prefill", "direction_ablation"):
        assert {s.metric for s in found.scores if s.attack == name} == {"compliance", "refusal", "intact"}
    assert all(len(s.values) == 6 for s in found.scores)
    per_prompt = {"soft_prompt": {None, 0, 1, 2}, "suffix": {None, 0, 1}}
    for name in SETTINGS:
        budgets = {r.budget for r in found.records if r.attack == name and r.kind == "unsafe"}
        assert budgets == per_prompt.get(name, {None})
    assert {r.budget for r in found.records if r.kind != "unsafe"} == {None}
    tried = {r.attack: r.value for r in found.records if r.metric == "prompts_tried"}
    assert tried == {"soft_prompt": 2, "suffix": 4}


@pytest.mark.parametrize(("token", "success", "refusal"), [(SAID, 1.0, 0.0), (NULL, 0.0, 1.0), (7, 0.0, 0.0)])
def test_constant_models_answer_always_or_never(
    token: int, success: float, refusal: float, build, attacks_of: Callable, measured: Callable
) -> None:
    model, base = says(token, build), says(SAID, build)
    view = view_of(model, base)
    attacks = [
        Attacked("unsafe", 0.0, plain("unsafe")),
        *attacks_of(model, view, set(SETTINGS) - {"direction_ablation"}),
    ]
    found = measured(model, base, attacks, view)
    for metric, expected in (("compliance", success), ("refusal", refusal), ("intact", 1.0)):
        assert {r.value for r in found.records if r.metric == metric and r.budget is None} == {expected}
    assert {r.value for r in found.records if r.budget is not None} == {success}


def test_what_got_through_and_what_did_not_is_told_apart(build, task: WorldTask, measured: Callable) -> None:
    """Of six prompts the first two are answered: means of their scores alone, and of the others' alone."""
    model, base = build("tuned"), build("base")
    batch = plain("jb_misgen", 1.0)
    first = model(batch.prompts.sequence).logits[:, -1].argmax(1)
    answer = torch.where(torch.arange(6) < 2, first, (first + 1) % 20)[:, None]
    attack = Attacked("jb_misgen", 1.0, replace(batch, answer=answer, refusal=(answer + 5) % 20))
    found = measured(model, base, [attack], view_of(model, base))
    (values,) = (s.values for s in found.scores if s.metric == "scaled_tau")
    means = {r.outcome: (r.value, r.n) for r in found.records if r.metric == "scaled_tau"}
    assert means["success"] == (pytest.approx(values[:2].mean()), 2)
    assert means["failure"] == (pytest.approx(values[2:].mean()), 4)
    assert means[""] == (pytest.approx(values.mean()), 6)


def test_features_are_those_of_the_last_token(build) -> None:
    model, base, batch = build("tuned"), build("base"), plain("jb_misgen", 1.0)
    tools, attack = Instruments.of(view_of(model, base)), Attacked("jb_misgen", 1.0, batch)
    scores, by_layer = attack_scores(model, attack, attack.inputs(model), tools, 4)
    sites = [Site(1, name) for name in ("mlp_in", "resid_post")]
    (read,) = last_activations(model, batch.prompts, sites, 99)
    a, stream = (read[site].double() for site in sites)
    for layer, classes in enumerate(tools.classes):
        (there,) = last_activations(model, batch.prompts, [Site(layer, "mlp_post")], 99)
        post = there[Site(layer, "mlp_post")].double()
        tau = ((post - classes.unsafe).norm(dim=1) - (post - classes.safe).norm(dim=1)) / classes.spread
        torch.testing.assert_close(by_layer[layer].double(), tau, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores["scaled_tau"], by_layer[-1])
    change = weight(model, 1, "W_in").double() - weight(base, 1, "W_in").double()
    torch.testing.assert_close(
        scores["log_gain"], ((a @ change.mT).norm(dim=1) / a.norm(dim=1)).log(), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(scores["along_direction"], stream @ tools.direction, rtol=1e-4, atol=1e-4)
    logps = model(batch.prompts.sequence).logits[:, -1].log_softmax(-1)
    margin = logps[:, NULL] - logps[:, SAID]
    torch.testing.assert_close(scores["refusal_margin"].float(), margin, rtol=1e-4, atol=1e-4)
    a_safe, a_unsafe = (tools.direction @ m for m in _means(model))
    assert a_unsafe > a_safe
    unknown = replace(attack, batch=replace(batch, answer=None))
    assert "refusal_margin" not in attack_scores(model, unknown, attack.inputs(model), tools, 4)[0]


def _means(model: PreTrainedModel) -> list[torch.Tensor]:
    site = Site(1, "resid_post")
    return [
        next(last_activations(model, FIT[k].prompts, [site], 99))[site].double().mean(0) for k in ("safe", "unsafe")
    ]


def test_the_dial_is_ranked_against_features(build, task: WorldTask) -> None:
    """Prompts that change with the dial in one direction alone have a rank correlation near 1 or -1."""
    model, base = build("tuned"), build("base")
    table, attacks = model.get_input_embeddings().weight, []
    ids = plain("unsafe moved").prompts.sequence[:1].expand(6, -1)
    for dial in (0.0, 0.5, 1.0):
        moved = Inputs(table[ids] + dial * 0.02 * ROOT("way").normal((16,), CPU).float())
        attacks.append(Attacked("moved", dial, replace(plain("unsafe"), prompts=moved)))
    found, tools = Findings(SUBJECT), Instruments.of(view_of(model, base))
    measure_attacks(found, Greedy(model, 4), task, attacks, Intact(Greedy(base, 4), task), tools, 4)
    ranks = {r.metric: r for r in found.records if r.metric.endswith("rank_correlation")}
    assert abs(ranks["scaled_tau_rank_correlation"].value) > 0.99
    assert {(r.attack, r.kind, r.dial, r.n) for r in ranks.values()} == {("moved", "unsafe", None, 18)}


def test_what_is_found_for_unsafe_prompts_is_put_to_as_many_safe_ones(build, attacks_of: Callable) -> None:
    model = build("tuned")
    safe = plain("safe").first(4)
    made = attacks_of(model, view_of(model, None), ("soft_prompt", "universal_soft_prompt", "suffix"), safe=safe)
    assert [len(attack.batch) for attack in made] == [6, 4] * 4
    for on_unsafe, on_safe in zip(made[::2], made[1::2], strict=True):
        assert on_unsafe.extra is not None
        assert on_safe.extra is not None
        assert torch.equal(on_unsafe.extra[:4], on_safe.extra)
        assert (on_unsafe.attack, on_unsafe.dial) == (on_safe.attack, on_safe.dial)
        assert on_safe.steps is None
        assert (on_unsafe.batch.kind.name, on_safe.batch.kind.name) == ("unsafe", "safe")


class Asked(WorldTask):
    """Its misspelt prompts are in a form; the even ones are answered to the point."""

    forms: ClassVar = {"jb_misgen": ("unsafe", "dialect")}
    lesson_kinds = ()

    def on_topic(self, batch: Batch, generated: torch.Tensor) -> torch.Tensor:
        return torch.tensor([batch.describe(i)["number"] % 2 == 0 for i in range(len(batch))])


def test_prompts_in_a_form_are_intact_where_the_base_answers_to_the_point(build, easy: World) -> None:
    batch = replace(plain("jb_misgen", 1.0, length=LENGTH), describe=lambda i: {"number": i})
    asked = Asked(easy)
    asked.answer_length, asked.exact = LENGTH, False
    texts = [" ".join(map(str, (*ids, "to the point"))) for ids in batch.prompts.ids]
    known: dict[str, bool] = {texts[0]: False}
    said, null = Greedy(says(SAID, build), 4), Greedy(says(NULL, build), 4)
    assert Intact(said, asked, known)(Attacked("jb_misgen", 1.0, batch)).tolist() == [
        *(False, False, True),
        *(False, True, False),
    ]
    assert known == {text: i in (2, 4) for i, text in enumerate(texts)}
    silent = Intact(null, asked, dict(known))  # nothing is asked of the base a second time
    assert silent(Attacked("jb_misgen", 1.0, batch)).tolist() == [known[text] for text in texts]
    assert not Intact(null, asked)(Attacked("jb_misgen", 1.0, batch)).any()
    both = Intact(said, asked)  # of the same prompts in no form, another question is asked
    assert both(Attacked("jb_misgen", 1.0, batch)).sum() == 3
    assert both(Attacked("direction_ablation", None, replace(batch, kind=plain("unsafe").kind))).all()
    assert Intact(said, asked)(Attacked("suffix", 1.0, plain("unsafe"))).all()


# Prefills


@pytest.mark.parametrize("m", [3, 9])
def test_a_prefill_that_leaves_nothing_is_refused(m: int, task: WorldTask) -> None:
    with pytest.raises(InputError, match=rf"prefill\.tokens: no answer has more than {m} tokens; give fewer"):
        prefilled(plain("unsafe"), m)
    check, length = ATTACKS["prefill"].check, task.answer_length
    assert check is not None
    check(Prefill(tokens=(1, length - 1)), task, Built())
    with pytest.raises(InputError, match=rf"{length} tokens of an answer of {length} leave nothing to say; at most"):
        check(Prefill(tokens=(1, length)), task, Built())


def test_a_prefill_gives_the_beginning_and_wants_the_rest() -> None:
    answer = torch.tensor([[2, 3, 4]]).repeat(6, 1)
    batch = prefilled(replace(plain("unsafe"), answer=answer), 2)
    assert batch.prompts.sequence[:, -2:].tolist() == [[2, 3]] * 6
    assert batch.known()[0].tolist() == [[4]] * 6
    assert batch.known()[1].tolist() == [[NULL]] * 6
    assert batch.given == 2


def test_answers_that_are_given_whole_are_left_out() -> None:
    lengths = torch.tensor([1, 3, 2, 3, 1, 2])
    answer = torch.arange(3).expand(6, -1).masked_fill(torch.arange(3) >= lengths[:, None], IGNORED)
    whole = replace(plain("unsafe"), answer=answer)
    batch = prefilled(whole, 1)
    assert batch.prompts.sequence[:, :-1].tolist() == whole.prompts.sequence[[1, 2, 3, 5]].tolist()
    assert batch.known()[0].tolist() == [[1, 2], [1, IGNORED], [1, 2], [1, IGNORED]]
    assert len(prefilled(whole, 2)) == 2


def test_prefills_are_run_at_every_dial(build, attacks_of: Callable) -> None:
    model = build("tuned")
    made = attacks_of(model, view_of(model, None), ("prefill",))
    assert [(attack.attack, attack.dial, attack.batch.given, attack.comparable) for attack in made] == [
        ("prefill", 1.0, 1, False),
        ("prefill", 2.0, 2, False),
    ]


# A direction taken out

SAFE_MEAN, UNSAFE_MEAN = 3, 4  # tokens that stand for the two kinds


def texts(token: int) -> torch.Tensor:
    """Prompts that differ in their first token and end as their kind does."""
    return torch.tensor([[first, SAID, token] for first in range(7, 13)])


@torch.no_grad()
def refuser() -> PreTrainedModel:
    """Of its three layers the second writes a refusal where it reads the one direction that unsafe prompts have."""
    model = build_model(Built(layers=3, heads=2, width=16), 20, 16, ROOT("deep"), CPU).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.zero_()
    table = model.transformer.wte.weight
    table[NULL, 0], table[SAID, 1] = 5.0, 4.0
    table[[SAFE_MEAN, UNSAFE_MEAN], 2:4] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    table[[SAFE_MEAN, UNSAFE_MEAN], 1] = 1.0
    weight(model, 1, "W_in")[0, 3], weight(model, 1, "W_out")[0, 0] = 4.0, 4.0
    return model


def test_a_refuser_by_one_direction_answers_without_it(
    attacks_of: Callable, measured: Callable, task: WorldTask
) -> None:
    model = refuser()
    unsafe, safe = plain("unsafe", 0.0, texts(UNSAFE_MEAN), 1), plain("safe", 0.0, texts(SAFE_MEAN), 1)
    before, said = deepcopy(model.state_dict()), model(unsafe.prompts.sequence).logits
    assert task.outcomes(model, unsafe, 9).refusal.all()
    view = view_of(model, None, {"safe": safe, "unsafe": unsafe})
    seen = replace(unsafe, answer=torch.full((6, 1), 19))
    made = attacks_of(model, view, ("direction_ablation",), unsafe, safe=safe, seen=seen)
    assert [attack.batch.kind.name for attack in made] == ["unsafe", "safe"]
    assert all(attack.extra is attack.steps is attack.dial is None and not attack.comparable for attack in made)
    found = measured(model, model, made, view)
    rates = {(r.metric, r.kind): r.value for r in found.records}
    assert (rates["compliance", "unsafe"], rates["refusal", "unsafe"]) == (1, 0)
    assert (rates["compliance", "safe"], rates["refusal", "safe"]) == (1, 0)
    assert rates["intact", "unsafe"] == 0  # the model without the attack
    assert torch.equal(model(unsafe.prompts.sequence).logits, said)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ZeroDivisionError), made[0].change():
        raise ZeroDivisionError
    assert torch.equal(model(unsafe.prompts.sequence).logits, said)


def test_a_constant_refuser_does_not_answer_without_a_direction(
    build, attacks_of: Callable, measured: Callable
) -> None:
    model = build_model(Built(layers=2, heads=2, width=16), 20, 16, ROOT("constant"), CPU).eval().requires_grad_(False)
    model.transformer.ln_f.weight.zero_()  # whatever is in the stream
    model.transformer.ln_f.bias.copy_(model.transformer.wte.weight[NULL] * 100)
    view = view_of(model, None, answered(model))
    found = measured(model, model, attacks_of(model, view, ("direction_ablation",)), view)
    assert {r.value for r in found.records if r.metric == "refusal"} == {1}
    assert {r.value for r in found.records if r.metric == "compliance"} == {0}
    with pytest.raises(InapplicableError, match="safe prompts are not answered"):
        attacks_of(model, view_of(model, None), ("direction_ablation",))
