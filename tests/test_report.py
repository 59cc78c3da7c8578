"""The report: what the figures show, what the page says, and what happens to input that is hostile or not there."""

import json
import re
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tunescope.evidence.pool import pool
from tunescope.evidence.records import (
    ORDER,
    PAIR,
    Record,
    Scores,
    Subject,
    read_records,
    read_scores,
    write_records,
    write_scores,
)
from tunescope.report.figures import FIGURES, Drawing, figures, save_figures
from tunescope.report.html import load_records, render
from tunescope.report.select import vector_rows
from tunescope.report.style import colours, models_of
from tunescope.report.tables import DASH, duration, headline, summary, verdict

STRENGTHS = (0.0, 0.5, 1.0)
HOSTILE = "</code><script>alert('x')</script> $\\frac{1}$ & \"quoted\" <b>"
RATIOS = ("gain_ratio", "row_projection_ratio", "gain_of_base_input_ratio")
TUNED = [(protocol, rate) for protocol in ("ssft", "benign") for rate in ("eta_m", "eta_s")]

pytestmark = pytest.mark.filterwarnings("error:constrained_layout")  # a figure whose parts do not fit


def compliance(model: str, kind: str, strength: float | None) -> float:
    """A rate that tells every model, kind and strength apart."""
    level = {"base": 0.9, "ssft-eta_m": 0.1, "ssft-eta_s": 0.2}.get(model, 0.8)
    return round(level + 0.05 * (strength or 0) + 0.01 * len(kind) / 10, 6)


def behaviour(model: str, protocol: str, rate: str, step: int, kind: str, strength: float | None) -> Iterator[Record]:
    p = compliance(model, kind, strength) if step >= 100 else 0.5
    for metric, value in {"compliance": p, "refusal": round(0.95 - p, 6), "other": 0.05}.items():
        low, high = value - 0.04, value + 0.03
        yield Record(model, protocol, rate, 7, step, metric, value, kind, strength, low=low, high=high, n=200)


def study(kinds: Iterable[str] = ("safe", "unsafe", "jb_misgen", "safe_dialect")) -> list[Record]:
    """A base model of 300 steps and four fine-tuned ones of 100, each measured at step 50 as well."""
    out = []
    for step in range(1, 301):
        out.append(Record("base", "pretraining", "", 7, step, "loss", 3 / step))
    out += [Record("base", "pretraining", "", 7, step, "held_out_compliance", step / 300) for step in (100, 200, 300)]
    for model, protocol, rate in [("base", "pretraining", ""), *((f"{p}-{r}", p, r) for p, r in TUNED)]:
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
    for number, (model, protocol, rate) in enumerate(
        [("base", "pretraining", ""), *((f"{p}-{r}", p, r) for p, r in TUNED)]
    ):
        for step in (300,) if model == "base" else (50, 100):
            one = partial(Record, model, protocol, rate, 7, step)
            for layer, control in product((0, 1), ("", "rotated", "shuffled")):
                value = 1 + 0.1 * number + 0.01 * layer + 0.001 * step if not control else 1.0
                about = {"layer": layer, "control": control, "low": value - 0.01, "high": value + 0.01, "n": 100}
                out += [one(name, value, **about) for name in RATIOS if control != "shuffled" and model != "base"]
                out.append(one("null_share", value / 3, **about, site="W_in"))
                out.append(one("tau_auc", value / 3, **about))
                for kind, sign in (("safe", 1), ("unsafe", -1)):
                    out += [one("tau", sign * value, kind, **about), one("tau_sd", 0.5, kind, **about)]
            for kind, value in (("safe", 2.0), ("unsafe", 1.0 + number)):
                out.append(one("sensitivity", value, kind, low=value - 0.1, high=value + 0.1, n=100))
            out += [
                one("null_share", (0.64, 0.5625)[layer], control="haar", layer=layer, site="W_in") for layer in (0, 1)
            ]
            out.append(one("refusal_intact", 1.0, "unsafe", n=100))
            for control, value in (("", 0.1), ("haar", 0.9)):
                out.append(one("refusal_without_direction", value, "unsafe", control=control, layer=1, n=100))
    return out


