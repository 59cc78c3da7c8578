"""Records: one tidy table, one row per measurement. Everything a report shows is read from here.

Scores stand beside it: the values of single prompts, and of single draws of a control, that claims are tested on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunescope.errors import InputError, shown
from tunescope.files import atomic_path
from tunescope.records.intervals import Groups


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes:
        model: folder name under models/, e.g. `base`, `ssft-eta_m`.
        protocol: `base`, that which made a fine-tune, or `given`.
        learning_rate: its name, e.g. `eta_m`; empty for the base, and for given models.
        seed: seed of the study.
        step: training step at which it was measured (the final one for finished models).
        layer, site: where in the model, counted from 0; null and empty for the whole model. Of a weight, its name.
        kind: kind of prompt, or empty. strength: of that kind, else null.
        attack: what was done to get past the model, or empty. intervention: what was changed inside it, or empty.
        dial: how much of the attack or intervention (alpha, rank, tokens), else null.
        budget: gradient steps within which an attack had to succeed; null where it had all.
        scope: what an intervention touches; of an overlap, the other model; or empty.
        outcome: `success` or `failure`: of the attacked prompts that were, or were not, answered alone.
        metric: what was measured (docs/metrics.md).
        control: empty for the model itself; `gaussian`, `rotated`, `haar` or `shuffled` for what stands in its place.
        value, low, high: the estimate and its 95 % interval (null where there is none).
        n: how many prompts, or 1.
    """

    model: str
    protocol: str
    learning_rate: str
    seed: int
    step: int
    metric: str
    value: float
    layer: int | None = None
    site: str = ""
    kind: str = ""
    strength: float | None = None
    attack: str = ""
    intervention: str = ""
    dial: float | None = None
    budget: int | None = None
    scope: str = ""
    outcome: str = ""
    control: str = ""
    low: float | None = None
    high: float | None = None
    n: int = 1


@dataclass(frozen=True)
class Subject:
    """Who is measured: the first columns of a record; see there."""

    model: str
    protocol: str
    learning_rate: str
    seed: int
    step: int

    def record(self, metric: str, value: float, **where: Any) -> Record:
        return Record(**asdict(self), metric=metric, value=value, **where)


@dataclass(frozen=True)
class Scores:
    """Values of one metric, one per prompt of a kind, or per draw of a control; the rest as in `Record`.

    Attributes:
        groups: of each prompt; None, in the table null, where each is a group of its own.
    """

    subject: Subject
    metric: str
    values: np.ndarray
    groups: Groups = None
    kind: str = ""
    strength: float | None = None
    attack: str = ""
    intervention: str = ""
    dial: float | None = None
    scope: str = ""
    control: str = ""
    layer: int | None = None


_TEXT, _WHOLE, _NUMBER = pa.string(), pa.int64(), pa.float64()
_SUBJECT = {"model": _TEXT, "protocol": _TEXT, "learning_rate": _TEXT, "seed": _WHOLE, "step": _WHOLE}
_PROMPTS = {"kind": _TEXT, "strength": _NUMBER, "attack": _TEXT, "intervention": _TEXT, "dial": _NUMBER}
SCHEMA = pa.schema(
    {
        **_SUBJECT,
        "layer": _WHOLE,
        "site": _TEXT,
        **_PROMPTS,
        "budget": _WHOLE,
        "scope": _TEXT,
        "outcome": _TEXT,
        "metric": _TEXT,
        "control": _TEXT,
        "value": _NUMBER,
        "low": _NUMBER,
        "high": _NUMBER,
        "n": _WHOLE,
    }
)
SCORES_SCHEMA = pa.schema(
    {
        **_SUBJECT,
        "layer": _WHOLE,
        **_PROMPTS,
        "scope": _TEXT,
        "metric": _TEXT,
        "control": _TEXT,
        "index": _WHOLE,
        "group": _WHOLE,
        "value": _NUMBER,
    }
)
ORDER = SCHEMA.names
KEYS = [name for name in ORDER if name not in ("value", "low", "high", "n")]  # no two records have all of these alike


