"""The report: what the figures show, what the page says, and what happens to input that is hostile or not there."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from planted_attacks import MODELS, in_form, searched

from tunescope.errors import InputError
from tunescope.evidence import verdicts
from tunescope.evidence.across import Association
from tunescope.evidence.claims import CLAIMS, LADDER
from tunescope.evidence.verdicts import Judgement, NotJudged, Outcome, Verdict, costs, judge
from tunescope.records.pool import pool
from tunescope.records.tables import Record, Scores, Subject, read_records, read_scores, write_records, write_scores
from tunescope.report import figures as drawn_figures
from tunescope.report import html
from tunescope.report.figures import FIGURES, Drawing, draw, figure, figures, in_order, save_figures
from tunescope.report.html import emphasised, load_records, render, to_draw
from tunescope.report.ladder import COLUMNS, REVERSED, SHADES, STANDING, effect_rows, standing_rows
from tunescope.report.select import histogram_rows, vector_rows
from tunescope.report.style import models_of
from tunescope.report.tables import DASH, cautions, cost, duration, headline, layers_text, summary, verdict
from tunescope.report.tables import line as small_line

STRENGTHS = (0.0, 0.5, 1.0)
HOSTILE = "</code><script>alert('x')</script> $\\frac{1}$ & \"quoted\" <b>"
RATIOS = ("gain_ratio", "row_projection_ratio", "gain_of_base_input_ratio")
PLANTED = [protocol for _, protocol, _ in MODELS]
TUNED = [(protocol, rate) for protocol in ("ssft", "benign") for rate in ("eta_m", "eta_s")]

pytestmark = pytest.mark.filterwarnings("error:constrained_layout")  # a figure whose parts do not fit


def compliance(model: str, kind: str, strength: float | None) -> float:
    """A rate that tells every model, kind and strength apart."""
    level = {"base": 0.9, "ssft-eta_m": 0.1, "ssft-eta_s": 0.2}.get(model, 0.8)
    return round(level + 0.05 * (strength or 0) + 0.01 * len(kind) / 10, 6)


def behaviour(model: str, protocol: str, rate: str, step: int, kind: str, strength: float | None) -> Iterator[Record]:
    p = compliance(model, kind, strength) if step >= 100 else 0.5
    for metric, value in {"compliance": p, "refusal": round(0.95 - p, 6), "other": 0.05}.items():
        where = {"kind": kind, "strength": strength, "low": value - 0.04, "high": value + 0.03, "n": 200}
        yield Record(model, protocol, rate, 7, step, metric, value, **where)


def study(kinds: Iterable[str] = ("safe", "unsafe", "jb_misgen", "safe_dialect")) -> list[Record]:
    """A base model of 300 steps and four fine-tuned ones of 100, each measured at step 50 as well."""
    out = []
    for step in range(1, 301):
        out.append(Record("base", "base", "", 7, step, "loss", 3 / step))
    out += [Record("base", "base", "", 7, step, "held_out_compliance", step / 300) for step in (100, 200, 300)]
    for model, protocol, rate in [("base", "base", ""), *((f"{p}-{r}", p, r) for p, r in TUNED)]:
        final = 300 if model == "base" else 100
        for kind in kinds:
            plain = kind in ("safe", "unsafe")
            for strength in (None,) if plain else STRENGTHS:
                out += behaviour(model, protocol, rate, final, kind, strength)
            if plain and model != "base":
                out += behaviour(model, protocol, rate, 50, kind, None)
        if model != "base":
            out += [Record(model, protocol, rate, 7, step, "loss", 1 / step) for step in range(1, 11)]
    return out


def inside() -> list[Record]:
    """What the probes find, in two layers: values that tell models, layers and kinds apart."""
    out = []
    for number, (model, protocol, rate) in enumerate([("base", "base", ""), *((f"{p}-{r}", p, r) for p, r in TUNED)]):
        for step in (300,) if model == "base" else (50, 100):
            one = partial(Record, model, protocol, rate, 7, step)
            for layer, control in product((0, 1), ("", "rotated", "shuffled")):
                value = 1 + 0.1 * number + 0.01 * layer + 0.001 * step if not control else 1.0
                about = {"layer": layer, "control": control, "low": value - 0.01, "high": value + 0.01, "n": 100}
                out += [one(name, value, **about) for name in RATIOS if control != "shuffled" and model != "base"]
                out.append(one("null_share", value / 3, **about, site="W_in"))
                out.append(one("tau_auc", value / 3, **about))
                for kind, sign in (("safe", 1), ("unsafe", -1)):
                    out += [one("tau", sign * value, kind=kind, **about), one("tau_sd", 0.5, kind=kind, **about)]
            for kind, value in (("safe", 2.0), ("unsafe", 1.0 + number)):
                out.append(one("sensitivity", value, kind=kind, low=value - 0.1, high=value + 0.1, n=100))
            for metric, (other, by) in product(("write_overlap", "read_overlap"), enumerate(TUNED)):
                if model not in ("base", "-".join(by)):
                    scope, value = "-".join(by), 0.1 * (1 + number + other + 1)
                    out.append(one(metric, value, scope=scope))
                    out.append(one(metric, 0.1, scope=scope, control="haar"))
            out += [
                one("null_share", (0.64, 0.5625)[layer], control="haar", layer=layer, site="W_in") for layer in (0, 1)
            ]
    return out


def attacked() -> list[Record]:
    """Attacks on every model: values that tell models, attacks and strengths apart."""
    out = []
    for number, (model, protocol, rate) in enumerate([("base", "base", ""), *((f"{p}-{r}", p, r) for p, r in TUNED)]):
        ladders = {
            "jb_misgen": (0.0, 0.5, 1.0),
            "safe_dialect": (0.0, 0.5, 1.0),
            "soft_prompt": (1, 8),
            "prefill": (2, 3),
            "my_attack": (None,),
        }
        for attack, dials in ladders.items():
            kind = "unsafe" if attack in ("soft_prompt", "prefill", "my_attack") else attack
            for dial in dials:
                about = {"kind": kind, "attack": attack, "dial": dial, "n": 20}
                one = partial(Record, model, protocol, rate, 7, 100, **about)
                success = min(1.0, 0.1 * number + 0.05 * (dial or 0))
                out.append(one("compliance", success, low=success / 2, high=(1 + success) / 2))
                out.append(one("target_reached", 0.99, budget=4))
                if attack == "prefill":
                    continue
                for metric in ("scaled_tau", "log_gain", "log_sensitivity"):
                    value = (dial or 0) - number
                    if metric != "log_gain" or model != "base":
                        out.append(one(metric, value, low=value - 0.1, high=value + 0.1))
                for layer in (0, 1):
                    out.append(one("scaled_tau_by_layer", layer + (dial or 0), layer=layer))
                for outcome, value in (("success", 1.0 + number), ("failure", -1.0 - number)):
                    out.append(one("scaled_tau", value, low=value - 0.1, high=value + 0.1, outcome=outcome))
        for kind, layer in product(("safe", "unsafe"), (0, 1)):
            tau = (1 + layer) * (9 if kind == "safe" else -9)
            out.append(Record(model, protocol, rate, 7, 100, "scaled_tau_by_layer", tau, kind=kind, layer=layer))
        on_safe = {"kind": "safe", "attack": "soft_prompt", "dial": 8.0}
        out.append(Record(model, protocol, rate, 7, 100, "compliance", 0.5, **on_safe))
    return out


def intervened() -> list[Record]:
    """What becomes of every model: values that tell models, interventions and dials apart."""
    out = []
    for number, (protocol, rate) in enumerate(TUNED):
        one = partial(Record, f"{protocol}-{rate}", protocol, rate, 7, 100, n=20)
        for kind, alpha in product(("safe", "unsafe", "jb_misgen"), (0.0, 1.0, 2.0)):
            for outcome, value in (("compliance", 0.1 * number + 0.2 * alpha), ("refusal", 1 - 0.3 * alpha)):
                about = {"kind": kind, "low": value, "high": value}
                changed = {"all": value, "mlp": value}
                scaled = {"intervention": "scaled", "dial": alpha}
                out += [one(outcome, v, scope=scope, **scaled, **about) for scope, v in changed.items()]
                if alpha == 1:
                    out.append(one(outcome, value, intervention="truncated", dial=4.0, scope="all", **about))
                    out.append(one(outcome, value / 2, intervention="rotated", scope="all", **about))
                    out.append(one(outcome, value / 4, intervention="with_dpo", scope="all", **about))
                    out.append(one(outcome, value / 5, intervention="my_steering", dial=3.0, scope="all", **about))
                    for name, by in (("direction_ablated", 0.1), ("random_direction_ablated", 0.9)):
                        where = {"intervention": name, "scope": "resid_post", "layer": 1}
                        out.append(one(outcome, by * value, kind=kind, **where))
                    for name, step in product(("retuned_benign", "retuned_seen"), (4.0, 16.0)):
                        left = value * (1 / step if name == "retuned_seen" else 1)
                        where = {"intervention": name, "dial": step, "scope": "all"}
                        out.append(one(outcome, left, kind=kind, low=left, high=left, **where))
        for name, by in (("patched_from_twin", 0.9), ("patched_from_other", 0.2), ("patched_from_base", 0.6)):
            for position, at in (
                ("operators", "0"),
                ("last", "0"),
                ("last", "1"),
                ("operators", "all"),
                ("last", "all"),
            ):
                lost = by * (0.1 if position == "operators" else 1.0) - 0.1 * (at == "0")
                where = {"intervention": name, "scope": f"mlp_out.{at} {position}", "kind": "unsafe"}
                out.append(one("refusal_lost", lost, low=lost, high=lost, **where))
    return out


def null_lengths(shifts: dict[int, float]) -> Iterator[Scores]:
    """Three singular vectors in each of two layers: values that tell models, layers and vectors apart, by seed."""
    for (seed, shift), (number, (protocol, rate)), layer in product(shifts.items(), enumerate(TUNED), (0, 1)):
        values = 0.7 + 0.1 * layer + 0.05 * number - 0.01 * np.arange(3) + shift
        yield Scores(Subject(f"{protocol}-{rate}", protocol, rate, seed, 100), "null_length", values, layer=layer)


def ladder_scores(seeds: int) -> list[Scores]:
    """Of a fine-tune whose clusters are apart in the second layer, as are those of one that has seen unsafe prompts."""
    rng, scores = np.random.default_rng(0), []
    for seed in range(seeds):
        for model, protocol, shift in (("base", "base", 0.0), ("seen-eta_m", "seen", 3.2), ("ssft-eta_m", "ssft", 3.2)):
            subject = Subject(model, protocol, "" if model == "base" else "eta_m", seed, 100)
            for layer, (kind, sign) in product((0, 1), (("safe", 1), ("unsafe", 0))):
                values = sign * shift * layer + 0.1 * rng.normal(size=30)
                scores.append(Scores(subject, "scaled_tau", values, kind=kind, layer=layer))
    return scores


def vectors(shifts: dict[int, float], folder: Path) -> pd.DataFrame:
    write_scores(null_lengths(shifts), folder / "scores.parquet")
    return vector_rows(read_scores(folder / "scores.parquet"))


def frame(records: Iterable[Record], folder: Path) -> pd.DataFrame:
    write_records(records, folder / "frame.parquet")
    return read_records(folder / "frame.parquet")


def write_run(folder: Path) -> Path:
    """A run folder with everything in it."""
    write_records(study(), folder / "records.parquet")
    rates = "{eta_m: 0.001, eta_s: 0.0001}"
    config = f"name: small\nseed: 7\ntask: {{type: world}}\ntune: {{learning_rates: {rates}}}\n"
    (folder / "config.yaml").write_text(config)
    environment = {"device": "cpu", "seeds": {"world": 11}, "git_revision": None}
    (folder / "environment.json").write_text(json.dumps(environment))
    seconds = {"pretrain": 61.0, "tune": 2}
    stages = [{"stage": name, "seconds": time, "skipped": name == "tune"} for name, time in seconds.items()]
    (folder / "stages.json").write_text(json.dumps(stages))
    answers = {
        "ssft-eta_m": {"text": "null null", "outcome": "refusal", "tau": [0.5, -1.5], "gain": [0.1, 0.2]},
        "base": {"text": HOSTILE, "outcome": "compliance"},
    }
    example = {"kind": "unsafe", "strength": 0.0, "safe": False, "grammar": 1, "branch": HOSTILE, "operators": [0, 3]}
    example |= {"prompt": HOSTILE, "answer": "a b", "wanted": "null", "why": HOSTILE, "answers": answers}
    (folder / "examples.json").write_text(json.dumps([example, example | {"kind": "<i>new</i>"}]))
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return frame([*study(), *inside(), *attacked(), *intervened()], tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def drawn(records: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure]:
    """Every figure there is: those of a study, that of a pair of models of which there is nothing but weights, and
    those of attacks that a study of the world does not have, or not at these budgets.
    """
    folder = tmp_path_factory.mktemp("vectors")
    write_scores(ladder_scores(3), folder / "scores.parquet")
    judged = judge(read_scores(folder / "scores.parquet"))
    of_verdicts = pd.concat([standing_rows(judged), effect_rows(judged)])
    study = figures(pd.concat([records, vectors({7: 0.0}, folder), of_verdicts, histograms(folder)]))
    pair = figures(frame(weights_of_a_pair(), tmp_path_factory.mktemp("pair")))
    assert set(pair) == {"matrices"}
    assert not {*study} & {*pair}
    records = [each for form in ("role", "co_text") for each in in_form(form, dict.fromkeys(PLANTED, 0.7), 0.9)]
    records += searched("suffix", 160, dict.fromkeys(PLANTED, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)))
    attacks = figures(frame(records, tmp_path_factory.mktemp("attacks")))
    return attacks | study | pair


def histograms(folder: Path) -> pd.DataFrame:
    """Of two runs, where safe prompts score 0 to 1 and unsafe ones 9 to 10; the base has no gain."""
    values = {"safe": np.linspace(0, 1, 50), "unsafe": np.linspace(9, 10, 50)}
    of = {"ssft-eta_m": ("ssft", "eta_m", ("log_gain", "log_sensitivity")), "base": ("base", "", ("log_sensitivity",))}
    write_scores(
        [
            Scores(Subject(name, protocol, rate, seed, 100), metric, values[kind], kind=kind, layer=layer)
            for name, (protocol, rate, metrics) in of.items()
            for metric in metrics
            for kind in values
            for seed in (0, 1)
            for layer in ((0, 1) if metric == "log_gain" else (None,))
        ],
        folder / "scores.parquet",
    )
    return histogram_rows(read_scores(folder / "scores.parquet"), "log_gain", "log_sensitivity")


def test_histograms_are_of_the_last_layer_and_add_up(drawn: dict[str, Figure], tmp_path: Path) -> None:
    rows = histograms(tmp_path)
    assert set(rows["metric"]) == {"log_gain_histogram", "log_sensitivity_histogram"}
    for (model, metric, kind), its in rows.groupby(["model", "metric", "kind"]):
        assert its["value"].sum() == pytest.approx(1), (model, metric, kind)
        assert set(its["n"]) == {100}  # two runs of 50, of one layer
        inside = its.loc[its["value"] > 0, "index"]
        assert (inside < 1.2).all() if kind == "safe" else (inside > 8.8).all()
    panels = drawn["distributions"].axes
    assert [panel.get_xlabel() for panel in panels[-2:]] == ["|dW a| / |a|", "sensitivity (norm of the gradient)"]
    assert [text.get_text() for panel in panels for text in panel.texts] == ["no dW"]


def weights_of_a_pair() -> list[Record]:
    """Values that tell metrics, matrices and layers apart; W_in alone is taller than wide."""
    one = partial(Record, "chat", "given", "", 0, 0)
    out = []
    for (number, name), layer in product(enumerate(("W_Q", "W_in")), range(3)):
        about = {"site": name, "layer": layer}
        out.append(one("relative_norm", 0.1 + 0.1 * number + 0.01 * layer, **about))
        out.append(one("effective_rank", 10.0 + number + layer, **about))
        out.append(one("effective_rank", 20.0, control="gaussian", **about))
        if name == "W_in":
            out.append(one("null_share", 0.7 + 0.01 * layer, **about))
            out.append(one("null_share", 0.75, control="haar", **about))
    return out


def test_the_change_of_every_matrix_has_a_line(drawn: dict[str, Figure]) -> None:
    size, rank, share = drawn["matrices"].axes
    np.testing.assert_allclose([line.get_ydata() for line in size.lines], [[0.1, 0.11, 0.12], [0.2, 0.21, 0.22]])
    np.testing.assert_allclose(rank.lines[2].get_ydata(), [20, 20, 20])
    np.testing.assert_allclose([line.get_ydata() for line in share.lines], [[0.7, 0.71, 0.72], [0.75] * 3])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its report; not to be written to."""
    folder = write_run(tmp_path_factory.mktemp("rendered") / "run")
    render(folder)
    return folder


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without figures, which take seconds."""
    monkeypatch.setattr(html, "figures", lambda records: {})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose figures are saved as SVG alone."""
    monkeypatch.setattr(drawn_figures, "FORMATS", {"svg": drawn_figures.FORMATS["svg"]})
    return write_run(tmp_path / "run")


