"""Several seeds of one study in one folder: their tables joined, for one report on all."""

import json
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tunescope.errors import InputError
from tunescope.files import remove, write_text
from tunescope.records.tables import SCHEMA, SCORES_SCHEMA, merge_tables, read_table
from tunescope.report.reading import read_file

MARKER = "seeds.json"  # by which a folder of several seeds is known
NOTES = "notes.json"
BESIDE = ("examples.json", "environment.json", "stages.json")  # what a page has of one run alone
FEW = 4  # settings that a message names
SCORES = "scores.parquet"
TABLES = {"records.parquet": SCHEMA, SCORES: SCORES_SCHEMA}


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
    """Join the tables of run folders in `out`, with the config of the first. Nothing is written before all is checked.

    Fine-tunes that some runs lack are left out, and a note says which.

    Raises:
        InputError: a table is missing or cannot be read, a seed is there twice, the studies differ in more than seed,
            fine-tunes and type of numbers, or they have no fine-tune in common.
    """
    check_joint(out)
    configs = [read_file(folder / "config.yaml", dict[str, Any]) for folder in folders]
    settings = [pd.json_normalize(_shared(config)).to_dict("records")[0] for config in configs]
    alone = len(folders) == 1 and not (folders[0] / SCORES).exists()  # for a report on records, as of a run folder
    wanted = {name: schema for name, schema in TABLES.items() if not (alone and name == SCORES)}
    tables = {name: [read_table(folder / name, schema) for folder in folders] for name, schema in wanted.items()}
    models = [
        {name for table in its for name in table["model"].unique().to_pylist()}
        for its in zip(*tables.values(), strict=True)
    ]
    tunes = _in_common(configs)
    unlike = tunes and any(own.get("tunes") != tunes for own in configs)
    first, lacked = settings[0], sorted(set.union(*models) - set.intersection(*models)) if unlike else []
    for folder, own, its in zip(folders, settings, models, strict=True):
        differing = [key for key in first | own if own.get(key) != first.get(key)]
        if other := [key for key in differing if not (key == "tunes" and tunes)]:
            differ = [_difference(key, (own.get(key), first.get(key)), (its, models[0])) for key in other[:FEW]]
            more = [f"and {len(other) - FEW} more"] if len(other) > FEW else []
            raise InputError(
                f"{folder}: its config differs from that of {folders[0]} in more than the seeds: "
                f"{'; '.join([*differ, *more])}"
            )
    seeds = [int(seed) for table in tables["records.parquet"] for seed in table["seed"].unique().to_pylist()]
    if twice := [seed for seed, times in Counter(seeds).items() if times > 1]:
        raise InputError(f"seed {twice[0]} is there twice among {', '.join(map(str, folders))}")
    notes = [note for folder in folders for note in read_file(folder / NOTES, list[str], [])]
    notes += [*_of_one_world(configs), *_of_several_types(configs), *_left_out(lacked, folders, models)]
    write_text(out / MARKER, json.dumps({"seeds": seeds}))
    for name, schema in wanted.items():
        merge_tables([folder / name for folder in folders], out / name, schema, lacked)
    config = (folders[0] / "config.yaml").read_text(encoding="utf-8")
    write_text(
        out / "config.yaml", yaml.safe_dump(configs[0] | {"tunes": tunes}, sort_keys=False) if lacked else config
    )
    for name in BESIDE if len(folders) == 1 else ():
        if (folders[0] / name).is_file():
            write_text(out / name, (folders[0] / name).read_text(encoding="utf-8"))
    if notes:
        write_text(out / NOTES, json.dumps(list(dict.fromkeys(notes))))
    else:
        remove(out / NOTES)  # of an earlier gathering


def _in_common(configs: Sequence[dict[str, Any]]) -> list[Any]:
    """The fine-tunes that all runs have; none where two of them have the same name and are not the same."""
    first, *others = (config.get("tunes") or [] for config in configs)
    found: dict[str, Any] = {}
    for tune in (tune for tunes in (first, *others) for tune in tunes):
        if found.setdefault(_name(tune), tune) != tune:
            return []
    return [tune for tune in first if all(tune in each for each in others)]


def _name(tune: Any) -> str:
    """What tells a fine-tune of a config from the others of its study."""
    if not isinstance(tune, dict):
        return str(tune)
    parts = (tune.get("protocol"), tune.get("learning_rate"), "lora" if tune.get("lora") else None)
    return str(tune.get("label") or "-".join(str(part) for part in parts if part))


def _left_out(lacked: Sequence[str], folders: Sequence[Path], models: Sequence[set[str]]) -> list[str]:
    """A caution where runs have models that others lack."""
    without = {name: [f.name for f, its in zip(folders, models, strict=True) if name not in its] for name in lacked}
    told = [f"{name} (not in {', '.join(which)})" for name, which in without.items()]
    return [f"Left out, as not all runs have them: {'; '.join(told)}."] if told else []


def _difference(key: Hashable, values: Sequence[Any], models: Sequence[set[str]]) -> str:
    """How a setting of the first of two runs differs from that of the second; of fine-tunes, which one lacks."""
    own, there = models
    if key == "tunes" and own != there:
        told = {"lacks": there - own, "has besides": own - there}
        return "; ".join(f"tunes {how} {', '.join(sorted(which))}" for how, which in told.items() if which)
    return f"{key} is {values[0]}, there {values[1]}"


def _of_one_world(configs: Sequence[dict[str, Any]]) -> list[str]:
    """A caution where runs that could differ in their worlds do not."""
    tasks = [config.get("task") for config in configs]
    worlds = [task["seed"] for task in tasks if isinstance(task, dict) and "seed" in task]
    if len(worlds) < 2 or len({*worlds}) > 1:
        return []
    return [
        f"All runs are of one world (task.seed {worlds[0]}): intervals and verdicts speak of this world. Leave out "
        "task.seed, and each run draws its own."
    ]


def _of_several_types(configs: Sequence[dict[str, Any]]) -> list[str]:
    """A caution where runs were trained in different types of number."""
    types = {str(config.get("seed")): (config.get("compute") or {}).get("dtype") for config in configs}
    if len({*types.values()}) < 2:
        return []
    said = ", ".join(f"seed {seed} in {dtype}" for seed, dtype in types.items())
    return [f"Runs were trained in different types of number (compute.dtype): {said}. Their rounding differs, too."]


def _shared(config: dict[str, Any]) -> dict[str, Any]:
    """All of a config that runs of one study share: not the seeds, nor the type of numbers, which `auto` chooses."""
    task, compute = config.get("task"), config.get("compute")
    same = {"seed": 0, "task": {**task, "seed": 0} if isinstance(task, dict) else task}
    return {**config, **same, "compute": {**compute, "dtype": ""} if isinstance(compute, dict) else compute}
