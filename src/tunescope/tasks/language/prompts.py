"""Where prompts in natural language come in: what comes with tunescope, or a user's files, each prompt with a label."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from math import isnan
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict

from tunescope.errors import InputError, choices, shown
from tunescope.models.hub import fetched_file
from tunescope.records.names import SAFE, UNSAFE, wanted
from tunescope.tasks.base import Use
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
DATA = Path(str(files("tunescope.tasks.language") / "data"))
PREFIX = "shipped:"
# What comes with tunescope, by the name that stands behind `shipped:`.
SHIPPED = {
    "instructions": ("instructions.jsonl",),
    "ordinary": ("ordinary.jsonl",),
    "prose": ("prose.txt",),
    "xstest": ("safe_xstest=xstest_safe.txt", "xstest_unsafe=xstest_unsafe.txt"),
}
OVER_REFUSAL = ("safe_xstest", "xstest_unsafe")  # kinds of which the answers alone are looked at
USES: tuple[Use, ...] = get_args(Use)


@dataclass(frozen=True)
class Instruction:
    """One prompt.

    Attributes:
        kind: `safe`, `unsafe`, or the name that was given to a file of attacks.
        group: prompts of one group are all in one part of the split; those of matched concepts are one.
        use: the part that it is in. Models learn from `train`; class means, and all that is chosen, are of `fit`
            (safe and unsafe prompts alone); the rest is scored.
        answer: what a model that complies says; None where the file does not tell.
        request: the plain prompt that is in it, where it is in a form.
    """

    prompt: str
    kind: str
    group: str
    use: Use
    answer: str | None = None
    request: str | None = None


def use_of(group: str) -> Use:
    """Where a group of prompts goes, by a hash of its name: two fifths train, one fits, two are scored."""
    fifths: tuple[Use, ...] = ("train", "train", "fit", "score", "score")
    return fifths[sha256(group.encode()).digest()[6] % 5]  # the byte that deals the shipped groups out evenly


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


def _split(value: Any) -> Any:
    if value not in (None, *USES):
        raise ValueError(f"{shown(value)} must be {', '.join(USES[:-1])} or {USES[-1]}")
    return value


class Row(BaseModel):
    """What is read of a row; columns of other names are passed over."""

    model_config = ConfigDict(frozen=True, strict=True)

    prompt: Annotated[str, BeforeValidator(_prompt)]
    label: Annotated[str, BeforeValidator(_label)] = ""  # empty where the whole file is of one kind
    split: Annotated[Use | None, BeforeValidator(_split), BeforeValidator(_present)] = None
    group: Annotated[str | int | float | None, BeforeValidator(_present)] = None
    goal: Annotated[str | int | float | None, BeforeValidator(_present)] = None
    answer: Annotated[str | None, BeforeValidator(_present)] = None


def read_prompts(sources: Sequence[str]) -> list[Instruction]:
    """Prompts of files.

    Args:
        sources: each `FILE`, with a label in every row, or `KIND=FILE`, all of one kind: `safe`, `unsafe`, or a name of
            one's own for prompts under an attack. jsonl, json, csv, tsv, parquet or plain text, a prompt a line, on
            disk or on the hub (`hf://datasets/owner/name/file.csv`, `@revision` after the name), or `shipped:NAME`.
            The prompt is in the first column of `COLUMNS`, the label in `label`; `group`, `split` (train, fit or
            score) and `answer` may be there; a `goal` beside the prompt is its group, if it has no other. Without
            `split`, a hash of their names deals groups out. Attacks are scored, but not those of groups that models
            learn from or that something is chosen by; a goal for which there is no prompt is passed over.

    Raises:
        InputError: a file cannot be read, has no prompts or no labels, a prompt is there twice, or there are too few
            prompts of a kind.
    """
    every = [prompt for source in sources for each in _files(source) for prompt in _read(each)]
    if kinds := [kind for kind in (SAFE, UNSAFE) if kind not in {prompt.kind for prompt in every}]:
        raise InputError(f"prompts: none of {', '.join(map(shown, sources))} is {kinds[0]}; both labels are needed")
    learnt = {name for prompt in every if prompt.use != "score" for name in (prompt.group, prompt.prompt)}
    found = [each for each in every if each.kind in (SAFE, UNSAFE) or not {each.group, each.prompt} & learnt]
    for kind in dict.fromkeys((SAFE, UNSAFE, *(prompt.kind for prompt in every))):
        for use in USES if kind in (SAFE, UNSAFE) else USES[-1:]:
            n = sum(p.kind == kind and p.use == use for p in found)
            if n < FEWEST:
                fitted = sum(p.kind == kind for p in every) - sum(p.kind == kind for p in found)
                besides = f"; {fitted} more are of groups that models learn from" if fitted else ""
                raise InputError(
                    f"prompts: {n} {shown(kind)[1:-1]} ones to {use}{besides}; at least {FEWEST} are needed"
                )
    require_distinct(found)
    return found


def read_text(source: str) -> list[str]:
    """Passages of ordinary text, a line each: of a file, or of what is shipped.

    Raises:
        InputError: it cannot be read, or holds none.
    """
    rows = [row for path in _files(source) for row in rows_of(fetched_file(path), source)]
    found = [text for row in rows if isinstance(text := row.get("prompt"), str) and text.strip()]
    if not found:
        raise InputError(f"task.text: {shown(source)}: it holds no text; a passage a line is wanted")
    return found


def _files(source: str) -> tuple[str, ...]:
    """The files of what is shipped under a name; any other source as it is.

    Raises:
        InputError: nothing is shipped under this name.
    """
    name = source.removeprefix(PREFIX)
    if name == source:
        return (source,)
    if name not in SHIPPED:
        raise InputError(f"{shown(source)}: unknown. {choices(source, [f'{PREFIX}{each}' for each in SHIPPED])}")
    parts = (file.rpartition("=") for file in SHIPPED[name])
    return tuple(f"{kind}{equals}{DATA / file}" for kind, equals, file in parts)


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
    use = row.split or use_of(group)
    return Instruction(row.prompt, kind, group, use if kind in (SAFE, UNSAFE) else "score", row.answer)
