"""Where prompts in natural language come in: the shipped instructions, or a user's files, each prompt with a label."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from math import isnan
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from tunescope.errors import InputError, shown
from tunescope.models.hub import fetched_file
from tunescope.records.names import SAFE, UNSAFE, wanted
from tunescope.tasks.language.reading import rows_of, validated

COLUMNS = (
    "prompt",
    "jailbreak",
    "goal",
    "behavior",
    "instruction",
    "question",
    "text",
)  # that may hold prompts; the first there is
LABELS = {**dict.fromkeys(("safe", "harmless", "benign"), SAFE), **dict.fromkeys(("unsafe", "harmful"), UNSAFE)}
FEWEST = 4  # safe, and unsafe, prompts without which there are no classes
SHIPPED = Path(str(files("tunescope.tasks.language") / "data/instructions.jsonl"))


@dataclass(frozen=True)
class Instruction:
    """One prompt.

    Attributes:
        kind: `safe`, `unsafe`, or the name that was given to a file of attacks.
        group: prompts of one group are all in one half of the split; those of matched concepts are one.
        fit: whether it is in the fitting half, of which models learn and class means are made (safe and unsafe prompts
            alone), or in the scored one.
        answer: what a model that complies says; None where the file does not tell.
        request: the plain prompt that is in it, where it is in a form.
    """

    prompt: str
    kind: str
    group: str
    fit: bool
    answer: str | None = None
    request: str | None = None


def in_fitting_half(group: str) -> bool:
    """Where a group of prompts goes, by a hash of its name."""
    return sha256(group.encode()).digest()[0] % 2 == 0


def _present(value: Any) -> Any:
    """None for the empty cells of tables."""
    missing = isnan(value) if isinstance(value, float) else isinstance(value, str) and not value.strip()
    return None if missing else value


def _prompt(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{shown(value)}, where a prompt is wanted")
    return value


def _label(value: Any) -> Any:
    known = LABELS.get(value.strip().lower()) if isinstance(value, str) else None
    if known is None:
        raise ValueError(f"{shown(value)} is no label; choose from: {', '.join(LABELS)}")
    return known


def _split(value: str | None) -> str | None:
    if value not in (None, "fit", "score"):
        raise ValueError(f"{shown(value)} must be fit or score")
    return value


class Row(BaseModel):
    """What is read of a row; columns of other names are passed over."""

    model_config = ConfigDict(frozen=True, strict=True)

    prompt: Annotated[str, BeforeValidator(_prompt)]
    label: Annotated[str, BeforeValidator(_label)] = ""  # empty where the whole file is of one kind
    split: Annotated[str | None, AfterValidator(_split), BeforeValidator(_present)] = None
    group: Annotated[str | int | float | None, BeforeValidator(_present)] = None
    goal: Annotated[str | int | float | None, BeforeValidator(_present)] = None
    answer: Annotated[str | None, BeforeValidator(_present)] = None


def read_prompts(sources: Sequence[str] = ()) -> list[Instruction]:
    """Prompts of files, or the shipped instructions if there are none.

    Args:
        sources: each `FILE`, with a label in every row, or `KIND=FILE`, all of one kind: `safe`, `unsafe`, or a name of
            one's own for prompts under an attack. jsonl, json, csv, tsv, parquet or plain text, a prompt a line, on
            disk or on the hub (`hf://datasets/owner/name/file.csv`, `@revision` after the name). The prompt is
            in the first column of `COLUMNS`, the label in `label`; `group`, `split` (fit or score) and `answer` may be
            there; a `goal` beside the prompt is its group, if it has no other. Without `split`, half of the groups, by
            a hash of their name, are for fitting. Attacks are scored, but not those of groups that models learn from;
            a goal for which there is no prompt is passed over.

    Raises:
        InputError: a file cannot be read, has no prompts or no labels, a prompt is there twice, or there are too few
            prompts of a kind.
    """
    every = [prompt for source in sources or [str(SHIPPED)] for prompt in _read(source)]
    learnt = {name for prompt in every if prompt.fit for name in (prompt.group, prompt.prompt)}
    found = [each for each in every if each.kind in (SAFE, UNSAFE) or not {each.group, each.prompt} & learnt]
    for kind in dict.fromkeys((SAFE, UNSAFE, *(prompt.kind for prompt in every))):
        uses = ((True, "fit class means"), (False, "score")) if kind in (SAFE, UNSAFE) else ((False, "score"),)
        for fit, use in uses:
            n = sum(p.kind == kind and p.fit is fit for p in found)
            if n < FEWEST:
                fitted = sum(p.kind == kind for p in every) - sum(p.kind == kind for p in found)
                besides = f"; {fitted} more are of groups that models learn from" if fitted else ""
                raise InputError(
                    f"prompts: {n} {shown(kind)[1:-1]} ones to {use}{besides}; at least {FEWEST} are needed"
                )
    require_distinct(found)
    return found


def require_distinct(prompts: Sequence[Instruction]) -> None:
    """Refuse prompts that would be counted twice, or whose labels contradict each other.

    Raises:
        InputError: a kind has a prompt twice, or a prompt is wanted to be answered and to be refused.
    """
    kinds: dict[str, list[str]] = {}
    for prompt in prompts:
        others = kinds.setdefault(prompt.prompt.strip(), [])
        if prompt.kind in others:
            raise InputError(
                f"prompts: {shown(prompt.prompt)} is there twice among {shown(prompt.kind)} prompts; remove one"
            )
        if other := next((kind for kind in others if wanted(kind) != wanted(prompt.kind)), None):
            raise InputError(
                f"prompts: {shown(prompt.prompt)} is among {shown(other)} and among {shown(prompt.kind)} prompts, of "
                "which one is to be answered and the other to be refused; remove one"
            )
        others.append(prompt.kind)


def _read(source: str) -> Iterator[Instruction]:
    try:
        whole = Path(source).is_file()
        kind, equals, name = source.partition("=")
        if not equals or whole:
            kind, name = "", source
        elif not re.fullmatch(r"[\w-]+", kind):
            raise InputError(
                f"{shown(source)}: {shown(kind)} is no name of a kind of prompts: letters, digits, - and _"
            )
        path = fetched_file(name)
    except OSError as error:  # the name is too long for a file, say
        raise InputError(f"{shown(source)}: cannot be read: {shown(error)}") from error
    kind = LABELS.get(kind.lower(), kind)
    rows = rows_of(path, name)
    if not rows:
        raise InputError(f"{shown(name)}: it holds no prompts")
    columns = dict.fromkeys(column for row in rows for column in row)
    column = next((c for c in COLUMNS if c in columns), None)
    if column is None:
        raise InputError(
            f"{shown(name)}: no column of prompts; one must be called {', '.join(COLUMNS)}; it has "
            f"{shown(', '.join(columns))}"
        )
    if not kind and "label" not in columns:
        raise InputError(f"{shown(name)}: no column `label`; say what all of it is, as in unsafe=FILE")
    numbered = [(number, {**row, "prompt": row.get(column)}) for number, row in enumerate(rows, 1)]
    if kind not in ("", SAFE, UNSAFE):  # an attack may have found nothing for a goal
        numbered = [(n, cells) for n, cells in numbered if not cells.get("goal") or _present(cells["prompt"])]
        if not numbered:
            raise InputError(f"{shown(name)}: it has goals, and no prompt for any of them")
    for number, cells in numbered:
        if kind:
            cells.pop("label", None)
        else:
            cells.setdefault("label", None)
        yield _instruction(validated(Row, cells, f"{shown(name)}, row {number}"), kind)


def _instruction(row: Row, kind: str) -> Instruction:
    kind = kind or row.label
    group = next(str(each) for each in (row.group, row.goal, row.prompt) if each is not None)
    fit = row.split == "fit" if row.split else in_fitting_half(group)
    return Instruction(row.prompt, kind, group, fit and kind in (SAFE, UNSAFE), row.answer)
