"""Settings from text: what is asked for is what one gets, or a message that names the key."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.config import Study
from tunescope.errors import InputError
from tunescope.recipes import RECIPES, laptop, tiny
from tunescope.settings import override


def leaves(data: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Every setting by its dotted key."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        out |= leaves(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return out


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_round_trip_through_yaml(name: str) -> None:
    study = RECIPES[name]()
    assert study.name == name
    assert Study.from_yaml(study.to_yaml()) == study


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_can_be_set_to_what_it_is(name: str) -> None:
    """As text, in another recipe: all of them together turn one recipe into another."""
    study = RECIPES[name]()
    changes = [f"{key}={json.dumps(value)}" for key, value in leaves(study.model_dump(mode="json")).items()]
    assert len(changes) > 40
    assert override(laptop() if name == "tiny" else tiny(), changes) == study


def test_one_setting_changes_and_the_rest_stays() -> None:
    before = tiny()
    after = override(before, ["tune.steps=300"])
    assert after.tune.steps == 300
    assert after != before
    assert override(after, [f"tune.steps={before.tune.steps}"]) == before == tiny()


@pytest.mark.parametrize(
    ("change", "section", "key", "value"),
    [
        ("tune.eta_m=1e-3", "tune", "eta_m", 1e-3),
        ("tune.eta_m=2", "tune", "eta_m", 2.0),
        ("tune.protocols=[dpo]", "tune", "protocols", ("dpo",)),
        ("tune.protocols=[]", "tune", "protocols", ()),
        ("evaluate.strengths=[0, .5, 1]", "evaluate", "strengths", (0.0, 0.5, 1.0)),
        ("world.safe=[[0, 1], [0, 2]]", "world", "safe", ((0, 1), (0, 2))),
        ("world.operand=[3, 4]", "world", "operand", (3, 4)),
        ("model.architecture=llama", "model", "architecture", "llama"),
        ("compute.compile=on", "compute", "compile", "on"),  # which YAML 1.1 would take for true
        ("compute.compile=off", "compute", "compile", "off"),
        ("compute.device=cuda:1", "compute", "device", "cuda:1"),
    ],
)
def test_values_are_read_as_the_setting_means_them(change: str, section: str, key: str, value: Any) -> None:
    got = getattr(getattr(override(tiny(), [change]), section), key)
    assert got == value
    assert type(got) is type(value)


def test_the_last_of_several_changes_holds() -> None:
    assert override(tiny(), ["seed=1", "name=7", "seed=2"]).seed == 2
    assert override(tiny(), ["name=7"]).name == "7"


@given(st.integers(1, 10**9), st.floats(1e-9, 1e9))
def test_any_value_in_range_is_taken(steps: int, rate: float) -> None:
    study = override(tiny(), [f"tune.steps={steps}", f"tune.eta_s={rate}"])
    assert (study.tune.steps, study.tune.eta_s) == (steps, rate)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("tune.steps", ["'tune.steps'", "KEY=VALUE", "tune.steps=300"]),
        ("=3", ["'=3'", "KEY=VALUE"]),
        (
            "tuning.steps=3",
            ["tuning.steps", "'tuning'", "world, model, pretrain, tune, evaluate, probe, attack, intervene, compute"],
        ),
        ("attack.soft=[4, 4]", ["soft", "each may be there once", "[4, 4]"]),
        ("intervene.alphas=[0.5, 0.5]", ["alphas", "each may be there once"]),
        ("tune.stepz=3", ["tune.stepz", "unknown key 'stepz'", "steps", "eta_m"]),
        ("stepz=3", ["unknown key 'stepz'", "seed", "tune"]),
        ("tune.=3", ["unknown key ''", "eta_m"]),
        (".steps=3", ["''", "is no section"]),
        ("tune.steps.more=3", ["tune.steps.more", "'steps' is no section"]),
        ("seed.more=3", ["'seed' is no section"]),
        ("tune=3", ["tune is a section", "eta_m"]),
        ("tune.steps=[", ["'tune.steps=['", "YAML"]),
        ("tune.steps=0", ["tune.steps", "greater than 0", "'0'"]),
        ("tune.steps=", ["tune.steps"]),
        ("tune.steps=many", ["tune.steps", "'many'"]),
        ("tune.steps=1.5", ["tune.steps", "'1.5'"]),
        ("tune.eta_m=nan", ["tune.eta_m"]),
        ("tune.eta_m=.inf", ["tune.eta_m"]),
        ("tune.eta_m=inf", ["tune.eta_m", "finite"]),
        ("tune.final_lr=1.5", ["tune.final_lr", "less than or equal to 1"]),
        ("tune.protocols=[ssft, sftt]", ["tune.protocols.1", "'ssft', 'dpo', 'unlearning' or 'benign'", "'sftt'"]),
        ("model.architecture=bert", ["model.architecture", "'gpt2' or 'llama'", "'bert'"]),
        ("model.width=50", ["width", "50", "multiple"]),
        ("seed=-1", ["seed", "greater than or equal to 0"]),
        ("world.operand=[5, 4]", ["operand", "[5, 4]", "shortest <= longest"]),
        ("world.safe=[[0, 1]]", ["safe and unsafe", "1 and 2"]),
        ("world.mix_end=[1, 1, 0, 0]", ["mix_end", "sum to 1"]),
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
