"""Records: one tidy table, one row per measurement. Everything a report shows is read from here.

Scores stand beside it: the values of single prompts, and of single draws of a control, that claims are tested on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tunescope.files import atomic_path

PAIR = "pair"  # the protocol of a model that came with its base, and of which no more is known


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes:
        model: folder name under models/, e.g. `base`, `ssft-eta_m`.
        protocol: `pretraining`, `ssft`, `dpo`, `unlearning` or `benign`; `pair` where there is no telling.
        learning_rate: `eta_m`, `eta_s`, or empty for the base model.
        seed: seed of the study.
        step: training step at which it was measured (the final one for finished models).
        kind: kind of prompt, or empty. strength: of that kind, else null.
        layer, site: where in the model, counted from 0; null and empty for the whole model. Of a weight, its name.
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
    kind: str = ""
    strength: float | None = None
    layer: int | None = None
    site: str = ""
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
    """Values of one metric, one per prompt of a kind, or per draw of a control."""

    subject: Subject
    metric: str
    values: np.ndarray
    kind: str = ""
    strength: float | None = None
    control: str = ""
    layer: int | None = None


_TYPES = {
    **dict.fromkeys(("model", "protocol", "learning_rate", "site", "kind", "metric", "control"), pa.string()),
    **dict.fromkeys(("seed", "step", "n"), pa.int64()),
    "layer": pa.int64(),
    **dict.fromkeys(("strength", "value", "low", "high"), pa.float64()),
}
ORDER = [
    "model",
    "protocol",
    "learning_rate",
    "seed",
    "step",
    "layer",
    "site",
    "kind",
    "strength",
    "metric",
    "control",
    "value",
    "low",
    "high",
    "n",
]  # columns of records.parquet
SCHEMA = pa.schema([(name, _TYPES[name]) for name in ORDER])
_SCORED = ("metric", "control", "index", "value")
_TESTED = ("model", "protocol", "learning_rate", "seed", "step", "layer", "kind", "strength", *_SCORED)
SCORES_SCHEMA = pa.schema([(name, _TYPES.get(name, pa.int64())) for name in _TESTED])
assert set(ORDER) == {field.name for field in fields(Record)}


def write_records(records: Iterable[Record], path: Path) -> None:
    """Write records as one parquet file, atomically."""
    table = pa.Table.from_pylist([asdict(record) for record in records], schema=SCHEMA)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def write_scores(scores: Iterable[Scores], path: Path) -> None:
    """Write scores as one parquet file, a row per value and its `index` within its block, atomically."""
    blocks = []
    for block in scores:
        n = len(block.values)
        about = {**asdict(block.subject), "metric": block.metric, "kind": block.kind, "control": block.control}
        columns = {name: pa.repeat(pa.scalar(value), n) for name, value in about.items()}
        columns["layer"] = pa.repeat(pa.scalar(block.layer, pa.int64()), n)
        columns["strength"] = pa.repeat(pa.scalar(block.strength, pa.float64()), n)
        columns |= {"index": pa.array(np.arange(n)), "value": pa.array(block.values, pa.float64())}
        blocks.append(pa.table(columns).select(_TESTED).cast(SCORES_SCHEMA))
    with atomic_path(path) as temporary:
        pq.write_table(pa.concat_tables([SCORES_SCHEMA.empty_table(), *blocks]), temporary)


def merge_tables(parts: Iterable[Path], path: Path, schema: pa.Schema = SCHEMA) -> None:
    """Concatenate parquet files of records, or of scores, in the given order, into one."""
    table = pa.concat_tables([schema.empty_table(), *(pq.read_table(part, schema=schema) for part in parts)])
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def write_part(records: Iterable[Record], scores: Iterable[Scores], folder: Path, part: str) -> None:
    """Write `parts/<part>.parquet` and `parts/scores-<part>.parquet`; where the records are, the scores are."""
    write_scores(scores, folder / f"parts/scores-{part}.parquet")
    write_records(records, folder / f"parts/{part}.parquet")


def merge_parts(folder: Path, parts: Sequence[str]) -> None:
    """Concatenate what `write_part` wrote into the folder's records.parquet and scores.parquet."""
    merge_tables([folder / f"parts/{part}.parquet" for part in parts], folder / "records.parquet")
    merge_tables([folder / f"parts/scores-{part}.parquet" for part in parts], folder / "scores.parquet", SCORES_SCHEMA)


def read_records(path: Path) -> pd.DataFrame:
    """Records as a data frame; empty text where a column does not apply, null where a number does not."""
    return pq.read_table(path, schema=SCHEMA).to_pandas()


def read_scores(path: Path) -> pd.DataFrame:
    """Scores as a data frame; its texts are categories."""
    table = pq.read_table(path, schema=SCORES_SCHEMA)
    return table.to_pandas(categories=[f.name for f in SCORES_SCHEMA if f.type == pa.string()])
