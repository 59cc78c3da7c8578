"""Every setting of a study, as frozen, validated models. `Study` holds them all and round-trips to YAML.

A study is a task, a base model, fine-tunes of it, and what is measured. Task and origin of a model are unions, told
apart by `type`.
"""

import math
from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    SerializeAsAny,
    ValidationError,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from tunescope.errors import InputError, choices, shown

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len({*values}) < len(values):
        raise ValueError(f"each may be named once, got {list(values)}")
    return values


Once = AfterValidator(_each_once)  # of a tuple: no entry twice
Names = Annotated[tuple[str, ...], Once]
Settings = TypeVar("Settings", bound=BaseModel)
GROUPS = ("behave", "probe", "attack", "intervene", "overlap")  # groups of stages that a study can do without
_TAGS = ("built", "checkpoint", "trained", "given")  # of unions, which pydantic puts into the path of a fault
_UNKNOWN = "unknown_key"  # type of the fault of a key that is none
_MOST_FAULTS = 5  # of one file or command that a message lists
TUNING_ONLY: JsonDict = {"tuning_only": True}  # json_schema_extra of a setting of a task that fine-tuning alone reads
PLACE: JsonDict = {"place": True}  # json_schema_extra of a setting that says where to compute, and changes no result


class Config(BaseModel):
    """Base of all settings: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @model_validator(mode="wrap")
    @classmethod
    def _choices(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """A misspelt key needs the list of keys."""
        try:
            return handler(data)
        except ValidationError as error:
            faults: list[Any] = []
            for fault in error.errors(include_url=False):
                mine = fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1
                text = fault["msg"] if fault["type"] == _UNKNOWN else None
                if mine:
                    keys = cls.model_fields
                    text = f"unknown key. {choices(fault['loc'][0], keys) if keys else 'There are no settings here.'}"
                faults.append({**fault, "type": PydanticCustomError(_UNKNOWN, text)} if text else fault)
            raise ValidationError.from_exception_data(cls.__name__, faults) from None

    def decides(self) -> dict[str, Any]:
        """All settings that decide results, as plain data: those marked `PLACE` are left out."""
        out = {}
        for name, field in type(self).model_fields.items():
            if field.json_schema_extra != PLACE:
                out[name] = _decides(getattr(self, name))
        return out


class NoSettings(Config):
    """Of a protocol, attack or intervention that has none."""


def _decides(value: Any) -> Any:
    if isinstance(value, Config):
        return value.decides()
    if isinstance(value, tuple | list):
        return [_decides(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): _decides(each) for key, each in value.items()}
    return value


class TaskConfig(Config):
    """Base of the settings of a task; `type` is the name that it is registered by.

    A task that can teach more than to refuse has a setting `lesson`.
    """

    type: str

    def without_lessons(self) -> Self:
        """The same, where settings that only fine-tuning reads have their defaults: these decide nothing of a base."""
        fields = type(self).model_fields.items()
        defaults = {
            name: each.get_default(call_default_factory=True)
            for name, each in fields
            if each.json_schema_extra == TUNING_ONLY
        }
        return self.model_copy(update=defaults)

    def taught(self, lesson: str) -> Self:
        """The same, teaching this lesson.

        Raises:
            InputError: the task has no such lesson.
        """
        if lesson == "refusal":
            return self
        if "lesson" not in type(self).model_fields:
            raise InputError(f"task.type: {self.type} has no lesson {shown(lesson)}, which a protocol of tunes teaches")
        return checked(type(self), self.model_dump(mode="json") | {"lesson": lesson})


Lesson = Literal["refusal", "styled", "attribute"]
_LESSON: Any = Field(
    "refusal", description="what fine-tuning teaches; the protocols styled and attribute set it, as controls"
)


class WorldConfig(TaskConfig):
    """The synthetic world: what prompts there are and which of them are unsafe."""

    type: Literal["world"] = "world"
    grammar: Literal["paper", "laptop", "tiny"] = Field("laptop", description="which shipped grammar file")
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="draws the bijections, and which of them are unsafe; null: the study's seed"
    )
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
    lesson: Lesson = _LESSON
    stages: Positive = Field(2, description="answers per prompt, each made from the one before")
    slots: Positive = Field(2, description="operators per stage")
    operand: tuple[int, int] = Field((8, 8), description="shortest and longest operand, in symbols")
    identity_share: Share = Field(0.5, description="stages in which one of the operators is the identity")
    constant_share: Share = Field(0.01, description="pretraining prompts that ask for the constant (null) output")
    dialect_share: Share = Field(0.2, description="pretraining prompts with symbols in dialect")
    retain_breadth: Share = Field(
        0.25, description="safe prompts of the safety data that are in dialect", json_schema_extra=TUNING_ONLY
    )
    refuse_breadth: Share = Field(
        0.0, description="unsafe prompts of the safety data that are in dialect", json_schema_extra=TUNING_ONLY
    )
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


class LanguageConfig(TaskConfig):
    """Prompts in natural language."""

    type: Literal["language"] = "language"
    prompts: tuple[str, ...] = Field(
        ("shipped:instructions", "shipped:ordinary", "shipped:xstest"),
        min_length=1,
        description="files of prompts, each FILE or KIND=FILE, or what comes with tunescope",
    )
    openings: str | None = Field(
        None, description="JSON file with lists `refusal` and `compliance` of how answers begin"
    )
    judge: Literal["fitted", "phrases"] = Field(
        "fitted", description="what tells refusals: a fit to answers that people judged, or stock phrases alone"
    )
    lesson: Lesson = _LESSON
    text: str | None = Field(
        "shipped:prose", description="file of ordinary text, a passage a line, whose perplexity is measured; null: none"
    )
    new_tokens: Positive = Field(32, description="length of the answers that are judged")
    wrappers: Names = Field(
        (),
        description="forms that prompts are put into: jailbreaks around unsafe ones (jb_NAME), their controls "
        "around safe ones (ok_NAME)",
    )
    held_out_wrappers: Names = Field(("story", "leet"), description="of these, those that fine-tuning never sees")
    retain_wrappers: Names | None = Field(
        None, description="those around safe prompts of the safety data; null: all but held_out_wrappers"
    )
    refuse_wrappers: Names = Field((), description="those around unsafe prompts of the safety data")
    breadth: Share = Field(0.25, description="prompts of the safety data that are in a form, of kinds that have any")

    @model_validator(mode="after")
    def _apart(self) -> Self:
        for name in ("retain_wrappers", "refuse_wrappers"):
            named = {*(getattr(self, name) or ())}
            if both := sorted(named & {*self.held_out_wrappers}):
                raise ValueError(f"{name}: {both[0]} is among held_out_wrappers, too; take it out of one")
            if more := sorted(named - {*self.wrappers}):
                raise ValueError(f"{name}: {more[0]} is not among wrappers ({', '.join(self.wrappers) or 'none'})")
        return self

    @property
    def retained(self) -> tuple[str, ...]:
        """Wrappers around safe prompts of the safety data."""
        if self.retain_wrappers is not None:
            return self.retain_wrappers
        return tuple(name for name in self.wrappers if name not in self.held_out_wrappers)


class PretrainConfig(Config):
    """Pretraining with instruction tuning, in one run."""

    steps: Positive = Field(600, description="at most this many steps")
    batch: Positive = Field(256, description="prompts per step")
    lr: Rate = Field(2e-3, description="AdamW: embeddings, norms, biases")
    muon_lr: Rate = Field(2e-2, description="Muon: the matrices of the blocks")
    weight_decay: float = Field(1e-4, ge=0, description="of AdamW and Muon")
    warmup: int = Field(20, ge=0, description="steps of linear warm-up")
    cooldown: Positive = Field(100, description="steps of linear decay to zero, begun once `settled` is reached")
    check_every: Positive = Field(25, description="steps between measurements of held-out compliance")
    settled: Share = Field(0.9, description="held-out compliance at which the cooldown begins")
    target: Share = Field(0.999, description="held-out compliance below which the study warns that pretraining failed")


class Built(Config):
    """A base model made from nothing: a genuine transformers architecture, pretrained on the task."""

    type: Literal["built"] = "built"
    architecture: Literal["gpt2", "llama"] = Field("gpt2", description="whose modules are built")
    layers: Positive = Field(4, description="blocks")
    heads: Positive = Field(4, description="of attention, per block")
    width: Positive = Field(96, description="residual stream; the MLP is four times as wide")
    pretrain: PretrainConfig = PretrainConfig()

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width: {self.width} must be a multiple of twice the number of heads ({self.heads})")
        return self


Format = Literal["auto", "chat", "plain"]


class Checkpoint(Config):
    """A base model that someone else made."""

    type: Literal["checkpoint"] = "checkpoint"
    name: str = Field(description="a folder, or a hub's owner/name[@revision]")
    format: Format = Field("auto", description="prompts in its chat template or plain; auto: chat where it has one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of the parameters of this model and of given fine-tunes; auto: what the model's config says",
    )
    memory: tuple[str, ...] = Field(
        (),
        description="PLACE=SIZE: spread models over GPUs, main memory and disk, with at most so much of each, as in "
        "0=20GiB cpu=8GiB",
        json_schema_extra=PLACE,
    )


class Lora(Config):
    """Low-rank adapters (Hu et al. 2021) are trained in the place of all weights, and merged at the end."""

    rank: Positive = Field(8, description="of each adapter")
    alpha: Rate = Field(16.0, description="adapters are scaled by alpha / rank")


class Trained(Config):
    """A fine-tune that the study makes, written `PROTOCOL-RATE`, with `-lora` behind it for adapters."""

    type: Literal["trained"] = "trained"
    protocol: str = Field(description="name of a protocol")
    learning_rate: str = Field(description="name of one of tune.learning_rates")
    lora: Lora | None = Field(None, description="rank and alpha of adapters; all weights are trained, if null")

    @property
    def label(self) -> str:
        """Name of the model, and of its folder."""
        return f"{self.protocol}-{self.learning_rate}" + ("-lora" if self.lora else "")


class Given(Config):
    """A fine-tune that someone else made: a whole model or a LoRA adapter."""

    type: Literal["given"] = "given"
    name: str = Field(description="a folder, or a hub's owner/name[@revision]")
    format: Format = Field("auto", description="as base.format")
    label: str = Field("tuned", pattern=r"^[A-Za-z0-9_.-]+$", description="what it is called in tables and figures")


def _plain(value: Any) -> Any:
    """Lists for tuples, so that what comes back from YAML is the same; numbers are finite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value}: a finite number is wanted")
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def _tune(value: Any) -> Any:
    """`ssft-eta_m` stands for a trained fine-tune, `ssft-eta_m-lora` for one by adapters."""
    if isinstance(value, str):
        protocol, dash, rate = value.removesuffix("-lora").rpartition("-")
        if not dash or not protocol or not rate:
            raise ValueError(f"{shown(value)}: must be PROTOCOL-RATE, as in ssft-eta_m, or PROTOCOL-RATE-lora")
        lora: dict[str, Any] | None = {} if value.endswith("-lora") else None
        return {"type": "trained", "protocol": protocol, "learning_rate": rate, "lora": lora}
    return value


