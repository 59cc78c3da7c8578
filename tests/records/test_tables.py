"""Records: the table is tidy, typed, and the same after a round trip."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.records.tables import (
    ORDER,
    SCHEMA,
    SCORES_SCHEMA,
    Record,
    Scores,
    Subject,
    merge_tables,
    read_records,
    read_scores,
    write_records,
    write_scores,
)

PLAIN = Record("base", "base", "", 0, 400, "loss", 1.25)
FULL = Record(
    model="dpo-eta_m",
    protocol="dpo",
    learning_rate="eta_m",
    seed=3,
    step=200,
    metric="compliance",
    value=0.5,
    kind="jb_misgen",
    strength=0.25,
    layer=2,
    site="mlp_in",
    attack="soft_prompt",
    intervention="scaled",
    dial=0.5,
    budget=64,
    scope="all",
    outcome="success",
    low=0.4,
    high=0.6,
    n=300,
)


def test_columns_are_those_of_the_documentation(tmp_path: Path) -> None:
    write_records([PLAIN], tmp_path / "records.parquet")
    schema = pq.read_schema(tmp_path / "records.parquet")
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "model": "string",
        "protocol": "string",
        "learning_rate": "string",
        "seed": "int64",
        "step": "int64",
        "layer": "int64",
        "site": "string",
        "kind": "string",
        "strength": "double",
        "attack": "string",
        "intervention": "string",
        "dial": "double",
        "budget": "int64",
        "scope": "string",
        "outcome": "string",
        "metric": "string",
        "control": "string",
        "value": "double",
        "low": "double",
        "high": "double",
        "n": "int64",
    }
    assert schema.names == ORDER


def test_values_come_back_as_they_were(tmp_path: Path) -> None:
    write_records([PLAIN, FULL], tmp_path / "records.parquet")
    frame = read_records(tmp_path / "records.parquet")
    assert list(frame.columns) == ORDER
    plain, full = (row.to_dict() for _, row in frame.astype(object).iterrows())
    assert full == {name: getattr(FULL, name) for name in ORDER}
    absent = {name for name, value in plain.items() if value != value or value is None}
    assert absent == {"layer", "strength", "dial", "budget", "low", "high"}
    assert {k: v for k, v in plain.items() if k not in absent} == {
        k: getattr(PLAIN, k) for k in ORDER if k not in absent
    }


@given(st.floats(allow_nan=False), st.integers(0, 2**62), st.floats(0, 1) | st.none())
def test_numbers_are_exact(value: float, step: int, strength: float | None) -> None:
    buffer = pa.BufferOutputStream()
    record = Record("m", "p", "", 0, step, "loss", value, strength=strength)
    pq.write_table(pa.Table.from_pylist([vars(record)], schema=SCHEMA), buffer)
    (row,) = pq.read_table(pa.BufferReader(buffer.getvalue())).to_pylist()
    assert (row["value"], row["step"], row["strength"]) == (value, step, strength)


def test_parts_are_merged_in_order(tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"parts/{name}.parquet" for name in "abc")
    write_records([FULL], a)
    write_records([PLAIN, FULL], b)
    write_records([], c)
    merge_tables([b, c, a], tmp_path / "records.parquet")
    assert read_records(tmp_path / "records.parquet")["model"].tolist() == ["base", "dpo-eta_m", "dpo-eta_m"]
    assert pq.read_schema(tmp_path / "records.parquet").equals(SCHEMA)
    merge_tables([c], tmp_path / "empty.parquet")
    assert list(read_records(tmp_path / "empty.parquet").columns) == ORDER


def test_the_same_records_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_records(iter([PLAIN, FULL]), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_record_that_does_not_fit_leaves_the_old_table(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    write_records([PLAIN], path)
    before = path.read_bytes()
    with pytest.raises((pa.ArrowInvalid, OverflowError)):
        write_records([PLAIN, replace(PLAIN, step=2**70)], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


BASE = Scores(
    Subject("base", "base", "", 0, 400), "log_sensitivity", np.array([0.1, -2.5]), np.array([5, 5]), kind="safe"
)
TUNED = Subject("dpo-eta_m", "dpo", "eta_m", 2**40, 200)
DRAWS = Scores(TUNED, "null_share", np.array([0.7, 1e-300, 1 / 3]), control="rotated")
LENGTHS = Scores(TUNED, "null_length", np.array([1.0]), layer=3)
TEXTS = [field.name for field in SCORES_SCHEMA if field.type == pa.string()]


def test_scores_come_back_as_they_were(tmp_path: Path) -> None:
    write_scores(iter([BASE, DRAWS, LENGTHS]), tmp_path / "scores.parquet")
    frame = read_scores(tmp_path / "scores.parquet")
    assert list(frame.columns) == SCORES_SCHEMA.names
    assert frame["value"].tolist() == [0.1, -2.5, 0.7, 1e-300, 1 / 3, 1.0]
    assert frame["index"].tolist() == [0, 1, 0, 1, 2, 0]
    assert frame["layer"].fillna(-1).tolist() == [-1, -1, -1, -1, -1, 3]
    assert frame["seed"].tolist() == [0] * 2 + [2**40] * 4
    assert [str(frame[name].dtype) for name in TEXTS] == ["category"] * len(TEXTS)
    texts = ["model", "protocol", "learning_rate", "kind", "metric", "control"]
    assert frame.loc[0, texts].tolist() == ["base", "base", "", "safe", "log_sensitivity", ""]
    assert frame.loc[2, texts].tolist() == ["dpo-eta_m", "dpo", "eta_m", "", "null_share", "rotated"]
    assert frame["group"].fillna(-1).tolist() == [5, 5, -1, -1, -1, -1]


def test_scores_are_of_their_schema_even_without_any(tmp_path: Path) -> None:
    empty = Scores(TUNED, "null_length", np.array([]), layer=0)
    for name, scores in (("some", [BASE, LENGTHS]), ("none", []), ("empty", [empty])):
        write_scores(scores, tmp_path / name)
        assert pq.read_schema(tmp_path / name).equals(SCORES_SCHEMA)
        assert len(read_scores(tmp_path / name)) == sum(len(s.values) for s in scores)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=9))
def test_scores_are_exact(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("exact") / "scores.parquet"
    write_scores([replace(BASE, values=np.array(values, float), groups=None)], path)
    assert read_scores(path)["value"].tolist() == values


def test_parts_of_scores_are_merged_in_order(tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"parts/{name}.parquet" for name in "abc")
    for part, scores in ((a, [BASE]), (b, [DRAWS, LENGTHS]), (c, [])):
        write_scores(scores, part)
    merge_tables([b, c, a], tmp_path / "scores.parquet", SCORES_SCHEMA)
    write_scores([DRAWS, LENGTHS, BASE], tmp_path / "at_once.parquet")
    merged, at_once = (pq.read_table(tmp_path / name) for name in ("scores.parquet", "at_once.parquet"))
    assert merged.equals(at_once)
    assert merged.schema.equals(SCORES_SCHEMA)


def test_scores_that_cannot_be_written_leave_the_old_table(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores([BASE], path)
    before = path.read_bytes()
    with pytest.raises((pa.ArrowInvalid, OverflowError)):
        write_scores([BASE, replace(BASE, subject=replace(BASE.subject, step=2**70))], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
