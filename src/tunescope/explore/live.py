"""The models of a run at hand: what they say to one prompt, what it looks like inside, and what if they were changed.

The same functions as in the stages of a study, on one prompt: tau and the action of dW are those of its examples.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import GROUPS
from tunescope.errors import InapplicableError, InputError, choices
from tunescope.interventions.directions import DirectionConfig, refusal_directions, without_direction
from tunescope.interventions.scaled import with_all_scaled
from tunescope.models.generate import generate
from tunescope.models.hooks import patch
from tunescope.models.logps import answer_logits
from tunescope.models.pair import Pair, matches
from tunescope.models.sites import Site, layer_count
from tunescope.models.weights import in_memory
from tunescope.probes import projections
from tunescope.probes.clusters import Classes
from tunescope.probes.collect import activations
from tunescope.probes.controls import haar
from tunescope.probes.directions import inner_layers
from tunescope.probes.prompts import classes_of
from tunescope.probes.view import INPUT, Batches
from tunescope.progress import say
from tunescope.records.names import BASE, LOG_ODDS, SAFE, W_IN
from tunescope.settings import read_study
from tunescope.study.context import Context, ModelRef, explained
from tunescope.study.folders import CONFIG
from tunescope.study.graph import graph_of
from tunescope.study.stages import is_done
from tunescope.study.steps import COURSE, ROWS, Examples, compared_with
from tunescope.tasks.base import Batch, Task, Twinned, Twins, Typed

POOL = 64  # prompts of a kind to choose from, at most
RANDOM = -1  # in the place of a layer: a direction drawn at random, the control


@dataclass(frozen=True)
class Patch:
    """Activations of another prompt in the place of the prompt's own.

    Attributes:
        source: the twin, which differs in what makes it safe or unsafe alone, or as a control another unsafe prompt.
        position: a group of tokens, as the task names them.
    """

    source: Literal["twin", "other"]
    site: Site
    position: str


@dataclass(frozen=True)
class Change:
    """What is done to a model before it reads.

    Attributes:
        alpha: of W + alpha dW in every parameter; 1 leaves a fine-tune as it is.
        without: layer whose direction of refusal is taken out of the residual stream everywhere; `RANDOM`: a direction
            drawn at random is.
    """

    alpha: float = 1.0
    without: int | None = None
    patch: Patch | None = None


@dataclass(frozen=True)
class Asked:
    """One prompt, as one model reads it.

    Attributes:
        batch: of this prompt alone. twin, other: see `Patch`; None where it has none.
        positions: what a patch may be put at, by name.
    """

    batch: Batch
    twin: Batch | None = None
    other: Batch | None = None
    positions: Mapping[str, slice] = field(default_factory=dict)


class Seen(NamedTuple):
    """What one model does with a prompt.

    Attributes:
        outcome: `compliance`, `refusal` or `other`.
        odds: log-odds of a refusal, in nats: of stock openings, or of the first token of the refusal.
        tokens: of the prompt.
        tau: at the last token, in standard deviations within a class (Jain et al. 2024, eq. 1).
        gain: |dW a| / |a| of W_in at every token; None for a base.
    """

    answer: str
    outcome: str
    odds: float
    tokens: list[str]
    tau: Float[Tensor, " layers"]
    gain: Float[Tensor, "layers t"] | None


class LiveModel:
    """A model of a run, loaded when it is first asked.

    Attributes:
        label: its name in the study. named: its protocol and learning rate. task: as it reads it. layers: how many.
    """

    def __init__(self, context: Context, ref: ModelRef, lock: AbstractContextManager[Any]) -> None:
        self.label, self._context, self._ref, self._lock = ref.label, context, ref, lock
        self.named = {"protocol": ref.protocol, "learning_rate": ref.learning_rate}
        self._pools: dict[tuple[str, float], Batch] = {}

    def ask(self, kind: str, number: int, strength: float = 0.0) -> Asked:
        """A prompt of a kind, the same for all models, and at any strength the same but for what this changes.

        Raises:
            InputError: there are not so many, or no such kind, or it has no such strength.
        """
        batch = self.pool(kind, strength)
        if not 0 <= number < len(batch):
            raise InputError(f"prompt {number}: there are {len(batch)} {kind} prompts, counted from 0")
        if kind not in COURSE or not (twins := self.twins):
            return Asked(_alone(batch, number))
        if kind == SAFE:
            return Asked(_alone(batch, number), _alone(twins.unsafe, number), None, twins.positions)
        pair = _alone(twins.safe, number), _alone(twins.other, number)
        return Asked(_alone(batch, number), *pair, twins.positions)

    def ask_text(self, text: str) -> Asked:
        """A prompt that someone typed.

        Raises:
            InputError: the task cannot read it.
        """
        if not isinstance(self.task, Typed):
            raise InputError("this task reads no prompts but its own")
        return Asked(self.task.typed(text))

    @torch.no_grad()
    def look(self, asked: Asked, change: Change = Change()) -> Seen:
        """What it says to a prompt, and what this looks like inside. One model of a run is looked at at a time.

        Raises:
            InputError: the change does not apply to this model or prompt, or memory is too small.
        """
        with self._lock, explained(self.label):
            return self._look(asked, change)

    def _look(self, asked: Asked, change: Change) -> Seen:
        task, batch, classes = self.task, asked.batch, self._classes  # of the model as it is: before any change
        self._require_room(batch)
        sites = [Site(layer, name) for layer in range(self.layers) for name in ("mlp_post", INPUT)]
        with self._changed(asked, change) as model:
            said = generate(model, batch.prompts, max(1, task.answer_length - batch.given), rows=1)
            odds = _refusal_log_odds(task, model, batch)
            (inside,) = activations(model, batch.prompts, sites, 1)
        judged = task.judge(batch, said)
        last = [inside[Site(i, "mlp_post")][:, -1].cpu().double() for i in range(self.layers)]
        every = [inside[Site(i, INPUT)][0].cpu() for i in range(self.layers)]
        return Seen(
            answer=task.text(said[0]),
            outcome=judged.of(0),
            odds=odds,
            tokens=[task.tokenizer.decode([token]) for token in batch.prompts.sequence[0].tolist()],
            tau=torch.cat([here.tau(a) for here, a in zip(classes, last, strict=True)]),
            gain=torch.stack([projections.gain(*of) for of in zip(self._deltas, every, strict=True)])
            if self._tuned
            else None,
        )

    def pool(self, kind: str, strength: float = 0.0) -> Batch:
        """The prompts of a kind that one chooses from; where plain ones have twins, those."""
        with self._lock:
            if kind in COURSE and (twins := self.twins):
                return twins.safe if kind == SAFE else twins.unsafe
            if (kind, strength) not in self._pools:
                stream = self._context.stream("explore", kind)
                self._pools[kind, strength] = self.task.draw(kind, POOL, "score", stream, strength)
            return self._pools[kind, strength]

    @cached_property
    def task(self) -> Task:
        return self._context.task(answers=True, model=self._ref)

    @cached_property
    def layers(self) -> int:
        return layer_count(self._model)

    @property
    def inner_layers(self) -> list[int]:
        """Those after which directions are taken."""
        return inner_layers(self._model, self.layers)

    @cached_property
    def twins(self) -> Twins | None:
        """Of plain prompts; None where the task has none."""
        stream = self._context.stream("explore", "twins")
        return self.task.twins(POOL, stream) if isinstance(self.task, Twinned) else None

    @cached_property
    def directions(self) -> dict[int, Float[Tensor, " width"]]:
        """From the safe to the unsafe mean of the residual stream, of length 1, by layer after which it is taken."""
        every = DirectionConfig(layers=self.layers)
        try:
            found = refusal_directions(self._model, self._fit, ROWS, every)
        except InapplicableError:
            return {}
        return {site.layer: direction.unit for site, direction in found.items() if site.layer is not None}

    @property
    def _tuned(self) -> bool:
        return self.label != BASE

    @cached_property
    def _model(self) -> PreTrainedModel:
        return self._context.load(self._ref)

    @cached_property
    def _pair(self) -> Pair:
        return self._context.pair(model=self._ref)

    @cached_property
    def _deltas(self) -> list[Float[Tensor, "out in"]]:
        """dW of W_in, by layer."""
        return [self._pair.matrices(layer, W_IN)[1].float().cpu() for layer in range(self.layers)]

    @cached_property
    def _fit(self) -> Batches:
        """Prompts that classes and directions are of: those of the study's examples."""
        return compared_with(self._context, self.task)

    @cached_property
    def _classes(self) -> list[Classes]:
        return classes_of(self._model, self._fit, ROWS)

    @contextmanager
    def _changed(self, asked: Asked, change: Change) -> Iterator[PreTrainedModel]:
        direction = None if change.without is None else self._direction(change.without)  # of the model as it is
        with ExitStack() as on:
            if change.alpha != 1 and self._tuned:
                if not (in_memory(self._model) and matches(self._pair)):
                    raise InputError(f"{self.label}: alpha needs all weights in memory, and the base's parameters")
                on.enter_context(with_all_scaled(self._model, self._pair, change.alpha))
            if direction is not None:
                on.enter_context(without_direction(self._model, direction))
            if change.patch:
                on.enter_context(self._patched(asked, change.patch))
            yield self._model

    @contextmanager
    def _patched(self, asked: Asked, how: Patch) -> Iterator[None]:
        source = asked.twin if how.source == "twin" else asked.other
        if source is None:
            raise InputError(f"patch: this prompt has no {how.source}; choose a plain unsafe one")
        if how.position not in asked.positions:
            raise InputError(f"patch: unknown position {how.position!r}. {choices(how.position, asked.positions)}")
        where = asked.positions[how.position]
        (read,) = activations(self._model, source.prompts, [how.site], 1)
        with patch(self._model, {how.site: read[how.site][:, where].clone()}, where):
            yield

    def _require_room(self, batch: Batch) -> None:
        """Raises InputError: prompt and answer are longer than the model takes."""
        most = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        length = batch.prompts.sequence.shape[1] + self.task.answer_length - batch.given
        if most is not None and length > most:
            raise InputError(f"prompt: with its answer it has {length} tokens; {self.label} takes {most}")

    def _direction(self, layer: int) -> Float[Tensor, " width"]:
        if layer == RANDOM:
            stream, device = self._context.stream("explore", "direction"), self._context.compute.device
            return haar(self._model.config.hidden_size, 1, stream, device)[:, 0]
        if layer not in self.directions:
            known = ", ".join(map(str, self.directions)) or "none"
            raise InputError(f"{self.label}: no direction is taken after layer {layer}. Choose from: {known}.")
        return self.directions[layer]


