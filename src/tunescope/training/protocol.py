"""What a protocol is: a share of unsafe prompts, a loss, and which of both answers and models the loss reads."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import Base, Config, NoSettings
from tunescope.errors import InputError
from tunescope.models.compute import Compute
from tunescope.models.hooks import capture
from tunescope.models.inputs import IGNORED, Answers, Inputs, same_length
from tunescope.models.logps import autocast
from tunescope.models.sites import Site
from tunescope.registry import Registry
from tunescope.rng import Stream
from tunescope.tasks.base import PreferenceBatch, Task
from tunescope.training.losses import Lengths, Logps, PerPrompt

Rejected = Literal["", "unsafe", "all"]
Reference = Literal["", "logps", "model"]
REJECTED, REFERENCE = get_args(Rejected), get_args(Reference)


@dataclass(frozen=True)
class Protocol:
    """How a model is fine-tuned.

    Attributes:
        unsafe_share: share of unsafe prompts in a batch.
        loss: from a step, and the protocol's settings, to one loss per prompt, [b].
        rejected: of which prompts the loss reads the unwanted answer, too; none if empty.
        reference: whether it reads the reference model: only its log-probabilities of the answers (`logps`), which are
            then computed once for all learning rates, or the model itself (`model`); it does not, if empty.
        lesson: what it teaches, of those that a task has: to refuse unsafe prompts, or as a control something else.
        check: refuses settings that do not fit task and base, before any work.
    """

    name: str
    unsafe_share: float
    loss: Callable[["Step", Any], PerPrompt]
    rejected: Rejected
    reference: Reference
    settings: type[Config]
    lesson: str = "refusal"
    check: Callable[[Any, Task, Base], None] | None = None

    def unsafe_of(self, batch: int, share: float | None) -> int:
        """How many prompts of a batch are unsafe.

        Args:
            share: of the study, for all protocols that see unsafe prompts; None: the protocol's own.
        """
        return round(batch * (self.unsafe_share if share is None or not self.unsafe_share else share))


Answered = tuple[Logps, Logps]  # log-probabilities of chosen and of rejected answers
PROTOCOLS: Registry[Protocol] = Registry("protocol", "step", "settings")
Loss = Callable[["Step", Any], PerPrompt]


def protocol(
    name: str,
    *,
    unsafe_share: float,
    rejected: Rejected = "",
    reference: Reference = "",
    settings: type[Config] = NoSettings,
    lesson: str = "refusal",
    check: Callable[[Any, Task, Base], None] | None = None,
) -> Callable[[Loss], Loss]:
    """Register a loss as a protocol.

    The loss maps a `Step`, and the settings, to one number per prompt, [b].

    Args:
        unsafe_share: share of unsafe prompts in a batch, in [0, 1].
        rejected: of which prompts it reads the unwanted answer, too: none (empty), `unsafe` or `all`.
        reference: what it reads of the model before: nothing (empty), `logps` of the answers, or the `model` itself.
        settings: its settings, a `tunescope.config.Config`.
        lesson: what is taught: `refusal`, or as a control `seen`, `styled` or another lesson of the task.
        check: from settings, task and base; raises InputError where they do not fit, before any work.

    Raises:
        InputError: an argument is none of these.
    """
    for argument, value, known in (("rejected", rejected, REJECTED), ("reference", reference, REFERENCE)):
        if value not in known:
            raise InputError(f"protocol {name}: {argument}: {value!r}; choose from {', '.join(map(repr, known))}")
    if not 0 <= unsafe_share <= 1:
        raise InputError(f"protocol {name}: unsafe_share: {unsafe_share}; a share from 0 to 1 is wanted")

    def register(loss: Loss) -> Loss:
        entry = Protocol(name, unsafe_share, loss, rejected, reference, settings, lesson, check)
        PROTOCOLS.define(name, entry, loss)
        return loss

    return register


def lengths_of(answers: Answers) -> Lengths:
    """How many tokens each has."""
    return (answers != IGNORED).sum(1)


class Step:
    """Some prompts of a step of fine-tuning, and what both models make of them; computed when first asked for.

    They are in no order that a loss may rely on: those of like length are together, and may all be safe, or none.

    Attributes:
        policy: the model being trained. reference: the frozen one before, or what it says of the answers.
        safe: [b]. stream: of what a protocol draws once and for all.
        progress: share of the steps that are done, in [0, 1].
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: PreTrainedModel | Answered | None,
        batch: PreferenceBatch,
        protocol: Protocol,
        compute: Compute,
        stream: Stream,
        progress: float,
        whole: PreferenceBatch | None = None,
    ) -> None:
        self.policy, self._reference, self._batch, self._compute = policy, reference, batch, compute
        self.safe, self.stream, self.progress, self.name = batch.safe, stream, progress, protocol.name
        self._protocol, self._whole = protocol, batch if whole is None else whole
        self._chosen, self._rejected = same_length(batch.chosen, batch.rejected)

    @property
    def reference(self) -> PreTrainedModel:
        """Raises ValueError: the protocol is not registered with `reference="model"`."""
        if not isinstance(self._reference, PreTrainedModel):
            raise ValueError(f'protocol {self.name}: reads the reference model; register it with reference="model"')
        return self._reference

    @property
    def policy_chosen_logps(self) -> Logps:
        return self._policy[0]

    @property
    def policy_rejected_logps(self) -> Logps:
        """0 for prompts whose unwanted answer the protocol does not read.

        Raises ValueError: it is registered to read none.
        """
        self._require_rejected()
        return self._policy[1]

    @property
    def reference_chosen_logps(self) -> Logps:
        """Raises ValueError: the protocol is not registered with `reference="logps"` or `"model"`."""
        return self._frozen[0]

    @property
    def reference_rejected_logps(self) -> Logps:
        self._require_rejected()
        return self._frozen[1]

    @property
    def chosen_lengths(self) -> Lengths:
        return lengths_of(self._chosen)

    @property
    def chosen_tokens(self) -> Float[Tensor, ""]:
        """How many tokens a wanted answer has, mean over all prompts of the step.

        With it for a length, the mean over prompts of `losses.nll` is the mean over tokens. How an answer begins, which
        is where a model refuses or does not, then counts as much in long answers as in short ones.
        """
        return lengths_of(self._whole.chosen).float().mean()

    @property
    def obeyed_tokens(self) -> Float[Tensor, ""]:
        """The same of answers that obey: wanted ones of safe prompts, unwanted ones of unsafe prompts."""
        chosen, rejected = lengths_of(self._whole.chosen), lengths_of(self._whole.rejected)
        return chosen.where(self._whole.safe, rejected).float().mean()

    @property
    def rejected_lengths(self) -> Lengths:
        return lengths_of(self._rejected)

    def chosen_logits(self) -> tuple[Float[Tensor, "b a vocab"], Answers]:
        """The policy's logits where it says the wanted answers, and the tokens of these; `inputs.IGNORED` behind their
        end. For losses that need more than `policy_chosen_logps`, such as label smoothing.
        """
        chosen = self._chosen[:, : int(lengths_of(self._chosen).max())]
        whole = self._batch.prompts.trimmed().followed_by(chosen.clamp(min=0))
        with self._autocast():
            read = self.policy(**whole.arguments(), use_cache=False, logits_to_keep=chosen.shape[1] + 1)
        return read.logits[:, :-1].float(), chosen

    def activations(
        self, *sites: Site
    ) -> tuple[Float[Tensor, "k b t width"], Float[Tensor, "k b t width"], Bool[Tensor, "b t"]]:
        """At k sites in both models, of prompts with the answers that obey them; and after which places a token of
        these comes.

        The first such place is the last token of the prompt, where it is decided how the answer begins.
        """
        obeyed, prompts = self._chosen.where(self.safe[:, None], self._rejected), self._batch.prompts.trimmed()
        obeyed = obeyed[:, : int(lengths_of(obeyed).max())]
        inputs = prompts.followed_by(obeyed.clamp(min=0))
        answered, prompt = obeyed != IGNORED, prompts.sequence.shape[1]
        learnt = torch.nn.functional.pad(answered, (prompt - 1, 1))
        with self._autocast():
            with capture(self.policy, sites, keep_graph=True) as policy:
                self.policy(**inputs.arguments(), use_cache=False, logits_to_keep=1)
            with torch.no_grad(), capture(self.reference, sites) as reference:
                self.reference(**inputs.arguments(), use_cache=False, logits_to_keep=1)
        ours, theirs = (torch.stack([of[site].float() for site in sites]) for of in (policy, reference))
        return ours, theirs, learnt

    def _require_rejected(self) -> None:
        if not self._protocol.rejected:
            raise ValueError(f'protocol {self.name}: reads unwanted answers; register it with rejected="all"')

    def _autocast(self) -> torch.autocast:
        return autocast(self.safe.device, self._compute.dtype)

    @cached_property
    def _policy(self) -> Answered:
        return answered(self.policy, self._batch, self._protocol, self._compute)

    @cached_property
    def _frozen(self) -> Answered:
        if self._reference is None:
            raise ValueError(
                f'protocol {self.name}: reads the reference\'s log-probabilities; register it with reference="logps"'
            )
        if isinstance(self._reference, tuple):
            return self._reference
        with torch.no_grad():
            return answered(self._reference, self._batch, self._protocol, self._compute)