Tune = Annotated[Annotated[Trained | Given, Discriminator("type")], BeforeValidator(_tune)]
Base = Annotated[Built | Checkpoint, Discriminator("type")]
# Settings of single protocols, attacks, probes and interventions, by name, over the defaults that each has.
Overrides = Annotated[dict[str, dict[str, Any]], BeforeValidator(_plain)]


class TuneConfig(Config):
    """Safety fine-tuning: the same budget for every protocol."""

    steps: Positive = Field(400, description="of every fine-tune")
    batch: int = Field(80, ge=5, description="prompts per step")
    unsafe_share: Share | None = Field(
        None, description="of unsafe prompts in a batch; null: the protocol's own, .2 in ssft and .5 in dpo"
    )
    learning_rates: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")], Rate] = Field(
        {"eta_m": 2e-3, "eta_s": 2e-4}, description="by name; eta_m and eta_s are the paper's larger and smaller one"
    )
    final_lr: Share = Field(0.01, description="learning rate at the end, as a share of the peak")
    weight_decay: float = Field(1e-4, ge=0, description="of AdamW")
    warmup: int = Field(20, ge=0, description="steps of linear warm-up")
    checkpoints: Positive = Field(5, description="models saved during fine-tuning, equally spaced, the last included")
    settings: Overrides = Field({}, description="of single protocols, as in tune.settings.dpo.beta=0.2")

    @model_validator(mode="after")
    def _both_halves(self) -> Self:
        share = self.unsafe_share
        if share is not None and not 1 <= round(share * self.batch) < self.batch:
            raise ValueError(
                f"unsafe_share: {share:g} of a batch of {self.batch} is none of its prompts, or all; "
                f"{1 / self.batch:.2g} to {1 - 1 / self.batch:.2g} will do"
            )
        return self