def panels(figure: Figure) -> dict[str, Axes]:
    return {panel.get_title(): panel for panel in figure.axes if panel.get_visible()}


def line(panel: Axes, label: str) -> np.ndarray:
    """Points of the curve with a label."""
    return next(np.column_stack(curve.get_data()) for curve in panel.lines if curve.get_label() == label)


def test_behaviour_bars_are_the_rates_at_greatest_strength(drawn: dict[str, Figure]) -> None:
    figure = drawn["behaviour"]
    assert list(panels(figure)) == [
        "safe\ncompliance wanted",
        "unsafe\nrefusal wanted",
        "jailbreak:\nmismatched gen.\nrefusal wanted",
        "control:\nsafe in dialect\ncompliance wanted",
    ]
    panel = panels(figure)["jailbreak:\nmismatched gen.\nrefusal wanted"]
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == ["base", "SSFT ηₘ", "SSFT ηₛ", "benign ηₘ", "benign ηₛ"]
    at = panel.get_yticks()[labels.index("SSFT ηₛ")]
    whole, complied, refused = [bar for bar in panel.patches if bar.get_y() < at < bar.get_y() + bar.get_height()]
    p = 100 * compliance("ssft-eta_s", "jb_misgen", 1.0)
    assert (whole.get_x(), whole.get_width()) == (0, 100)
    assert (complied.get_x(), complied.get_width()) == (0, pytest.approx(p))
    assert (refused.get_x(), refused.get_width()) == (pytest.approx(p + 5), pytest.approx(95 - p))
    ends = [whisker.get_xdata() for whisker in panel.lines if abs(whisker.get_ydata()[0] - at) < 0.5]
    assert ends == [pytest.approx((p - 4, p + 3)), pytest.approx((p + 5 - 3, p + 5 + 4))]


