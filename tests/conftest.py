"""Shared fixtures: shape checks on the package, the worlds under test, and the statistics that tests lean on."""

import gc
import itertools
import os
import pkgutil
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from jaxtyping import install_import_hook
from scipy.stats import chisquare
from transformers import PreTrainedModel

import tunescope

# Every annotated type and shape is checked in the slow tests, which run whole studies; it takes up to twice the time.
# config has no shapes, and speaks of Self, which the checker refuses.
CHECKED = [
    f"tunescope.{m.name}" for m in pkgutil.iter_modules(tunescope.__path__) if m.name not in ("config", "api", "cli")
]
if "CHECK_SHAPES" in os.environ:  # an int is a good float, as for mypy
    install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from tunescope import cli, registry  # noqa: E402
from tunescope.config import TASK_CONFIGS, Built, ComputeConfig, PretrainConfig, WorldConfig  # noqa: E402
from tunescope.models.build import build_model  # noqa: E402
from tunescope.models.compute import Compute, resolve  # noqa: E402
from tunescope.rng import Stream  # noqa: E402
from tunescope.study import pipeline  # noqa: E402
from tunescope.tasks.world.grammar import Rules  # noqa: E402
from tunescope.tasks.world.task import WorldTask  # noqa: E402
from tunescope.tasks.world.vocab import EOS, PAD  # noqa: E402
from tunescope.tasks.world.world import World, build_world  # noqa: E402
from tunescope.training.pretraining import pretrain  # noqa: E402

SMALL = {"grammar": "tiny", "operators": 5, "aliases": (1,), "safe": ((0, 1), (0, 2)), "unsafe": ((2,), (3,))}
if TYPE_CHECKING:
    from playwright.sync_api import Browser

CONFIGS = {
    "tiny": WorldConfig(**SMALL, operand=(6, 6)),
    "laptop": WorldConfig(),
    "paper": WorldConfig(grammar="paper", operand=(25, 35)),
    "one_slot": WorldConfig(**{**SMALL, "aliases": (2, 1, 1)}, operand=(1, 5), stages=3, slots=1),
    "one_stage": WorldConfig(**SMALL, operand=(3, 9), stages=1, slots=3),
}

TUNES = "ssft-eta_m, dpo-eta_m, unlearning-eta_m, benign-eta_m"
TINY = ["study", "tiny", "--set", f"tunes=[{TUNES}]"]
torch.set_num_threads(1)
settings.register_profile("tunescope", max_examples=30, deadline=None)
settings.load_profile("tunescope")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that has the tiny study first: where files go to several processes, it takes longest."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


