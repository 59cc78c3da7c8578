"""Every setting of a study, as frozen, validated models. `Study` holds them all and round-trips to YAML."""

from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len({*values}) < len(values):
        raise ValueError(f"each may be there once, got {list(values)}")
    return values


Once = AfterValidator(_each_once)  # of a tuple: no entry twice


class Config(BaseModel):
    """Base of all settings: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class WorldConfig(Config):
    """The synthetic world: what prompts there are and which of them are unsafe."""

    grammar: Literal["paper", "laptop", "tiny"] = Field("laptop", description="which shipped grammar file")
    seed: int = Field(0, ge=0, lt=2**63, description="draws the bijections; the same world for every seed of the study")
    operators: int = Field(10, gt=1, description="distinct bijections; number 0 is the identity")
    aliases: tuple[int, ...] = Field(
        (0, 0, 1, 1, 2, 2), description="operators with a second task token, one entry each"
    )
    safe: tuple[tuple[int, ...], ...] = Field(
        ((0, 3, 4), (0, 1, 2), (0, 6, 7), (0, 4, 7)), description="per grammar, the operators that are always safe"
    )
    unsafe: tuple[tuple[int, ...], ...] = Field(
        ((1, 2), (3, 4), (8, 9), (1, 5)), description="per grammar, the operators that are always unsafe"
    )
    stages: Positive = Field(2, description="answers per prompt, each made from the one before")
    slots: Positive = Field(2, description="operators per stage")
    operand: tuple[int, int] = Field((8, 8), description="shortest and longest operand, in symbols")
    identity_share: Share = Field(0.5, description="stages in which one of the operators is the identity")
    constant_share: Share = Field(0.01, description="pretraining prompts that ask for the constant (null) output")
    dialect_share: Share = Field(0.2, description="pretraining prompts with symbols in dialect")
    retain_breadth: Share = Field(0.25, description="safe prompts of the safety data that are in dialect")
    refuse_breadth: Share = Field(0.0, description="unsafe prompts of the safety data that are in dialect")
    mix_start: tuple[Share, Share, Share, Share] = Field(
        (0.5, 0.1, 0.2, 0.2), description="odds of text only / whole / stage 1 / stage 2 at the start of pretraining"
    )
    mix_end: tuple[Share, Share, Share, Share] = Field((0.1, 0.2, 0.3, 0.4), description="the same at its end")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.operand
        if not 1 <= low <= high:
            raise ValueError(f"operand: {list(self.operand)} must be [shortest, longest] with 1 <= shortest <= longest")
        if len(self.safe) != len(self.unsafe):
            raise ValueError(
                f"safe and unsafe: one entry per grammar each, got {len(self.safe)} and {len(self.unsafe)}"
            )
        for index, (safe, unsafe) in enumerate(zip(self.safe, self.unsafe, strict=True)):
            if set(safe) & set(unsafe):
                raise ValueError(
                    f"safe, unsafe: operators {sorted(set(safe) & set(unsafe))} are both in grammar {index}"
                )
            if 0 not in safe:
                raise ValueError(f"safe: grammar {index} must list operator 0, the identity, which changes nothing")
            if len({*safe}) < 2 or not unsafe:
                raise ValueError(f"safe, unsafe: grammar {index} needs an operator besides the identity in each")
        named = {*self.aliases, *(op for row in (*self.safe, *self.unsafe) for op in row)}
        if named and not 0 <= min(named) <= max(named) < self.operators:
            raise ValueError(f"safe, unsafe, aliases: operators are 0 .. {self.operators - 1}, got {sorted(named)}")
        for name in ("mix_start", "mix_end"):
            if abs(sum(getattr(self, name)) - 1) > 1e-6:
                raise ValueError(f"{name}: the four odds must sum to 1, got {list(getattr(self, name))}")
        return self


class ModelConfig(Config):
    """The transformer: a genuine transformers architecture."""

    architecture: Literal["gpt2", "llama"] = "gpt2"
    layers: Positive = 4
    heads: Positive = 4
    width: Positive = Field(96, description="residual stream; the MLP is four times as wide")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width: {self.width} must be a multiple of twice the number of heads ({self.heads})")
        return self


class PretrainConfig(Config):
    """Pretraining with instruction tuning, in one run."""

    steps: Positive = Field(600, description="at most this many steps")
    batch: Positive = 256
    lr: Rate = Field(2e-3, description="AdamW: embeddings, norms, biases")
    muon_lr: Rate = Field(2e-2, description="Muon: the matrices of the blocks")
    weight_decay: float = Field(1e-4, ge=0)
    warmup: int = Field(20, ge=0, description="steps of linear warm-up")
    cooldown: Positive = Field(100, description="steps of linear decay to zero, begun once the target is reached")
    check_every: Positive = Field(25, description="steps between measurements of held-out compliance")
    settled: Share = Field(0.9, description="held-out compliance at which the cooldown begins")
    target: Share = Field(0.999, description="held-out compliance below which the study warns that pretraining failed")


class TuneConfig(Config):
    """Safety fine-tuning: the same budget for every protocol."""

    protocols: Annotated[tuple[Literal["ssft", "dpo", "unlearning", "benign"], ...], Once] = (
        "ssft",
        "dpo",
        "unlearning",
        "benign",
    )
    steps: Positive = 400
    batch: int = Field(80, ge=5, description="prompts per step; a fifth of them is unsafe in ssft")
    eta_m: Rate = Field(2e-3, description="the larger learning rate (the paper's eta_M)")
    eta_s: Rate = Field(2e-4, description="the smaller learning rate (the paper's eta_S)")
    final_lr: Share = Field(0.01, description="learning rate at the end, as a share of the peak")
    weight_decay: float = Field(1e-4, ge=0)
    warmup: int = Field(20, ge=0)
    checkpoints: Positive = Field(5, description="models saved during fine-tuning, equally spaced, the last included")
    beta: Rate = Field(0.1, description="DPO's beta")
    chosen_weight: float = Field(2.0, ge=0, description="DPO: weight of the likelihood of the chosen answer")
    ascent_weight: float = Field(0.1, ge=0, description="unlearning: weight of the ascent on unsafe answers")
    ascent_floor: float = Field(-5.0, lt=0, description="unlearning: log-probability per token below which it ends")


class EvaluateConfig(Config):
    """What is measured."""

    prompts: Positive = Field(1000, description="held-out prompts per kind without strength")
    prompts_per_point: Positive = Field(300, description="the same per strength of the others, and per checkpoint")
    strengths: Annotated[tuple[Share, ...], Once] = Field((0.0, 0.25, 0.5, 0.75, 1.0), min_length=1)
    examples: Positive = Field(2, description="prompts per kind shown in the report")


class ProbeConfig(Config):
    """What is looked at inside the models."""

    prompts: int = Field(1000, ge=2, description="prompts per kind that are scored")
    fit_prompts: int = Field(1000, ge=2, description="other safe and unsafe prompts, of each, that give class means")
    course_prompts: int = Field(200, ge=2, description="the same, both, for models saved during fine-tuning")
    few_prompts: int = Field(
        200, ge=2, description="at most so many per kind where each costs much: silhouette, directional ablation"
    )
    jacobian_prompts: Positive = Field(32, description="prompts per kind whose Jacobians are looked at")
    jacobian_steps: Positive = Field(10, description="power iterations")
    draws: int = Field(100, ge=20, description="random draws of a control that has a distribution")
    rows: Positive = Field(256, description="prompts per forward pass")

    def for_course(self) -> "ProbeConfig":
        """The same with few prompts and draws throughout, for the models saved during fine-tuning."""
        few = {"few_prompts": 50, "jacobian_prompts": 8, "jacobian_steps": 5, "draws": 20}
        return self.model_copy(update={name: min(value, getattr(self, name)) for name, value in few.items()})


class AttackConfig(Config):
    """Attacks on every model, each with a strength; jailbreak kinds have those of `evaluate.strengths`."""

    prompts: int = Field(80, ge=2, description="unsafe prompts per jailbreak kind, the same at every strength")
    searched: int = Field(25, ge=2, description="unsafe prompts per attack that searches: soft prompts, suffixes")
    soft: Annotated[tuple[Positive, ...], Once] = Field(
        (1, 2, 4, 8), min_length=1, description="embeddings of a soft prompt: its strengths"
    )
    soft_steps: Positive = Field(40, description="gradient steps at most")
    soft_bound: Rate = Field(1.0, description="largest norm of an embedding, in mean norms of the embedding table")
    prefill: Annotated[tuple[Positive, ...], Once] = Field(
        (1, 2, 3, 4), description="answer tokens given: strengths of prefilling"
    )
    suffix: Annotated[tuple[Positive, ...], Once] = Field(
        (4,), description="tokens of an adversarial suffix: its strengths"
    )
    suffix_steps: Positive = 10
    suffix_candidates: Positive = Field(16, description="suffixes scored exactly per step and prompt")


class InterveneConfig(Config):
    """What is done to dW, and to the direction of refusal, to see what they cause."""

    prompts: int = Field(60, ge=2, description="prompts per kind; jailbreaks at their greatest strength")
    alphas: Annotated[tuple[Annotated[float, Field(ge=-10, le=10)], ...], Once] = Field(
        (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0), min_length=1, description="W + alpha dW, every parameter"
    )
    ranks: Annotated[tuple[Positive, ...], Once] = Field(
        (1, 2, 4, 8, 16), description="singular values of dW that are kept"
    )
    reads: Annotated[tuple[Positive, ...], Once] = Field(
        (1, 2, 4, 8),
        min_length=1,
        description="directions in which unsafe inputs stand out, that dW is kept off or is left alone with",
    )
    draws: Positive = Field(3, description="random draws of every control that is drawn")


class ComputeConfig(Config):
    """Where and how it runs."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="autocast type of the training steps")
    compile: Literal["auto", "on", "off"] = Field("auto", description="torch.compile of the training step")
    rows: Positive = Field(128, description="sequences per forward and backward pass")


class Study(Config):
    """A whole study. `recipes` makes them; `pipeline.run` runs one."""

    name: str = "custom"
    seed: int = Field(0, ge=0, lt=2**63)
    world: WorldConfig = WorldConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    tune: TuneConfig = TuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    probe: ProbeConfig = ProbeConfig()
    attack: AttackConfig = AttackConfig()
    intervene: InterveneConfig = InterveneConfig()
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _some_directions(self) -> Self:
        if (most := max(self.intervene.reads)) >= self.model.width:
            raise ValueError(f"intervene.reads: {most} must be below model.width ({self.model.width})")
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> "Study":
        return cls.model_validate(yaml.safe_load(text))
