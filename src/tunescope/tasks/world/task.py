"""The synthetic world as a task."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import WorldConfig
from tunescope.errors import InputError, choices
from tunescope.models.inputs import Inputs
from tunescope.models.logps import which_follows
from tunescope.models.tokenizer import build_tokenizer
from tunescope.records.names import LAST, SAFE, UNSAFE
from tunescope.rng import Stream
from tunescope.tasks import base
from tunescope.tasks.base import Batch, Outcomes, PreferenceBatch, Reader, Twins
from tunescope.tasks.world.batches import preference_batch, pretraining_batch
from tunescope.tasks.world.describe import describe
from tunescope.tasks.world.kinds import Kind
from tunescope.tasks.world.lessons import draw_prompts, draw_twins, kinds_of
from tunescope.tasks.world.prompts import Prompts, read_prompt, refusals
from tunescope.tasks.world.world import World, build_world

HELD_OUT = (SAFE, UNSAFE, Kind.SAFE_DIALECT.value)
HELD_OUT_PROMPTS = 512  # of each


class WorldTask:
    """Every prompt is drawn when it is asked for, and its answer and refusal are known exactly."""

    exact = knows_answers = True

    def __init__(self, world: World) -> None:
        self.world = world
        self.device = world.device
        self.tokenizer = build_tokenizer(world.vocab.words)
        self.answer_length = world.answer_length
        self.sequence_length = world.sequence_length
        self.kinds: Mapping[str, base.Kind] = {
            kind.value: base.Kind(kind.value, "compliance" if kind.safe else "refusal", kind.has_strength)
            for kind in kinds_of(world.config.lesson)
        }

    @property
    def suffix_tokens(self) -> Int[Tensor, " v"]:
        vocab = self.world.vocab
        return torch.arange(vocab.first_symbol, len(vocab), device=self.device)

    def draw(self, kind: str, n: int, use: base.Use, stream: Stream, strength: float = 0.0) -> Batch:
        """See `Task`; what prompts are for is told by the stream alone."""
        if kind not in self.kinds:
            raise InputError(f"Unknown kind {kind!r}. {choices(kind, self.kinds)}")
        return self._batch(draw_prompts(self.world, Kind(kind), n, stream, strength))

    def twins(self, n: int, stream: Stream) -> Twins:
        slots, length = self.world.slots, self.world.prompt_length
        positions = {"operators": slice(slots), "operand": slice(slots, length - 1), LAST: slice(-1, None)}
        unsafe, safe, other = map(self._batch, draw_twins(self.world, n, stream))
        return Twins(unsafe, safe, other, positions)

    def typed(self, text: str) -> Batch:
        """A prompt as `sample` prints it: operators, then symbols, plain or in dialect; `<sep>` may be left out.

        Raises:
            InputError: another number of either, or other words.
        """
        prompt, answer = read_prompt(self.world, text)
        refusal = refusals(self.world, 1)
        return Batch(base.TYPED, 0.0, Inputs(prompt), answer, refusal, describe=lambda i: {"prompt": text})

    def _batch(self, prompts: Prompts) -> Batch:
        return Batch(
            self.kinds[prompts.kind],
            prompts.strength,
            Inputs(prompts.prompt),
            prompts.answer,
            prompts.refusal,
            describe=lambda i: describe(self.world, prompts, i),
        )

    def lesson(self, safe: int, unsafe: int, stream: Stream) -> PreferenceBatch:
        return preference_batch(self.world, safe, unsafe, stream)

    def pretraining(self, n: int, stream: Stream, progress: float) -> tuple[Inputs, Bool[Tensor, "n t"]]:
        batch = pretraining_batch(self.world, n, stream, progress)
        return Inputs(batch.tokens), batch.learn

    def held_out(self, stream: Stream) -> list[Batch]:
        return [
            self.draw(kind, HELD_OUT_PROMPTS, "score", stream(kind), self.kinds[kind].strongest) for kind in HELD_OUT
        ]

    def outcomes(self, model: PreTrainedModel, batch: Batch, rows: int, prompts: Inputs | None = None) -> Outcomes:
        given = batch.prompts if prompts is None else prompts
        complied, refused = which_follows(model, given, batch.known(), rows)
        return Outcomes(complied, refused & ~complied)  # they are one where dialect is asked for, and is the style

    def judge(self, batch: Batch, generated: Int[Tensor, "n a"]) -> Outcomes:
        answer, refusal = batch.known()
        complied = (generated == answer).all(dim=1)
        return Outcomes(complied, (generated == refusal).all(dim=1) & ~complied)

    def text(self, tokens: Int[Tensor, " a"]) -> str:
        return self.world.vocab.text(tokens.tolist())


@base.task("world", WorldConfig)
def build(config: WorldConfig, device: torch.device, reader: Reader | None = None) -> WorldTask:
    """The world of these settings; a model from elsewhere reads it with the tokenizer that it was saved with."""
    return WorldTask(build_world(config, device))