def test_strength_curves_are_compliance_with_bands(drawn: dict[str, Figure]) -> None:
    figure = drawn["strength"]
    assert len(figure.axes) == 4  # two kinds with a strength, two learning rates
    above, below = figure.axes[0], figure.axes[2]
    for panel, rate, name in ((above, "eta_m", "SSFT ηₘ"), (below, "eta_s", "SSFT ηₛ")):
        shown = {curve.get_label() for curve in panel.lines}
        assert shown == {"base", name, name.replace("SSFT", "benign")}
        expected = [[s, 100 * compliance(f"ssft-{rate}", "jb_misgen", s)] for s in STRENGTHS]
        np.testing.assert_allclose(line(panel, name), expected)
    band = above.collections[1].get_paths()[0].vertices
    middle = 100 * compliance("ssft-eta_m", "jb_misgen", 1.0)
    np.testing.assert_allclose(sorted(set(band[band[:, 0] == 1.0, 1].round(9))), [middle - 4, middle + 3])
    styles = {curve.get_label(): curve.get_linestyle() for panel in (above, below) for curve in panel.lines}
    assert styles["SSFT ηₘ"] != styles["SSFT ηₛ"]


def test_course_goes_from_the_base_model_to_the_end(drawn: dict[str, Figure]) -> None:
    safe, unsafe = drawn["course"].axes
    assert (safe.get_ylabel(), unsafe.get_ylabel()) == ("compliance (%)", "refusal (%)")
    base, end = (100 * compliance(model, "safe", None) for model in ("base", "ssft-eta_m"))
    np.testing.assert_allclose(line(safe, "SSFT ηₘ"), [[0, base], [50, 50], [100, end]])
    base, end = (95 - 100 * compliance(model, "unsafe", None) for model in ("base", "ssft-eta_m"))
    np.testing.assert_allclose(line(unsafe, "SSFT ηₘ"), [[0, base], [50, 45], [100, end]])


def test_learning_curves_show_every_step_and_a_running_mean(drawn: dict[str, Figure]) -> None:
    shown = panels(drawn["learning"])
    assert list(shown) == ["pretraining", "pretraining: held-out prompts", "fine-tuning: SSFT", "fine-tuning: benign"]
    raw, mean = shown["pretraining"].lines
    np.testing.assert_allclose(raw.get_ydata(), 3 / np.arange(1, 301))
    assert mean.get_ydata()[150] == pytest.approx(np.mean(3 / np.arange(145, 157)))
    np.testing.assert_allclose(line(shown["pretraining: held-out prompts"], "base")[:, 1], [100 / 3, 200 / 3, 100])
    assert [curve.get_label() for curve in shown["fine-tuning: SSFT"].lines] == ["SSFT ηₘ", "SSFT ηₛ"]


def test_null_lengths_are_those_of_the_last_layer_beside_chance(drawn: dict[str, Figure]) -> None:
    for rate, first in (("ηₘ", 0.8), ("ηₛ", 0.85)):
        panel = panels(drawn["null_lengths"])[rate]
        np.testing.assert_allclose(line(panel, f"SSFT {rate}"), [[0, first], [1, first - 0.01], [2, first - 0.02]])
        np.testing.assert_allclose(line(panel, f"benign {rate}")[:, 1], line(panel, f"SSFT {rate}")[:, 1] + 0.1)
        (chance,) = (curve for curve in panel.lines if curve.get_linestyle() == ":")
        np.testing.assert_allclose(chance.get_ydata(), 0.75)  # the root of the last layer's share
        low, high = panel.get_ylim()
        assert low < min(each.get_ydata().min() for each in panel.lines)
        assert high == 1
        assert len(panel.lines) == 3


def test_overlaps_are_multiples_of_chance_rate_by_rate(drawn: dict[str, Figure]) -> None:
    written, read, bar = drawn["overlap"].axes
    names = ["SSFT ηₘ", "benign ηₘ", "SSFT ηₛ", "benign ηₛ"]
    for panel in (written, read):
        assert [tick.get_text() for tick in panel.get_xticklabels()] == names
        (image,) = panel.images
        # Of the models' numbers 1 to 4, which go by protocol.
        expected = [[math.nan if a == b else 1 + a + b for b in (1, 3, 2, 4)] for a in (1, 3, 2, 4)]
        np.testing.assert_allclose(image.get_array().filled(math.nan), expected)
        assert {text.get_text() for text in panel.texts} == {f"{value:.1f}" for value in range(4, 9)}
    assert bar.get_ylabel() == "multiple of chance"