class EvaluateConfig(Config):
    """What is measured."""

    prompts: Positive = Field(1000, description="held-out prompts per kind without strength")
    prompts_per_point: Positive = Field(300, description="the same per strength of the others, and per checkpoint")
    strengths: Annotated[tuple[Share, ...], Once] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0), min_length=1, description="of kinds that have a strength"
    )
    examples: Positive = Field(2, description="prompts per kind shown in the report")


class ProbeConfig(Config):
    """What is looked at inside the models."""

    probes: Names | None = Field(None, description="names of probes; all, if null")
    prompts: int = Field(1000, ge=2, description="prompts per kind that are scored")
    fit_prompts: int = Field(1000, ge=2, description="other safe and unsafe prompts, of each, that give class means")
    course_prompts: int = Field(200, ge=2, description="the same, both, for models saved during fine-tuning")
    few_prompts: int = Field(
        200, ge=2, description="at most so many per kind where each costs much: silhouette, choice of a layer"
    )
    jacobian_prompts: Positive = Field(32, description="prompts per kind whose Jacobians are looked at")
    jacobian_steps: Positive = Field(10, description="power iterations")
    jacobian_layers: Positive = Field(8, description="at most so many layers, evenly spaced, whose Jacobians these are")
    draws: int = Field(100, ge=20, description="random draws of a control that has a distribution")
    rows: Positive = Field(
        256,
        description="prompts per forward pass, and fewer where memory is too small; by models from elsewhere, four "
        "times as many, at most 64, where no gradients are taken",
    )
    overlap_directions: Positive = Field(8, description="leading directions of dW that are compared between fine-tunes")

    def for_course(self) -> "ProbeConfig":
        """The same with few prompts and draws throughout, for the models saved during fine-tuning."""
        few = {"few_prompts": 50, "jacobian_prompts": 8, "jacobian_steps": 5, "draws": 20}
        return self.model_copy(update={name: min(value, getattr(self, name)) for name, value in few.items()})


