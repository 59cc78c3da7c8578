"""Plug-ins: one file outside the package adds what a study is made of, and a bad one ends in one message."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tunescope as ts
from tunescope import cli
from tunescope.errors import InputError
from tunescope.records.tables import read_records, read_scores
from tunescope.registry import load_plugins
from tunescope.study.graph import check_names  # which imports all that registers something

EXTENDING = Path(__file__).parent.parent / "docs" / "extending.md"

PLUGIN = """
from collections.abc import Iterator

import torch

import tunescope as ts
from tunescope.attacks.base import Attacked
from tunescope.models.sites import Site
from tunescope.probes.view import View


@ts.protocol("loud", unsafe_share=0.5)
def loud(step, settings):
    "Ten times the loss of the wanted answer."
    return -10 * step.policy_chosen_logps.sum(1) / step.chosen_lengths


@ts.attack("nothing")
def nothing(target, settings) -> Iterator[Attacked]:
    for dial in (1.0, 2.0):
        yield Attacked("nothing", dial, target.unsafe)


@ts.probe("lengths", score=("resid_post",), measures=("log_length",))
def lengths(view: View, found) -> None:
    for kind, a in view.scored(Site(view.last, "resid_post")).items():
        found.mean("length", a.norm(dim=1), kind=kind, layer=view.last)
        found.score("log_length", a.norm(dim=1).log(), kind=kind, layer=view.last)


