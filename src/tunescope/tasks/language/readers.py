"""How models from elsewhere read prompts: tokenizers, chat templates, and what is checked before any work."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from tunescope.config import Format
from tunescope.errors import InputError, shown
from tunescope.models.checkpoint import ADAPTER, load_tokenizer
from tunescope.records.names import BASE
from tunescope.tasks.base import Reader
from tunescope.tasks.language.task import Language


def readers_of(folders: Mapping[str, Path], formats: Mapping[str, Format]) -> dict[str, Reader]:
    """How each of several models reads prompts; an adapter without a tokenizer reads as its base does.

    Args:
        folders: of models by name, `base` among them.
        formats: of each.

    Raises:
        InputError: a tokenizer cannot be loaded or differs from the base's, or a format is chat and there is no
            template.
    """
    own = {name: load_tokenizer(folder) for name, folder in folders.items() if _has_tokenizer(folder)}
    tokenizers = {name: own.get(name, own[BASE]) for name in folders}
    for name in sorted(own.keys() - {BASE}):
        require_same_tokens(tokenizers[BASE], tokenizers[name], (str(folders[BASE]), str(folders[name])))
    tuned = next((tokenizer for name, tokenizer in tokenizers.items() if name != BASE), None)
    return {
        name: reader_of(name, tokenizer, formats[name], tuned if name == BASE else None)
        for name, tokenizer in tokenizers.items()
    }


def reader_of(
    name: str, tokenizer: PreTrainedTokenizerBase, format: Format, lender: PreTrainedTokenizerBase | None = None
) -> Reader:
    """How one model reads prompts: `auto` is chat where its tokenizer has a chat template.

    Args:
        name: of the model, for messages.
        lender: whose chat template stands in where the format is chat and the tokenizer has none.

    Raises:
        InputError: the format is chat, but there is no chat template, or it cannot be read.
    """
    template = None if format == "plain" else _template(name, tokenizer)
    if template is None and format == "chat":
        template = None if lender is None else _template(name, lender)
        if template is None:
            raise InputError(f"{name}: format is chat, but no tokenizer has a chat template; choose auto or plain")
    return Reader(tokenizer, template)


def require_same_tokens(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase, names: tuple[str, str]
) -> None:
    """Refuse two tokenizers of which the second does not know a token of the first by the same number.

    Raises:
        InputError: names the first such token.
    """
    vocabulary, other = first.get_vocab(), second.get_vocab()
    for token, number in sorted(vocabulary.items(), key=lambda entry: entry[1]):
        if other.get(token) != number:
            both = " and ".join(shown(name) for name in names)
            raise InputError(
                f"{both}: two tokenizers: {shown(token)} is token {number} in one, {other.get(token, 'none')} in the "
                "other"
            )


def require_fits(task: Language, config: PreTrainedConfig, folder: Path) -> None:
    """Refuse prompts that a model cannot read.

    Raises:
        InputError: a prompt and its answer are longer than the model takes, or have tokens that it does not know.
    """
    text = config.get_text_config()
    where, most = shown(str(folder)), getattr(text, "max_position_embeddings", None)
    openings = [opening for each in task.opening_ids for opening in each]
    room = max(task.answer_length, *(len(opening) for opening in openings))
    parts = [(kind, part) for (kind, _), part in task.parts.items() if len(part)]
    parts += [(kind, task.in_form(kind, "score", 1.0)) for kind in task.forms if kind in task.kinds]
    parts += [(kind, task.in_form(kind, "train", 1.0)) for kind in task.lesson_kinds]
    largest = {f"{kind} prompts": int(part.inputs.sequence.max()) for kind, part in parts}
    largest["openings"] = max(int(opening.max()) for opening in openings)
    lengths: dict[str, int] = {}
    for kind, part in parts:
        name = f"{kind} prompt and its answer have"
        lengths[name] = max(lengths.get(name, 0), part.inputs.sequence.shape[1] + room)
    if task.prose is not None:
        largest["ordinary text"] = int(task.prose.sequence.max())
        lengths["passage of ordinary text has"] = task.prose.sequence.shape[1]
    for what, longest in lengths.items():
        if most is not None and longest > most:
            raise InputError(f"{where}: takes {most} tokens; the longest {what} {longest}")
    for what, token in largest.items():
        if token >= text.vocab_size:
            raise InputError(
                f"{where}: token {token} of {what} is none of the model's {text.vocab_size}; "
                "its tokenizer is of another model"
            )


def digest(task: Language) -> str:
    """Of all that results depend on here: prompts in their format, groups, answers, openings, refusals, the judge."""
    prompts = [
        [kind, use, part.inputs.sequence.tolist(), [(each.group, task.answer_to(each)) for each in part.instructions]]
        for (kind, use), part in task.parts.items()
    ]
    openings = [[opening.tolist() for opening in each] for each in task.opening_ids]
    text = None if task.prose is None else task.prose.sequence.tolist()
    said = [task.openings.answers, task.openings.styled, text]
    return sha256(json.dumps([prompts, openings, said, task.judge_name]).encode()).hexdigest()


def _template(name: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    if not tokenizer.chat_template:
        return None
    try:
        return str(tokenizer.get_chat_template())
    except Exception as error:  # there are several, say, and none is the default
        raise InputError(f"{name}: its chat template cannot be read: {shown(error)}") from error


def _has_tokenizer(folder: Path) -> bool:
    return not (folder / ADAPTER).exists() or (folder / "tokenizer_config.json").exists()