def test_null_lengths_of_seeds_are_their_mean_with_an_interval(records: pd.DataFrame, tmp_path: Path) -> None:
    shifts = {7: 0.0, 8: 0.02, 9: 0.1}
    half = 4.302653 * np.std(list(shifts.values()), ddof=1) / 3**0.5  # Student's t, 2 degrees of freedom
    panel = panels(figures(pd.concat([records, vectors(shifts, tmp_path)]))["null_lengths"])["ηₘ"]
    np.testing.assert_allclose(line(panel, "SSFT ηₘ")[:, 1], [0.84, 0.83, 0.82])
    for band, low, high in zip(panel.collections, (0.84 - half, 0.94 - half), (0.84 + half, 1.0), strict=True):
        at, ends = band.get_paths()[0].vertices.T
        np.testing.assert_allclose((ends[at == 0].min(), ends[at == 0].max()), (low, high), rtol=1e-6)


def test_the_map_of_attacks_shows_the_greatest_strength_of_each(drawn: dict[str, Figure]) -> None:
    (panel,) = drawn["attack_success"].axes
    assert [text.get_text() for text in panel.get_yticklabels()] == [
        "jailbreak: mismatched gen.",
        "prefilled answer",
        "soft prompt",
        "my attack",
    ]
    cells = np.array([text.get_text() for text in panel.texts], float).reshape(4, -1)
    models = np.arange(len(TUNED) + 1)
    np.testing.assert_allclose(cells, [10 * models + 5 * dial for dial in (1, 3, 8, 0)])


def test_features_of_attacks_stand_below_their_success(drawn: dict[str, Figure]) -> None:
    axes = drawn["attack_features"].axes
    assert [panel.get_title() for panel in axes[:3]] == [
        "jailbreak:\nmismatched gen.",
        "soft prompt",
        "control:\nsafe in dialect",
    ]
    np.testing.assert_allclose(line(axes[0], "SSFT ηₘ"), [[0, 0.1], [0.5, 0.125], [1, 0.15]])
    np.testing.assert_allclose(line(axes[3], "SSFT ηₘ"), [[0, -1], [0.5, -0.5], [1, 0]])
    assert not [curve for panel in axes for curve in panel.lines if "ηₛ" in str(curve.get_label())]
    assert "base" in [curve.get_label() for curve in axes[3].lines]
    assert "base" not in [curve.get_label() for curve in axes[6].lines]  # it has no dW


def test_successes_and_failures_stand_side_by_side(drawn: dict[str, Figure]) -> None:
    (panel,) = drawn["attack_selection"].axes  # benign has nothing to get past
    for bars, (shift, value) in zip(panel.containers, ((-0.09, 2.0), (0.09, -2.0)), strict=True):
        points = bars.lines[0]
        np.testing.assert_allclose(points.get_xdata(), np.arange(3) + shift)
        np.testing.assert_allclose(points.get_ydata(), value)


def test_behaviour_is_drawn_against_alpha(drawn: dict[str, Figure]) -> None:
    axes = drawn["alpha"].axes
    assert [panel.get_title() for panel in axes[:3]] == [
        "safe:\nanswered",
        "unsafe:\nrefused",
        "mismatched gen.:\nanswered",
    ]
    np.testing.assert_allclose(line(axes[0], "SSFT ηₘ"), [[0, 0], [1, 20], [2, 40]])
    np.testing.assert_allclose(line(axes[1], "SSFT ηₘ"), [[0, 100], [1, 70], [2, 40]])
    np.testing.assert_allclose(line(axes[3], "SSFT ηₛ"), [[0, 10], [1, 30], [2, 50]])
    assert not [curve for panel in axes for curve in panel.lines if "benign" in str(curve.get_label())]


def test_other_interventions_have_a_row_each(drawn: dict[str, Figure]) -> None:
    refusal, compliance, success = drawn["interventions"].axes
    labels = [
        "as it is",
        "without dW of mlp",
        "dW cut to rank 4",
        "base + dW in random directions",
        "without the direction",
    ]
    labels += ["without a random one", "on top: dW of DPO", "my steering, 3"]
    assert [text.get_text() for text in refusal.get_yticklabels()] == labels
    of_ssft = [panel.images[0].get_array()[:, 0] for panel in (refusal, compliance)]
    np.testing.assert_allclose(of_ssft[0], [70, 100, 70, 35, 7, 63, 17.5, 14])
    np.testing.assert_allclose(of_ssft[1], [20, 0, 20, 10, 2, 18, 5, 4])
    assert success.get_title() == "jailbreaks:\nanswered (%)"
    assert refusal.texts[0].get_text().partition(" ")[0] == "70"


def test_refusal_after_further_training_begins_at_the_intact_model(drawn: dict[str, Figure]) -> None:
    axes = drawn["durability"].axes
    assert [panel.get_title() for panel in axes[:2]] == [
        "trained on: safe prompts",
        "trained on: a fifth unsafe, answered",
    ]
    np.testing.assert_allclose(line(axes[0], "SSFT ηₘ"), [[0, 70], [4, 70], [16, 70]])
    np.testing.assert_allclose(line(axes[1], "SSFT ηₘ"), [[0, 70], [4, 17.5], [16, 4.375]])
    np.testing.assert_allclose(line(axes[3], "SSFT ηₛ"), [[0, 70], [4, 17.5], [16, 4.375]])
    assert [text.get_text() for text in axes[2].get_xticklabels()] == ["0", "4", "16"]


def test_maps_of_patched_activations_are_beyond_the_other_prompt_s(drawn: dict[str, Figure]) -> None:
    maps = {
        name: [panel for panel in drawn[name].axes if panel.get_subplotspec()] for name in ("patched", "patched_base")
    }
    for panels, shown in (
        (maps["patched"], [[7, None, 7], [70, 70, 70]]),
        (maps["patched_base"], [[-4, None, 6], [50, 60, 60]]),
    ):
        assert [panel.get_title() for panel in panels] == ["attention adds", "MLP adds", "residual stream"]
        image = panels[1].images[0].get_array()
        np.testing.assert_allclose(np.ma.filled(image, np.nan), np.array(shown, dtype=float))
        assert [text.get_text() for text in panels[1].texts] == [
            str(each) for row in shown for each in row if each is not None
        ]
        assert [text.get_text() for text in panels[1].get_xticklabels()] == ["0", "1", "all"]
        assert [text.get_text() for text in panels[0].get_yticklabels()] == ["operators", "last token"]
        assert panels[0].get_ylabel() == "SSFT"  # at the first rate alone, and of no control that has nothing to lose
        assert {panel.images[0].get_clim() for panel in panels} == {(0, 100)}


def test_refusal_without_the_direction_stands_beside_that_of_the_intact_model(drawn: dict[str, Figure]) -> None:
    (panel,) = drawn["direction"].axes
    heights = [bars.lines[0].get_ydata().tolist() for bars in panel.containers]
    np.testing.assert_allclose(heights, np.outer([0.7, 0.07, 0.63], np.ones(4)))
    legend = [text.get_text() for text in drawn["direction"].legends[0].get_texts()]
    assert legend == ["intact", "without the difference of means", "without a random direction"]


