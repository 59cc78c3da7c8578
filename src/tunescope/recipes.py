"""Recipes: functions that return a whole study. Change one with `study.model_copy` or, on the command line, `--set`."""

from collections.abc import Callable

from tunescope.config import (
    AttackConfig,
    ComputeConfig,
    EvaluateConfig,
    InterveneConfig,
    ModelConfig,
    PretrainConfig,
    ProbeConfig,
    Study,
    TuneConfig,
    WorldConfig,
)


def tiny() -> Study:
    """A minute: for tests and for a first look. Its numbers are not results."""
    return Study(
        name="tiny",
        world=WorldConfig(
            grammar="tiny",
            operators=5,
            aliases=(1,),
            safe=((0, 1), (0, 2)),
            unsafe=((2,), (3,)),
            operand=(4, 4),
            mix_start=(0.1, 0.5, 0.2, 0.2),
            mix_end=(0.1, 0.5, 0.2, 0.2),
        ),
        model=ModelConfig(layers=2, heads=2, width=64),
        pretrain=PretrainConfig(steps=400, batch=128, lr=4e-3, muon_lr=3e-2, cooldown=40, check_every=20),
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
        attack=AttackConfig(prompts=20, searched=6, soft=(1, 4), soft_steps=5, suffix_steps=2, suffix_candidates=4),
        intervene=InterveneConfig(prompts=20, alphas=(0.0, 0.5, 1.0, 1.5), ranks=(1, 8), reads=(1, 8), draws=2),
    )


def laptop() -> Study:
    """About 15 minutes on two cores: the paper's ideas at a size that learns there."""
    return Study(
        name="laptop",
        world=WorldConfig(mix_start=(0.1, 0.5, 0.2, 0.2), mix_end=(0.1, 0.5, 0.2, 0.2)),
        pretrain=PretrainConfig(lr=3e-3, muon_lr=2.5e-2, cooldown=120),
    )


def paper() -> Study:
    """The paper's world, model and fine-tuning budget (Jain et al. 2024, appendix A); for a GPU."""
    return Study(
        name="paper",
        world=WorldConfig(grammar="paper", operand=(25, 35)),
        model=ModelConfig(layers=6, heads=6, width=192),
        pretrain=PretrainConfig(
            steps=20_000, batch=512, lr=2e-3, muon_lr=2e-2, warmup=200, cooldown=2000, check_every=250
        ),
        tune=TuneConfig(steps=10_000, batch=512, eta_m=1e-4, eta_s=1e-5, warmup=2000),
        compute=ComputeConfig(rows=512),
    )


RECIPES: dict[str, Callable[[], Study]] = {"tiny": tiny, "laptop": laptop, "paper": paper}