def reads_rejected(protocol: Protocol, batch: PreferenceBatch) -> Bool[Tensor, " n"]:
    """Of which prompts a protocol reads the rejected answer."""
    every = torch.ones_like(batch.safe)
    return {"": ~every, "unsafe": ~batch.safe, "all": every}[protocol.rejected]


def answered(model: PreTrainedModel, batch: PreferenceBatch, protocol: Protocol, compute: Compute) -> Answered:
    """Of the chosen answers, and of the rejected ones as far as the protocol reads them; both in one pass."""
    chosen, rejected = same_length(batch.chosen, batch.rejected)
    rows = reads_rejected(protocol, batch).nonzero().squeeze(1)
    together = batch.prompts[torch.cat([torch.arange(len(chosen), device=rows.device), rows])]
    answers = torch.cat([chosen, rejected[rows]])
    longest = max(1, int(lengths_of(answers).max()))
    logps = sequence_logps(compute, model, together.trimmed(), answers[:, :longest])
    logps = torch.nn.functional.pad(logps, (0, answers.shape[1] - longest))
    of_chosen, of_rejected = logps.split([len(chosen), len(rows)])
    return of_chosen, torch.zeros_like(of_chosen).index_put((rows,), of_rejected)


def sequence_logps(compute: Compute, model: PreTrainedModel, prompts: Inputs, answers: Answers) -> Float[Tensor, "n a"]:
    """Log-probability of each token of each answer, in nats; 0 behind its end."""
    whole = prompts.followed_by(answers)
    tokens: Int[Tensor, "n t"] = whole.sequence
    return compute.logps(model, tokens, answers.shape[1], whole.positions, whole.mask, whole.shared)