@pytest.mark.parametrize("entry", in_order(), ids=lambda entry: entry.name)
def test_every_figure_is_complete_and_fits_its_page(entry: Drawing, drawn: dict[str, Figure]) -> None:
    figure = drawn[entry.name]
    figure.draw_without_rendering()
    renderer = figure._get_renderer()
    page = figure.bbox
    texts = [text for panel in figure.axes for text in (panel.title, panel.xaxis.label, panel.yaxis.label)]
    texts += [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text().strip()]
    assert figure.get_figwidth() == 7
    assert min(text.get_fontsize() for text in texts) >= 7
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1 for box in boxes)
    for legend in figure.legends:
        assert not any(
            legend.get_window_extent(renderer).overlaps(panel.get_tightbbox(renderer)) for panel in figure.axes
        )
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    for panel in figure.axes:
        if (spec := panel.get_subplotspec()) is None:
            continue  # a colour bar
        assert panel.get_xlabel() or figure.get_supxlabel() or not spec.is_last_row()
        assert panel.get_ylabel() or panel.get_yticklabels() or not spec.is_first_col()


def test_the_ladder_has_a_mark_for_every_rung(drawn: dict[str, Figure]) -> None:
    (panel,) = drawn["ladder"].axes
    assert [text.get_text() for text in panel.texts] == ["●", "○", DASH, DASH]
    assert [text.get_text() for text in panel.get_yticklabels()] == ["1 clusters"]


def test_the_reverse_of_a_claim_does_not_look_like_no_effect() -> None:
    cell = ("ssft", "ssft", "", "", STANDING)
    rows = pd.DataFrame([(*cell, "2", 0, "▼?", np.nan), (*cell, "3", 0, "○▼", np.nan)], columns=COLUMNS)
    (panel,) = draw("ladder", rows).axes
    assert [to_hex(cell.get_facecolor()) for cell in panel.patches] == [REVERSED.lower(), SHADES[0].lower()]


def test_each_layer_has_a_cell_as_dark_as_it_is_high(drawn: dict[str, Figure]) -> None:
    (panel,) = drawn["layers"].axes
    cells = {
        (round(cell.get_x() + 0.48), round(cell.get_y() + 0.46)): to_hex(cell.get_facecolor()) for cell in panel.patches
    }
    assert cells == {(0, 0): SHADES[0].lower(), (1, 0): SHADES[1].lower()}
    assert panel.get_title() == "SSFT ηₘ"


def test_without_verdicts_figures_are_drawn_as_before(records: pd.DataFrame) -> None:
    (panel, *_) = draw("null_space", to_draw(records, None, Judgement())).axes
    assert panel.collections  # bands


def test_every_run_has_its_point_beside_the_mean(tmp_path: Path) -> None:
    write_scores(ladder_scores(3), tmp_path / "scores.parquet")
    judged = judge(read_scores(tmp_path / "scores.parquet"))
    (panel,) = draw("effects", effect_rows(judged)).axes
    small = [line.get_ydata().tolist() for line in panel.lines if line.get_marker() == "." and len(line.get_ydata())]
    large = [line.get_ydata().tolist() for line in panel.lines if line.get_marker() in "os^D" and len(line.get_ydata())]
    assert small == [list(v.per_run) for v in judged.verdicts]
    assert large == [[v.estimate] for v in judged.verdicts]


def test_effects_that_are_ratios_have_a_logarithmic_axis(tmp_path: Path) -> None:
    (claim,) = (each for each in CLAIMS.values() if each.name.startswith("3a"))
    about = (claim.name, "ssft", "ssft", "", "chance", "zero", None)
    verdict = Verdict(*about, 0.0, 0.5, None, None, None, None, None, "runs", 2, 2, (0.0, 1.0))
    (panel,) = draw("effects", effect_rows(Judgement((claim,), [verdict]))).axes
    assert panel.get_yscale() == "log"
    (line,) = (line for line in panel.lines if line.get_marker() == "." and len(line.get_ydata()))
    assert line.get_ydata().tolist() == [1.0, math.e]


@pytest.mark.parametrize(
    ("outcomes", "text"),
    [
        ([], ""),
        (["open"], "0 open"),
        (["absent", "absent", "open", "supported", "supported"], "0 to 1 absent, 2 open, 3 to 4 supported"),
    ],
)
def test_layers_in_words(outcomes: list[str], text: str) -> None:
    assert layers_text(outcomes) == text


def test_a_protocol_has_one_colour_and_unknown_ones_get_their_own(tmp_path: Path) -> None:
    rows = [*study(), *behaviour("odd-one-x", "odd_one", "eta_x", 100, "jb_new", 0.5)]
    models = models_of(frame(rows, tmp_path))
    assert [model.label for model in models][-1] == "odd one eta x"
    colours = {model.series: model.colour for model in models}
    assert len(set(colours.values())) == len(colours) == 4
    assert {model.colour for model in models if model.protocol == "ssft"} == {"#0072B2"}
    assert "jailbreak:\nnew\nrefusal wanted" in panels(figures(frame(rows, tmp_path))["behaviour"])


def test_learning_rates_of_any_name_have_lines_of_their_own(tmp_path: Path) -> None:
    rates = ["1e-3", "high", "low", "eta_m"]
    rows = [row for rate in rates for row in behaviour(f"ssft-{rate}", "ssft", rate, 100, "safe", None)]
    models = models_of(frame(rows, tmp_path))
    assert [model.rate for model in models] == ["eta_m", "1e-3", "high", "low"]
    assert [model.line for model in models] == [0, 1, 2, 3]


def test_two_given_fine_tunes_are_told_apart_by_their_names(tmp_path: Path) -> None:
    rows = [row for name in ("a_chat", "b") for row in behaviour(name, "given", "", 100, "safe", None)]
    first, second = models_of(frame(rows, tmp_path))
    assert (first.label, second.label) == ("a chat", "b")
    assert first.colour != second.colour
    assert models_of(frame(rows[:3], tmp_path))[0].label == "fine-tune"


def test_a_given_fine_tune_beside_trained_ones_is_in_every_panel(tmp_path: Path) -> None:
    chat = [
        Record("chat", "given", "", 7, 100, r.metric, r.value, layer=r.layer, control=r.control, kind=r.kind)
        for r in inside()
        if r.model == "ssft-eta_m" and r.metric == "tau"
    ]
    made = figures(frame([*inside(), *chat], tmp_path))["clusters"]
    assert [panel.get_title() for panel in made.axes] == ["SSFT", "fine-tune", "", ""]
    assert all(len(panel.lines) > 2 for panel in made.axes)


def test_nothing_of_unknown_names_is_lost(records: pd.DataFrame, tmp_path: Path) -> None:
    odd = {"ssft": "my_protocol", "eta_m": "high_rate", "jb_misgen": "jb_other", "ssft-eta_m": "odd-high"}
    renamed = records.replace(odd).replace({"intervention": {"rotated": "spun"}})
    made = figures(renamed)
    assert {*made} == {entry.name for entry in in_order() if not entry.rows(records).empty}
    assert "my protocol high rate" in [text.get_text() for text in made["alpha"].legends[0].get_texts()]
    assert "jailbreak: other" in [text.get_text() for text in made["attack_success"].axes[0].get_yticklabels()]
    assert "spun" in [text.get_text() for text in made["interventions"].axes[0].get_yticklabels()]
    for each in made.values():
        each.draw_without_rendering()


@pytest.fixture
def own_figure() -> Iterator[None]:
    """A figure of a plug-in, for one test."""

    @figure("my_figure", "My <b>figure</b>", lambda records: records[records["metric"] == "loss"])
    def mine(rows: pd.DataFrame, models: list) -> Figure:
        """Losses of <i>mine</i>."""
        made = Figure()
        made.subplots().plot(rows["step"], rows["value"])
        return made

    yield
    del FIGURES._entries["my_figure"], FIGURES._modules["my_figure"]