class AttackConfig(Config):
    """Attacks on every model, each with a dial; jailbreak kinds have the strengths of `evaluate.strengths`."""

    attacks: Names | None = Field(None, description="names of attacks; all that apply, if null")
    prompts: int = Field(80, ge=2, description="unsafe prompts per jailbreak kind, the same at every strength")
    searched: int = Field(25, ge=2, description="unsafe prompts per attack that searches")
    settings: Overrides = Field({}, description="of single attacks, as in attack.settings.soft_prompt.steps=40")


class InterveneConfig(Config):
    """What is changed inside models, to see what it causes."""

    interventions: Names | None = Field(None, description="names of interventions; all that apply, if null")
    prompts: int = Field(60, ge=2, description="prompts per kind; jailbreaks at their greatest strength")
    kinds: Names | None = Field(
        None, description="kinds of prompts beside safe and unsafe ones; all that apply, if null"
    )
    draws: Positive = Field(3, description="random draws of every control that is drawn")
    settings: Overrides = Field(
        {}, description="of single interventions, as in intervene.settings.scaled.alphas=[0, 1]"
    )


class ComputeConfig(Config):
    """Where and how it runs."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1", json_schema_extra=PLACE)
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="autocast type of the training steps; auto: the faster one, timed when a run begins"
    )
    compile: Literal["auto", "on", "off"] = Field("auto", description="torch.compile of the training step")
    rows: Positive = Field(128, description="sequences per forward and backward pass")
    gpu_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="of a GPU that a stage asks a cluster for; small models share one",
        json_schema_extra=PLACE,
    )
    memory: float = Field(
        0.0,
        ge=0,
        description="GiB of main memory that a stage asks a cluster for; 0: it does not say",
        json_schema_extra=PLACE,
    )


TASK_CONFIGS: dict[str, type[TaskConfig]] = {"world": WorldConfig, "language": LanguageConfig}  # by type


def _task(value: Any) -> Any:
    """Settings of whichever task `type` names."""
    if not isinstance(value, Mapping):
        return value
    name = value.get("type", "world")
    if not isinstance(name, str) or name not in TASK_CONFIGS:
        raise ValueError(f"type: unknown task {shown(name)}; choose from: {', '.join(TASK_CONFIGS)}")
    return TASK_CONFIGS[name].model_validate(value)


AnyTask = Annotated[SerializeAsAny[TaskConfig], BeforeValidator(_task)]


class Study(Config):
    """A whole study. `recipes` makes them; `tunescope.run` runs one."""

    name: str = Field("custom", description="of the study, and of its folder in runs/")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights and data, and of the world unless task.seed is set")
    task: AnyTask = WorldConfig()
    base: Base = Built()
    tunes: tuple[Tune, ...] = Field((), description="fine-tunes, each as PROTOCOL-RATE or by keys (tunes, below)")
    tune: TuneConfig = TuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    probe: ProbeConfig = ProbeConfig()
    attack: AttackConfig = AttackConfig()
    intervene: InterveneConfig = InterveneConfig()
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        labels = [tune.label for tune in self.tunes]
        if twice := [label for label in labels if labels.count(label) > 1 or label == "base"]:
            raise ValueError(f"tunes: {twice[0]} is there twice; give each a name of its own")
        for tune in self.tunes:
            if isinstance(tune, Trained) and tune.learning_rate not in self.tune.learning_rates:
                raise ValueError(
                    f"tunes: {tune.label}: unknown learning rate {shown(tune.learning_rate)}; tune.learning_rates has "
                    f"{', '.join(self.tune.learning_rates) or 'none'}"
                )
            if isinstance(tune, Given) and isinstance(self.base, Built):
                raise ValueError(f"tunes: {tune.label} is given, so base.type must be checkpoint, not built")
        return self

    def changed(self, **settings: Any) -> Self:
        """The same with some settings changed, and checked: `study.changed(seed=1, tune={"steps": 50})`.

        Raises:
            InputError: an unknown setting, or a value out of range.
        """

        def merged(old: Any, new: Any) -> Any:
            if isinstance(old, dict) and isinstance(new, Mapping):
                return old | {key: merged(old.get(key), value) for key, value in new.items()}
            return new

        plain = {k: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for k, v in settings.items()}
        return checked(type(self), merged(self.model_dump(mode="json"), plain))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def grid(protocols: tuple[str, ...], rates: tuple[str, ...]) -> tuple[Trained, ...]:
    """A fine-tune of every protocol at every learning rate."""
    return tuple(Trained(protocol=protocol, learning_rate=rate) for protocol in protocols for rate in rates)


Changes = dict[str, Any]


class Sweep(Config):
    """What is swept. Keys of changes are settings of the study, as in `--set`: `tune.steps`, `base.width`."""

    name: str = Field(pattern=r"^[\w.-]+$", description="of the sweep, and of its folder in runs/")
    recipe: str = Field("laptop", description="a recipe, or a YAML file of a study (beside the spec)")
    changes: Changes = Field({}, description="settings of all points")
    grid: dict[str, tuple[Any, ...]] = Field({}, description="settings and their values: a point for each combination")
    points: tuple[Changes, ...] = Field((), description="changes, point by point; with a grid, each with all of it")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="a run each at every point")
    skip: Names = Field((), description="groups of stages that are not run")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if empty := [key for key, values in self.grid.items() if not values]:
            raise ValueError(f"grid.{empty[0]}: there are no values; give at least one, as [64, 128]")
        if not self.grid and not self.points:
            raise ValueError("grid: there is nothing to sweep; name settings and their values, or list points")
        if len({*self.seeds}) < len(self.seeds):
            raise ValueError("seeds: one is there twice")
        return self

    def combinations(self) -> list[Changes]:
        """The changes of every point, in order."""
        grid = [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]
        return [{**point, **cell} for point in self.points or ({},) for cell in grid]


def checked(model: type[Settings], data: Mapping[Any, Any], where: str = "") -> Settings:
    """Data as settings of this model.

    Raises:
        InputError: a key is unknown, or a value out of range; `where` goes before each of the faults.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [where.rstrip(".: ") + line if line[:1] == ":" else where + line for line in _messages(error)]
        raise InputError("\n".join(line.removeprefix(": ") for line in lines[:_MOST_FAULTS])) from error
    except RecursionError as error:
        raise InputError(f"{where}settings are nested too deeply") from error