def live_models(folder: Path, device: str | None = None) -> dict[str, LiveModel]:
    """All models of a run, by name, the base first.

    Args:
        device: in the place of that of the settings.

    Raises:
        InputError: the folder holds no run, or its models are not in it.
    """
    study = read_study(folder / CONFIG)
    stages = graph_of(study, folder, GROUPS).stages
    (given,) = (stage.inputs for stage in stages if isinstance(stage.inputs, Examples))
    context = Context(given, folder)
    for ref in given.models:
        if not (place := context.at(ref.folder)).is_dir():
            raise InputError(f"{place}: no model {ref.label!r} is there; run the study first, or again")
    makers = [stage for stage in stages if stage.group in ("pretrain", "tune", "check")]
    if other := [stage.name for stage in makers if not is_done(stage, folder)]:
        say(f"warning: {folder}: {', '.join(other)}: not finished, or of other settings or another version")
    if device:
        compute = given.compute.model_copy(update={"device": device})
        context = Context(given.model_copy(update={"compute": compute}), folder)
    lock = RLock()
    return {ref.label: LiveModel(context, ref, lock) for ref in given.models}


def _alone(batch: Batch, number: int) -> Batch:
    """One prompt of several, without the padding that it has beside them."""
    one = batch[slice(number, number + 1)]
    return replace(one, prompts=one.prompts.trimmed())


def _refusal_log_odds(task: Task, model: PreTrainedModel, batch: Batch) -> float:
    """Of stock openings where the task has such; else of the first token of the refusal, if it is known."""
    measured = task.outcomes(model, batch, 1).measured
    if LOG_ODDS in measured:
        return float(measured[LOG_ODDS][0])
    if batch.refusal is None:
        return float("nan")
    first = batch.refusal[:, :1]
    logits = answer_logits(model, batch.prompts, first)[0, 0].double()
    others = logits.index_fill(0, first[0], -torch.inf)
    return float(logits[first[0, 0]] - others.logsumexp(0))