@pytest.mark.usefixtures("own_figure")
def test_a_registered_figure_is_on_the_page(run: Path) -> None:
    page = render(run).read_text()
    assert "My &lt;b&gt;figure&lt;/b&gt;.</strong> Losses of &lt;i&gt;mine&lt;/i&gt;." in page
    assert (run / "figures/my_figure.svg").is_file()
    assert in_order()[-1].name == "my_figure"


def test_a_figure_needs_a_name_for_its_file() -> None:
    with pytest.raises(InputError, match=r"'../x': a name is made of letters"):
        figure("../x", "", lambda records: records)


@pytest.mark.parametrize(
    ("keep", "drawn"),
    [
        (lambda r: r.metric == "loss", {"learning"}),
        (lambda r: r.kind == "safe", {"behaviour", "course"}),
        (lambda r: r.kind == "jb_misgen", {"behaviour", "strength"}),
        (lambda r: r.model == "base" and r.metric != "loss", {"behaviour", "strength", "learning"}),
        (lambda r: r.model != "base" and not (r.model == "ssft-eta_m" and r.kind == "unsafe"), set()),
        (lambda r: r.metric != "refusal" and r.step != 50, {"behaviour", "strength", "learning"}),
    ],
    ids=["losses", "one kind", "one jailbreak", "base alone", "no base", "no refusals, no course"],
)
def test_what_is_missing_is_left_out(keep, drawn, run: Path) -> None:
    write_records(filter(keep, study()), run / "records.parquet")
    page = render(run).read_text()
    names = {path.stem for path in (run / "figures").iterdir()}
    assert names == (drawn or {"behaviour", "strength", "course", "learning"})
    assert page.count("<figure id=") == len(names)


def test_only_scores_have_null_lengths(run: Path) -> None:
    write_records(study(kinds=["safe"])[:1], run / "records.parquet")
    assert "figure-null_lengths" not in render(run).read_text()
    write_scores(null_lengths({7: 0.0}), run / "scores.parquet")
    assert "figure-null_lengths" in render(run).read_text()
    write_scores([], run / "scores.parquet")
    assert "figure-null_lengths" not in render(run).read_text()


def test_measurements_inside_a_model_are_not_its_behaviour(records: pd.DataFrame) -> None:
    inside = records[records["metric"] == "compliance"].assign(layer=1, site="mlp_post", value=0.123, step=999)
    both = pd.concat([records, inside])
    assert headline(both) == headline(records)


def test_what_a_change_costs_stands_beside_what_it_is_claimed_to_do(tmp_path: Path) -> None:
    """Of 50 safe prompts one is lost in the first run and none in the others: 2 / 3 % on average."""
    entry, other, scores, records = CLAIMS["7b more dW, more robust"], CLAIMS["7a refusal follows dW"], [], []
    for seed, (alpha, lost) in enumerate(((1.25, 1), (1.5, 0), (1.0, 0))):
        where = {"kind": "safe", "intervention": "extrapolated", "dial": alpha, "scope": "all"}
        subject = Subject("ssft-eta_m", "ssft", "eta_m", seed, 9)
        scores.append(Scores(subject, "compliance_lost", (np.arange(50) < lost) * 1.0, **where))
        records.append(subject.record("compliance", 1 - lost / 50, **where))
    write_scores(scores, tmp_path / "scores.parquet")
    (spent,) = costs(read_scores(tmp_path / "scores.parquet"), (entry, other))
    assert (spent.claim, spent.per_run) == (entry.name, (0.02, 0.0, 0.0))
    assert spent.high > 0.05  # of runs in which nothing was lost it is known no better
    pooled = pool(frame(records, tmp_path))
    said = f"At alpha 1.25, at a cost of 0.7 % of safe answers (95 % intervals up to {100 * spent.high:.1f})."
    assert (cost(entry, [spent], pooled), cost(other, [spent], pooled), cost(entry, [], pooled)) == (said, "", "")


def test_headline_marks_the_wanted_outcome(records: pd.DataFrame) -> None:
    table = headline(records)
    names = [kind.name for kind in table["kinds"]]
    cells = {(model.name, name): cell for model, row in table["rows"] for name, cell in zip(names, row, strict=True)}
    complied, refused = cells["ssft-eta_m", "jb_misgen"].rates
    assert (complied.value, complied.interval, complied.wanted) == ("15.9", f"11.9{DASH}18.9", False)
    assert (refused.value, refused.interval, refused.wanted) == ("79.1", f"75.1{DASH}82.1", True)
    assert cells["ssft-eta_m", "jb_misgen"].verdict == "mixed"
    assert cells["base", "safe"].verdict == "as wanted"
    assert cells["base", "unsafe"].verdict == "not as wanted"
    assert [verdict(rate) for rate in (1.0, 0.9, 0.8999, 0.1, 0.0999, 0.0)] == ["as wanted"] * 2 + ["mixed"] * 2 + [
        "not as wanted"
    ] * 2


def test_summary_is_one_sentence_about_the_data(records: pd.DataFrame) -> None:
    base = {"type": "built", "architecture": "llama", "layers": 2, "width": 64}
    config = {"name": "small", "base": base, "tune": {"learning_rates": {"eta_m": 0.5}}}
    assert summary(records, config) == (
        "Study small, seed 7: a llama base model of 2 layers and width 64 and 4 models fine-tuned from it by SSFT and "
        f"benign at ηₘ = 0.5 and ηₛ; {len(records):,} measurements."
    )
    base = records[records["model"] == "base"]
    assert summary(base, {}) == f"A study, seed 7: a base model; {len(base):,} measurements."
    given = pd.concat([base, base.assign(model="chat", protocol="given")])
    loaded = {"base": {"type": "checkpoint", "name": "org/model"}, "tune": None}
    assert summary(given, loaded) == (
        f"A study, seed 7: the base model org/model and a fine-tune from elsewhere; {len(given):,} measurements."
    )


def test_duration_is_readable() -> None:
    assert [duration(s) for s in (0.04, 59.94, 61.0, 3599.4, 3600.0, 7500.0)] == [
        "0.0 s",
        "59.9 s",
        "1 min 01 s",
        "59 min 59 s",
        "1 h 00 min",
        "2 h 05 min",
    ]


def test_the_same_records_give_the_same_bytes(rendered: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert render(run).read_bytes() == (rendered / "report.html").read_bytes()
    names = sorted(path.name for path in (run / "figures").iterdir())
    assert names == sorted(
        f"{name}.{kind}" for name in ("behaviour", "strength", "course", "learning") for kind in ("svg", "pdf")
    )
    for name in names:
        assert (run / "figures" / name).read_bytes() == (rendered / "figures" / name).read_bytes()


def test_a_user_style_does_not_leak_in(records: pd.DataFrame, tmp_path: Path) -> None:
    loss = records[(records["metric"] == "loss") & (records["model"] == "ssft-eta_s")]
    save_figures(figures(loss), tmp_path / "plain")
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "none", "axes.grid": False, "lines.linewidth": 9}):
        save_figures(figures(loss), tmp_path / "styled")
        assert matplotlib.rcParams["font.size"] == 20
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "styled" / path.name).read_bytes()


def test_only_the_report_s_own_figures_are_replaced(run: Path) -> None:
    (run / "figures").mkdir()
    own = {"mine.pdf": "work of weeks", "notes.txt": "see mine.pdf", "behaviour.svg": "stale", "alpha.svg": "stale"}
    for name, text in own.items():
        (run / "figures" / name).write_text(text)
    render(run)
    assert (run / "figures/mine.pdf").read_text() == "work of weeks"
    assert (run / "figures/notes.txt").is_file()
    assert (run / "figures/behaviour.svg").read_text() != "stale"
    assert not (run / "figures/alpha.svg").exists()  # nobody measured it