@pytest.fixture
def browser() -> Iterator["Browser"]:
    """Chromium, for tests of pages; they are skipped where there is none."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium here")
    with sync_playwright() as play:
        launched = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def cpu() -> torch.device:
    return torch.device("cpu")


@pytest.fixture(scope="session")
def worlds(cpu: torch.device) -> dict[str, World]:
    """The three shipped sizes, and two whose stages, slots and operand lengths are unlike theirs."""
    return {name: build_world(config, cpu) for name, config in CONFIGS.items()}


@pytest.fixture(scope="session")
def tiny(worlds: dict[str, World]) -> World:
    return worlds["tiny"]


@pytest.fixture(scope="session")
def laptop(worlds: dict[str, World]) -> World:
    return worlds["laptop"]


@pytest.fixture(scope="session")
def paper(worlds: dict[str, World]) -> World:
    return worlds["paper"]


@pytest.fixture(scope="session")
def fit() -> Callable[..., float]:
    """Chi-square p-value of observed counts under exact odds; 0 where something impossible was observed."""

    def p_value(observed: Counter, odds: Mapping) -> float:
        if any(odds.get(outcome, 0) == 0 for outcome in observed):
            return 0.0
        total = sum(observed.values())
        expected = {outcome: float(p) * total for outcome, p in odds.items() if p}
        assert min(expected.values()) >= 5, "too few draws for a chi-square test"
        if len(expected) == 1:
            return 1.0
        return float(chisquare([observed[o] for o in expected], list(expected.values())).pvalue)

    return p_value


@pytest.fixture(scope="session")
def string_odds() -> Callable[[Rules, str], dict[tuple[int, ...], Fraction]]:
    """Every string that a symbol derives, with its exact probability."""

    def odds(rules: Rules, symbol: str | int) -> dict[tuple[int, ...], Fraction]:
        if isinstance(symbol, int):
            return {(symbol,): Fraction(1)}
        out: dict[tuple[int, ...], Fraction] = Counter()
        for alternative in rules[symbol]:
            for parts in itertools.product(*(odds(rules, s).items() for s in alternative)):
                p = Fraction(1, len(rules[symbol]))
                for _, q in parts:
                    p *= q
                out[tuple(itertools.chain(*(string for string, _ in parts)))] += p
        return out

    return odds


@pytest.fixture(scope="session")
def window_odds() -> Callable[..., dict[tuple[int, ...], Fraction]]:
    """Exact odds of a uniformly placed window, given the odds of the strings."""

    def odds(strings: Mapping[tuple[int, ...], Fraction], length: int) -> dict[tuple[int, ...], Fraction]:
        out: dict[tuple[int, ...], Fraction] = Counter()
        for string, p in strings.items():
            places = len(string) - length + 1
            for at in range(places):
                out[string[at : at + length]] += p / places
        return out

    return odds


@pytest.fixture(scope="session")
def compute() -> Compute:
    """The CPU, without autocast."""
    return resolve(ComputeConfig(device="cpu", dtype="float32", compile="off"))


@pytest.fixture(scope="session")
def easy(cpu: torch.device) -> World:
    """A world that a model learns in two seconds: one operator on three symbols, and no need to tell grammars apart."""
    one = {**SMALL, "safe": ((0, 1), (0, 1)), "unsafe": ((2,), (2,)), "operand": (3, 3), "stages": 1, "slots": 1}
    whole = (0.0, 1.0, 0.0, 0.0)
    return build_world(WorldConfig(**one, mix_start=whole, mix_end=whole), cpu)


@pytest.fixture(scope="session")
def new_model(easy: World, compute: Compute) -> Callable[..., PreTrainedModel]:
    """An untrained model for the easy world."""

    def model(width: int = 16, architecture: str = "gpt2") -> PreTrainedModel:
        config = Built(architecture=architecture, layers=1, heads=2, width=width)
        sizes, stream = (len(easy.vocab), easy.sequence_length), Stream.named(0, "init")
        made = build_model(config, *sizes, stream, compute.device, eos=EOS, pad=PAD)
        made.set_attn_implementation(compute.attention)
        return made

    return model


@pytest.fixture(scope="session")
def trained(
    new_model: Callable[..., PreTrainedModel],
    easy: World,
    compute: Compute,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[int], tuple[PreTrainedModel, list[dict[str, float]]]]:
    """A model trained in the easy world for so many steps, and its learning curve."""

    def train(steps: int) -> tuple[PreTrainedModel, list[dict[str, float]]]:
        model = new_model(48)
        config = PretrainConfig(
            steps=steps, batch=64, lr=4e-3, muon_lr=3e-2, warmup=5, cooldown=40, check_every=50, settled=1.0
        )
        unfinished = tmp_path_factory.mktemp("trained") / "unfinished"
        return model, pretrain(model, WorldTask(easy), config, compute, Stream.named(0, "data"), unfinished)

    return train


@pytest.fixture(scope="session")
def learner(trained: Callable[..., tuple[PreTrainedModel, list]]) -> PreTrainedModel:
    """It answers some prompts of the easy world, not all. Shared by all tests: not to be changed."""
    return trained(90)[0]


@pytest.fixture(scope="session")
def expert(trained: Callable[..., tuple[PreTrainedModel, list]]) -> PreTrainedModel:
    """It answers nearly every prompt of the easy world. Shared by all tests: not to be changed."""
    return trained(180)[0]


@pytest.fixture(scope="session")
def small_study() -> list[str]:
    """Arguments of a study in which every stage does something, in a second; its models learn nothing."""
    settings = {
        "compute.device": "cpu",
        "compute.dtype": "float32",  # timed, it may be another one in each process
        "base.layers": 1,
        "base.width": 16,
        "base.pretrain.steps": 12,
        "base.pretrain.batch": 16,
        "base.pretrain.cooldown": 4,
        "base.pretrain.check_every": 5,
        "tunes": "[dpo-eta_m, dpo-eta_s, benign-eta_m, benign-eta_s]",
        "tune.steps": 6,
        "tune.batch": 8,
        "evaluate.prompts": 8,
        "evaluate.prompts_per_point": 6,
        "evaluate.strengths": "[0, 1]",
        "evaluate.examples": 1,
        "probe.prompts": 8,
        "probe.fit_prompts": 8,
        "probe.course_prompts": 4,
        "probe.few_prompts": 4,
        "probe.jacobian_prompts": 2,
        "probe.jacobian_steps": 2,
        "probe.draws": 20,
        "attack.prompts": 4,
        "attack.searched": 2,
        "attack.settings.soft_prompt.tokens": "[1]",
        "attack.settings.soft_prompt.steps": 1,
        "attack.settings.universal_soft_prompt.tokens": "[1]",
        "attack.settings.universal_soft_prompt.steps": 1,
        "attack.settings.prefill.tokens": "[1]",
        "attack.settings.suffix.tokens": "[1]",
        "attack.settings.suffix.steps": 1,
        "attack.settings.suffix.candidates": 2,
        "intervene.prompts": 4,
        "intervene.settings.scaled.alphas": "[0.5, 1.5]",
        "intervene.settings.truncated.ranks": "[1]",
        "intervene.settings.inputs.directions": "[1]",
        "intervene.settings.retuned.steps": "[1, 2]",
        "intervene.settings.retuned.batch": 5,
        "intervene.draws": 1,
    }
    return ["study", "tiny", "--set", *(f"{key}={value}" for key, value in settings.items())]


@pytest.fixture(scope="session")
def small_run(small_study: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its run folder, all but the report (which takes longer). Shared by all tests, and by the processes that run them:
    not to be changed.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / "small/run"
    with FileLock(root / "small.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "render", lambda folder: folder / "report.html")
        if not (folder / "records.parquet").exists():
            assert cli.main([*small_study, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def tiny_command() -> list[str]:
    """Arguments of the study that `tiny_run` ran."""
    return TINY


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study, report included, run once, of protocols at the larger rate. Not to be changed."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    assert cli.main([*TINY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def run_folder(small_run: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to damage."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies end without their report, which takes seconds."""
    monkeypatch.setattr(pipeline, "render", lambda folder: folder / "report.html")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The command exits with status 2 and one message on stderr, in one line that says all of this."""

    def check(arguments: list[str], *says: str) -> str:
        capsys.readouterr()
        assert cli.main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        lines = [line for line in err.splitlines() if not re.match(r"\[\d+/\d+\] |warning: |base: attack ", line)]
        assert len(lines) == 1, err
        assert lines[0].startswith("tunescope: ")
        for part in says:
            assert part in lines[0]
        return lines[0]

    return check


@pytest.fixture(scope="session")
def same_run(results: Callable[[Path], dict[str, bytes]]) -> Callable[[Path, Path], None]:
    """Two runs made by other processes: the same files, tables to rounding, and everything else byte for byte.

    On some CPUs the last bits of a decomposition depend on where in memory a matrix lies.
    """

    def check(one: Path, other: Path) -> None:
        files = results(one), results(other)
        assert {*files[0]} == {*files[1]}
        for name in files[0]:
            if not name.endswith(".parquet"):
                assert files[0][name] == files[1][name], name
                continue
            tables = [pd.read_parquet(folder / name) for folder in (one, other)]
            pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-5)

    return check


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, byte for byte."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    return read


@pytest.fixture(scope="session")
def results(contents: Callable[[Path], dict[str, bytes]]) -> Callable[[Path], dict[str, bytes]]:
    """The files of a run folder but for those that say when, how fast or by which revision it was made."""

    def read(folder: Path) -> dict[str, bytes]:
        beside = ("stages", "environment.json", "figures/", "report.html")
        return {name: data for name, data in contents(folder).items() if not name.startswith(beside)}

    return read


@pytest.fixture
def plugged() -> Iterator[Callable[[], None]]:
    """Whatever is registered in a test is gone after it, or when the test says so."""
    registries = [each for each in gc.get_objects() if type(each) is registry.Registry]
    kept = [(each, dict(each._entries), dict(each._modules)) for each in registries]
    modules, tasks, plugins = set(sys.modules), dict(TASK_CONFIGS), set(registry._plugins)

    def forget() -> None:
        for each, entries, owners in kept:
            each._entries, each._modules = dict(entries), dict(owners)
        for name in [name for name in sys.modules if name.startswith("tunescope_plugin_")]:
            if name not in modules:
                del sys.modules[name]
        registry._plugins.intersection_update(plugins)
        TASK_CONFIGS.clear()
        TASK_CONFIGS.update(tasks)

    yield forget
    forget()
