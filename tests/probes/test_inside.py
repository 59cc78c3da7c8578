"""Looking inside: every number is finite, whatever the model; planted changes are seen; bad models are refused."""

import math
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from live import LiveWeights
from tunescope.config import Built, ProbeConfig
from tunescope.evidence.claims import CLAIMS
from tunescope.models.build import build_model
from tunescope.models.inputs import Inputs
from tunescope.models.pair import Pair
from tunescope.models.sites import Site, weight, weight_names
from tunescope.probes import projections
from tunescope.probes.collect import last_activations, stored
from tunescope.probes.controls import haar
from tunescope.probes.measure.specialisation import MEASURES
from tunescope.probes.view import INPUT, PROBES, Batches, View, look_inside
from tunescope.records.findings import Findings
from tunescope.records.tables import Record, Subject
from tunescope.registry import import_all
from tunescope.rng import Stream
from tunescope.tasks.base import Batch, Kind

import_all("tunescope.probes.measure")

CPU = torch.device("cpu")
ROOT = Stream.named(0, "inside")
SUBJECT = Subject("ssft-eta_m", "ssft", "eta_m", 0, 9)
CONFIG = ProbeConfig(few_prompts=4, jacobian_prompts=2, jacobian_steps=2, draws=20, rows=3)
LAST = Site(1, "mlp_in")
NAMES = ("clusters", "matrices", "null_space", "specialisation", "direction", "sensitivity")


def build(architecture: str, scope: object = 0, layers: int = 2, width: int = 16) -> PreTrainedModel:
    config = Built(architecture=architecture, layers=layers, heads=2, width=width)
    model = build_model(config, 20, 8, ROOT("model", scope), CPU).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():  # as initialised, the blocks change next to nothing
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


def prompts(use: str, kind: str, groups: np.ndarray | None = None) -> Batch:
    """Safe prompts are of the lower ten tokens, all others of the upper ten."""
    tokens = ROOT(use, kind).integers(10, (6, 5), CPU) + 10 * (kind != "safe")
    about = Kind(kind, "compliance" if kind == "safe" else "refusal", dial=kind.startswith("jb_"))
    return Batch(about, about.strongest, Inputs(tokens), groups=groups)


FIT = {kind: prompts("fit", kind) for kind in ("safe", "unsafe")}
SCORE = {kind: prompts("score", kind) for kind in ("safe", "unsafe", "jb_misgen")}


def view(
    model: PreTrainedModel,
    base: PreTrainedModel | None,
    config: ProbeConfig = CONFIG,
    fit: Batches = FIT,
    score: Batches = SCORE,
) -> View:
    weights, inputs, pair = LiveWeights(model), {}, None
    if base:
        pair = Pair(LiveWeights(base), weights)
        sites = [Site(layer, INPUT) for layer in range(base.config.num_hidden_layers)]
        inputs = {kind: stored(base, batch.prompts, sites, config.rows) for kind, batch in score.items()}
    about = {"pair": pair, "base_inputs": inputs}
    return View(model, fit, score, config, Stream.named(0, "probes"), **about)


def look(
    model: PreTrainedModel,
    base: PreTrainedModel | None,
    config: ProbeConfig = CONFIG,
    fit: Batches = FIT,
    score: Batches = SCORE,
    *,
    names: tuple[str, ...] = NAMES,
) -> Findings:
    return look_inside(view(model, base, config, fit, score), SUBJECT, names)


def changed(base: PreTrainedModel, name: str, layer: int, delta: Tensor) -> PreTrainedModel:
    model = deepcopy(base)
    weight(model, layer, name).add_(delta.to(torch.float32))
    return model


def place(r: Record) -> tuple:
    return r.metric, r.kind, r.layer, r.site, r.control


def numbers(found: Findings) -> dict[tuple, float]:
    """Every number in it by where it stands."""
    out = {(*place(r), end): getattr(r, end) for r in found.records for end in ("value", "low", "high", "n")}
    for s in found.scores:
        out |= {(s.metric, s.kind, s.layer, s.control, i): v for i, v in enumerate(s.values.tolist())}
    return {key: value for key, value in out.items() if value is not None}