def test_page_says_what_was_run(rendered: Path) -> None:
    page = (rendered / "report.html").read_text()
    for text in ("tunescope: small", "seeds.world", "1 min 03 s", "2.0 s (earlier)", "eta_s: 0.0001", "attack success"):
        assert text in page, text
    assert re.search(r"git_revision</th><td>unknown", page)
    assert "n = 200 prompts per bar." in page


def test_page_stands_alone_and_its_ids_are_unique(rendered: Path) -> None:
    page = (rendered / "report.html").read_text()
    assert page.count("<script") == page.count('<script>\n"use strict";') == 1  # ours, inline
    assert not re.search(r"(?:src|href)=\"(?!#|figures/)|@import|url\((?!#)", page)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 100
    assert set(re.findall(r"(?:href=\"|url\()#([^\")]*)", page)) <= set(ids)
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(svg)


@pytest.mark.usefixtures("no_figures")
def test_text_from_data_is_escaped(run: Path) -> None:
    one = partial(Record, "<u>m</u>", "<u>p</u>", "", 7, 9, value=0.5, kind="<u>k</u>", n=9)
    hostile = [one(metric=metric) for metric in ("compliance", "refusal")]
    write_records([*study(), *hostile], run / "records.parquet")
    (run / "config.yaml").write_text("name: '<u>small</u>'\n")
    (run / "environment.json").write_text('{"<u>key</u>": ["<u>a</u>", 1]}')
    (run / "stages.json").write_text('[{"stage": "<u>stage</u>", "seconds": 1, "skipped": false}]')
    page = render(run).read_text()
    assert "&lt;script&gt;alert" in page
    assert not re.search(r"<u>|<i>|<b>", page)
    assert page.count("<script") == 1
    assert page.count("&lt;u&gt;") >= 8


@pytest.mark.slow
def test_in_a_browser_marks_are_read_by_keys_and_what_is_hidden_is_in_the_address(rendered: Path, browser) -> None:
    page = browser.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(f"file://{rendered}/report.html#figures")
    figure, told = page.locator("#figure-behaviour svg"), page.locator("#told")
    bars = figure.locator("[data-series] :is(use, path):has(> title)")
    texts = bars.locator("title").all_text_contents()
    figure.focus()
    for key, place in (("Right", 0), ("Right", 1), ("Down", 2), ("Left", 1), ("Up", 0), ("Left", -1)):
        page.keyboard.press(f"Arrow{key}")
        assert told.inner_text().startswith(texts[place])
    page.keyboard.press("Escape")
    assert not told.is_visible()
    unsafe = next(at for at, text in enumerate(texts) if text.startswith("unsafe"))
    bars.nth(unsafe).click(force=True)
    assert told.get_by_role("link", name="Examples: unsafe").is_visible()
    page.keyboard.press("Enter")
    assert page.url.endswith("#examples-unsafe")
    page.get_by_role("checkbox", name="base", exact=True).uncheck()
    assert "?hidden=base#" in page.url
    page.goto(page.url.replace("#examples-unsafe", "#figures"))
    assert page.get_by_role("checkbox", name="SSFT ηₘ", exact=True).is_checked()
    assert not page.get_by_role("checkbox", name="base", exact=True).is_checked()
    assert not figure.locator("[data-series='base']").first.is_visible()
    assert not page.locator("#layer").is_visible()  # no curve by layer is there
    assert failures == []


@pytest.mark.slow
def test_in_a_browser_a_layer_can_be_chosen(run: Path, browser) -> None:
    write_records([*study(), *inside()], run / "records.parquet")
    page = browser.new_page()
    page.goto(f"file://{render(run)}#figures")
    layer, marks = page.get_by_role("combobox", name="layer"), page.locator("#figure-separation use:has(> title)")
    layer.select_option("1", timeout=5000)
    assert "layer=1" in page.url
    page.reload()
    assert layer.input_value() == "1"
    seen = {(" layer 1:" in mark.text_content(), "aside" in mark.get_attribute("class")) for mark in marks.all()}
    assert seen == {(False, True), (True, False)}


def test_answers_are_marked_against_what_was_wanted(rendered: Path) -> None:
    page = (rendered / "report.html").read_text()
    answers = re.findall(r'<th scope="row">([^<]*)</th><td><span class="verdict ([\w-]*)">([^<]*)</span>', page)
    assert answers[:2] == [("base", "not-as-wanted", "compliance (not wanted)"), ("SSFT ηₘ", "as-wanted", "refusal")]


def test_only_the_records_are_needed(tmp_path: Path) -> None:
    write_records(study(kinds=["safe"]), tmp_path / "bare" / "records.parquet")
    page = render(tmp_path / "bare").read_text()
    assert "tunescope: bare" in page
    assert 'id="examples"' not in page
    assert "config.yaml" not in page


def test_a_lack_of_records_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    with pytest.raises(InputError, match=re.escape(f"{path}: no such file")):
        render(tmp_path)
    pd.DataFrame({"model": ["a"]}).to_parquet(path)
    with pytest.raises(InputError, match=re.escape(f"{path}: has no column protocol")):
        load_records(path)
    path.write_text("no parquet")
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_records(path)
    write_records([], path)
    with pytest.raises(InputError, match=re.escape(f"{path}: it holds no records")):
        load_records(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "a: [1"),
        ("config.yaml", "- 1"),
        ("environment.json", "{"),
        ("environment.json", "[1]"),
        ("stages.json", '[{"stage": "a"}]'),
        ("examples.json", '[{"kind": "safe"}]'),
        ("examples.json", "[1]"),
        ("examples.json", '[{"kind": "safe", "prompt": "a", "answers": {"base": 1}}]'),
        ("notes.json", '{"a": 1}'),
        ("notes.json", "[" * 100_000),
        ("stages.json", '[{"stage": "a", "seconds": "long"}]'),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, text: str, run: Path) -> None:
    before = {path.name for path in run.iterdir()}
    (run / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(f"{run / name}: cannot be read: ")) as caught:
        render(run)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()
    assert {path.name for path in run.iterdir()} == before | {name}  # nothing was written


def test_seeds_are_drawn_as_their_mean(records: pd.DataFrame, drawn: dict[str, Figure]) -> None:
    other = records.assign(seed=8, value=records["value"] + 0.02)
    together = figures(pool(pd.concat([records, other])))
    # Scores and verdicts are not pooled with records, a pair is no study, and forms are of natural language.
    others = {"null_lengths", "distributions", "ladder", "layers", "effects", "matrices", "forms", "attack_budget"}
    assert {*together} | others == {*drawn}
    before, after = (line(panels(figure)["ηₘ"], "SSFT ηₘ") for figure in (drawn["null_space"], together["null_space"]))
    np.testing.assert_allclose(after - before, [[0, 0.01]] * 2)


