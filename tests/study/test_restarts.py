"""A study that is run again, changed or stopped: only what must run runs, and no interruption shows in the results."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tunescope import cli
from tunescope.config import GROUPS
from tunescope.errors import InputError
from tunescope.files import remove
from tunescope.recipes import tiny as tiny_study
from tunescope.records.tables import read_records
from tunescope.settings import override
from tunescope.study import pipeline

RATES = ("eta_m", "eta_s")


@pytest.fixture
def study(small_study: list[str], run_folder: Path, no_report: None) -> list[str]:
    """The command that made the small run folder."""
    return [*small_study, "--out", str(run_folder)]


def ran(err: str) -> list[str]:
    """Names of the stages that ran."""
    return re.findall(r"^\[\d+/\d+\] (\S+): \d+ s$", err, re.M)


@pytest.mark.parametrize(("model", "stage"), [("base", "pretrain"), ("dpo-eta_s", "tune-dpo-eta_s")])
def test_a_deleted_model_comes_back_byte_for_byte(
    model: str, stage: str, study: list[str], run_folder: Path, small_run: Path, results: Callable, capsys
) -> None:
    remove(run_folder / "models" / model)
    assert cli.main(study) == 0
    assert ran(capsys.readouterr().err) == [stage]
    assert results(run_folder) == results(small_run)


OF = {  # what only one group of stages measures
    "behave": "attack == '' and intervention == '' and metric == 'other'",
    "probe": "metric == 'tau'",
    "attack": "attack != ''",
    "intervene": "intervention != ''",
    "overlap": "metric == 'write_overlap'",
}


@pytest.mark.slow
@pytest.mark.parametrize("look", GROUPS)
def test_stages_can_be_left_out_and_made_up_for(
    look: str, study: list[str], run_folder: Path, small_run: Path, results: Callable, capsys
) -> None:
    others = [name for name in GROUPS if name != look]
    by_skip = look in ("behave", "intervene", "overlap")
    options, without = (["--skip", look], {look}) if by_skip else (["--only", look], {*others})
    # What is there already stays.
    assert cli.main([*study, *options]) == 0
    said = capsys.readouterr().err
    assert ran(said) == []
    assert all(f"{name}-base" in said for name in without - {"intervene", "overlap"})
    assert results(run_folder) == results(small_run)
    for name in without:
        for marker in (run_folder / "stages").glob(f"{name}*.json"):
            marker.unlink()
    assert cli.main([*study, *options]) == 0
    assert ran(capsys.readouterr().err) == ["records"]
    found = read_records(run_folder / "records.parquet")
    assert {name for name in GROUPS if found.query(OF[name]).empty} == without
    assert cli.main(study) == 0
    assert {name.split("-")[0] for name in ran(capsys.readouterr().err)} == {*without, "records"}
    assert results(run_folder) == results(small_run)


@pytest.mark.slow
def test_what_was_left_out_has_not_run(small_study: list[str], no_report: None, tmp_path: Path, capsys) -> None:
    study = [*small_study, "tunes=[ssft-eta_m]", "--out", str(tmp_path / "run")]
    assert cli.main([*study, "--only", "behave"]) == 0
    first = ran(capsys.readouterr().err)
    assert {name.split("-")[0] for name in first} == {"pretrain", "tune", "behave", "examples", "records"}
    assert cli.main(study) == 0
    assert {name.split("-")[0] for name in ran(capsys.readouterr().err)} == {"probe", "attack", "intervene", "records"}


def test_the_environment_is_that_of_what_ran(
    study: list[str], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = run_folder / "environment.json"
    text = file.read_text()
    before, elsewhere = json.loads(text), json.loads(text) | {"device": "another machine"}
    monkeypatch.setattr(pipeline, "environment", lambda *_: elsewhere)
    assert cli.main(study) == 0
    assert file.read_text() == text  # nothing ran
    for _ in range(2):
        remove(run_folder / "examples.json")
        assert cli.main(study) == 0
        assert json.loads(file.read_text()) == before | {"later": [elsewhere]}
    remove(run_folder / "models" / "base")
    assert cli.main(study) == 0
    assert json.loads(file.read_text()) == elsewhere
    remove(run_folder / "examples.json")
    file.write_text("damaged")
    assert cli.main([*study, "--update"]) == 0
    assert json.loads(file.read_text()) == elsewhere


@pytest.mark.slow
def test_an_update_runs_what_it_changes_and_leaves_nothing_stale(
    study: list[str], small_study: list[str], run_folder: Path, tmp_path: Path, results: Callable, capsys
) -> None:
    changed = ["tune.checkpoints=1", "tunes=[dpo-eta_m, dpo-eta_s]"]
    assert cli.main([*study, "--update", "--set", *changed]) == 0
    tuned = [f"{stage}-dpo-{rate}" for stage in ("tune", "behave", "probe", "attack", "intervene") for rate in RATES]
    assert ran(capsys.readouterr().err) == [*tuned, "overlap", "examples", "records"]
    assert [path.name for path in (run_folder / "checkpoints" / "dpo-eta_m").iterdir()] == ["step-000006"]
    fresh = tmp_path / "fresh"
    assert cli.main([*small_study, *changed, "--out", str(fresh)]) == 0
    assert results(fresh).items() <= results(run_folder).items()  # which still has the models of the other protocol


def test_other_seeds_are_other_runs(
    small_study: list[str], small_run: Path, tmp_path: Path, results: Callable, no_report: None
) -> None:
    folder = tmp_path / "run"
    assert cli.main([*small_study, "tunes=[]", "--seed", "1", "--out", str(folder)]) == 0
    one, other = results(folder), results(small_run)
    for name in ("models/base/model.safetensors", "parts/pretrain.parquet", "parts/behave-base.parquet"):
        assert one[name] != other[name]
    for name in ("models/base/config.json", "models/base/tokenizer.json"):
        assert one[name] == other[name]


def test_it_is_a_few_lines_of_python(small_study: list[str], run_folder: Path, no_report: None) -> None:
    study = override(tiny_study(), small_study[small_study.index("--set") + 1 :])
    assert pipeline.run(study, run_folder) == run_folder / "report.html"
    (run_folder / "records.parquet").write_text("damaged")
    for _ in range(2):  # the error that a notebook keeps does not keep the folder locked
        with pytest.raises(InputError, match="damaged") as kept:
            pipeline.run(study, run_folder)
        assert kept.value.__traceback__


def test_a_base_model_that_has_not_learnt_is_warned_of(small_study, tmp_path: Path, no_report, capsys) -> None:
    arguments = [*small_study, "tunes=[]", "--out"]
    assert cli.main([*arguments, str(tmp_path / "a")]) == 0
    assert re.search(
        r"^warning: pretraining ended at 0\.0+% .* below base\.pretrain\.target", capsys.readouterr().err, re.M
    )
    assert cli.main([*arguments, str(tmp_path / "b"), "--set", "base.pretrain.target=0"]) == 0
    assert "warning" not in capsys.readouterr().err


# Being stopped

# Runs a study again and again, each time in a process of its own that dies at a given moment: right before or after
# the rename that makes the nth file or folder of some name appear. Every training saves its state at every step.
KILLED = """
import json, os, signal, sys
from tunescope import cli, files
from tunescope.study import pipeline
from tunescope.training import fit

