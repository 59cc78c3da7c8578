"""Files to rows, and rows to checked values; whatever is wrong with a file is one `InputError` of one line."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from tunescope.errors import InputError, shown

Rows = list[dict[str, Any]]
Model = TypeVar("Model", bound=BaseModel)
# What the readers of csv, JSON and parquet raise, deep nesting and text that is not UTF-8 among it.
_UNREADABLE = (ValueError, OSError, csv.Error, pa.ArrowException, RecursionError, OverflowError)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def json_of(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        InputError: it is not there, or holds no JSON.
    """
    try:
        return _loaded(text_of(path))
    except _UNREADABLE as error:
        raise InputError(f"{shown(str(path))}: cannot be read as JSON: {shown(error)}") from error


def rows_of(path: Path, name: str) -> Rows:
    """Rows of a table by the names of its columns, which are stripped and in lower case.

    Args:
        name: what the user calls the file.

    Raises:
        InputError: it is no table, or two columns have one name.
    """
    if path.suffix not in READERS:
        kinds = ", ".join(READERS)
        raise InputError(
            f"{shown(name)}: prompts are read from {kinds}; this is {shown(path.suffix) or 'none of them'}"
        )
    try:
        return [_named(row, f"{shown(name)}, row {i}") for i, row in enumerate(READERS[path.suffix](path), 1)]
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(f"{shown(name)}: cannot be read: {shown(error)}") from error


def validated(model: type[Model], data: Any, where: str) -> Model:
    """Data as this model.

    Raises:
        InputError: it does not fit; the first fault is named.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(map(str, fault["loc"]))
        reason = fault["msg"].removeprefix("Value error, ")
        value = "" if fault["type"] == "value_error" else f" (got {shown(fault['input'])})"
        raise InputError(f"{where}: {key}{': ' if key else ''}{reason}{value}") from error


def _named(row: Mapping[Any, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in row.items():
        column = str(key).strip().lower()
        if column in found:
            raise InputError(f"{where}: two columns are called {shown(column)}; rename one")
        found[column] = value
    return found


def _delimited(delimiter: str) -> Callable[[Path], Iterable[Mapping[Any, Any]]]:
    def read(path: Path) -> Iterable[Mapping[Any, Any]]:
        # Strict: a quote that is never closed is an error, not a cell that takes up the rest of the file.
        lines = (line for line in csv.reader(io.StringIO(text_of(path)), delimiter=delimiter, strict=True) if line)
        header = next(lines, None)
        if header is None:
            raise ValueError("it is empty")
        if len({name.strip().lower() for name in header}) < len(header):
            raise ValueError(f"two columns have one name, in {header}")
        for number, line in enumerate(lines, 1):
            if len(line) > len(header):
                raise ValueError(f"row {number} has {len(line)} cells, where there are {len(header)} columns")
            yield dict(zip(header, line, strict=False))

    return read


def _json(path: Path) -> Iterable[Mapping[Any, Any]]:
    """A list of rows, or columns: of each a list, or, as pandas writes them, a mapping from number of row to value.

    Rows may be within an object as its `jailbreaks`, as in the artefacts of JailbreakBench (Chao et al. 2024).
    """
    found = _loaded(text_of(path))
    if isinstance(found, dict) and isinstance(found.get("jailbreaks"), list) and "parameters" in found:
        found = found["jailbreaks"]
    if isinstance(found, dict):
        columns = {key: list(of.values()) if isinstance(of, dict) else of for key, of in found.items()}
        if not all(isinstance(of, list) for of in columns.values()) or len({len(of) for of in columns.values()}) > 1:
            raise ValueError("a list of rows is wanted")
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return _objects(found if isinstance(found, list) else [found])


def _json_lines(path: Path) -> Iterable[Mapping[Any, Any]]:
    # At line feeds alone: splitlines would cut a text in two at other separators, which JSON leaves as they are.
    return _objects(_loaded(line) for line in text_of(path).split("\n") if line.strip())


def _loaded(text: str) -> Any:
    """Content of JSON; an escaped half of a character that takes two, which is no text, is an error."""
    found = json.loads(text)
    json.dumps(found, ensure_ascii=False).encode()
    return found


def _objects(rows: Iterable[Any]) -> Iterable[Mapping[Any, Any]]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is {shown(row)}, where an object is wanted")
        yield row


def _parquet(path: Path) -> Rows:
    table = pq.read_table(path)
    if len(set(table.column_names)) < len(table.column_names):
        raise ValueError("two columns have one name")
    return table.to_pylist()


def _lines(path: Path) -> Rows:
    return [{"prompt": line} for line in text_of(path).splitlines()]


READERS: Mapping[str, Callable[[Path], Iterable[Mapping[Any, Any]]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".parquet": _parquet,
    ".txt": _lines,
}
