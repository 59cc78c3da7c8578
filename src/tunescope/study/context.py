"""What stages share: where a model of a study is, how it is loaded, and how it reads the task."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import find_executable_batch_size
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from transformers import PreTrainedModel

from tunescope.config import PLACE, AnyTask, ComputeConfig, Config, ProbeConfig
from tunescope.errors import InputError, shown
from tunescope.models.checkpoint import Spread, load_model, load_tokenizer
from tunescope.models.compute import Compute, limits, resolve
from tunescope.models.pair import Pair
from tunescope.models.weights import AdapterWeights, StoredWeights, Weights, fill
from tunescope.probes.view import Batches, gradient_norms
from tunescope.records.names import SAFE, UNSAFE
from tunescope.records.tables import Subject
from tunescope.registry import place_in_plugin
from tunescope.rng import Stream
from tunescope.tasks.base import TASKS, Batch, Reader, Task, Use

T = TypeVar("T")
ANSWERS = "answers.json"  # what the base says to the prompts of a task that knows no answers
FOLLOWED = "followed.json"  # attacked prompts, and whether the base answers them


class ModelRef(Config):
    """A model of a study.

    Attributes:
        label: what it is called. protocol, learning_rate: see `Record`.
        step: its final step; None where training tells.
        lesson: what its protocol teaches; it is measured on the labels of that lesson.
        source: what a model from elsewhere is known by; empty for models of the study.
        reader: whether it reads the task with the tokenizer, and in the template, of a model from elsewhere.
        template: chat template in which it reads prompts; None where they are plain.
        folder: relative to the run folder, or absolute. text: the same of its tokenizer.
        base: folder of the base of an adapter.
    """

    label: str
    protocol: str
    learning_rate: str = ""
    step: int | None = None
    lesson: str = "refusal"
    source: dict[str, Any] = Field({})
    reader: bool = False
    template: str | None = None
    folder: str = Field("", json_schema_extra=PLACE)
    text: str = Field("", json_schema_extra=PLACE)
    base: str = Field("", json_schema_extra=PLACE)

    def judged_as(self, other: "ModelRef") -> bool:
        """Whether the two read the same prompts, and their answers are judged alike."""
        return (self.template, self.lesson) == (other.template, other.lesson)

    def subject(self, seed: int, step: int) -> Subject:
        return Subject(self.label, self.protocol, self.learning_rate, seed, step)


class Common(Config):
    """What every stage that reads a model is given.

    Attributes:
        model: the model at hand. base: that which it came from; itself, for a base.
        dtype: of the parameters of models from elsewhere. memory: see `Checkpoint`.
        code: digests of the plug-ins that take part, by which an edit of one is noticed.
    """

    seed: int
    task: AnyTask
    model: ModelRef
    base: ModelRef
    compute: ComputeConfig
    dtype: str = "float32"
    memory: tuple[str, ...] = Field((), json_schema_extra=PLACE)
    code: tuple[str, ...] = ()

    @property
    def tuned(self) -> bool:
        return self.model.label != self.base.label


class Context:
    """Models and task of one stage."""

    def __init__(self, given: Common, folder: Path) -> None:
        self.given, self.folder = given, folder
        self.compute: Compute = resolve(given.compute)

    def stream(self, *scope: object) -> Stream:
        return Stream.named(self.given.seed, *scope)

    def at(self, place: str) -> Path:
        return self.folder / place  # an absolute place stays what it is

    def task(self, *, answers: bool = False, model: ModelRef | None = None) -> Task:
        """The task as a model reads it.

        Args:
            answers: with the base's own answers, if they were kept.
        """
        model = model or self.given.model
        return build_task(
            self.given.task, model, self.folder, self.compute.device, self.kept(ANSWERS, str) if answers else {}
        )

    def kept(self, name: str, kind: type[T]) -> dict[str, T]:
        """What a stage has kept by prompt; nothing where it did not run."""
        try:
            return TypeAdapter(dict[str, kind]).validate_json((self.folder / name).read_bytes())  # type: ignore[valid-type]
        except FileNotFoundError:
            return {}
        except ValidationError as error:
            raise InputError(f"{self.folder / name}: damaged; delete it and run again") from error

    def load(self, model: ModelRef | None = None, folder: str | None = None) -> PreTrainedModel:
        """A model, in eval mode, parameters frozen; a folder stands for one saved on the way to it."""
        model = model or self.given.model
        dtype: Any = torch.float32 if not model.source else self.given.dtype
        dtype = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
        place = self.at(folder or model.base or model.folder)
        spread = None
        if model.source and self.given.memory:
            spread = Spread(limits(self.given.memory), self.folder / "offload" / model.label)
        # Of the study's own small models, all is done as they were trained; of others, fused attention reads faster.
        attention = None if model.reader else self.compute.attention
        loaded, _ = load_model(place, self.compute.device, attention, dtype, spread)
        loaded.requires_grad_(False)
        if model.base:
            weights = self.weights(model)
            assert isinstance(weights, AdapterWeights)
            fill(loaded, weights, weights.changes)
        return loaded

    def weights(self, model: ModelRef | None = None, folder: str | None = None) -> Weights:
        """The same on disk, read tensor by tensor."""
        model = model or self.given.model
        place = self.at(folder or model.folder)
        if model.base:
            return AdapterWeights(StoredWeights(self.at(model.base)), place)
        return StoredWeights(place)

    def pair(self, folder: str | None = None, model: ModelRef | None = None) -> Pair:
        after = self.weights(model, folder)
        before = after.base if isinstance(after, AdapterWeights) else self.weights(self.given.base)
        return Pair(before, after)

    def sample(self, task: Task, config: ProbeConfig) -> tuple[Batches, Batches]:
        """Plain prompts for the probes, which nothing else reads: to fit class means, and to score."""
        stream = self.stream("probe prompts")
        fit = {k: task.draw(k, config.fit_prompts, "fit", stream("fit", k)) for k in (SAFE, UNSAFE)}
        plain = [name for name, kind in task.kinds.items() if kind.probed and not kind.dial]
        return fit, {k: task.draw(k, config.prompts, "score", stream("score", k)) for k in plain}

    def attacked(self, task: Task, kind: str, strength: float, n: int, use: str) -> Batch:
        """Prompts of a kind; those of one use are the same at every strength, but for what the strength changes."""
        pool: Use = "fit" if use in ("seen", "trial") else "score"
        return task.draw(kind, n, pool, self.stream("attacked", use, kind), strength)


def build_task(
    config: Any,
    model: ModelRef,
    folder: Path,
    device: torch.device,
    answers: Mapping[str, str] = {},
) -> Task:
    reader = None
    if model.reader:
        reader = Reader(load_tokenizer(folder / model.text), model.template, answers)
    found: Task = TASKS[config.type](config, device, reader)
    return found


def fitting_rows(model: PreTrainedModel, batches: Iterable[Batch], rows: int, *, gradients: bool) -> int:
    """As many prompts at a time as there is memory for, at most `rows`: tried on the longest prompts beforehand.

    Raises:
        InputError: there is too little for a single one.
    """
    longest = max(batches, key=lambda batch: batch.prompts.sequence.shape[1])
    # On a CPU memory runs out without an error to catch, so that a larger trial would only take its time.
    repeated = longest.prompts.sequence.device.type != "cpu"

    def attempt(batch_size: int) -> int:  # accelerate looks at the name of the argument
        part = longest[torch.arange(batch_size) % len(longest)] if repeated else longest.first(batch_size)
        if gradients:
            gradient_norms(model, part, batch_size)
        else:
            with torch.no_grad():
                model(**part.prompts.arguments(), use_cache=True, logits_to_keep=1)
        return batch_size

    try:
        found: int = find_executable_batch_size(attempt, starting_batch_size=rows)()
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise InputError(
            "Memory is too small for a single prompt. Try base.dtype=bfloat16 (--dtype), or base.memory (--memory)."
        ) from error
    return found


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Says at what it was that memory was too small, or numbers failed.

    Raises:
        InputError: in place of what torch, safetensors or a probe raised.
    """
    try:
        yield
    except InputError:
        raise
    except (torch.OutOfMemoryError, MemoryError, torch.linalg.LinAlgError, SafetensorError, ValueError) as error:  # type: ignore[attr-defined]
        if isinstance(error, ValueError) and place_in_plugin(error):
            raise
        raise InputError(f"{what}: {shown(error)}; another device or dtype may do") from error
    except RuntimeError as error:
        if "allocate" not in str(error) and "out of memory" not in str(error):
            raise
        raise InputError(f"{what}: out of memory; lower compute.rows or probe.rows, then run again") from error