def attacked() -> list[Record]:
    """Attacks on every model: values that tell models, attacks and strengths apart."""
    out = []
    for number, (model, protocol, rate) in enumerate(
        [("base", "pretraining", ""), *((f"{p}-{r}", p, r) for p, r in TUNED)]
    ):
        ladders = {
            "jb_misgen": (0.0, 0.5, 1.0),
            "safe_dialect": (0.0, 0.5, 1.0),
            "soft_prompt": (1, 8),
            "prefill": (2,),
        }
        for kind, strengths in ladders.items():
            for strength in strengths:
                one = partial(Record, model, protocol, rate, 7, 100, kind=kind, strength=float(strength), n=20)
                success = min(1.0, 0.1 * number + 0.05 * strength)
                out.append(one("attack_success", success, low=success / 2, high=(1 + success) / 2))
                for metric in ("scaled_tau", "log_gain", "log_sensitivity"):
                    value = strength - number
                    out.append(one(f"attacked_{metric}", value, low=value - 0.1, high=value + 0.1))
                for outcome, value in (("success", 1.0 + number), ("failure", -1.0 - number)):
                    out.append(one(f"attacked_scaled_tau_on_{outcome}", value, low=value - 0.1, high=value + 0.1))
    return out


def intervened() -> list[Record]:
    """What becomes of every model: values that tell models, interventions and dials apart."""
    out = []
    for number, (protocol, rate) in enumerate(TUNED):
        one = partial(Record, f"{protocol}-{rate}", protocol, rate, 7, 100, n=20)
        for kind, alpha in product(("safe", "unsafe", "jb_misgen"), (0.0, 1.0, 2.0)):
            for outcome, value in (("compliance", 0.1 * number + 0.2 * alpha), ("refusal", 1 - 0.3 * alpha)):
                about = {"kind": kind, "low": value, "high": value}
                out.append(one(f"{outcome}_scaled", value, strength=alpha, site="all", **about))
                out.append(one(f"{outcome}_scaled", value, strength=alpha, site="mlp", **about))
                if alpha == 1:
                    out.append(one(f"{outcome}_truncated", value, strength=4.0, site="all", **about))
                    out.append(one(f"{outcome}_rotated", value / 2, site="all", **about))
                    out.append(one(f"{outcome}_with_dpo", value / 4, site="all", **about))
    return out


def null_lengths(shifts: dict[int, float]) -> Iterator[Scores]:
    """Three singular vectors in each of two layers: values that tell models, layers and vectors apart, by seed."""
    for (seed, shift), (number, (protocol, rate)), layer in product(shifts.items(), enumerate(TUNED), (0, 1)):
        values = 0.7 + 0.1 * layer + 0.05 * number - 0.01 * np.arange(3) + shift
        yield Scores(Subject(f"{protocol}-{rate}", protocol, rate, seed, 100), "null_length", values, layer=layer)


def vectors(shifts: dict[int, float], folder: Path) -> pd.DataFrame:
    write_scores(null_lengths(shifts), folder / "scores.parquet")
    return vector_rows(read_scores(folder / "scores.parquet"))


def frame(records: Iterable[Record], folder: Path) -> pd.DataFrame:
    write_records(records, folder / "frame.parquet")
    return read_records(folder / "frame.parquet")


