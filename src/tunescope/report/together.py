"""Several seeds of one study in one folder: their tables joined, for one report on all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tunescope.errors import InputError
from tunescope.evidence.records import SCHEMA, SCORES_SCHEMA, merge_tables
from tunescope.files import write_text

TABLES = {"records.parquet": SCHEMA, "scores.parquet": SCORES_SCHEMA}


def gather(folders: Sequence[Path], out: Path) -> None:
    """Join the tables of run folders in `out`, with the config of the first.

    Raises:
        InputError: a table is missing or cannot be read, a seed is there twice, or the studies differ in more than
            seed.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose another --out")
    if (out / "stages").exists():
        raise InputError(f"{out}: holds a run of its own; choose another --out")
    configs = [_config(folder / "config.yaml") for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        if {**config, "seed": 0} != {**configs[0], "seed": 0}:
            raise InputError(f"{folder}: its config differs from that of {folders[0]} in more than the seed")
    seeds = [config.get("seed") for config in configs]
    if twice := {seed for seed in seeds if seeds.count(seed) > 1}:
        raise InputError(f"seed {twice.pop()} is there twice among {', '.join(map(str, folders))}")
    for table in (folder / name for name in TABLES for folder in folders):
        try:
            pq.read_schema(table)
        except (OSError, ValueError) as error:
            raise InputError(f"{table}: cannot be read ({error}); finish that run first") from error
    for name, schema in TABLES.items():
        merge_tables([folder / name for folder in folders], out / name, schema)
    write_text(out / "config.yaml", (folders[0] / "config.yaml").read_text(encoding="utf-8"))


def _config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; {path.parent} is no run folder") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: a mapping is wanted")
    return config
