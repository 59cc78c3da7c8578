"""Run folders: a study writes only in a folder that is new or its own, and never two at a time in one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunescope import __version__
from tunescope.config import Study
from tunescope.errors import InputError, shown
from tunescope.files import PARTIAL, sweep, write_text
from tunescope.settings import read_study
from tunescope.study.stages import STAGES

LOCK, CONFIG, ENVIRONMENT = ".lock", "config.yaml", "environment.json"


@contextmanager
def claimed(folder: Path, study: Study, *, update: bool = False) -> Iterator[None]:
    """Hold a folder for a study; what a killed run left half-written in it is gone then.

    Args:
        update: take a folder that holds a run of other settings or of another version, too.

    Raises:
        InputError: it holds such a run, or things that are not a run, or another process holds it.
    """
    check(folder, study, update)  # before the lock leaves a file in it
    with locked(folder):
        check(folder, study, update)  # again: another process may have been here first
        sweep(folder)
        (folder / STAGES).mkdir(exist_ok=True)  # by which a run folder is known
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if it is not there.

    Raises:
        InputError: another holds it.
    """
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{folder}: another tunescope is at work in this folder; wait for it or use another"
        ) from error
    with lock:
        yield


def check(folder: Path, study: Study, update: bool) -> None:
    """See `claimed`, whose errors it raises but for the last."""
    config = folder / CONFIG
    if not config.exists():
        if folder.exists() and (not folder.is_dir() or any(map(_foreign, folder.iterdir()))):
            raise InputError(f"{folder}: there already, and not a run folder of tunescope; choose another --out")
        return
    if not (folder / STAGES).is_dir() and any(map(_foreign, folder.iterdir())):
        raise InputError(f"{folder}: has a config.yaml, but is not a run folder of tunescope; choose another --out")
    if update:
        return
    try:
        found = read_study(config)
    except InputError as error:
        if (version := _version(folder)) == __version__:
            raise InputError(
                f"{error}; choose another --out, or pass --update to run again what has changed"
            ) from error
        raise InputError(
            f"{folder}: holds a run of tunescope {version}, this is {__version__}, and its config is of another form; "
            "choose another --out, or pass --update to run all of it again"
        ) from error
    if (version := _version(folder)) != __version__:
        raise InputError(
            f"{folder}: holds a run of tunescope {version}, this is {__version__}; choose another --out, "
            "or pass --update to run all of it again"
        )
    if changed := _differences(found.decides(), study.decides()):
        raise InputError(
            f"{folder}: holds a run of other settings: {'; '.join(changed[:5])}; choose another --out, "
            "or pass --update to run again what they change"
        )


def note_environment(path: Path, here: dict[str, Any], *, afresh: bool) -> None:
    """Keep the environment of a run's first stage; those of later stages stand under `later`, where they differ."""
    kept = (None if afresh else _environment(path)) or here
    later = kept.get("later", [])
    if here not in [{key: value for key, value in kept.items() if key != "later"}, *later]:
        kept = {**kept, "later": [*later, here]}
    write_text(path, json.dumps(kept, indent=1))


def _foreign(entry: Path) -> bool:
    """Whether something in a folder without a config is not what a run killed at its very start would leave."""
    return entry.name not in (LOCK, CONFIG, ENVIRONMENT, STAGES) and not entry.name.endswith(PARTIAL)


def _version(folder: Path) -> str:
    """The version of tunescope that a run folder is of."""
    found = _environment(folder / ENVIRONMENT)
    if found is None:  # stopped in its first stage
        return __version__
    try:
        return shown(found["libraries"]["tunescope"], 20).strip("'")
    except (KeyError, TypeError):
        return "of an unknown version"


def _environment(path: Path) -> dict[str, Any] | None:
    """What was noted of the environment: None if nothing was yet, an empty mapping if it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _named(tunes: list[Any]) -> list[str]:
    """Fine-tunes by what tells them apart in a message."""
    keys = ("label", "name", "protocol", "learning_rate")
    return [" ".join(str(t[k]) for k in keys if t.get(k)) if isinstance(t, dict) else str(t) for t in tunes]


def _differences(found: Any, asked: Any, path: str = "") -> list[str]:
    """Where two configs differ, as `tune.steps: 200 there, 300 asked for`."""
    if isinstance(found, dict) and isinstance(asked, dict):
        keys = dict.fromkeys([*asked, *found])
        return [d for key in keys for d in _differences(found.get(key), asked.get(key), f"{path}.{key}".strip("."))]
    if path == "tunes" and isinstance(found, list) and isinstance(asked, list) and _named(found) != _named(asked):
        found, asked = _named(found), _named(asked)
    if isinstance(found, list) and isinstance(asked, list) and all(isinstance(each, str) for each in found + asked):
        only = [[each for each in one if each not in other] for one, other in ((found, asked), (asked, found))]
        found, asked = only if any(only) else (found, asked)  # so that the message has room for what differs
    return [] if found == asked else [f"{path}: {shown(found, 60)} there, {shown(asked, 60)} asked for"]
