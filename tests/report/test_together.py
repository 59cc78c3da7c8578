"""Seeds gathered in one folder, for one report."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from tunescope.errors import InputError
from tunescope.records.tables import (
    Record,
    Scores,
    Subject,
    merge_tables,
    read_records,
    read_scores,
    write_records,
    write_scores,
)
from tunescope.report import html
from tunescope.report.together import check_joint, gather


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / f"seed-{seed}" for seed in (3, 5)]
    for seed, folder in zip((3, 5), folders, strict=True):
        write_records([Record("base", "base", "", seed, 9, "loss", 0.5)], folder / "records.parquet")
        write_scores([], folder / "scores.parquet")
        (folder / "config.yaml").write_text(f"name: small\nseed: {seed}\n")
    return folders


def test_tables_of_all_seeds_are_joined(runs: list[Path], tmp_path: Path) -> None:
    gather(runs, tmp_path / "all")
    assert read_records(tmp_path / "all/records.parquet")["seed"].tolist() == [3, 5]
    assert len(read_scores(tmp_path / "all/scores.parquet")) == 0
    assert {path.name for path in (tmp_path / "all").iterdir()} == {
        "records.parquet",
        "scores.parquet",
        "config.yaml",
        "seeds.json",
    }


def test_the_page_says_what_a_seed_lacks(runs: list[Path], tmp_path: Path) -> None:
    one = [Record("base", "base", "", 3, 9, metric, 0.5) for metric in ("loss", "effective_rank")]
    write_records(one, runs[0] / "records.parquet")
    gather(runs, tmp_path / "all")
    page = html.render(tmp_path / "all").read_text()
    assert "Of fewer runs than the others: effective rank of base (not in seed 5)." in page


def test_notes_are_gathered(runs: list[Path], tmp_path: Path) -> None:
    for run, notes in zip(runs, (["one", "two"], ["two", "three"]), strict=True):
        (run / "notes.json").write_text(json.dumps(notes))
    gather(runs, tmp_path / "all")
    assert json.loads((tmp_path / "all/notes.json").read_text()) == ["one", "two", "three"]
    for run in runs:
        (run / "notes.json").unlink()
    gather(runs, tmp_path / "all")
    assert not (tmp_path / "all/notes.json").exists()


def refused(runs: list[Path], out: Path, says: str) -> None:
    """Gathering fails with this message, and writes nothing."""
    with pytest.raises(InputError, match=says):
        gather(runs, out)
    assert not out.exists()


def test_what_does_not_belong_together_is_refused(runs: list[Path], tmp_path: Path) -> None:
    first, second = runs
    out = tmp_path / "all"
    refused([first, first], out, "seed 3 is there twice")
    refused([first, tmp_path / "none"], out, r"none/config\.yaml: no such file")
    (second / "config.yaml").write_text("name: other\nseed: 5\n")
    refused(runs, out, "seed-5: its config differs .* in more than the seeds: name is other, there small")
    (second / "config.yaml").write_text("- 1\n")
    refused(runs, out, r"config\.yaml: cannot be read")
    (second / "config.yaml").write_text("name: small\nseed: 5\n")
    (second / "notes.json").write_text("1")
    refused(runs, out, r"notes\.json: cannot be read")
    (second / "notes.json").unlink()
    (second / "scores.parquet").write_text("no table")
    refused(runs, out, r"scores\.parquet: cannot be read")
    (second / "scores.parquet").unlink()
    refused(runs, out, r"scores\.parquet: no such file")
    write_scores([], second / "scores.parquet")
    gather(runs, out)


def test_a_control_that_a_run_lacks_is_named(runs: list[Path], tmp_path: Path) -> None:
    for seed, run, labels in zip((3, 5), runs, (("ssft-eta_m", "seen-eta_m"), ("ssft-eta_m",)), strict=True):
        (run / "config.yaml").write_text(json.dumps({"seed": seed, "tunes": labels}))
        rows = [Record(label, label.split("-")[0], "eta_m", seed, 9, "loss", 0.5) for label in labels]
        write_records(rows, run / "records.parquet")
    gather(runs, tmp_path / "all")
    assert set(read_records(tmp_path / "all/records.parquet")["model"]) == {"ssft-eta_m"}
    assert json.loads((tmp_path / "all/notes.json").read_text()) == [
        "Left out, as not all runs have them: seen-eta_m (not in seed-5)."
    ]
    assert yaml.safe_load((tmp_path / "all/config.yaml").read_text()) == {"seed": 3, "tunes": ["ssft-eta_m"]}


def test_what_is_set_against_a_left_out_model_is_left_out(runs: list[Path], tmp_path: Path) -> None:
    overlaps = [Record("ssft-eta_m", "ssft", "eta_m", 3, 9, "write_overlap", 0.5, scope=of) for of in ("a", "b")]
    write_records([*overlaps, Record("a", "a", "", 3, 9, "loss", 0.5)], runs[0] / "records.parquet")
    merge_tables([runs[0] / "records.parquet"], tmp_path / "merged.parquet", without=["a"])
    assert read_records(tmp_path / "merged.parquet")["scope"].tolist() == ["b"]


@pytest.mark.parametrize(
    ("tunes", "names", "says"),
    [
        (([{"rank": 4}], [{"rank": 8}]), ("ssft", "ssft"), "tunes is"),
        ((["ssft"], ["dpo"]), ("ssft", "dpo"), "tunes lacks ssft; tunes has besides dpo"),
    ],
)
def test_runs_need_a_fine_tune_in_common(
    tunes: tuple[list, list], names: tuple[str, str], says: str, runs: list[Path], tmp_path: Path
) -> None:
    for seed, run, own, name in zip((3, 5), runs, tunes, names, strict=True):
        (run / "config.yaml").write_text(json.dumps({"seed": seed, "tunes": own}))
        write_records([Record(name, "ssft", "eta_m", seed, 9, "loss", 0.5)], run / "records.parquet")
    refused(runs, tmp_path / "all", says)


def test_one_run_may_have_its_report_elsewhere(runs: list[Path], tmp_path: Path) -> None:
    (runs[0] / "scores.parquet").unlink()
    (runs[0] / "stages.json").write_text("[]")
    gather(runs[:1], tmp_path / "own")
    assert read_records(tmp_path / "own/records.parquet")["seed"].tolist() == [3]
    assert (tmp_path / "own/stages.json").read_text() == "[]"


def test_runs_of_one_world_are_named(runs: list[Path], tmp_path: Path) -> None:
    def notes(*worlds: int) -> list[str]:
        for run, world in zip(runs, worlds, strict=True):
            (run / "config.yaml").write_text(f"name: small\ntask:\n  seed: {world}\n")
        gather(runs, tmp_path / "all")
        kept = tmp_path / "all/notes.json"
        return json.loads(kept.read_text()) if kept.exists() else []

    assert notes(1, 2) == []
    (note,) = notes(2, 2)
    assert "of one world (task.seed 2)" in note


def test_a_folder_with_other_things_in_it_is_left_alone(runs: list[Path], tmp_path: Path) -> None:
    own = tmp_path / "paper"
    (own / "figures").mkdir(parents=True)
    (own / "figures" / "mine.pdf").write_text("work of weeks")
    with pytest.raises(InputError, match="paper: there already, and not a report on several seeds"):
        gather(runs, own)
    assert [path.name for path in own.rglob("*")] == ["figures", "mine.pdf"]
    gather(runs, tmp_path / "all")
    check_joint(tmp_path / "all")
    gather(runs, tmp_path / "all")  # again: its own


def test_scores_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    write_records([Record("base", "base", "", 0, 9, "loss", 0.5)], tmp_path / "records.parquet")
    subject = Subject("ssft-eta_m", "ssft", "eta_m", 0, 9)
    write_scores([Scores(subject, "log_gain", np.array([1.0, np.nan]), kind="safe")], tmp_path / "scores.parquet")
    with pytest.raises(InputError, match=r"scores\.parquet: .* not finite"):
        html.render(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_runs_in_other_types_of_number_are_named(runs: list[Path], tmp_path: Path) -> None:
    for run, seed, dtype in zip(runs, (3, 5), ("float32", "bfloat16"), strict=True):
        (run / "config.yaml").write_text(f"name: small\nseed: {seed}\ncompute:\n  dtype: {dtype}\n")
    gather(runs, tmp_path / "all")
    (note,) = json.loads((tmp_path / "all/notes.json").read_text())
    assert "seed 3 in float32, seed 5 in bfloat16" in note
    (runs[1] / "config.yaml").write_text("name: small\nseed: 5\ncompute:\n  dtype: bfloat16\n  rows: 4\n")
    refused(runs, tmp_path / "more", "compute.rows is 4")
