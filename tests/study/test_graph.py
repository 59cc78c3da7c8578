"""The graph of a study: every setting, changed, runs again just the stages whose results it decides."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tunescope.config import GROUPS, LanguageConfig, Study, TaskConfig
from tunescope.errors import InputError
from tunescope.recipes import tiny
from tunescope.records.names import BASE
from tunescope.settings import override
from tunescope.study.context import ModelRef
from tunescope.study.graph import graph_of

STUDY = tiny().changed(tunes=["ssft-eta_m", "dpo-eta_m", "dpo-eta_s", "benign-eta_m"], compute={"device": "cpu"})
TUNED = [tune.label for tune in STUDY.tunes]
MODELS = [BASE, *TUNED]
MADE = {"pretrain", "reference-dpo", *(f"tune-{label}" for label in TUNED)}
OF_EACH = [group for group in GROUPS if group != "overlap"]  # of which each model has a stage
EVERYTHING = MADE | {f"{group}-{label}" for group in OF_EACH for label in MODELS} - {"intervene-base"}
EVERYTHING |= {"overlap", "examples"}


def of(*groups: str) -> set[str]:
    """Stages of these groups."""
    return {name for name in EVERYTHING if name.partition("-")[0] in groups}


def own_inputs(study: Study, folder: Path) -> dict[str, Any]:
    """What each stage is given, apart from what earlier stages wrote."""
    return {stage.name: stage.inputs.decides() for stage in graph_of(study, folder).stages}


def leaves(data: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Every setting by its dotted key."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        inner = leaves(value, f"{path}{key}.") if isinstance(value, dict) else {}
        out |= inner or {f"{path}{key}": value}
    return out


# What is given directly to which stages; what these write reaches the stages after them.
DIRECT = {
    "seed": EVERYTHING,
    "task": EVERYTHING,
    "task.retain_breadth": EVERYTHING - {"pretrain"},  # of safety data alone
    "task.refuse_breadth": EVERYTHING - {"pretrain"},
    "base": {"pretrain"},
    "tune": of("tune"),
    "tune.batch": of("tune", "reference"),
    "tune.unsafe_share": of("tune", "reference"),
    "evaluate.prompts": of("behave"),
    "evaluate.prompts_per_point": of("behave"),
    "evaluate.strengths": of("behave", "attack"),
    "evaluate.examples": {"examples"},
    "probe": of("probe"),
    "probe.prompts": of("probe", "attack"),
    "probe.few_prompts": of("probe", "attack", "intervene"),
    "probe.fit_prompts": of("probe", "attack", "intervene"),
    "probe.rows": of("probe", "attack", "intervene"),
    "probe.overlap_directions": {"overlap"},
    "attack": of("attack"),
    "intervene": of("intervene"),
    "compute": EVERYTHING,
}
# Settings that decide no result, or are not a stage's but say which stages there are.
NONE = (
    "name",
    "compute.device",
    "compute.gpu_share",
    "compute.memory",
    "tunes",
    "tune.learning_rates",
    "tune.settings",
    "tune.checkpoints",
    "tune.steps",
)
OTHER = {  # values that are as good as any, where one more or another is none
    "task.grammar": None,
    "task.type": None,
    "task.safe": None,
    "task.unsafe": None,
    "task.mix_start": "[0.25, 0.25, 0.25, 0.25]",
    "task.mix_end": "[0.25, 0.25, 0.25, 0.25]",
    "task.operand": "[3, 4]",
    "task.aliases": "[2]",
    "base.type": None,
    "base.architecture": "llama",
    "base.heads": "4",
    "base.width": "32",
    "tune.unsafe_share": "0.4",
    "evaluate.strengths": "[0, 1]",
    "probe.probes": "[clusters]",
    "attack.attacks": "[prefill]",
    "intervene.interventions": "[scaled]",
    "intervene.kinds": "[unsafe]",
    "compute.dtype": "float32",
    "task.seed": "7",
    "task.lesson": None,
    "compute.compile": "off",
}


def another(key: str, value: Any) -> str | None:
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, float):
        return str(value * 0.5 if value else 0.5)
    return str(value + 1)


SETTINGS = [key for key in leaves(STUDY.model_dump(mode="json")) if not key.startswith(NONE) and ".settings" not in key]


@pytest.mark.parametrize("key", [key for key in SETTINGS if OTHER.get(key, "") is not None])
def test_a_setting_is_given_to_the_stages_that_it_decides_and_to_no_other(key: str, tmp_path: Path) -> None:
    value = leaves(STUDY.model_dump(mode="json"))[key]
    changed = override(STUDY, [f"{key}={another(key, value)}"])
    assert changed != STUDY
    before, after = own_inputs(STUDY, tmp_path), own_inputs(changed, tmp_path)
    expected = DIRECT.get(key) or DIRECT.get(key.split(".")[0])
    assert {name for name in before if before[name] != after[name]} == expected


def test_every_setting_is_accounted_for() -> None:
    assert len(SETTINGS) > 50
    assert all(key in DIRECT or key.split(".")[0] in DIRECT for key in SETTINGS)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("compute.device=cuda", set()),  # where it runs is no matter
        ("name=mine", set()),
        ("tune.learning_rates.eta_s=1e-3", {"tune-dpo-eta_s"}),
        ("tune.settings.dpo.beta=0.2", {"tune-dpo-eta_m", "tune-dpo-eta_s"}),
        ("tune.settings.simpo.beta=3", set()),  # nobody is trained by it
        ("tune.checkpoints=1", of("tune")),
        ("attack.settings.suffix.steps=3", of("attack")),
        ("intervene.settings.scaled.alphas=[1]", of("intervene")),
    ],
)
def test_what_one_name_sets_is_given_to_its_own_stages(
    change: str, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunescope.study.graph.device_of", lambda _: torch.device("cpu"))
    monkeypatch.setattr(
        "tunescope.study.graph._Layout._check_task", lambda _: type("T", (), {"knows_answers": True, "exact": True})
    )
    before, after = own_inputs(STUDY, tmp_path), own_inputs(override(STUDY, [change]), tmp_path)
    assert {name for name in before if before[name] != after[name]} == expected


def test_steps_are_the_models_too(tmp_path: Path) -> None:
    """At which step a model is finished stands in its records, so that whatever measures it runs again."""
    before, after = (own_inputs(study, tmp_path) for study in (STUDY, override(STUDY, ["tune.steps=300"])))
    tuned = {name for name in EVERYTHING - {"pretrain"} if not name.endswith(BASE)}
    assert {name for name in before if before[name] != after[name]} == tuned


def test_another_fine_tune_leaves_the_others_alone(tmp_path: Path) -> None:
    """But for those on which its dW is tried, what all have in common, and the examples."""
    fewer = STUDY.changed(tunes=["ssft-eta_m", "dpo-eta_s", "benign-eta_m"])
    before, after = own_inputs(STUDY, tmp_path), own_inputs(fewer, tmp_path)
    assert {name.rpartition("dpo-eta_m")[0] for name in before.keys() - after.keys()} == {
        f"{group}-" for group in ("tune", *OF_EACH)
    }
    beside = {"intervene-ssft-eta_m", "intervene-benign-eta_m", "overlap", "examples"}
    assert {name for name in after if before[name] != after[name]} == beside


def test_a_control_with_labels_of_its_own_stands_beside_the_base_with_these_labels(tmp_path: Path) -> None:
    study = STUDY.changed(tunes=["ssft-eta_m", "attribute-eta_m", "styled-eta_m"])
    graph = graph_of(study, tmp_path)
    given = {stage.name: stage.inputs for stage in graph.stages}
    lessons = {name: inputs.task.lesson for name, inputs in given.items() if name != "examples"}
    assert {name for name, lesson in lessons.items() if lesson == "attribute"} == {
        *(f"{group}-attribute-eta_m" for group in ("tune", *OF_EACH)),
        *(f"{group}-base-as-attribute" for group in ("behave", "probe")),
    }
    assert {lesson for name, lesson in lessons.items() if name.endswith("styled-eta_m")} == {"styled"}
    assert given["probe-attribute-eta_m"].base.label == "base-as-attribute"
    assert given["probe-styled-eta_m"].base.label == given["probe-ssft-eta_m"].base.label == "base"
    assert given["probe-attribute-eta_m"].base.folder == "models/base"
    parts = graph.tables(graph.stages).inputs.parts
    assert [part for part in parts if "-as-" in part] == [
        f"parts/scores-{group}-base-as-attribute.parquet" for group in ("behave", "probe")
    ]


def test_overlap_is_with_the_other_safety_methods_of_the_rate(tmp_path: Path) -> None:
    tunes = [*TUNED, "unlearning-eta_m", "seen-eta_m", "styled-eta_m", "attribute-eta_m", "dpo-eta_m-lora"]
    graph = graph_of(STUDY.changed(tunes=tunes), tmp_path)
    (given,) = (stage.inputs for stage in graph.stages if stage.name == "overlap")
    methods = ("ssft-eta_m", "dpo-eta_m", "unlearning-eta_m")
    controls = dict.fromkeys(("benign-eta_m", "seen-eta_m", "styled-eta_m", "attribute-eta_m"), methods)
    own = {method: tuple(other for other in methods if other != method) for method in methods}
    assert given.methods == {**own, **controls, "dpo-eta_s": (), "dpo-eta_m-lora": ()}
    assert "overlap" not in {stage.name for stage in graph_of(STUDY.changed(tunes=["ssft-eta_m"]), tmp_path).stages}


def test_a_lesson_that_the_task_has_not_is_refused() -> None:
    class Other(TaskConfig):
        type: str = "other"

    with pytest.raises(InputError, match=r"task.type: other has no lesson 'styled'"):
        Other().taught("styled")
    assert Other().taught("refusal") == Other()
    assert LanguageConfig().taught("styled") == LanguageConfig(lesson="styled")


def test_every_stage_reads_only_stages_before_it(tmp_path: Path) -> None:
    seen: set[str] = set()
    for stage in graph_of(STUDY, tmp_path).stages:
        assert {before.name for before in stage.after} <= seen
        seen.add(stage.name)
    assert seen == EVERYTHING


def test_stages_that_cannot_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Stages pretrain cannot be left out"):
        graph_of(STUDY, tmp_path, skip=["pretrain"])


def test_answers_of_the_base_are_kept_for_what_is_asked_and_judged_alike() -> None:
    base = ModelRef(label="base", protocol="base", template="chat")
    assert ModelRef(label="ssft", protocol="ssft", template="chat").judged_as(base)
    assert not ModelRef(label="styled", protocol="styled", template="chat", lesson="styled").judged_as(base)
    assert not ModelRef(label="given", protocol="given").judged_as(base)
