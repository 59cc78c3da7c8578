"""What goes to the hub: which files, with which cards; and what a user is told where it does not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import DatasetCard, HfApi, ModelCard

from tunescope import cli
from tunescope.records.tables import Record, write_records
from tunescope.study import push

CONFIG = """
name: mine
task: {type: world, grammar: tiny}
tunes: [ssft-eta_m, seen-eta_m]
tune: {steps: 7, batch: 5, learning_rates: {eta_m: 0.002}}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for model in ("base", "ssft-eta_m"):
        (folder / "models" / model).mkdir(parents=True)
        (folder / "models" / model / "model.safetensors").write_bytes(model.encode())
    (folder / "stages").mkdir()
    (folder / "stages" / "pretrain.json").write_text("{}")
    (folder / "config.yaml").write_text(CONFIG)
    rates = {("safe", "compliance"): 0.9, ("safe", "refusal"): 0.1, ("unsafe", "refusal"): 1.0}
    write_records(
        [
            Record("ssft-eta_m", "ssft", "eta_m", 3, 7, metric, value, kind=kind, low=value, high=value, n=9)
            for (kind, metric), value in rates.items()
        ],
        folder / "records.parquet",
    )
    return folder


def test_a_dry_run_writes_what_would_be_sent(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["push", str(run), "--to", "me/study", "--license", "apache-2.0", "--dry-run", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    models = {f"models/me/study-{m}/{f}" for m in ("base", "ssft-eta_m") for f in ("README.md", "model.safetensors")}
    assert files == {f"datasets/me/study/{f}" for f in ("README.md", "config.yaml", "records.parquet")} | models
    data = DatasetCard.load(out / "datasets/me/study/README.md")
    assert data.data.license == "apache-2.0"
    assert [each["config_name"] for each in data.data.configs] == ["records"]  # there are no scores
    assert "me/study-ssft-eta_m" in data.text
    card = ModelCard.load(out / "models/me/study-ssft-eta_m/README.md")
    assert (card.data.library_name, card.data.datasets) == ("transformers", ["me/study"])
    assert card.data.base_model is None  # it was made by the study
    assert "`ssft` for 7 steps of 5 prompts at learning rate 0.002" in card.text
    assert "| safe | 90.0 | 10.0 |" in card.text
    assert "| unsafe |  | 100.0 |" in card.text
    assert "scores.parquet" not in data.text  # it is not there


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--to", "study"], "'study': whose is it? Give OWNER/NAME"),
        (["--to", "me/../study"], "is no name of a repository"),
        (["--to", "me/study", "--models", "dpo"], "no model 'dpo'. Choose from: base, ssft-eta_m"),
    ],
)
def test_bad_names_are_refused(more: list[str], says: str, run: Path, refused: Any, tmp_path: Path) -> None:
    refused(["push", str(run), *more, "--dry-run", str(tmp_path / "out")], says)
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_or_there_already_is_refused(run: Path, refused: Any, tmp_path: Path) -> None:
    refused(["push", str(tmp_path), "--to", "me/study"], "no finished run")
    refused(["push", str(run), "--to", "me/study", "--dry-run", str(tmp_path)], "there already")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What the hub is asked, by name; its repositories are private."""
    asked: dict[str, dict[str, Any]] = {}
    for name in ("create_repo", "repo_info", "upload_folder", "upload_file"):
        told = SimpleNamespace(private=True) if name == "repo_info" else None
        monkeypatch.setattr(HfApi, name, lambda _, name=name, told=told, **how: asked.update({name: how}) or told)
    monkeypatch.setattr(push, "get_token", lambda: "secret")
    return asked


def test_repositories_are_made_and_filled(run: Path, hub: dict[str, dict[str, Any]]) -> None:
    assert cli.main(["push", str(run), "--to", "me/study", "--models", "--private"]) == 0
    assert [*hub] == ["create_repo", "repo_info", "upload_folder", "upload_file"]
    assert hub["create_repo"] == {"repo_id": "me/study", "repo_type": "dataset", "private": True, "exist_ok": True}
    assert "records.parquet" in hub["upload_folder"]["allow_patterns"]
    assert not any("stages" in pattern for pattern in hub["upload_folder"]["allow_patterns"])
    assert hub["upload_file"]["path_in_repo"] == "README.md"


def test_a_public_repository_gets_nothing_private(run: Path, hub: Any, refused: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: SimpleNamespace(private=False))
    refused(["push", str(run), "--to", "me/study", "--private"], "--private: me/study is there already, and public")
    assert "upload_folder" not in hub


def test_who_is_not_logged_in_or_has_no_network_is_told(run: Path, hub: Any, refused: Any, monkeypatch: Any) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(HfApi, "create_repo", unreachable)
    refused(["push", str(run), "--to", "me/study"], "the hub: no route to host; the same command goes on from here")
    monkeypatch.setattr(push, "get_token", lambda: None)
    refused(["push", str(run), "--to", "me/study"], "log in with `hf auth login`")