fit.SAVE_SECONDS = -1.0
pipeline.render = lambda folder: folder / "report.html"
arguments, moments = map(json.loads, sys.argv[1:])
rename = os.replace
for when, number, name in moments:
    child = os.fork()
    if child == 0:
        seen = 0

        def replace(source, target):
            global seen
            seen += name in str(target)
            due = name in str(target) and seen == number
            if due and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)
            if due:
                os.kill(os.getpid(), signal.SIGKILL)

        files.os.replace, sys.stdout = replace, sys.stderr
        os._exit(cli.main(arguments))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
MOMENTS = [
    ("before", 1, "/config.yaml"),
    ("after", 1, "/config.yaml"),
    ("before", 5, "/pretrain."),
    ("after", 3, "/pretrain."),
    ("before", 1, "models/base"),
    ("after", 1, "models/base"),
    ("before", 1, "stages/pretrain.json"),
    ("after", 1, "checkpoints/dpo-eta_m/step-000003"),
    ("before", 1, "checkpoints/dpo-eta_m/step-000006"),
    ("after", 2, "/tune-dpo-eta_s."),
    ("after", 1, "models/benign-eta_s"),
    ("before", 1, "parts/behave-dpo-eta_m"),
    ("before", 1, "/examples.json"),
    ("after", 1, "/records.parquet"),
    ("never", 0, ""),
]


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(json.dumps, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(
    small_study: list[str], small_run: Path, tmp_path: Path, same_run: Callable
) -> None:
    process = python(KILLED, [*small_study, "--out", str(tmp_path / "run")], MOMENTS)
    out, err = process.communicate()
    assert out.split() == [str(-signal.SIGKILL)] * (len(MOMENTS) - 1) + ["0"], err
    same_run(tmp_path / "run", small_run)
    assert not list(tmp_path.rglob("*.partial"))


# Runs a study, and stands still in the middle of pretraining.
WAITING = """
import json, signal, sys, time
from tunescope import cli
from tunescope.training import fit

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background would ignore it

fit.SAVE_SECONDS = -1.0
save, saves = fit._save, 0

def saved(*arguments):
    global saves
    save(*arguments)
    saves += 1
    if saves == 4:
        print("waiting", flush=True)
        time.sleep(600)

fit._save = saved
sys.exit(cli.main(json.loads(sys.argv[1])))
"""


@pytest.fixture
def waiting(small_study: list[str], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = python(WAITING, [*small_study, "--out", str(tmp_path / "run")])
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_one_at_a_time_and_ctrl_c(
    waiting: subprocess.Popen[str],
    small_study: list[str],
    small_run: Path,
    tmp_path: Path,
    same_run,
    refused,
    no_report,
) -> None:
    folder = tmp_path / "run"
    refused([*small_study, "--out", str(folder)], str(folder), "another tunescope is at work", "wait for it")
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate()
    assert waiting.returncode == 130
    assert out == ""
    assert err.strip().splitlines()[-1] == "tunescope: interrupted; the same command goes on from here"
    assert not (folder / "models").exists()
    assert cli.main([*small_study, "--out", str(folder)]) == 0
    same_run(folder, small_run)
