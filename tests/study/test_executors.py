"""Stages in processes of their own: the same results, and no end without a reason."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tunescope import cli
from tunescope.errors import InputError
from tunescope.files import remove
from tunescope.study.executors import Where

pytestmark = pytest.mark.usefixtures("plugged")

KILLER = """
import os
from tunescope.probes.view import probe

@probe("killer")
def killer(view, findings):
    os._exit(1)
"""

SLEEPER = """
import os, time
from pathlib import Path
from tunescope.probes.view import probe

@probe("sleeper")
def sleeper(view, findings):
    Path(__file__).with_suffix(".pid").write_text(str(os.getpid()))
    time.sleep(600)
"""


@pytest.mark.slow
def test_two_processes_make_what_one_makes(
    small_study: list[str], small_run: Path, run_folder: Path, same_run: Callable, no_report: None, capsys
) -> None:
    for part in ("models/dpo-eta_m", "models/dpo-eta_s", "models/benign-eta_m", "parts"):
        remove(run_folder / part)
    assert cli.main([*small_study, "--out", str(run_folder), "--jobs", "2"]) == 0
    assert "tune-dpo-eta_s: " in capsys.readouterr().err
    same_run(run_folder, small_run)


@pytest.mark.slow
def test_several_runs_share_the_processes(
    small_study: list[str], tmp_path: Path, contents: Callable, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("tunescope.study.pipeline.render", lambda folder: folder / "report.html")
    both = tmp_path / "both"
    few = [
        *small_study,
        "--skip",
        "attack",
        "intervene",
        "probe",
        "--out",
        str(both),
        "--jobs",
        "2",
        "--seed",
        "0",
        "1",
    ]
    assert cli.main(few) == 0
    said = capsys.readouterr().err
    assert "seed 0 [1/" in said
    assert "seed 1 [1/" in said
    assert {path.name for path in tmp_path.iterdir()} == {"both", "both-seed0", "both-seed1"}


@pytest.mark.slow
def test_a_process_that_is_killed_is_named_as_the_reason(
    small_study: list[str], run_folder: Path, tmp_path: Path, no_report: None, refused: Callable
) -> None:
    plugin = tmp_path / "killer.py"
    plugin.write_text(KILLER)
    more = ["--update", "--jobs", "2", "--plugin", str(plugin), "--set", "probe.probes=[killer]"]
    assert "stopped from outside" in refused([*small_study, "--out", str(run_folder), *more])


@pytest.mark.slow
def test_a_worker_ends_with_a_parent_that_is_killed(small_study: list[str], run_folder: Path, tmp_path: Path) -> None:
    plugin, pid = tmp_path / "sleeper.py", tmp_path / "sleeper.pid"
    plugin.write_text(SLEEPER)
    more = ["--update", "--jobs", "2", "--plugin", str(plugin), "--set", "probe.probes=[sleeper]"]
    command = [sys.executable, "-m", "tunescope.cli", *small_study, "--out", str(run_folder), *more]
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        assert until(lambda: pid.exists() and pid.read_text() != "")
        worker = int(pid.read_text())
    finally:
        parent.kill()
        parent.wait()
    assert until(lambda: not alive(worker))


def until(true: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether it becomes true in this time."""
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_jobs_are_at_least_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="jobs: 0 must be at least 1"):
        Where(0).executor()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["study", "tiny", "--jobs", "many"])
    assert "--jobs: 'many' must be a number, or auto" in capsys.readouterr().err