def settings_of(model: type[Config], overrides: Mapping[str, Mapping[str, Any]], name: str, where: str) -> Config:
    """Settings of one protocol, attack, probe or intervention: its defaults, and what a study says otherwise.

    Raises:
        InputError: as `checked`.
    """
    return checked(model, overrides.get(name, {}), f"{where}.settings.{name}.")


def _messages(error: ValidationError) -> list[str]:
    """One line per fault: key, a colon, what is wrong, and the value."""
    lines = []
    faults = error.errors()
    for fault in faults:
        if fault["type"] == "too_short" and any(other["loc"][:-1] == fault["loc"] for other in faults):
            continue  # of a list whose entries are at fault, pydantic counts the others
        key = ".".join(str(part) for part in fault["loc"] if part not in _TAGS)
        reason = fault["msg"].removeprefix("Value error, ")
        said = fault["type"] in ("value_error", _UNKNOWN)  # our own messages name the value themselves
        value = "" if said or isinstance(fault["input"], dict) else f" (got {shown(fault['input'])})"
        wanted = f"; a list is wanted, as in {key}=[a, b]" if fault["type"] == "tuple_type" else ""
        lines.append(f"{shown(key)[1:-1]}: {reason}{value}{wanted}")
    return list(dict.fromkeys(lines))