def write_run(folder: Path) -> Path:
    """A run folder with everything in it."""
    write_records(study(), folder / "records.parquet")
    (folder / "config.yaml").write_text("name: small\nseed: 7\ntune: {eta_m: 0.001, eta_s: 0.0001}\n")
    environment = {"device": "cpu", "seeds": {"world": 11}, "git_revision": None}
    (folder / "environment.json").write_text(json.dumps(environment))
    seconds = {"pretrain": 61.0, "tune": 2}
    stages = [{"stage": name, "seconds": time, "skipped": name == "tune"} for name, time in seconds.items()]
    (folder / "stages.json").write_text(json.dumps(stages))
    answers = {
        "ssft-eta_m": {"text": "null null", "outcome": "refusal"},
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
    """Every figure there is: those of a study, and that of a pair of models of which there is nothing but weights."""
    study = figures(pd.concat([records, vectors({7: 0.0}, tmp_path_factory.mktemp("vectors"))]))
    pair = figures(frame(weights_of_a_pair(), tmp_path_factory.mktemp("pair")))
    assert set(pair) == {"matrices"}
    assert not {*study} & {*pair}
    return study | pair


def weights_of_a_pair() -> list[Record]:
    """Values that tell metrics, matrices and layers apart; W_in alone is taller than wide."""
    one = partial(Record, "chat", PAIR, "", 0, 0)
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
    np.testing.assert_allclose([line.get_ydata() for line in size.lines[::2]], [[0.1, 0.11, 0.12], [0.2, 0.21, 0.22]])
    np.testing.assert_allclose(rank.lines[1].get_ydata(), [20, 20, 20])
    np.testing.assert_allclose([line.get_ydata() for line in share.lines], [[0.7, 0.71, 0.72], [0.75] * 3])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its report; not to be written to."""
    folder = write_run(tmp_path_factory.mktemp("rendered") / "run")
    render(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
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
        assert panel.get_ylim() == (0, 1)
        assert len(panel.lines) == 3


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
    ]
    cells = np.array([text.get_text() for text in panel.texts], float).reshape(3, -1)
    models = np.arange(len(TUNED) + 1)
    np.testing.assert_allclose(cells, [10 * models + 5 * strength for strength in (1, 2, 8)])


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
    for bars, (shift, value) in zip(panel.containers, ((-0.1, 2.0), (0.1, -2.0)), strict=True):
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
    labels = ["without dW of mlp", "dW cut to rank 4", "base + dW in random directions", "on top: dW of DPO"]
    assert [text.get_text() for text in refusal.get_yticklabels()] == labels
    np.testing.assert_allclose(refusal.lines[0].get_xdata(), [100, 70, 35, 17.5])
    np.testing.assert_allclose(compliance.lines[0].get_xdata(), [0, 20, 10, 5])
    assert success.get_xlabel() == "jailbreaks: answered (%)"


@pytest.mark.parametrize("entry", FIGURES, ids=lambda entry: entry.name)
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
        spec = panel.get_subplotspec()
        assert panel.get_xlabel() or figure.get_supxlabel() or not spec.is_last_row()
        assert panel.get_ylabel() or panel.get_yticklabels() or not spec.is_first_col()


def test_a_protocol_has_one_colour_and_unknown_ones_get_their_own(tmp_path: Path) -> None:
    rows = [*study(), *behaviour("odd-eta_x", "odd", "eta_x", 100, "jb_new", 0.5)]
    records = frame(rows, tmp_path)
    models = models_of(records)
    assert [model.label for model in models][-1] == "odd eta_x"
    palette = colours(models)
    assert len(set(palette.values())) == len(palette)
    assert colours(models[:2])["ssft"] == palette["ssft"]
    assert "jb new\nrefusal wanted" in panels(figures(records)["behaviour"])


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
    assert "figure-null_lengths" not in render(run).read_text()
    write_scores(null_lengths({7: 0.0}), run / "scores.parquet")
    assert "figure-null_lengths" in render(run).read_text()
    write_scores([], run / "scores.parquet")
    assert "figure-null_lengths" not in render(run).read_text()


def test_measurements_inside_a_model_are_not_its_behaviour(records: pd.DataFrame) -> None:
    inside = records[records["metric"] == "compliance"].assign(layer=1, site="mlp_post", value=0.123, step=999)
    both = pd.concat([records, inside])
    assert headline(both) == headline(records)


def test_headline_marks_the_wanted_outcome(records: pd.DataFrame) -> None:
    table = headline(records)
    names = [kind.name for kind in table.kinds]
    cells = {(model.name, name): cell for model, row in table.rows for name, cell in zip(names, row, strict=True)}
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
    config = {"name": "small", "model": {"architecture": "llama", "layers": 2, "width": 64}, "tune": {"eta_m": 0.5}}
    assert summary(records, config) == (
        "Study small, seed 7: a llama base model of 2 layers and width 64 and 4 models fine-tuned from it by SSFT and "
        f"benign at ηₘ = 0.5 and ηₛ; {len(records):,} measurements."
    )
    base = records[records["model"] == "base"]
    assert summary(base, {}) == f"A study, seed 7: a base model; {len(base)} measurements."


def test_duration_is_readable() -> None:
    assert [duration(s) for s in (0.04, 59.94, 61.0, 3599.4, 3600.0, 7500.0)] == [
        "0.0 s",
        "59.9 s",
        "1 min 01 s",
        "59 min 59 s",
        "1 h 00 min",
        "2 h 05 min",
    ]


def test_the_same_records_give_the_same_bytes(rendered: Path, run: Path) -> None:
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


def test_figures_replace_older_ones_whole(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.svg").write_text("stale")
    save_figures({"new": Figure()}, tmp_path / "figures")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["figures", "new.pdf", "new.svg"]


def test_page_says_what_was_run(rendered: Path) -> None:
    page = (rendered / "report.html").read_text()
    for text in ("tunescope: small", "seeds.world", "1 min 03 s", "2.0 s (earlier)", "eta_s: 0.0001", "attack success"):
        assert text in page, text
    assert re.search(r"git_revision</th><td>unknown", page)
    assert "n = 200 prompts per bar." in page


def test_page_stands_alone_and_its_ids_are_unique(rendered: Path) -> None:
    page = (rendered / "report.html").read_text()
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"(?!#|figures/)|@import|url\((?!#)", page)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 100
    assert set(re.findall(r"(?:href=\"|url\()#([^\")]*)", page)) <= set(ids)
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(svg)


def test_text_from_data_is_escaped(run: Path) -> None:
    hostile = [Record("<u>m</u>", "<u>p</u>", "", 7, 9, m, 0.5, "<u>k</u>", n=9) for m in ("compliance", "refusal")]
    write_records([*study(), *hostile], run / "records.parquet")
    (run / "config.yaml").write_text("name: '<u>small</u>'\n")
    (run / "environment.json").write_text('{"<u>key</u>": ["<u>a</u>", 1]}')
    (run / "stages.json").write_text('[{"stage": "<u>stage</u>", "seconds": 1, "skipped": false}]')
    page = render(run).read_text()
    assert "&lt;script&gt;alert" in page
    assert not re.search(r"<script|<u>|<i>|<b>", page)
    assert page.count("&lt;u&gt;") >= 8


def test_answers_are_marked_against_what_was_wanted(rendered: Path) -> None:
    page = (rendered / "report.html").read_text()
    answers = re.findall(r'<th scope="row">([^<]*)</th><td><span class="verdict ([\w-]*)">([^<]*)</span>', page)
    assert answers[:2] == [("base", "not-as-wanted", "compliance (not wanted)"), ("SSFT ηₘ", "as-wanted", "refusal")]


def test_only_the_records_are_needed(tmp_path: Path) -> None:
    write_records(study(kinds=["safe"]), tmp_path / "bare" / "records.parquet")
    page = render(tmp_path / "bare").read_text()
    assert "tunescope: bare" in page
    assert "Examples" not in page
    assert "config.yaml" not in page


def test_a_lack_of_records_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    with pytest.raises(ValueError, match=re.escape(f"{path}: no such file")):
        render(tmp_path)
    pd.DataFrame({name: ["a"] for name in ORDER if name not in ("value", "kind")}).to_parquet(path)
    with pytest.raises(ValueError, match=re.escape(f"{path}: it has no column kind, value")):
        load_records(path)
    path.write_text("no parquet")
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_records(path)
    write_records([], path)
    with pytest.raises(ValueError, match=re.escape(f"{path}: it holds no records")):
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
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, text: str, run: Path) -> None:
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(run / name))):
        render(run)


def test_seeds_are_drawn_as_their_mean(records: pd.DataFrame, drawn: dict[str, Figure]) -> None:
    other = records.assign(seed=8, value=records["value"] + 0.02)
    together = figures(pool(pd.concat([records, other])))
    # Scores are not pooled with records, and a pair is no study.
    assert {*together, "null_lengths", "matrices"} == {*drawn}
    before, after = (line(panels(figure)["ηₘ"], "SSFT ηₘ") for figure in (drawn["null_space"], together["null_space"]))
    np.testing.assert_allclose(after - before, [[0, 0.01]] * 2)
