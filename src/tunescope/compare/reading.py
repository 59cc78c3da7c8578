"""How the prompts of a comparison reach its two models: formats, tokens, and the openings that tell refusals."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tunescope.compare.how import How
from tunescope.errors import InputError
from tunescope.language.encode import encode, ids_of
from tunescope.language.prompts import Instruction, read_prompts
from tunescope.language.refusals import Openings, read_openings, refusal_margin
from tunescope.measure.findings import SAFE, UNSAFE, Sample
from tunescope.models.checkpoint import ADAPTER, load_tokenizer
from tunescope.models.hub import Source
from tunescope.models.inputs import Inputs


@dataclass(frozen=True)
class Reading:
    """Prompts and openings as each model, `base` or `tuned`, reads them."""

    sources: dict[str, Source]
    how: How
    configs: dict[str, PreTrainedConfig]
    device: torch.device

    @cached_property
    def prompts(self) -> list[Instruction]:
        return read_prompts(self.how.prompts)

    @cached_property
    def openings(self) -> Openings:
        return read_openings(Path(self.how.openings) if self.how.openings else None)

    @cached_property
    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        """Of both; an adapter without one has its base's."""
        of = {which: load_tokenizer(source.folder) for which, source in self.sources.items() if _has_own(source)}
        return {which: of.get(which, of.get("base")) for which in self.sources}

    @cached_property
    def templates(self) -> dict[str, str | None]:
        """The chat template of each model's prompts; None where they are plain."""
        own = {
            which: tokenizer.get_chat_template() if tokenizer.chat_template else None
            for which, tokenizer in self.tokenizers.items()
        }
        wanted = {"base": self.how.base_format, "tuned": self.how.tuned_format}
        for which, form in wanted.items():
            if form == "chat" and not (own[which] or own["tuned"]):
                raise InputError(f"--{which}-format: chat, but no tokenizer has a chat template")
        chat = {which: own[which] or (own["tuned"] if form == "chat" else None) for which, form in wanted.items()}
        return {which: None if form == "plain" else chat[which] for which, form in wanted.items()}

    def require_readable(self) -> None:
        """Refuse what would fail later.

        Raises:
            InputError: the two tokenizers differ, or one cannot read a prompt or an opening; or a prompt and its answer
                are longer than a model takes, or have tokens that it does not know.
        """
        first, second = (tokenizer.get_vocab() for tokenizer in self.tokenizers.values())
        for token, number in sorted(first.items(), key=lambda entry: entry[1]):
            if second.get(token) != number:
                names = " and ".join(str(source.folder) for source in self.sources.values())
                other = second.get(token, "none")
                raise InputError(f"{names}: two tokenizers: {token!r} is token {number} in one, {other} in the other")
        for which in self.sources:
            sample, openings = self.samples[which], self._openings[which]
            room = max(self.how.new_tokens, *(len(ids) for ids in (*openings[0], *openings[1])))
            for of_kinds in (sample.fit, sample.score):
                for kind, inputs in of_kinds.items():
                    self._require_fits(which, kind, inputs, room)

    def texts(self, *, fit: bool) -> dict[str, list[str]]:
        """Prompts of one half, by kind."""
        found: dict[str, list[str]] = {SAFE: [], UNSAFE: []}
        for prompt in self.prompts:
            if prompt.fit is fit:
                found.setdefault(prompt.kind, []).append(prompt.prompt)
        return found

    @cached_property
    def samples(self) -> dict[str, Sample]:
        """By model, both halves as token ids, each kind of each padded to a length of its own."""

        def encoded(which: str, *, fit: bool) -> dict[str, Inputs]:
            tokenizer, template = self.tokenizers[which], self.templates[which]
            of_kinds = self.texts(fit=fit).items()
            return {kind: encode(tokenizer, texts, self.device, template=template) for kind, texts in of_kinds}

        return {which: Sample(encoded(which, fit=True), encoded(which, fit=False)) for which in self.sources}

    def told(self) -> dict[str, str]:
        """By model, a digest of all that it is given to read: of prompts in their format, and of openings."""
        found = {}
        for which in self.sources:
            sample, openings = self.samples[which], self._openings[which]
            ids = [inputs.sequence.tolist() for of in (sample.fit, sample.score) for inputs in of.values()]
            said = [opening.tolist() for each in openings for opening in each]
            found[which] = sha256(json.dumps([ids, said]).encode()).hexdigest()
        return found

    def margin(self, which: str, model: PreTrainedModel, inputs: Inputs, rows: int) -> tuple[Tensor, Tensor]:
        """See `refusal_margin`."""
        refusal, compliance = self._openings[which]
        return refusal_margin(model, inputs, refusal, compliance, rows)

    def _require_fits(self, which: str, kind: str, inputs: Inputs, room: int) -> None:
        config = self.configs[which]
        longest, largest = inputs.sequence.shape[1] + room, int(inputs.sequence.max())
        if longest > (most := getattr(config, "max_position_embeddings", longest)):
            folder = self.sources[which].folder
            raise InputError(f"{folder}: takes {most} tokens; the longest {kind} prompt and its answer have {longest}")
        if largest >= config.vocab_size:
            raise InputError(
                f"{self.sources[which].folder}: token {largest} of {kind} prompts is none of the model's "
                f"{config.vocab_size}; its tokenizer is of another model"
            )

    @cached_property
    def _openings(self) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
        def ids(which: str, texts: Sequence[str]) -> list[Tensor]:
            return [torch.tensor(ids_of(self.tokenizers[which], text)) for text in texts]

        both = self.openings.refusal, self.openings.compliance
        return {which: (ids(which, both[0]), ids(which, both[1])) for which in self.sources}


def _has_own(source: Source) -> bool:
    return not (source.folder / ADAPTER).exists() or (source.folder / "tokenizer_config.json").exists()
