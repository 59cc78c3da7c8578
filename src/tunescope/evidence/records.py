"""Records: one tidy table, one row per measurement. Everything a report shows is read from here."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tunescope.files import atomic_path


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes:
        model: folder name under models/, e.g. `base`, `ssft-eta_m`.
        protocol: `pretraining`, `ssft`, `dpo`, `unlearning` or `benign`.
        learning_rate: `eta_m`, `eta_s`, or empty for the base model.
        seed: seed of the study.
        step: training step at which it was measured (the final one for finished models).
        kind: kind of prompt, or empty. strength: of that kind, else null.
        metric: what was measured (docs/metrics.md).
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
    low: float | None = None
    high: float | None = None
    n: int = 1


_TYPES = {
    **dict.fromkeys(("model", "protocol", "learning_rate", "site", "kind", "metric"), pa.string()),
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
    "value",
    "low",
    "high",
    "n",
]  # columns of records.parquet
SCHEMA = pa.schema([(name, _TYPES[name]) for name in ORDER])
assert set(ORDER) == {field.name for field in fields(Record)}


def write_records(records: Iterable[Record], path: Path) -> None:
    """Write records as one parquet file, atomically."""
    table = pa.Table.from_pylist([asdict(record) for record in records], schema=SCHEMA)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def merge_records(parts: Iterable[Path], path: Path) -> None:
    """Concatenate parquet files of records, in the given order, into one."""
    table = pa.concat_tables([pq.read_table(part, schema=SCHEMA) for part in parts])
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def read_records(path: Path) -> pd.DataFrame:
    """Records as a data frame; empty text where a column does not apply, null where a number does not."""
    return pq.read_table(path, schema=SCHEMA).to_pandas()
