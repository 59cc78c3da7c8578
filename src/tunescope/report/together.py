"""Several seeds of one study in one folder: their tables joined, for one report on all."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tunescope.errors import InputError
from tunescope.evidence.records import SCHEMA, SCORES_SCHEMA, merge_tables
from tunescope.files import write_text

MARKER = "seeds.json"  # by which a folder of several seeds is known
TABLES = {"records.parquet": SCHEMA, "scores.parquet": SCORES_SCHEMA}


def check_joint(out: Path) -> None:
    """Refuse a folder that holds anything but what was gathered there before.

    Raises:
        InputError: it does.
    """
    if not out.exists() or (out.is_dir() and (out / MARKER).is_file() and not (out / "stages").exists()):
        return
    if not out.is_dir() or any(out.iterdir()):
        raise InputError(f"{out}: there already, and not a report on several seeds; choose another --out")


def gather(folders: Sequence[Path], out: Path) -> None:
    """Join the tables of run folders in `out`, with the config of the first.

    Raises:
        InputError: a table is missing or cannot be read, a seed is there twice, or the studies differ in more than
            seed.
    """
    check_joint(out)
    configs = [_config(folder / "config.yaml") for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        if {**config, "seed": 0} != {**configs[0], "seed": 0}:
            raise InputError(f"{folder}: its config differs from that of {folders[0]} in more than the seed")
    for table in (folder / name for name in TABLES for folder in folders):
        try:
            pq.read_schema(table)
        except (OSError, ValueError) as error:
            raise InputError(f"{table}: cannot be read ({error}); finish that run first") from error
    seeds = [seed for f in folders for seed in pq.read_table(f / "records.parquet", columns=["seed"])["seed"].unique()]
    if twice := [seed for seed, times in Counter(map(str, seeds)).items() if times > 1]:
        raise InputError(f"seed {twice[0]} is there twice among {', '.join(map(str, folders))}")
    write_text(out / MARKER, json.dumps({"seeds": [int(str(seed)) for seed in seeds]}))
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
