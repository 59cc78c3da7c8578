"""The numbers of a kept run and a kept comparison come out again, though all that measures them was written anew."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from compared import PROBES, build, comparison, planted, save

from tunescope.recipes import tiny
from tunescope.records.tables import KEYS, SCHEMA, SCORES_SCHEMA, Record, merge_tables, read_records, write_records
from tunescope.study.graph import graph_of
from tunescope.study.pipeline import run
from tunescope.study.stages import Place

KEPT = Path(__file__).parent.parent / "kept"
INTERVENTIONS = ["direction", "inputs", "matrices", "scaled", "spaces", "transferred", "truncated"]
MEASURED = ("behave", "probe", "attack", "intervene")
INTERVENTIONS = ["scaled", "truncated", "spaces", "matrices", "inputs", "transferred", "direction"]  # that there were


def measure(folder: Path) -> pd.DataFrame:
    """All that is measured of the kept models, without training anything."""
    shutil.copytree(KEPT / "models", folder / "models")
    step = int(kept("world").query("model == 'base'")["step"].iloc[0])
    write_records([Record("base", "base", "", 0, step, "loss", 0.0)], folder / "parts/pretrain.parquet")
    study = tiny().changed(
        tunes=["ssft-eta_m", "benign-eta_m"],
        tune={"checkpoints": 1},
        attack={"attacks": ["prefill", "soft_prompt", "universal_soft_prompt", "suffix"]},
        # What it costs safe prompts did not count in the choice of a direction.
        intervene={"interventions": INTERVENTIONS, "settings": {"direction": {"most_kl": 99, "least_kept": 0}}},
        compute={"device": "cpu", "dtype": "float32"},
    )
    parts: list[Path] = []
    for stage in graph_of(study, folder).stages:
        if stage.name.startswith(MEASURED):
            stage.function(stage.inputs, Place(folder=folder, unfinished=folder / "unfinished"))
            parts += [folder / out for out in stage.outputs if out.endswith(".parquet")]
    scores = [part for part in parts if part.name.startswith("scores-")]
    merge_tables(scores, folder / "scores.parquet", SCORES_SCHEMA)
    merge_tables([part for part in parts if part not in scores], folder / "records.parquet", SCHEMA)
    found = read_records(folder / "records.parquet")
    return found[~found["metric"].str.startswith(("kl_cost", "scaled_tau_by_layer"))]  # measured now


def kept(name: str) -> pd.DataFrame:
    """Two metrics have a name of their own since then: of one of them each stood for two. Ratios under dW in random
    directions are of many draws since then, where they were of one.
    """
    found = read_records(KEPT / f"{name}.parquet")
    found.loc[found["budget"].notna(), "metric"] = "target_reached"
    renamed = found["metric"].str.replace("refusal_margin", "opening_log_odds")
    found["metric"] = found["metric"].where(found["attack"] != "", renamed)
    return lasting(found)


def lasting(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows["control"] != "rotated") | ~rows["metric"].str.endswith("_ratio")]


def same(old: pd.DataFrame, new: pd.DataFrame, columns: Sequence[str] = ("value", "low", "high"), **within) -> None:
    """Row by row, whatever the order.

    On purpose other than before: of a single prompt there is no interval (it had one without width).
    """
    old, new = (rows.assign(**{end: rows[end].where(rows["n"] > 1) for end in ("low", "high")}) for rows in (old, new))
    both = [rows.assign(**rows[KEYS].astype(str)).set_index(KEYS).sort_index() for rows in (old, new)]
    assert list(both[0].index) == list(both[1].index)
    for column in columns:
        pd.testing.assert_series_equal(both[0][column], both[1][column], **within)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return lasting(measure(tmp_path_factory.mktemp("kept") / "run"))


@pytest.mark.slow
def test_a_kept_run_is_measured_again(world: pd.DataFrame) -> None:
    old = kept("world")
    searched = ["soft_prompt", "universal_soft_prompt", "suffix"]  # a search makes rounding errors larger
    exact = [rows[~rows["attack"].isin(searched)] for rows in (old, world)]
    assert len(exact[0]) > 2900
    same(*exact, rtol=2e-3, atol=5e-4)  # kinds of CPU differ by as much as 1e-3
    since = ["target_reached", "prompts_tried"]  # at other budgets now, and of suffixes, too
    same(*(rows[rows["attack"].isin(searched) & ~rows["metric"].isin(since)] for rows in (old, world)), columns=["n"])


@pytest.mark.slow
def test_what_searched_attacks_find_is_near_what_they_found(world: pd.DataFrame) -> None:
    means = [
        rows[rows["attack"].isin(["soft_prompt", "suffix"]) & (rows["metric"] == "compliance")]["value"].mean()
        for rows in (kept("world"), world)
    ]
    assert means[1] == pytest.approx(means[0], abs=0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_a_kept_comparison_is_measured_again(tmp_path: Path) -> None:
    """On purpose other than before: answers that begin with an opening of one's own are refusals (stock phrases
    alone were); small matrices are decomposed exactly now, as in a study (they went through Gram
    matrices), so that random directions are drawn for all of a change's singular values, its rounding errors included.
    """
    base = build("llama")
    folders = [save(model, tmp_path / name) for name, model in (("base", base), ("tuned", planted(base)[0]))]
    study = comparison(folders, tmp_path, probe=PROBES)
    run(study, tmp_path / "out", skip=("attack", "intervene"))
    old, new = kept("llama"), lasting(read_records(tmp_path / "out/records.parquet"))
    since = ("other", "kl_to_base", "perplexity", "refusal_corrected")  # recorded now, with what is behind them
    new = new[~new["metric"].str.startswith(since)]
    drawn = ["direction_in_delta", "principal_angle", "effective_rank"]
    drawn += ["refusal", "compliance"]
    parts = [rows[(rows["control"] != "rotated") & ~rows["metric"].isin(drawn)] for rows in (old, new)]
    assert len(parts[0]) > 150
    same(*parts, rtol=1e-3, atol=1e-4)
    assert len(old) == len(new)
