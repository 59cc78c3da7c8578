"""Recipes: functions that return a whole study. Change one with `Study.changed` or, on the command line, `--set`."""

from collections.abc import Callable
from typing import Any

from tunescope.config import (
    AttackConfig,
    Built,
    Checkpoint,
    ComputeConfig,
    EvaluateConfig,
    Given,
    InterveneConfig,
    LanguageConfig,
    PretrainConfig,
    ProbeConfig,
    Study,
    TaskConfig,
    TuneConfig,
    WorldConfig,
    grid,
)
from tunescope.records.names import ATTRIBUTE, SEEN, STYLED
from tunescope.registry import Registry

RECIPES: Registry[Callable[[], Study]] = Registry("recipe")
METHODS = ("ssft", "dpo", "unlearning")
CHOSEN_ON: dict[str, Any] = {"prompts": 32}  # as many as Arditi et al. (2024) take; for studies that are slow or tiny
ALL = grid((*METHODS, SEEN, STYLED, ATTRIBUTE), ("eta_m", "eta_s"))


def recipe(function: Callable[[], Study]) -> Callable[[], Study]:
    """Register a recipe by the name of its function; the first line of its docstring is its help text."""
    RECIPES.define(function.__name__, function, function)
    return function


@recipe
def tiny() -> Study:
    """Some three minutes: for tests and for a first look. Its numbers are not results."""
    return Study(
        name="tiny",
        task=WorldConfig(
            grammar="tiny",
            operators=5,
            aliases=(1,),
            safe=((0, 1), (0, 2)),
            unsafe=((2,), (3,)),
            operand=(4, 4),
            mix_start=(0.1, 0.5, 0.2, 0.2),
            mix_end=(0.1, 0.5, 0.2, 0.2),
        ),
        base=Built(
            layers=2,
            heads=2,
            width=64,
            pretrain=PretrainConfig(
                steps=400, batch=128, lr=4e-3, muon_lr=3e-2, cooldown=40, check_every=20, target=0.99
            ),
        ),
        tunes=ALL,
        tune=TuneConfig(steps=200, batch=96, warmup=10, checkpoints=2),
        evaluate=EvaluateConfig(prompts=100, prompts_per_point=50),
        probe=ProbeConfig(
            prompts=200,
            fit_prompts=200,
            course_prompts=50,
            few_prompts=50,
            jacobian_prompts=8,
            jacobian_steps=5,
            draws=50,
        ),
        attack=AttackConfig(
            prompts=20,
            searched=6,
            settings={
                "soft_prompt": {"tokens": (1, 4), "steps": 5},
                "universal_soft_prompt": {"tokens": (4,), "steps": 5},
                "suffix": {"steps": 2, "candidates": 4},
                "direction_ablation": CHOSEN_ON,
            },
        ),
        intervene=InterveneConfig(
            prompts=20,
            draws=2,
            settings={
                "scaled": {"alphas": (0.0, 0.5, 1.0, 1.5)},
                "truncated": {"ranks": (1, 8)},
                "inputs": {"directions": (1, 8)},
                "retuned": {"steps": (1, 16)},
                "direction": CHOSEN_ON,
            },
        ),
    )


@recipe
def laptop() -> Study:
    """8 to 15 minutes a run on two cores: the paper's ideas at a size that learns there."""
    return Study(
        name="laptop",
        task=WorldConfig(mix_start=(0.1, 0.5, 0.2, 0.2), mix_end=(0.1, 0.5, 0.2, 0.2)),
        base=Built(pretrain=PretrainConfig(lr=3e-3, muon_lr=2.5e-2, cooldown=120)),
        tunes=ALL,
        tune=TuneConfig(steps=250, checkpoints=3),
    )


@recipe
def paper() -> Study:
    """The paper's world, model and fine-tuning budget (Jain et al. 2024, appendix A); for a GPU."""
    return Study(
        name="paper",
        task=WorldConfig(grammar="paper", operand=(25, 35)),
        base=Built(
            layers=6,
            heads=6,
            width=192,
            pretrain=PretrainConfig(
                steps=20_000, batch=512, lr=2e-3, muon_lr=2e-2, warmup=200, cooldown=2000, check_every=250
            ),
        ),
        tunes=ALL,
        tune=TuneConfig(steps=10_000, batch=512, learning_rates={"eta_m": 1e-4, "eta_s": 1e-5}, warmup=2000),
        compute=ComputeConfig(rows=512),
    )


@recipe
def language() -> Study:
    """A language model of your own, by base.name, made to refuse beside its controls."""
    return Study(
        name="language",
        task=LanguageConfig(new_tokens=24, wrappers=("co_task", "role", "story", "leet")),
        base=Checkpoint(name=""),
        tunes=grid((*METHODS, SEEN, STYLED, ATTRIBUTE), ("eta_m",)),
        tune=TuneConfig(
            steps=64,
            batch=16,
            unsafe_share=0.25,  # with more, safe prompts about what was never trained on are refused, too
            learning_rates={"eta_m": 1e-4, "eta_s": 1e-5},
            warmup=5,
            weight_decay=0.0,
            checkpoints=1,
        ),
        evaluate=EvaluateConfig(prompts=60, prompts_per_point=20, strengths=(0.0, 1.0)),
        probe=ProbeConfig(
            prompts=60,
            fit_prompts=60,
            few_prompts=32,
            jacobian_prompts=2,
            jacobian_steps=3,
            draws=20,
            rows=16,
        ),
        attack=AttackConfig(
            attacks=("prefill",),  # taking out the direction is among the interventions
            prompts=20,
            searched=20,
        ),
        intervene=InterveneConfig(
            interventions=("scaled", "truncated", "spaces", "matrices", "direction"),
            prompts=20,
            kinds=(),
            draws=2,
            settings={
                "scaled": {"alphas": (0.0, 0.5, 1.0, 1.5), "layers": 0},
                "truncated": {"ranks": (1, 8)},
                "direction": CHOSEN_ON,
            },
        ),
        # Memory goes with it: at 8 sequences a pass a stage of 135 M parameters took up to 3.9 GB.
        compute=ComputeConfig(rows=8),
    )


@recipe
def compare() -> Study:
    """A base and its fine-tune, by base.name and tunes.0.name; what `tunescope compare` runs."""
    return comparison("", "")


def comparison(base: str, tuned: str, task: TaskConfig | None = None) -> Study:
    """A base and its fine-tune beside each other, with few prompts and steps where each costs much."""
    return Study(
        name="compare",
        task=task or LanguageConfig(),
        base=Checkpoint(name=base),
        tunes=(Given(name=tuned),),
        tune=TuneConfig(steps=64, batch=16, learning_rates={"default": 1e-4}, warmup=5, checkpoints=1),
        probe=ProbeConfig(few_prompts=100, jacobian_prompts=8, jacobian_steps=5, rows=32),
        attack=AttackConfig(settings={"direction_ablation": CHOSEN_ON}),
        intervene=InterveneConfig(interventions=("direction",), prompts=100, settings={"direction": CHOSEN_ON}),
        compute=ComputeConfig(rows=16),
    )