ts.claim(
    ts.Claim(
        name="9 length",
        statement="Activations of unsafe prompts are longer.",
        source="a test",
        metric="log_length",
        weights={"unsafe": 1.0, "safe": -1.0},
        smallest=0.1,
        unit="ratio",
        found="length of unsafe activations to safe ones",
    )
)
"""


pytestmark = pytest.mark.usefixtures("plugged")


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.slow
def test_a_plugin_s_protocol_attack_probe_and_claim_are_in_the_report(small_study: list[str], tmp_path: Path) -> None:
    plugin = write(tmp_path, "mine.py", PLUGIN)
    out = tmp_path / "run"
    arguments = [*small_study, "tunes=[loud-eta_m, benign-eta_m]", "--plugin", plugin, "--out", str(out)]
    assert cli.main([*arguments, "--skip", "intervene", "overlap"]) == 0
    records = read_records(out / "records.parquet")
    assert {"loud-eta_m", "benign-eta_m"} <= set(records["model"])
    assert set(records.query("attack == 'nothing'")["dial"].dropna()) == {1.0, 2.0}
    told = json.loads((out / "verdicts.json").read_text())
    judged = [v for v in told["verdicts"] if v["claim"] == "9 length"]
    assert {(v["protocol"], v["outcome"]) for v in judged} == {("loud", None)}  # of one run
    page = (out / "report.html").read_text()
    for text in ("9 length", "loud", "nothing"):
        assert text in page, text


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_an_edit_of_a_plugin_runs_its_own_stages_again(
    small_study: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    plugged: Callable,
    refused: Callable,
    contents: Callable,
) -> None:
    plugin = write(tmp_path, "mine.py", PLUGIN)
    fewer = ["tunes=[loud-eta_m, benign-eta_m]", "attack.attacks=[prefill]"]
    without = [*small_study, *fewer, "--out", str(tmp_path / "run")]
    arguments = [*without, "--plugin", plugin]
    assert cli.main(arguments) == 0
    write(tmp_path, "mine.py", PLUGIN.replace("-10 *", "-9 *"))
    plugged()
    capsys.readouterr()
    assert cli.main(arguments) == 0
    ran = re.findall(r"^\[\d+/\d+\] (\S+): \d+ s$", capsys.readouterr().err, re.M)
    assert "tune-loud-eta_m" in ran
    assert not {"pretrain", "tune-benign-eta_m", "behave-base"} & set(ran)
    plugged()
    before = contents(tmp_path / "run")
    refused(
        [*small_study, "tunes=[benign-eta_m]", *without[-2:]],
        "holds a run of other settings",
        "probe.probes",
        "--update",
    )
    assert contents(tmp_path / "run") == before


@pytest.mark.slow
def test_what_the_documentation_shows_runs(small_study: list[str], tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(# (\S+\.py)\n.*?)```", EXTENDING.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 3
    plugins = [write(tmp_path, name, text) for text, name in blocks]
    names = ["ipo-eta_m", "benign-eta_m"]
    out = tmp_path / "run"
    assert cli.main([*small_study, f"tunes=[{', '.join(names)}]", "--plugin", *plugins, "--out", str(out)]) == 0
    records, scores = read_records(out / "records.parquet"), read_scores(out / "scores.parquet")
    assert {*names, "base"} == set(records["model"])
    built_in = read_records_of_no_plugin()
    assert set(records["attack"]) - built_in["attack"]
    assert set(records["intervention"]) - built_in["intervention"]
    assert set(scores["metric"]) - built_in["metric"]


def read_records_of_no_plugin() -> dict[str, set[str]]:
    """Names that are measured without plug-ins."""
    script = (
        "import json\nfrom tunescope.study import graph\n"
        "from tunescope.attacks.base import ATTACKS\nfrom tunescope.probes.view import PROBES\n"
        "from tunescope.records.names import STAGES_MEASURE\n"
        "print(json.dumps([[*ATTACKS], [m for p in PROBES.values() for m in p.measures] + [*STAGES_MEASURE]]))"
    )
    import subprocess

    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    attacks, metrics = json.loads(out)
    jailbreaks = {"", "jb_co_task", "jb_co_text", "jb_misgen", "safe_dialect"}
    interventions = {"", "scaled", "extrapolated", "truncated", "in_null_space", "in_column_space", "in_random_space"}
    interventions |= {"matrices", "rotated", "direction_ablated", "random_direction_ablated", "direction_added"}
    interventions |= {"random_direction_added", "off_random_inputs"}
    interventions |= {f"{what}_{which}_inputs" for what in ("on", "off") for which in ("safe", "unsafe")}
    interventions |= {"with_ipo", "with_benign", "retuned_benign", "retuned_seen"}
    interventions |= {"patched_into_twin"} | {f"patched_from_{which}" for which in ("twin", "other", "base")}
    return {"attack": jailbreaks | set(attacks), "intervention": interventions, "metric": set(metrics)}


# Bad plug-ins


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nowhere", ["mine.py", "ModuleNotFoundError", "nowhere"]),
        ("def (", ["mine.py", "SyntaxError"]),
        ("raise SystemError('a\\nb' * 900)", ["mine.py", "SystemError"]),
        (
            "import tunescope as ts\n@ts.protocol('ssft', unsafe_share=0.1)\ndef mine(step, settings): ...",
            ["Two protocols are called 'ssft'", "tunescope.training.protocols.ssft", "Rename one"],
        ),
        (
            PLUGIN.replace('metric="log_length"', 'metric="log_lenght"'),
            ["Claim '9 length'", "nobody measures 'log_lenght'", "log_length"],
        ),
        (
            PLUGIN.replace("def nothing(target, settings)", "def nothing(target)"),
            ["attack 'nothing'", "its function must take (target, settings)"],
        ),
        (
            PLUGIN.replace('score=("resid_post",)', 'score=("resid_pots",)'),
            ["probe 'lengths'", "unknown site 'resid_pots'", "resid_post"],
        ),
    ],
)
def test_a_bad_plugin_is_one_message_before_any_work(
    text: str, says: list[str], small_study: list[str], refused: Callable, tmp_path: Path
) -> None:
    plugin = write(tmp_path, "mine.py", text)
    message = refused([*small_study, "--plugin", plugin, "--out", str(tmp_path / "run")], *says)
    assert len(message) < 900
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        ("for dial in (1.0, 2.0):", "for dial in target.dials:", ["attack-base", "AttributeError", "dials", "nothing"]),
        ("a.norm(dim=1).log()", "a.norm(dim=7).log()", ["probe-base", "IndexError", "lengths"]),
        ("a.norm(dim=1).log()", "float('one')", ["probe-base", "ValueError", "lengths"]),
    ],
)
@pytest.mark.usefixtures("no_report")
def test_a_plugin_that_fails_is_one_message_with_its_line(
    good: str, bad: str, says: list[str], small_study: list[str], refused: Callable, tmp_path: Path
) -> None:
    plugin = write(tmp_path, "mine.py", PLUGIN.replace(good, bad))
    line = next(i for i, text in enumerate(PLUGIN.replace(good, bad).splitlines(), 1) if bad in text)
    arguments = [*small_study, "tunes=[]", "base.pretrain.steps=1", "--plugin", plugin, "--out", str(tmp_path / "run")]
    message = refused(arguments, "a plug-in failed", f"mine.py, line {line}", *says)
    assert "another device or dtype" not in message


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        ("yield Attacked(", "dial = (", ["attack nothing", "must yield Attacked", "got None"]),
        ("yield Attacked(", "yield (", ["attack nothing", "must yield Attacked", "'nothing', 1.0"]),
        ("return -10 *", "-10 *", ["protocol loud", "one loss per prompt", "got None"]),
        ("chosen_logps.sum(1) / step.chosen_lengths", "chosen_logps.sum()", ["protocol loud", "got shape []"]),
    ],
)
@pytest.mark.usefixtures("no_report")
def test_a_plugin_that_gives_something_else_is_named(
    good: str, bad: str, says: list[str], small_study: list[str], refused: Callable, tmp_path: Path
) -> None:
    plugin = write(tmp_path, "mine.py", PLUGIN.replace(good, bad))
    asked = ["tunes=[loud-eta_m]" if "protocol loud" in says else "tunes=[]", "base.pretrain.steps=1"]
    refused([*small_study, *asked, "--plugin", plugin, "--out", str(tmp_path / "run")], *says)
    # A loss is tried before anything is trained.
    assert (tmp_path / "run").exists() == ("protocol loud" not in says)


def test_a_plugin_that_is_no_file(tmp_path: Path) -> None:
    for name in ("absent.py", "."):
        with pytest.raises(InputError, match="no Python file"):
            load_plugins([tmp_path / name])


def test_a_plugin_is_loaded_once_and_named_in_python_too(tmp_path: Path) -> None:
    plugin = write(tmp_path, "mine.py", PLUGIN)
    ts.load_plugins([plugin])
    ts.load_plugins([plugin])
    check_names(ts.recipes.tiny().changed(tunes=["loud-eta_m"], attack={"attacks": ["nothing"]}))
    with pytest.raises(InputError, match="Unknown protocol 'quiet'"):
        check_names(ts.recipes.tiny().changed(tunes=["quiet-eta_m"]))


def test_the_api_has_what_it_says_it_has() -> None:
    for name in ts.__all__:
        assert getattr(ts, name) is not None
    with pytest.raises(AttributeError):
        _ = ts.nothing_of_that_name
    assert (Path(ts.__file__).parent / "py.typed").exists()
