"""Settings from text: what is asked for is what one gets, or a message that names the key."""

import json
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tunescope.config import Study, WorldConfig, checked
from tunescope.errors import InputError
from tunescope.recipes import RECIPES, laptop, tiny
from tunescope.settings import override, read_study


def leaves(data: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Every setting by its dotted key."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        inner = leaves(value, f"{path}{key}.") if isinstance(value, dict) else {}
        out |= inner or {f"{path}{key}": value}
    return out


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_round_trip_through_yaml(name: str) -> None:
    study = RECIPES[name]()
    assert study.name == name
    assert checked(Study, yaml.safe_load(study.to_yaml())) == study


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_can_be_set_to_what_it_is(name: str) -> None:
    """As text, in another recipe: all of them together turn one recipe into another."""
    study = RECIPES[name]()
    changes = [f"{key}={json.dumps(value)}" for key, value in leaves(study.model_dump(mode="json")).items()]
    assert len(changes) > 40
    changes.insert(0, f"tune.learning_rates={json.dumps(study.tune.learning_rates)}")  # else those of the other stay
    assert override(tiny() if name == "laptop" else laptop(), changes) == study


def test_one_setting_changes_and_the_rest_stays() -> None:
    before = tiny()
    after = override(before, ["tune.steps=300"])
    assert after.tune.steps == 300
    assert after != before
    assert override(after, [f"tune.steps={before.tune.steps}"]) == before == tiny()


@pytest.mark.parametrize(
    ("change", "section", "key", "value"),
    [
        ("tune.final_lr=1e-3", "tune", "final_lr", 1e-3),
        ("base.pretrain.lr=2", "base.pretrain", "lr", 2.0),
        ("tune.learning_rates.fast=1e-3", "tune", "learning_rates", {"eta_m": 2e-3, "eta_s": 2e-4, "fast": 1e-3}),
        ("tune.settings.dpo.beta=0.2", "tune", "settings", {"dpo": {"beta": 0.2}}),
        ("probe.probes=[clusters]", "probe", "probes", ("clusters",)),
        ("evaluate.strengths=[0, .5, 1]", "evaluate", "strengths", (0.0, 0.5, 1.0)),
        ("task.safe=[[0, 1], [0, 2]]", "task", "safe", ((0, 1), (0, 2))),
        ("task.operand=[3, 4]", "task", "operand", (3, 4)),
        ("base.architecture=llama", "base", "architecture", "llama"),
        ("compute.compile=on", "compute", "compile", "on"),  # which YAML 1.1 would take for true
        ("compute.compile=off", "compute", "compile", "off"),
        ("compute.device=cuda:1", "compute", "device", "cuda:1"),
    ],
)
def test_values_are_read_as_the_setting_means_them(change: str, section: str, key: str, value: Any) -> None:
    got = attrgetter(f"{section}.{key}")(override(tiny(), [change]))
    assert got == value
    assert type(got) is type(value)


def test_an_entry_that_a_list_lacks_is_not_made() -> None:
    with pytest.raises(InputError, match=r"'1' is no section. Choose from: 0"):
        override(tiny(), ["tune.settings.foo=[{a: 1}]", "tune.settings.foo.1.a=2"])


def test_one_of_the_fine_tunes_is_changed_by_its_number() -> None:
    after = override(tiny(), ["tunes.1.learning_rate=eta_s", "tunes.1.protocol=benign"])
    assert after.tunes[1].label == "benign-eta_s"
    assert after.tunes[:1] == tiny().tunes[:1]
    assert after.tunes[2:] == tiny().tunes[2:]


def test_the_last_of_several_changes_holds() -> None:
    assert override(tiny(), ["seed=1", "name=7", "seed=2"]).seed == 2
    assert override(tiny(), ["name=7"]).name == "7"


@given(st.integers(1, 10**9), st.floats(1e-9, 1e9))
def test_any_value_in_range_is_taken(steps: int, rate: float) -> None:
    study = override(tiny(), [f"tune.steps={steps}", f"tune.learning_rates.eta_s={rate}"])
    assert (study.tune.steps, study.tune.learning_rates["eta_s"]) == (steps, rate)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("tune.steps", ["'tune.steps'", "KEY=VALUE", "tune.steps=300"]),
        ("=3", ["'=3'", "KEY=VALUE"]),
        (
            "tuning.steps=3",
            ["tuning.steps", "'tuning'", "task, base, tunes, tune, evaluate, probe, attack, intervene, compute"],
        ),
        ("evaluate.strengths=[1, 1]", ["strengths", "each may be named once", "[1.0, 1.0]"]),
        ("tunes=[ssft-eta_m, ssft-eta_m]", ["tunes", "ssft-eta_m is there twice"]),
        ("tunes=[ssft-fast]", ["tunes", "unknown learning rate 'fast'", "eta_m, eta_s"]),
        ("tunes=[ssft]", ["tunes", "'ssft'", "PROTOCOL-RATE"]),
        ("tunes=[{type: given, name: there}]", ["tunes", "base.type must be checkpoint"]),
        ("task.type=poetry", ["type", "unknown task 'poetry'", "world, language"]),
        ("base.type=checkpoint", ["base.name", "required"]),
        ("tune.stepz=3", ["tune.stepz", "unknown key 'stepz'", "steps", "learning_rates"]),
        ("stepz=3", ["unknown key 'stepz'", "seed", "tune"]),
        ("tune.=3", ["unknown key ''", "learning_rates"]),
        (".steps=3", ["''", "is no section"]),
        ("tune.steps.more=3", ["tune.steps.more", "'steps' is no section"]),
        ("seed.more=3", ["'seed' is no section"]),
        ("tunes.99.protocol=dpo", ["'99' is no section", "0, 1"]),
        ("tunes.0=dpo-eta_m", ["tunes is a list", "a key of one entry, as in tunes.0.type"]),
        ("tunes.format=plain", ["tunes is a list", "a key of one entry, as in tunes.0.type"]),
        ("evaluate.strengths.0=1", ["'strengths' is no section"]),
        ("tune=3", ["tune is a section", "learning_rates"]),
        ("tune.steps=[", ["'tune.steps=['", "YAML"]),
        ("tune.steps=0", ["tune.steps", "greater than 0", "'0'"]),
        ("tune.steps=", ["tune.steps"]),
        ("tune.steps=many", ["tune.steps", "'many'"]),
        ("tune.steps=1.5", ["tune.steps", "'1.5'"]),
        ("base.pretrain.lr=nan", ["base.pretrain.lr"]),
        ("base.pretrain.lr=.inf", ["base.pretrain.lr"]),
        ("tune.learning_rates.eta_m=inf", ["tune.learning_rates.eta_m", "finite"]),
        ("tune.final_lr=1.5", ["tune.final_lr", "less than or equal to 1"]),
        ("base.architecture=bert", ["base.architecture", "'gpt2' or 'llama'", "'bert'"]),
        ("base.width=50", ["width", "50", "multiple"]),
        ("seed=-1", ["seed", "greater than or equal to 0"]),
        ("task.operand=[5, 4]", ["operand", "[5, 4]", "shortest <= longest"]),
        ("task.safe=[[0, 1]]", ["safe and unsafe", "1 and 2"]),
        ("task.mix_end=[1, 1, 0, 0]", ["mix_end", "sum to 1"]),
    ],
)
def test_what_cannot_be_is_refused_by_name(change: str, says: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        override(tiny(), ["evaluate.examples=1", change])
    for part in says:
        assert part in str(caught.value)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        override(tiny(), ["tune.steps=0", "evaluate.prompts=-3", "seed=x"])
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["seed", "tune.steps", "evaluate.prompts"]


def test_changes_cannot_run_anything() -> None:
    with pytest.raises(InputError):
        override(tiny(), ["seed=!!python/object/apply:os.getpid []"])


# Studies from files

KEYS = ["task", "base", "tunes", "tune", "type", "seed", "settings", "world", "checkpoint"]


def test_a_study_from_a_file_has_defaults_where_the_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: mine\ntask: {operators: 12}\ntunes: [ssft-eta_m]\n")
    study = read_study(tmp_path / "study.yaml")
    assert (study.name, study.task) == ("mine", WorldConfig(operators=12))
    assert [tune.label for tune in study.tunes] == ["ssft-eta_m"]


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.sampled_from(["tune", "type"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["task", "base", "tunes", "tune", "type", "seed", "settings"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_whatever_a_file_holds_there_is_a_study_or_one_message(tmp_path_factory, data: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(data))
    said = ""
    try:
        read_study(path)
    except InputError as error:
        said = str(error)
    assert len(said) < 2000
    assert not said or str(path) in said


@given(st.binary(max_size=60))
def test_whatever_bytes_a_file_has_there_is_one_message(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_study(path)


def test_fine_tunes_are_written_as_they_are_called() -> None:
    names = ["ssft-eta_m", "my-own-eta_s", "dpo-eta_m-lora"]
    study = override(tiny(), [f"tunes=[{', '.join(names)}]"])
    assert [tune.label for tune in study.tunes] == names
    assert [tune.protocol for tune in study.tunes] == ["ssft", "my-own", "dpo"]
    assert [tune.lora is not None for tune in study.tunes] == [False, False, True]


def test_settings_change_by_name_in_python_and_are_checked() -> None:
    study = tiny().changed(seed=3, tune={"steps": 7}, tunes=["dpo-eta_s"])
    assert (study.seed, study.tune.steps, study.tune.batch) == (3, 7, tiny().tune.batch)
    for wrong in (
        {"tuning": {}},
        {"tune": {"steps": 0}},
        {"tune": {"stepz": 1}},
        {"tune": {"unsafe_share": 0.001}},
        {"tunes": ["dpo-fast"]},
    ):
        with pytest.raises(InputError):
            tiny().changed(**wrong)