def write_records(records: Iterable[Record], path: Path) -> None:
    """Write records as one parquet file, atomically."""
    _write(pa.Table.from_pylist([asdict(record) for record in records], schema=SCHEMA), path)


def write_scores(scores: Iterable[Scores], path: Path) -> None:
    """Write scores as one parquet file, a row per value and its `index` within its block, atomically."""
    blocks = []
    for block in scores:
        n = len(block.values)
        about = vars(block.subject) | {k: v for k, v in vars(block).items() if k in SCORES_SCHEMA.names}
        columns = {k: pa.repeat(pa.scalar(v, SCORES_SCHEMA.field(k).type), n) for k, v in about.items()}
        index = np.arange(n)
        groups = pa.nulls(n, _WHOLE) if block.groups is None else pa.array(block.groups)
        columns |= {"index": pa.array(index), "group": groups}
        columns["value"] = pa.array(block.values, _NUMBER)
        blocks.append(pa.table(columns).select(SCORES_SCHEMA.names).cast(SCORES_SCHEMA))
    _write(pa.concat_tables([SCORES_SCHEMA.empty_table(), *blocks]), path)


def read_records(path: Path) -> pd.DataFrame:
    """Records as a data frame; empty text where a column does not apply, null where a number does not.

    Raises:
        InputError: no such file, or no table of records.
    """
    return read_table(path, SCHEMA).to_pandas()


def read_scores(path: Path) -> pd.DataFrame:
    """Scores as a data frame; its texts are categories.

    Raises:
        InputError: no such file, or no table of scores.
    """
    table = read_table(path, SCORES_SCHEMA)
    return table.to_pandas(categories=[f.name for f in SCORES_SCHEMA if f.type == _TEXT])


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """A parquet file of this schema, whose numbers are finite where they must be there.

    Raises:
        InputError: no such file, or it is no such table.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; a run writes it") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as parquet ({shown(error)}); run the study again") from error
    if missing := [name for name in schema.names if name not in table.column_names]:
        raise InputError(
            f"{path}: has no column {missing[0]}: not a table of this version of tunescope; run the study again"
        )
    try:
        table = table.select(schema.names).cast(schema)
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: a column has another type ({shown(error)}); run the study again") from error
    for name in ("metric", "value"):
        if table[name].null_count or (name == "value" and not np.isfinite(table[name].to_numpy()).all()):
            raise InputError(f"{path}: column {name} has entries that are missing or not finite; run the study again")
    return table


def merge_tables(parts: Iterable[Path], path: Path, schema: pa.Schema = SCHEMA, without: Iterable[str] = ()) -> None:
    """Concatenate parquet files of records, or of scores, in the given order, into one.

    Args:
        without: models that are left out, and measurements that have one of them as their scope, such as overlaps.
    """
    out = pa.array(without, pa.string())
    tables = (read_table(part, schema) for part in parts)
    kept = (each.filter(~(pc.field("model").isin(out) | pc.field("scope").isin(out))) for each in tables)
    _write(pa.concat_tables([schema.empty_table(), *kept]), path)


def write_part(records: Iterable[Record], scores: Iterable[Scores], folder: Path, part: str) -> None:
    """Write `parts/<part>.parquet` and `parts/scores-<part>.parquet`; where the records are, the scores are."""
    write_scores(scores, folder / f"parts/scores-{part}.parquet")
    write_records(records, folder / f"parts/{part}.parquet")


def merge_parts(folder: Path, parts: Sequence[str]) -> None:
    """Concatenate what `write_part` wrote into the folder's records.parquet and scores.parquet."""
    merge_tables([folder / f"parts/{part}.parquet" for part in parts], folder / "records.parquet")
    merge_tables([folder / f"parts/scores-{part}.parquet" for part in parts], folder / "scores.parquet", SCORES_SCHEMA)


def _write(table: pa.Table, path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
