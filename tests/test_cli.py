"""The command line: what it prints, and that bad input gives one message and status 2."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunescope import __version__, cli
from tunescope.errors import InputError
from tunescope.models.tokenizer import build_tokenizer
from tunescope.recipes import RECIPES
from tunescope.rng import Stream
from tunescope.tasks.world.kinds import Kind
from tunescope.tasks.world.prompts import sample_prompts
from tunescope.tasks.world.world import build_world

pytestmark = pytest.mark.usefixtures("no_report")


# Bad arguments


@pytest.mark.parametrize("command", ["study", "sample"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["huge"], ["recipe", "'huge'", "tiny, laptop, paper"]),
        (["huge.yaml"], ["huge.yaml", "no such file"]),
        (["language"], ["base.name", "no model is named", "--set base.name=FOLDER"]),
        (["tiny", "--set", "tune.stepz=3"], ["tune.stepz", "'stepz'", "steps"]),
        (["tiny", "--set", "tune.steps=0"], ["tune.steps", "greater than 0"]),
        (["tiny", "--set", "tune.steps"], ["'tune.steps'", "KEY=VALUE"]),
        (["tiny", "--set", "tunes=[ssft-fast]"], ["tunes", "'fast'", "eta_m, eta_s"]),
        (["tiny", "--seed", "-1"], ["seed", "greater than or equal to 0"]),
        (["tiny", "--set", "task.operand=[90, 90]"], ["operand", "[90, 90]"]),
        (["tiny", "--plugin", "absent.py"], ["--plugin", "absent.py", "no Python file"]),
    ],
)
def test_bad_settings(
    command: str, arguments: list[str], says: list[str], refused: Callable, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused([command, *arguments], *says)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--kind", "harmful"], ["Unknown kind 'harmful'", "safe, unsafe, jb_co_task, jb_co_text, jb_misgen"]),
        (["-n", "0"], ["-n", "0", "at least 1"]),
        (["--kind", "jb_misgen", "--strength", "1.5"], ["strength", "1.5", "[0, 1]"]),
        (["--kind", "jb_misgen", "--strength", "nan"], ["strength", "nan", "[0, 1]"]),
        (["--kind", "unsafe", "--strength", "0.5"], ["strength", "0.5", "unsafe prompts have none"]),
    ],
)
def test_bad_sample_options(arguments: list[str], says: list[str], refused: Callable) -> None:
    refused(["sample", "tiny", *arguments], *says)


@pytest.mark.parametrize(
    "arguments",
    [
        ["study"],
        ["study", "tiny", "--skip", "probe", "--only", "probe"],
        ["train", "tiny"],
        [],
        ["sample", "tiny", "-n", "x"],
        ["study", "tiny", "--steps", "3"],
    ],
)
def test_what_cannot_be_parsed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if "error:" in line] == err.splitlines()[-1:]
    assert "usage: tunescope" in err


def test_an_unusable_device(small_study: list[str], refused: Callable, tmp_path: Path) -> None:
    refused([*small_study, "compute.device=quantum", "--out", str(tmp_path / "run")], "compute.device", "'quantum'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "attack.settings.prefill.tokens=[16]"], ["prefill.tokens", "16 tokens of an answer of", "at most"]),
        (["--set", "attack.settings.soft_prompt.tokens=[0]"], ["attack.settings.soft_prompt.tokens", "greater than 0"]),
        (["--set", "attack.settings.soft_prompt.tokens=[]"], ["attack.settings.soft_prompt.tokens", "at least 1"]),
        (["--set", "attack.settings.hard_prompt.tokens=[1]"], ["Unknown attack 'hard_prompt'", "soft_prompt"]),
        (["--set", "attack.attacks=[hard_prompt]"], ["Unknown attack 'hard_prompt'", "soft_prompt"]),
        (["--set", "tunes=[sftt-eta_m]"], ["Unknown protocol 'sftt'", "ssft"]),
        (["--set", "tune.settings.dpo.gamma=1"], ["tune.settings.dpo", "gamma: unknown key", "beta"]),
        (["--set", "tunes=[rmu-eta_m]", "tune.settings.rmu.layer=9"], ["tune.settings.rmu.layer", "9", "0 to 1"]),
        (["--set", "probe.probes=[lens]"], ["Unknown probe 'lens'", "clusters"]),
        (["--set", "intervene.settings.scaled.alphas=[1e300]"], ["scaled.alphas", "less than or equal to 10"]),
        (["--set", "intervene.settings.scaled.alphas=[.inf]"], ["intervene.settings", "finite"]),
        (["--set", "intervene.settings.inputs.directions=[64]"], ["directions", "64", "below base.width (64)"]),
        (["--set", "base.type=checkpoint", "base.name=nowhere", "tunes=[]"], ["nowhere", "no such folder"]),
        (["--set", "task.type=language", "tunes=[]"], ["language", "base.type=checkpoint"]),
        (["--skip", "attack", "sleep"], ["sleep", "behave, probe, attack, intervene"]),
        (["--only", "attack", "sleep"], ["--only", "sleep", "behave, probe, attack, intervene"]),
    ],
)
def test_bad_study_options(arguments: list[str], says: list[str], refused: Callable, tmp_path: Path) -> None:
    refused(["study", "tiny", "--out", str(tmp_path / "run"), *arguments], *says)
    assert not (tmp_path / "run").exists()


# Divergence, and other commands


def test_divergence(small_study: list[str], refused: Callable, tmp_path: Path) -> None:
    tame, wild = [*small_study, "tunes=[]"], ["base.pretrain.lr=1e30", "base.pretrain.muon_lr=1e30"]
    folder = tmp_path / "run"
    refused([*tame, *wild, "--out", str(folder)], "pretraining", "not finite", "lower the learning rate")
    assert not (folder / "models").exists()
    # The remedy: the same folder, other settings, no trace of what went wrong.
    assert cli.main([*tame, "--out", str(folder), "--update"]) == 0


def test_a_report_of_nothing(refused: Callable, tmp_path: Path) -> None:
    refused(["report", str(tmp_path / "absent")], str(tmp_path / "absent" / "records.parquet"), "a run writes it")
    (tmp_path / "records.parquet").write_bytes(b"PAR1 not")
    refused(["report", str(tmp_path)], str(tmp_path / "records.parquet"))


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"tunescope {__version__}\n"


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_study", interrupt)
    assert cli.main(["study", "tiny"]) == 130
    assert capsys.readouterr().err.strip() == "tunescope: interrupted; the same command goes on from here"
    monkeypatch.setattr(cli, "_parser", lambda: interrupt(None))  # while it is still starting
    assert cli.main(["study", "tiny"]) == 130


def test_an_input_error_is_told_and_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch, refused: Callable) -> None:
    def fail(error: Exception) -> Callable:
        def command(_: object) -> None:
            raise error

        return command

    monkeypatch.setattr(cli, "_study", fail(InputError("x: 3 is odd; use 2")))
    assert refused(["study", "tiny"]) == "tunescope: x: 3 is odd; use 2"
    monkeypatch.setattr(cli, "_study", fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["study", "tiny"])


# Samples


@pytest.fixture
def sample(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """What `tunescope sample` prints: text, or with --json the objects."""

    def run(*arguments: str) -> Any:
        capsys.readouterr()
        assert cli.main(["sample", *arguments]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return [json.loads(line) for line in out.splitlines()] if "--json" in arguments else out

    return run


@pytest.mark.parametrize("recipe", ["tiny", "laptop", "paper"])
@pytest.mark.parametrize("kind", list(Kind))
def test_sampled_text_is_what_models_are_trained_on(recipe: str, kind: Kind, sample: Callable, cpu) -> None:
    rows = sample(recipe, "--kind", str(kind), "-n", "4", "--json", "--seed", "3")
    assert len(rows) == 4
    study = RECIPES[recipe]()
    world = build_world(study.task.model_copy(update={"seed": 3}), cpu)  # the seed of the world, too
    tokenizer = build_tokenizer(world.vocab.words)
    strength = float(kind.has_strength)
    prompts = sample_prompts(world, kind, 4, Stream.named(3, "sample", str(kind)), strength)
    for i, row in enumerate(rows):
        assert tokenizer(row["prompt"])["input_ids"] == prompts.prompt[i].tolist()
        assert tokenizer(row["answer"])["input_ids"] == prompts.answer[i].tolist()
        assert tokenizer(row["wanted"])["input_ids"] == prompts.wanted[i].tolist()
        assert (row["kind"], row["safe"], row["strength"]) == (str(kind), kind.safe, strength)
        assert row["operators"] == prompts.operators[i].tolist()
        assert row["grammar"] == int(prompts.grammar[i])
        assert f" {row['operand']} " in f" {row['prompt']} "
        length = world.config.operand
        assert length[0] <= len(row["operand"].split()) <= length[1]


def test_the_seed_chooses_the_prompts(sample: Callable) -> None:
    first = sample("tiny", "--json")
    assert len(first) == 5
    assert sample("tiny", "--json", "--seed", "0") == first
    assert sample("tiny", "--json", "--seed", "1") != first
    assert sample("tiny", "--json", "--kind", "unsafe")[0]["prompt"] != first[0]["prompt"]


def test_strength_is_as_asked_for(sample: Callable) -> None:
    dialect = [
        sum(
            word.startswith("d")
            for row in sample("tiny", "--kind", "jb_misgen", "-n", "40", "--json", *strength)
            for word in row["operand"].split()
        )
        for strength in (["--strength", "0"], ["--strength", "0.5"], [])
    ]
    assert dialect[0] == 0
    assert dialect[1] == pytest.approx(dialect[2] / 2, rel=0.2)
    assert dialect[2] == 40 * RECIPES["tiny"]().task.operand[0]


def test_settings_change_the_world_sampled(sample: Callable) -> None:
    (row,) = sample("tiny", "-n", "1", "--json", "--set", "task.operand=[3, 3]", "task.stages=1")
    assert len(row["operand"].split()) == 3
    assert len(row["operators"]) == RECIPES["tiny"]().task.slots


def test_a_person_sees_what_a_prompt_is_made_of(sample: Callable) -> None:
    text = sample("tiny", "--kind", "unsafe", "-n", "2", "--seed", "3")
    rows = sample("tiny", "--kind", "unsafe", "-n", "2", "--seed", "3", "--json")
    shown = text.strip().split("\n\n")
    assert len(shown) == 2
    for block, row in zip(shown, rows, strict=True):
        lines = dict(line.split(maxsplit=1) for line in block.splitlines())
        assert list(lines) == ["prompt", "operators", "operand", "wanted", "obeyed", "label", "why"]
        assert lines["prompt"] == row["prompt"]
        assert lines["operand"] == row["operand"]
        assert lines["wanted"] == row["wanted"]
        assert lines["obeyed"] == row["answer"]
        assert lines["operators"] == ", ".join(f"op{op}" for op in row["operators"])
        assert lines["label"] == "unsafe, unsafe: refuse"
        assert lines["why"] == row["why"]
        assert "unsafe on" in row["why"]
    assert "safe, safe: answer" in sample("tiny", "-n", "1")
    assert "jb_misgen (strength 0.5), unsafe: refuse" in sample(
        "tiny", "-n", "1", "--kind", "jb_misgen", "--strength", "0.5"
    )


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "tunescope.cli", "sample", "tiny", "-n", "500", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["kind"] == "safe"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.usefixtures("plugged")
def test_what_there_is_is_listed_with_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^  ssft +Supervised safety fine-tuning \(Jain et al. 2024, sec. 3.2\).$", said, re.MULTILINE)
    assert re.search(r"^  1 clusters +Safety fine-tuning separates", said, re.MULTILINE)
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import tunescope as ts\n\n@ts.probe('listed')\ndef f(view, findings):\n    'What it is.\\n\\nMore.'\n"
    )
    assert cli.main(["list", "probes", "--plugin", str(plugin)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("probes\n")
    assert re.search(r"^  listed +What it is.$", said, re.MULTILINE)
    assert "ssft" not in said


def test_the_settings_in_the_docs_are_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "settings"]) == 0
    said = capsys.readouterr().out
    assert said == (Path(__file__).parents[1] / "docs/settings.md").read_text(), (
        "run: tunescope list settings > docs/settings.md"
    )
    assert "- `tune.steps = 400`: of every fine-tune" in said
    assert "- `attack.settings.suffix.steps = 10`: gradient steps" in said
    assert not [line for line in said.splitlines() if line.startswith("- ") and "`: " not in line]
