"""Run folders: a folder that is not this run's, damaged, or on a bad disk gives one message and is left as it was."""

import errno
import json
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunescope import cli
from tunescope.files import remove
from tunescope.training import fit

WEIGHTS = "models/base/model.safetensors"
pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def study(small_study: list[str], run_folder: Path) -> list[str]:
    """The command that made the run folder."""
    return [*small_study, "--out", str(run_folder)]


# Folders that are not this run's


def test_a_folder_of_something_else(small_study: list[str], refused: Callable, tmp_path: Path, contents) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    refused([*small_study, "--out", str(tmp_path)], str(tmp_path), "not a run folder", "--out")
    refused([*small_study, "--out", str(tmp_path), "--update"], str(tmp_path), "not a run folder", "--out")
    refused([*small_study, "--out", str(tmp_path / "thesis.tex")], "thesis.tex", "not a run folder", "--out")
    refused([*small_study, "--out", str(tmp_path / "thesis.tex" / "run")], "thesis.tex", "Not a directory")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--seed", "7"], ["seed: 0 there, 7 asked for"]),
        (["--set", "tune.steps=9"], ["tune.steps: 6 there, 9 asked for"]),
        (["--set", "tunes=[dpo-eta_m, seen-eta_m]"], ["benign eta_s'] there, ['seen eta_m'] asked for"]),
        (
            ["--set", "name=mine", "tunes=[ssft-eta_m]"],
            ["name: 'tiny' there, 'mine' asked", "tunes: ['dpo eta_m', "],
        ),
    ],
)
def test_a_run_of_other_settings(
    changes: list[str], says: list[str], study: list[str], run_folder: Path, refused: Callable, contents: Callable
) -> None:
    before = contents(run_folder)
    refused([*study, *changes], str(run_folder), "other settings", *says, "--out", "--update")
    assert contents(run_folder) == before


@pytest.mark.parametrize(
    "config", ["tune: {method: ppo}\n", "seed: [", "just text", "", "\x00", "world: {operators: 5}\n"]
)
def test_a_config_that_this_version_does_not_know(
    config: str, study: list[str], run_folder: Path, refused: Callable, contents: Callable
) -> None:
    (run_folder / "config.yaml").write_text(config)
    before = contents(run_folder)
    refused(study, str(run_folder / "config.yaml"), "--out", "--update")
    assert contents(run_folder) == before


def test_a_run_of_another_version(study: list[str], run_folder: Path, refused: Callable, contents: Callable) -> None:
    environment = json.loads((run_folder / "environment.json").read_text())
    environment["libraries"]["tunescope"] = "0.0.1"
    (run_folder / "environment.json").write_text(json.dumps(environment))
    before = contents(run_folder)
    refused(study, str(run_folder), "tunescope 0.0.1", "--out", "--update")
    config = (run_folder / "config.yaml").read_text()
    (run_folder / "config.yaml").write_text("world: {operators: 5}\nmodel: {layers: 2}\n")  # as versions before had it
    refused(study, str(run_folder), "tunescope 0.0.1", "another form", "--out", "--update")
    (run_folder / "config.yaml").write_text(config)
    (run_folder / "environment.json").write_text("{}")
    refused(study, str(run_folder), "unknown version", "--out", "--update")
    assert {**contents(run_folder), "environment.json": b""} == {**before, "environment.json": b""}


# Damaged files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change(path: Path, how: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(path)
    how(weights)
    save_file(weights, path, metadata={"format": "pt"})


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "truncated": (WEIGHTS, cut),
    "wrong shape": (WEIGHTS, lambda p: change(p, lambda w: w.update({"transformer.ln_f.bias": torch.zeros(3)}))),
    "NaN": (WEIGHTS, lambda p: change(p, lambda w: w["transformer.ln_f.bias"].fill_(float("nan")))),
    "missing": (WEIGHTS, Path.unlink),
    "missing config": ("models/dpo-eta_m/config.json", Path.unlink),
    "truncated config": ("models/base/config.json", cut),
    "missing checkpoint": ("checkpoints/benign-eta_s/step-000006/model.safetensors", Path.unlink),
    "truncated records": ("records.parquet", cut),
    "emptied examples": ("examples.json", lambda p: p.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage(
    damage: str, study: list[str], run_folder: Path, small_run: Path, refused: Callable, contents: Callable, results
) -> None:
    name, inflict = DAMAGES[damage]
    inflict(run_folder / name)
    before = contents(run_folder)
    message = refused(study, str(run_folder / name), "damaged", "delete", "run again")
    assert contents(run_folder) == before
    # What the message says to do brings all of it back.
    (root,) = re.findall(r"delete (\S+) and run again", message)
    remove(Path(root))
    assert cli.main(study) == 0
    assert results(run_folder) == results(small_run)


# Disks


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """No file can be longer than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
def test_a_disk_that_fills_up(
    small_study: list[str], small_run: Path, tmp_path: Path, refused: Callable, results: Callable
) -> None:
    folder = tmp_path / "run"
    for size, file in ((100, "config.yaml"), (4_000, "models/base")):
        with disk_full_after(size):
            refused([*small_study, "--out", str(folder)], str(folder / file), "mend this and run the same command")
        assert not list(folder.rglob("*.partial"))
    assert cli.main([*small_study, "--out", str(folder)]) == 0
    assert results(folder) == results(small_run)


def test_a_full_disk_and_a_finished_run(
    study: list[str], run_folder: Path, small_run: Path, refused: Callable, contents: Callable, results: Callable
) -> None:
    before = contents(run_folder)
    with disk_full_after(100):
        refused(study, str(run_folder / "config.yaml"), "File too large", "nothing is damaged")
    assert contents(run_folder) == before
    table = run_folder / "records.parquet"
    size = table.stat().st_size
    table.unlink()
    with disk_full_after(size - 1):
        refused(study, str(table), "nothing is damaged")
    assert cli.main(study) == 0
    assert results(run_folder) == results(small_run)


def test_a_full_disk_while_a_training_saves_its_state(
    small_study: list[str], tmp_path: Path, refused: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "SAVE_SECONDS", -1.0)
    with disk_full_after(4_000):
        refused([*small_study, "--out", str(tmp_path / "run")], str(tmp_path / "run" / "stages" / "pretrain"))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written(
    number: int, study: list[str], run_folder: Path, refused: Callable, contents: Callable, monkeypatch
) -> None:
    def replace(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    before = contents(run_folder)
    monkeypatch.setattr("tunescope.files.os.replace", replace)
    refused(study, "config.yaml", os.strerror(number), "nothing is damaged")
    assert contents(run_folder) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody can make a folder")
def test_a_place_where_no_folder_can_be_made(small_study: list[str], refused: Callable) -> None:
    refused([*small_study, "--out", "/proc/run"], "/proc/run")
