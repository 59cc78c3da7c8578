"""Seeds gathered in one folder, for one report."""

from pathlib import Path

import numpy as np
import pytest

from tunescope import cli
from tunescope.evidence.records import Record, Scores, Subject, read_records, read_scores, write_records, write_scores
from tunescope.report import html
from tunescope.report.together import gather


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / f"seed-{seed}" for seed in (3, 5)]
    for seed, folder in zip((3, 5), folders, strict=True):
        write_records([Record("base", "pretraining", "", seed, 9, "loss", 0.5)], folder / "records.parquet")
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
    one = [Record("base", "pretraining", "", 3, 9, metric, 0.5) for metric in ("loss", "effective_rank")]
    write_records(one, runs[0] / "records.parquet")
    gather(runs, tmp_path / "all")
    page = html.render(tmp_path / "all").read_text()
    assert "Seed 5 lacks measurements that other seeds have (effective_rank)" in page
    assert "Seed 3 lacks" not in page


def test_what_does_not_belong_together_is_refused(runs: list[Path], tmp_path: Path, refused) -> None:
    out = ["--out", str(tmp_path / "all")]
    first, second = map(str, runs)
    refused(["report", first, first, *out], "seed 3 is there twice")
    refused(["report", first, str(tmp_path / "none"), *out], "none/config.yaml: no such file")
    refused(["report", first, second], "--out: says where the report on several run folders goes")
    refused(["report", first, *out], "--out")
    (runs[1] / "config.yaml").write_text("name: other\nseed: 5\n")
    refused(["report", first, second, *out], "seed-5: its config differs", "in more than the seed")
    (runs[1] / "config.yaml").write_text("name: small\nseed: 5\n")
    (runs[1] / "scores.parquet").unlink()
    refused(["report", first, second, *out], "scores.parquet: cannot be read", "finish that run first")
    assert not (tmp_path / "all" / "config.yaml").exists()


def test_a_folder_with_other_things_in_it_is_left_alone(runs: list[Path], tmp_path: Path, refused, contents) -> None:
    own = tmp_path / "paper"
    (own / "figures").mkdir(parents=True)
    (own / "figures" / "mine.pdf").write_text("work of weeks")
    before = contents(own)
    refused(["report", *map(str, runs), "--out", str(own)], "paper: there already, and not a report on several seeds")
    assert contents(own) == before
    gather(runs, tmp_path / "all")
    gather(runs, tmp_path / "all")  # again: its own


def test_the_report_on_several_is_drawn_from_what_was_gathered(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(html, "render", lambda folder: folder / "report.html")
    assert cli.main(["report", *map(str, runs), "--out", str(tmp_path / "all")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "all/report.html")


def test_scores_that_are_not_finite_are_refused(tmp_path: Path, refused) -> None:
    write_records([Record("base", "pretraining", "", 0, 9, "loss", 0.5)], tmp_path / "records.parquet")
    subject = Subject("ssft-eta_m", "ssft", "eta_m", 0, 9)
    write_scores([Scores(subject, "log_gain", np.array([1.0, np.nan]), kind="safe")], tmp_path / "scores.parquet")
    refused(["report", str(tmp_path)], "scores.parquet", "log_gain of ssft-eta_m, safe prompt 1 is not finite")
    assert not (tmp_path / "report.html").exists()
