"""What a tracker is told is what the tables say."""

from pathlib import Path

import pytest

from tunescope.records.tables import read_records
from tunescope.settings import read_study
from tunescope.study import trackers
from tunescope.study.folders import CONFIG
from tunescope.study.graph import graph_of
from tunescope.study.trackers import track

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def told(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """By name, steps and values of what was logged."""
    log = accumulator.EventAccumulator(str(folder))
    log.Reload()
    return {name: [(each.step, each.value) for each in log.Scalars(name)] for name in log.Tags()["scalars"]}


def test_curves_and_behaviour_are_told_step_by_step(run_folder):
    for stage in graph_of(read_study(run_folder / CONFIG), run_folder).stages:
        track("tensorboard", stage, run_folder)
    logs = run_folder / "logs"
    labels = ["base", "benign-eta_m", "benign-eta_s", "dpo-eta_m", "dpo-eta_s"]
    expected = [f"behave-{label}" for label in labels] + ["pretrain-base"] + [f"tune-{label}" for label in labels[1:]]
    assert sorted(each.name for each in logs.iterdir() if each.is_dir()) == expected
    records = read_records(run_folder / "records.parquet").query("model == 'dpo-eta_m' and strength.isna()")
    curve = records[records["metric"] == "loss"]
    assert dict(told(logs / "tune-dpo-eta_m")["loss"]) == pytest.approx(
        dict(zip(curve["step"], curve["value"], strict=True))
    )
    refused = records.query("metric == 'refusal' and kind == 'unsafe' and attack == '' and intervention == ''")
    behaved = told(logs / "behave-dpo-eta_m")
    assert dict(behaved["refusal/unsafe"]) == pytest.approx(dict(zip(refused["step"], refused["value"], strict=True)))
    assert {*behaved} >= {"compliance/safe", "other/safe", "refusal/safe"}


def test_a_stage_is_told_once_and_one_that_cannot_be_told_stops_nothing(run_folder, monkeypatch, capsys):
    stage = next(s for s in graph_of(read_study(run_folder / CONFIG), run_folder).stages if s.name == "pretrain")
    log = run_folder / "logs/pretrain-base"

    def fails(*_: object) -> None:
        raise RuntimeError("no login")

    with monkeypatch.context() as patch:
        patch.setattr(trackers, "_open", fails)
        track("tensorboard", stage, run_folder)
    assert "pretrain was not told: no login" in capsys.readouterr().err
    steps = [
        track("tensorboard", stage, run_folder, again=again) or len(told(log)["loss"]) for again in (False, False, True)
    ]
    assert steps == [12, 12, 12]
    assert len([*log.iterdir()]) == 1


@pytest.mark.parametrize(
    ("tracker", "says"),
    [("paper", "unknown tracker 'paper'. Choose from: tensorboard, wandb, mlflow"), ("wandb", "pip install wandb")],
)
def test_a_tracker_that_is_not_there_is_refused_before_any_work(
    tracker, says, small_study, refused, tmp_path, monkeypatch
):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    refused([*small_study, "--out", str(tmp_path / "run"), "--log", tracker], says)
    assert not (tmp_path / "run").exists()