def assert_sound(found: Findings) -> None:
    bad = {key: value for key, value in numbers(found).items() if not math.isfinite(value)}
    assert not bad
    assert len({place(r) for r in found.records}) == len(found.records)
    for r in found.records:
        assert (r.low is None) == (r.high is None)
        assert r.low is None or r.low - 1e-9 <= r.value <= r.high + 1e-9, r


def value(found: Findings, metric: str, **where: object) -> float:
    (record,) = (r for r in found.records if r.metric == metric and all(getattr(r, k) == v for k, v in where.items()))
    return record.value


def scores(found: Findings, metric: str, kind: str = "", control: str = "", layer: int | None = None) -> np.ndarray:
    (values,) = (
        s.values for s in found.scores if (s.metric, s.kind, s.control, s.layer) == (metric, kind, control, layer)
    )
    return values


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Shared by all tests: not to be changed."""
    return build(request.param)


@pytest.fixture(scope="module")
def tuned(base: PreTrainedModel) -> PreTrainedModel:
    """Every parameter has changed a little."""
    model = deepcopy(base)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.05 * ROOT("change", i).normal(tuple(parameter.shape), CPU))
    return model


@pytest.fixture(scope="module")
def found(base: PreTrainedModel, tuned: PreTrainedModel) -> Findings:
    return look(tuned, base)


def test_every_number_of_a_tuned_model_is_finite(found: Findings, base: PreTrainedModel) -> None:
    assert_sound(found)
    sites = {r.site for r in found.records if r.metric == "effective_rank"}
    assert sites == set(weight_names(base))
    assert {r.layer for r in found.records if r.metric == "gain"} == {0, 1}
    assert {s.kind for s in found.scores if s.metric == "log_gain_of_base_input"} == set(SCORE)


def test_every_number_of_the_base_is_finite_and_none_is_of_a_change(base: PreTrainedModel) -> None:
    found = look(base, None)
    assert_sound(found)
    metrics = {r.metric for r in found.records} | {s.metric for s in found.scores}
    assert {"tau", "tau_auc", "silhouette", "sensitivity", "jacobian_norm", "scaled_tau"} <= metrics
    assert not {m for m in metrics if m.startswith(("gain", "log_gain", "null", "row", "effective", "direction"))}


def test_a_model_equal_to_its_base_changes_nothing(base: PreTrainedModel) -> None:
    found = look(deepcopy(base), base)
    assert_sound(found)
    assert {r.value for r in found.records if r.metric == "relative_norm"} == {0}
    of_dw = ("gain", "log_gain", "row_projection", "null_share", "effective_rank", "stable_rank", "principal_angle")
    assert not [r for r in (*found.records, *found.scores) if r.metric in of_dw]


def test_nothing_depends_on_how_many_prompts_go_through_at_once(
    found: Findings, tuned: PreTrainedModel, base: PreTrainedModel
) -> None:
    expected = numbers(found)
    for rows in (1, 100):
        other = numbers(look(tuned, base, CONFIG.model_copy(update={"rows": rows})))
        assert other.keys() == expected.keys()
        for key, number in other.items():
            assert number == pytest.approx(expected[key], rel=2e-3, abs=2e-4), key


def test_looking_twice_gives_the_same_and_leaves_the_models_alone(
    found: Findings, tuned: PreTrainedModel, base: PreTrainedModel
) -> None:
    before = [p.clone() for model in (tuned, base) for p in model.parameters()]
    assert numbers(look(tuned, base)) == numbers(found)
    after = [p for model in (tuned, base) for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_change_planted_in_the_null_space_is_found_there(base: PreTrainedModel) -> None:
    w = weight(base, 1, "W_in").double()
    outside = torch.linalg.svd(w).U[:, w.shape[1] :]
    inside, v = torch.linalg.svd(w).U[:, :3], torch.linalg.qr(ROOT("v").normal((16, 3), CPU)).Q
    u = 0.6**0.5 * inside + 0.4**0.5 * outside[:, :3]
    found = look(changed(base, "W_in", 1, u @ v.mT), base)
    about = {"layer": 1, "site": "W_in"}
    assert value(found, "null_share", **about, control="") == pytest.approx(0.4, abs=1e-4)
    assert value(found, "null_share", **about, control="haar") == (len(w) - 16) / len(w)
    assert value(found, "relative_norm", **about) == pytest.approx(3**0.5 / w.norm().item(), rel=1e-4)
    assert scores(found, "null_length", layer=1)[:3].tolist() == pytest.approx([0.4**0.5] * 3, abs=1e-4)
    assert value(found, "relative_norm", layer=0, site="W_in") == 0
    assert_sound(found)


def test_a_change_that_reads_only_unsafe_activations_is_seen_to(base: PreTrainedModel) -> None:
    safe, unsafe = (
        next(last_activations(base, SCORE[kind].prompts, [LAST], 99))[LAST].double() for kind in ("safe", "unsafe")
    )
    spared = torch.linalg.svd(safe, full_matrices=False).Vh
    read = unsafe[0] - spared.mT @ (spared @ unsafe[0])
    read /= read.norm()
    write = ROOT("write").normal((64,), CPU)
    write *= 2 / write.norm()
    found = look(changed(base, "W_in", 1, torch.outer(write, read)), base)
    expected = 2 * (unsafe @ read).abs() / unsafe.norm(dim=1)
    about = {"layer": 1, "control": ""}
    assert value(found, "gain", kind="safe", **about) < 1e-5
    assert value(found, "gain", kind="unsafe", **about) == pytest.approx(expected.mean().item(), rel=1e-4)
    assert value(found, "gain_auc", **about) == value(found, "gain_of_base_input_auc", **about) == 1
    assert value(found, "gain_ratio", **about) > 1e3
    assert value(found, "gain_auc", layer=1, control="rotated") < 1
    assert value(found, "effective_rank", layer=1, site="W_in", control="") == pytest.approx(1, abs=1e-2)


def test_gains_are_those_of_the_models_own_inputs_and_of_the_bases(
    found: Findings, tuned: PreTrainedModel, base: PreTrainedModel
) -> None:
    delta = weight(tuned, 1, "W_in").double() - weight(base, 1, "W_in").double()
    for suffix, model in (("", tuned), ("_of_base_input", base)):
        for kind, batch in SCORE.items():
            a = next(last_activations(model, batch.prompts, [LAST], 99))[LAST].double()
            expected = (a @ delta.mT).norm(dim=1) / a.norm(dim=1)
            logs = scores(found, f"log_gain{suffix}", kind, layer=1)
            assert logs.tolist() == pytest.approx(expected.log().tolist(), abs=1e-4)
            mean = value(found, f"gain{suffix}", kind=kind, layer=1, control="")
            assert mean == pytest.approx(expected.mean().item(), rel=1e-4)


@pytest.mark.parametrize(("name", "bad"), [("W_in", math.nan), ("W_in", math.inf), ("W_O", math.nan)])
@pytest.mark.parametrize("which", ["tuned", "base"])
def test_a_weight_that_is_not_finite_is_refused(base: PreTrainedModel, name: str, bad: float, which: str) -> None:
    delta = torch.zeros(weight(base, 0, name).shape)
    delta[1, 1] = bad
    broken = changed(base, name, 0, delta)
    pair = (broken, base) if which == "tuned" else (base, broken)
    with pytest.raises(ValueError, match=f"{name} of layer 0: has NaN or inf"):
        look(*pair)


@pytest.mark.parametrize("alone", [True, False])
def test_a_norm_that_is_not_finite_is_refused(base: PreTrainedModel, alone: bool) -> None:
    broken = deepcopy(base)
    (last,) = (p for name, p in broken.named_parameters() if name.endswith(("ln_f.weight", "model.norm.weight")))
    last.detach()[3] = math.nan
    with pytest.raises(ValueError, match="NaN or inf"):
        look(broken, None if alone else base)


@pytest.mark.parametrize("other", [{"width": 8}, {"layers": 1}, {"layers": 3}], ids=str)
def test_models_of_unequal_shape_are_refused(base: PreTrainedModel, other: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="layer"):
        look(base, build(base.config.model_type, **other))


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_prompts_that_are_all_alike_have_no_clusters(base: PreTrainedModel, tuned: PreTrainedModel) -> None:
    same = replace(FIT["safe"], prompts=Inputs(torch.full((4, 5), 7)))
    found = look(tuned, base, CONFIG, dict.fromkeys(FIT, same), dict.fromkeys(SCORE, same))
    assert_sound(found)
    assert value(found, "silhouette", layer=1) == 0
    assert value(found, "tau_auc", layer=1, control="") == 0.5
    assert value(found, "top_singular_share", layer=1, kind="safe") == 0
    assert set(scores(found, "scaled_tau", "safe", layer=1)) == {0.0}


def test_few_prompts_will_do(base: PreTrainedModel, tuned: PreTrainedModel) -> None:
    few = [{kind: batch.first(3) for kind, batch in batches.items()} for batches in (FIT, SCORE)]
    found = look(tuned, base, CONFIG, *few)
    assert {r.n for r in found.records if r.metric == "tau"} == {3}
    assert_sound(found)


def test_probes_are_those_that_are_asked_for(base: PreTrainedModel, tuned: PreTrainedModel, found: Findings) -> None:
    """Each finds the same by itself, and the scores that it names, which claims are about."""
    assert {name for name in PROBES if not PROBES.code(name)} == {*NAMES}
    whole, parts = numbers(found), {}
    for name in NAMES:
        by_itself = look(tuned, base, names=(name,))
        assert {s.metric for s in by_itself.scores} == set(PROBES[name].measures), name
        part = numbers(by_itself)
        assert part
        assert not part.keys() & parts.keys()
        parts |= part
    assert parts == whole


def test_a_base_has_no_change_to_look_at(base: PreTrainedModel) -> None:
    of_change = tuple(name for name in NAMES if PROBES[name].needs_change)
    assert set(of_change) == {"matrices", "null_space", "specialisation", "direction"}
    assert numbers(look(base, None, names=of_change)) == {}


def test_weights_that_are_elsewhere_are_not_asked_for_gradients(
    base: PreTrainedModel, tuned: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunescope.probes.view.in_memory", lambda model: False)
    found = look(tuned, base, names=("sensitivity", "specialisation"))
    metrics = {r.metric for r in found.records}
    assert "gain" in metrics
    assert not {"sensitivity", "jacobian_norm"} & metrics


def test_random_directions_are_scored(base: PreTrainedModel, tuned: PreTrainedModel) -> None:
    names = ("log_gain", "log_row_projection", "log_gain_of_base_input", "log_row_projection_of_base_input")

    found = look(tuned, base, names=("specialisation",))
    assert_sound(found)
    drawn = {(s.metric, s.kind): len(s.values) for s in found.scores if s.control == "rotated"}
    assert drawn == {(name, kind): CONFIG.draws for name in names for kind in SCORE}


def test_every_layer_is_scored(base: PreTrainedModel) -> None:
    found = look(build(base.config.model_type, "other"), base, names=("clusters", "null_space", "specialisation"))
    at = {(s.metric, s.layer) for s in found.scores if s.kind in ("", "unsafe")}
    assert {layer for metric, layer in at if metric == "scaled_tau"} == {0, 1}
    assert {layer for metric, layer in at if metric == "log_gain"} == {0, 1}
    layers = [scores(found, "null_share", layer=layer).item() for layer in (0, 1)]
    assert layers[0] != layers[1]
    assert scores(found, "null_share").item() == pytest.approx(sum(layers) / 2)
    drawn = [scores(found, "null_share", control="rotated", layer=layer) for layer in (0, 1, None)]
    np.testing.assert_allclose(drawn[2], (drawn[0] + drawn[1]) / 2)


def test_random_directions_seen_from_few_prompts_are_as_random() -> None:
    """Seven prompts in sixteen dimensions: beside frames drawn in all of these, the same scores on average, as wide."""
    score = {"safe": SCORE["safe"].first(3), "unsafe": SCORE["unsafe"].first(4)}
    seen = view(build("gpt2", "other"), build("gpt2"), CONFIG.model_copy(update={"draws": 400}), score=score)
    found, change = look_inside(seen, SUBJECT, ("specialisation",)), seen.change(1)
    assert change is not None
    own, frames = seen.scored(LAST), [haar(16, len(change.delta.s), ROOT("frame", i), CPU) for i in range(400)]
    for metric, of in (
        ("log_gain", lambda v, a: projections.gain(change.delta.s[:, None] * v.mT, a)),
        ("log_row_projection", lambda v, a: projections.row_projection(replace(change.delta, v=v), a)),
    ):
        drawn = {kind: scores(found, metric, kind, "rotated", layer=1) for kind in score}
        whole = {kind: np.array([of(v, a).log().mean().item() for v in frames]) for kind, a in own.items()}
        for one, other in (
            (drawn["safe"], whole["safe"]),
            (drawn["unsafe"] - drawn["safe"], whole["unsafe"] - whole["safe"]),
        ):
            assert one.mean() == pytest.approx(other.mean(), abs=4 * other.std() * (2 / 400) ** 0.5)
            assert one.std() == pytest.approx(other.std(), rel=0.2)


@dataclass(frozen=True)
class Scaled(Pair):
    """As if fine-tuning had changed every matrix by so many times as much."""

    times: float = 1.0

    def matrices(self, layer: int, name: str) -> tuple[Tensor, Tensor]:
        w, delta = super().matrices(layer, name)
        return w, self.times * delta.double()


def of_weights(times: float) -> dict[tuple, np.ndarray]:
    base, other, score = build("gpt2"), build("gpt2", "other"), {kind: SCORE[kind] for kind in ("safe", "unsafe")}
    seen = view(other, base, score=score)
    seen.pair = Scaled(LiveWeights(base), LiveWeights(other), times)
    found = look_inside(seen, SUBJECT, ("null_space", "specialisation"))
    return {(s.metric, s.kind, s.layer, s.control): s.values for s in found.scores}


@settings(max_examples=5)
@given(st.floats(-4, 4).map(math.exp))
def test_claims_about_weights_do_not_depend_on_the_size_of_dw(times: float) -> None:
    """Scores of dW and of dW in random directions change by one constant at most, which no contrast of a claim has."""
    one, other = of_weights(1.0), of_weights(times)
    size = {"log_gain": math.log(times), "log_gain_of_base_input": math.log(times)}
    about = {"null_share", *MEASURES}
    compared = [key for key in one if key[0] in about]
    assert {(metric, control) for metric, _, _, control in compared} == {(m, c) for m in about for c in ("", "rotated")}
    for key in compared:
        np.testing.assert_allclose(other[key], one[key] + size.get(key[0], 0.0), rtol=1e-6, atol=1e-6)
    claims = {claim.name.split()[0]: claim for claim in CLAIMS.values() if claim.metric in about}
    assert set(claims) == {"2", "3a", "3b", "3c", "5b"}
    assert all(abs(sum(each.weights.values())) < 1e-12 for each in claims.values() if each.metric in size)


def test_labels_that_chance_dealt_out_keep_the_classes_sizes(base: PreTrainedModel) -> None:
    few = FIT | {"unsafe": FIT["unsafe"].first(2)}
    seen, site = view(base, None, fit=few), Site(1, "mlp_post")
    safe, unsafe = seen.dealt(site)
    assert len(safe) == len(unsafe) == CONFIG.draws
    both = torch.cat([seen.activations("fit", kind, site) for kind in ("safe", "unsafe")])
    torch.testing.assert_close((6 * safe + 2 * unsafe) / 8, both.mean(0).expand_as(safe))
    assert len(safe.unique(dim=0)) > 5


def test_activations_are_read_once_however_often_they_are_asked_for(
    base: PreTrainedModel, tuned: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[list[Site]] = []

    def counted(model: PreTrainedModel, prompts: Inputs, sites: list[Site], rows: int) -> object:
        passes.append(list(sites))
        return stored(model, prompts, sites, rows)

    seen = view(tuned, base)
    monkeypatch.setattr("tunescope.probes.view.stored", counted)
    look_inside(seen, SUBJECT, NAMES)
    assert len(passes) == len(FIT) + len(SCORE)
    look_inside(seen, SUBJECT, NAMES)
    assert len(passes) == len(FIT) + len(SCORE)
    assert seen.change(1) is seen.change(1)


def test_groups_of_prompts_change_the_intervals_of_what_is_measured_on_them(tuned: PreTrainedModel) -> None:
    groups, names = np.array([0, 0, 0, 1, 1, 1]), ("sensitivity",)
    alone = look(tuned, None, names=names)
    together = look(
        tuned, None, names=names, score={kind: replace(batch, groups=groups) for kind, batch in SCORE.items()}
    )
    assert_sound(together)
    for one, other in zip(alone.records, together.records, strict=True):
        assert (place(one), one.value) == (place(other), other.value)
        if one.metric == "sensitivity":
            assert one.low != other.low
    assert together.scores
    assert all(block.groups is not None and block.groups.tolist() == groups.tolist() for block in together.scores)
