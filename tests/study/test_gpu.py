"""What a study does, it does on a GPU: every stage, on one made of main memory, with the numbers of the CPU."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from compared import build, comparison, planted, save

from fake_gpu import fake_gpu
from tunescope import cli
from tunescope.records.tables import read_records
from tunescope.study.pipeline import run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_report")]


def same(folders: list[Path], rtol: float = 1e-5) -> None:
    there, here = (read_records(folder / "records.parquet") for folder in folders)
    assert len(there) > 500
    pd.testing.assert_frame_equal(there, here, rtol=rtol, atol=rtol / 10)


def test_a_study_of_the_world(small_study: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = "tunes=[dpo-eta_m, seen-eta_m, circuit_breakers-eta_m, unlearning-eta_m-lora]"
    command = [*small_study, several]
    assert cli.main([*command, "--out", str(tmp_path / "cpu")]) == 0
    with fake_gpu(monkeypatch):
        assert cli.main([*command, "compute.device=auto", "--out", str(tmp_path / "gpu")]) == 0
    same([tmp_path / "gpu", tmp_path / "cpu"])


def test_a_pair_that_reads_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = build("llama")
    folders = [save(model, tmp_path / name) for name, model in (("base", base), ("tuned", planted(base)[0]))]
    few = {"tokens": [1], "steps": 1}
    attacks = {"prefill": {"tokens": [1]}, "soft_prompt": few, "universal_soft_prompt": few}
    attacks["suffix"] = few | {"candidates": 2}
    study = comparison(folders, tmp_path, compute={"device": "cpu", "dtype": "float32"}).changed(
        tune={"steps": 2, "batch": 8, "warmup": 1}, attack={"searched": 2, "prompts": 4, "settings": attacks}
    )
    study = study.changed(tunes=[study.tunes[0].model_dump(mode="json"), "ssft-default"])
    run(study, tmp_path / "cpu")
    with fake_gpu(monkeypatch):
        run(study.changed(compute={"device": "auto"}), tmp_path / "gpu")
    same([tmp_path / "gpu", tmp_path / "cpu"], rtol=1e-4)  # Adam widens what another attention rounds otherwise


def test_what_is_on_the_cpu_cannot_be_mixed_with_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in does what it is for."""
    with fake_gpu(monkeypatch):
        there = torch.ones(2, device="cuda")
        assert there.device.type == (there + 1).device.type == "cuda"
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(2)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert there.cpu().numpy().tolist() == [1, 1]
