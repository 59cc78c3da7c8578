"""Where prompts in natural language come in: the shipped instructions, or a user's files, each prompt with a label."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from tunescope.errors import InputError
from tunescope.models.hub import fetched_file

SAFE, UNSAFE = "safe", "unsafe"
COLUMNS = ("prompt", "goal", "behavior", "instruction", "question", "text")  # that may hold prompts; the first there is
LABELS = {**dict.fromkeys(("safe", "harmless", "benign"), SAFE), **dict.fromkeys(("unsafe", "harmful"), UNSAFE)}
FEWEST = 4  # safe, and unsafe, prompts without which there are no classes
SHIPPED = Path(str(files("tunescope.language") / "data/instructions.jsonl"))

_READERS: Mapping[str, Callable[[Path], pd.DataFrame]] = {
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
    ".json": lambda path: pd.read_json(path, dtype=False),
    ".csv": lambda path: pd.read_csv(path, dtype=str),
    ".tsv": lambda path: pd.read_csv(path, dtype=str, sep="\t"),
    ".parquet": pd.read_parquet,
    ".txt": lambda path: pd.DataFrame({"prompt": path.read_text(encoding="utf-8").splitlines()}),
}


@dataclass(frozen=True)
class Instruction:
    """One prompt.

    Attributes:
        kind: `safe`, `unsafe`, or the name that was given to a file of attacks.
        group: prompts of one group are all in one half of the split; those of matched concepts are one.
        fit: whether it helps to find class means (safe and unsafe ones alone), or is scored against them.
    """

    prompt: str
    kind: str
    group: str
    fit: bool


def read_prompts(sources: Sequence[str] = ()) -> list[Instruction]:
    """Prompts of files, or the shipped instructions if there are none.

    Args:
        sources: each `FILE`, with a label in every row, or `KIND=FILE`, all of one kind: `safe`, `unsafe`, or a name of
            one's own for prompts under an attack. jsonl, json, csv, tsv, parquet or plain text, a prompt a line, on
            disk or on the hub (`hf://datasets/owner/name/file.csv`, `@revision` after the name). The prompt is
            in the first column of `COLUMNS`, the label in `label`; `group` and `split` (fit or score) may be there.
            Without `split`, half of the groups, by a hash of their name, are for fitting; attacks are all scored.

    Raises:
        InputError: a file cannot be read, has no prompts or no labels, or there are too few prompts of a kind.
    """
    found = list(chain.from_iterable(_read(source) for source in sources or [str(SHIPPED)]))
    for kind in dict.fromkeys((SAFE, UNSAFE, *(prompt.kind for prompt in found))):
        uses = ((True, "fit class means"), (False, "score")) if kind in (SAFE, UNSAFE) else ((False, "score"),)
        for fit, use in uses:
            n = sum(p.kind == kind and p.fit is fit for p in found)
            if n < FEWEST:
                raise InputError(f"prompts: {n} {kind} ones to {use}; at least {FEWEST} are needed")
    return found


def _read(source: str) -> Iterable[Instruction]:
    kind, equals, name = source.partition("=")
    if not equals or Path(source).is_file():
        kind, name = "", source
    elif not re.fullmatch(r"[\w-]+", kind):
        raise InputError(f"{source}: {kind!r} is no name of a kind of prompts: letters, digits, - and _")
    kind = LABELS.get(kind.lower(), kind)
    path = fetched_file(name)
    if path.suffix not in _READERS:
        raise InputError(
            f"{name}: prompts are read from {', '.join(_READERS)}; this is {path.suffix or 'none of them'}"
        )
    try:
        table = _READERS[path.suffix](path)
    except (ValueError, OSError, KeyError) as error:  # what pandas and pyarrow raise is one of these
        raise InputError(f"{name}: cannot be read: {str(error).splitlines()[0]}") from error
    table.columns = table.columns.astype(str).str.strip().str.lower()
    column = next((c for c in COLUMNS if c in table), None)
    if column is None:
        raise InputError(
            f"{name}: no column of prompts; one must be called {', '.join(COLUMNS)}; it has {', '.join(table.columns)}"
        )
    if not kind and "label" not in table:
        raise InputError(f"{name}: no column `label`; say what all of it is, as in unsafe={name}")
    if table.empty:
        raise InputError(f"{name}: it holds no prompts")
    return (_instruction(row, column, kind, f"{name}, row {i}") for i, row in enumerate(table.to_dict("records"), 1))


def _instruction(row: Mapping[Any, Any], column: str, kind: str, where: str) -> Instruction:
    prompt = row[column]
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{where}: {column} is {prompt!r}, where a prompt is wanted")
    label = kind or LABELS.get(str(row["label"]).strip().lower(), "")
    if not label:
        raise InputError(f"{where}: label is {row['label']!r}; it must be one of {', '.join(LABELS)}")
    split = row.get("split")
    if split not in (None, "fit", "score") and not pd.isna(split):
        raise InputError(f"{where}: split is {split!r}; it must be fit or score")
    group = row.get("group")
    group = prompt if group is None or pd.isna(group) else str(group)
    fit = split == "fit" if isinstance(split, str) else sha256(group.encode()).digest()[0] % 2 == 0
    return Instruction(prompt, label, group, fit and label in (SAFE, UNSAFE))