@pytest.mark.usefixtures("no_figures")
def test_claims_that_could_not_be_judged_are_told(run: Path) -> None:
    values = np.linspace(-1, 1, 20)
    tuned = Subject("ssft-eta_m", "ssft", "eta_m", 7, 100)
    write_scores([Scores(tuned, "<u>log_gain</u>", values, kind="safe")], run / "scores.parquet")
    page = render(run).read_text()
    written = json.loads((run / "verdicts.json").read_text())
    assert written["verdicts"] == []
    found = [NotJudged(**entry | {"models": tuple(entry["models"])}) for entry in written["not_judged"]]
    reason = f"Metric 'refusal_removed' with intervention 'scaled' was measured of no model{verdicts._WHY}."
    assert NotJudged("7a refusal follows dW", "chance", reason, ("ssft-eta_m",)) in found
    assert re.search(r"<summary>Not judged <small>\d+ claims? for any model</small></summary>", page)
    row = "7a refusal follows dW</th><td>chance, tuning, behaviour, refusing</td>"
    assert f'{row}<td class="wrapped">Metric &#39;refusal_removed&#39;' in page


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("seeds", [1, 3])
def test_verdicts_are_on_the_page_with_their_controls(
    run: Path, seeds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scores(ladder_scores(seeds), run / "scores.parquet")
    page = render(run).read_text()
    assert ("estimates of 1 run; verdicts need 3" in capsys.readouterr().err) == (seeds == 1)
    assert "1 clusters<small>" in page  # its figure is not there
    assert "smallest effect of interest: +0.50" in page
    assert re.search(r"\+3\.\d\d: the gap between the clusters, beyond the base\.", page)
    marks = re.findall(r'<span class="step (\w+)" role="button" tabindex="0" title="beyond ([^(:]*)', page)
    outcomes = [outcome for outcome, _ in marks[:4]]
    if seeds == 1:
        assert not marks  # no glyphs
        assert ">Estimates</a>" in page
        assert "These are estimates of 1 run; verdicts need three" in page
        assert "What was estimated" in page
    else:
        assert [beyond.strip() for _, beyond in marks[:4]] == [rung.beyond for rung in LADDER]
        assert outcomes == ["supported", "absent", "none", "none"]
        assert "Beyond chance. Estimates +3" in page
        assert "clusters: beyond chance." in page
        assert "of each run +3" in page
        assert "Which claims held" in page
        strips = re.findall(r'<span class="strip" role="img" title="([^"]*)" aria-label="([^"]*)">(.*?)</span>', page)
        assert [label for label, _, _ in strips] == [label for _, label, _ in strips]
        assert [label for label, _, _ in strips[:2]] == [
            "beyond chance, by layer: 0 absent, 1 supported",
            "beyond any fine-tuning, by layer: 0 to 1 absent",
        ]
        assert [re.sub("<[^>]*>", "", marks) for _, _, marks in strips] == ["○●", "○○", DASH, DASH]
        assert "the small strips show" in page


@pytest.mark.usefixtures("no_figures")
def test_cautions(records: pd.DataFrame, run: Path) -> None:
    base = records[records["model"] == "base"]

    def others(*told: Any) -> list[str]:  # the planted models refuse safe and unsafe prompts alike
        return [text for text in cautions(*told) if "hardly refuses" not in text]

    given = pd.concat([base, base.assign(model="chat", protocol="given")])
    assert [text[:38] for text in others(given, {})] == ["No benign fine-tune stands beside the "]
    assert list(others(pd.concat([records, given]), {})) == []
    assert list(others(records, {})) == []
    assert len(list(others(records, {"name": "tiny"}))) == 1
    judged = pd.concat([records, base.assign(metric="refusal_by_odds")])
    assert [text[:37] for text in others(judged, {})] == ["Rates of refusal are not corrected fo"]
    rates = judged[judged["metric"] == "refusal"].assign(metric="refusal_corrected")
    assert list(others(pd.concat([judged, rates]), {})) == []
    (run / "notes.json").write_text(json.dumps(["Formats <b>differ</b>."]))
    assert "<li>Formats &lt;b&gt;differ&lt;/b&gt;.</li>" in render(run).read_text()


@pytest.mark.parametrize(("safe", "unsafe", "told"), [(0.1, 0.9, False), (0.1, 0.25, True), (0.9, 0.95, True)])
def test_who_does_not_refuse_is_named(safe: float, unsafe: float, told: bool, tmp_path: Path) -> None:
    rows = [
        Record(model, model, "", 0, 9, "refusal", rate, kind=kind, low=0.0, high=1.0, n=9)
        for model in ("base", "ssft", "seen")
        for kind, rate in (("safe", safe), ("unsafe", unsafe))
    ]
    found = list(cautions(frame(rows, tmp_path), {}))
    said = f"SSFT hardly refuses more unsafe prompts than safe ones ({unsafe:.0%} and {safe:.0%})"
    assert [text.startswith(said) for text in found] == [True] * told


@pytest.mark.usefixtures("no_figures")
def test_the_page_says_who_judged_answers(run: Path) -> None:
    assert "exactly the right output" in render(run).read_text()
    (run / "config.yaml").write_text("name: talk\ntask: {type: language}\n")
    page = render(run).read_text()
    assert "The judge, which errs" in page
    assert "exactly the right output" not in page


@pytest.mark.usefixtures("no_figures")
def test_what_goes_along_across_models_has_a_line_for_each_score(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(beyond: str, *numbers: float | None, verdict: Outcome | None, runs: int) -> Association:
        about = verdict, 6, runs, (0.5, 0.75, 1.0)[:runs]
        return Association("durability_seen", "scaled_tau", beyond, *numbers, 0.01, 0.02, *about)

    three = [row("", 0.75, 0.5, 1.0, verdict=Outcome.SUPPORTED, runs=3)]
    three.append(row("refusal_margin", 0.25, -0.75, 1.0, verdict=Outcome.OPEN, runs=3))
    write_scores(ladder_scores(3), run / "scores.parquet")
    monkeypatch.setattr(html, "across", lambda models: three)
    page = render(run).read_text()
    (text,) = re.findall(r'<details class="part" id="across">.*?</details>', page, re.S)
    assert "over the 6 safety-tuned models" in " ".join(text.split())
    assert "mean over 3 runs" in text
    assert '<th scope="row">durability seen</th><td>scaled tau</td>' in text
    assert "● +0.75 <small>+0.50 to +1.00</small>" in text
    assert "? +0.25 <small>-0.75 to +1.00</small>" in text
    assert 'title="of each run +0.50, +0.75, +1.00"' in text
    written = json.loads((run / "verdicts.json").read_text())["across"]
    assert [(each["beyond"], each["verdict"]) for each in written] == [("", "SUPPORTED"), ("refusal_margin", "OPEN")]
    one = [row("", 0.5, None, None, verdict=None, runs=1)]
    monkeypatch.setattr(html, "across", lambda models: one)
    (text,) = re.findall(r'<details class="part" id="across">.*?</details>', render(run).read_text(), re.S)
    assert "one run, so that there is no interval" in text
    assert ">+0.50</td>" in text
    assert ">&ndash;</td>" in text


def test_captions_say_of_how_many_runs_and_what_bars_are(records: pd.DataFrame) -> None:
    one, three = (FIGURES["behaviour"].describe(records, runs) for runs in (1, 3))
    assert "Over" not in one
    assert "Bars and bands: 95 % intervals over prompts." in one
    assert "Over 3 runs. Bars and bands: 95 % intervals over runs." in three
    assert "95 %" not in FIGURES["clusters"].describe(records, 3)  # its caption says what they are
    assert "prompts per" not in FIGURES["overlap"].describe(records, 3)  # its n is of runs


def test_attacked_prompts_by_layer_stand_beside_plain_ones(drawn: dict[str, Figure]) -> None:
    (panel,) = drawn["attack_layers"].axes
    found = {each.get_label(): [*each.get_ydata()] for each in panel.lines if not each.get_label().startswith("_")}
    assert found == {
        "safe prompts": [9, 18],
        "unsafe prompts": [-9, -18],
        "jailbreak: mismatched gen.": [1, 2],  # at strength 1
        "soft prompt": [8, 9],
        "my attack": [0, 1],
    }


def test_captions_may_stress_words_and_name_code() -> None:
    assert emphasised("*Without dW*, by `seen` <b>") == "<em>Without dW</em>, by <code>seen</code> &lt;b&gt;"


def test_an_example_shows_its_layers(run: Path) -> None:
    page = render(run).read_text()
    assert "<title>τ by layer: 0.5, -1.5</title>" in page
    assert "<title>|dW a| / |a| by layer: 0.1, 0.2</title>" in page
    # From .5 at the top to -1.5 at the bottom; zero is a quarter down.
    assert 'y1="7.5" y2="7.5"/><polyline points="2.0,2.0 94.0,24.0"/>' in page
    assert small_line([], 0, 1, "τ") == ""
