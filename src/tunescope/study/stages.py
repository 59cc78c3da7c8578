"""Resumable stages: a stage is done when its marker names the inputs at hand and its outputs are what it wrote."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tunescope import __version__
from tunescope.config import Config
from tunescope.errors import InputError
from tunescope.files import atomic_path, write_text
from tunescope.progress import say
from tunescope.registry import plugins_blamed

STAGES = "stages"  # folder of the markers


class Place(Config):
    """Where a stage runs.

    Attributes:
        folder: of the run.
        unfinished: where it may keep unfinished work, to go on from when it was interrupted; the file is removed when
            the stage is done, and is never seen by a stage with other inputs.
    """

    folder: Path
    unfinished: Path


class Marker(BaseModel):
    """What a finished stage leaves behind: a fingerprint of its inputs, and digests of its files."""

    fingerprint: str
    seconds: float
    files: dict[str, str]


@dataclass(frozen=True)
class Stage:
    """One step of a study.

    Attributes:
        name: unique; also the marker's file name.
        function: what it does; it is given `inputs` and a place, and reads nothing else but what earlier stages wrote.
        inputs: settings that decide the result.
        after: stages whose results this one reads.
        outputs: files or folders that it writes, relative to the run folder.
    """

    name: str
    function: Callable[[Any, Place], None]
    inputs: Config
    after: tuple["Stage", ...]
    outputs: tuple[str, ...]

    @property
    def group(self) -> str:
        """What its name begins with, as `tune` of `tune-ssft-eta_m`."""
        return self.name.partition("-")[0]

    def fingerprint(self, folder: Path) -> str:
        """Hash of everything that decides the result: settings, and the files that earlier stages have written."""
        before = [_read_marker(_marker(folder, stage)) for stage in self.after]
        material = [__version__, self.name, self.inputs.decides(), [marker and marker.files for marker in before]]
        return hashlib.sha256(json.dumps(material, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Done:
    """What became of a stage."""

    stage: str
    seconds: float
    skipped: bool


def run_stage(stage: Stage, folder: Path) -> Done:
    """Run a stage, or skip it if it is done.

    Raises:
        InputError: an output is there but is not what the stage wrote.
    """
    marker, fingerprint = _marker(folder, stage), stage.fingerprint(folder)
    if found := _finished(stage, folder, fingerprint):
        if damaged := _first_difference(folder, found.files, stage.outputs):
            root = next(out for out in stage.outputs if damaged == out or damaged.startswith(f"{out}/"))
            raise InputError(
                f"{folder / damaged}: missing, or not what stage {stage.name} wrote (damaged?); "
                f"delete {folder / root} and run again to make it anew"
            )
        return Done(stage.name, found.seconds, skipped=True)
    begun = time.monotonic()
    marker.unlink(missing_ok=True)
    unfinished = marker.with_name(f"{stage.name}.{fingerprint[:16]}.unfinished")
    for other in set(marker.parent.glob(f"{stage.name}.*{unfinished.suffix}")) - {unfinished}:
        other.unlink()
    with plugins_blamed(f"stage {stage.name}"):
        stage.function(stage.inputs, Place(folder=folder, unfinished=unfinished))
    unfinished.unlink(missing_ok=True)
    seconds = round(time.monotonic() - begun, 2)
    files = {name: _digest(folder / name) for name in _listing(folder, stage.outputs)}
    left = Marker(fingerprint=fingerprint, seconds=seconds, files=files)
    write_text(marker, left.model_dump_json(indent=1))
    return Done(stage.name, seconds, skipped=False)


def adopt(stage: Stage, source: Path, folder: Path) -> None:
    """Take what the same stage has made in another run's folder, by hard links where the file system has them.

    Nothing is taken where the stage is done already, or what it was given there is not what it is given here.
    """
    fingerprint = stage.fingerprint(folder)
    if _finished(stage, folder, fingerprint) or not (found := _finished(stage, source, fingerprint)):
        return
    for output in stage.outputs:
        with atomic_path(folder / output) as temporary:
            if (source / output).is_dir():
                shutil.copytree(source / output, temporary, copy_function=_link)
            else:
                _link(source / output, temporary)
    write_text(_marker(folder, stage), found.model_dump_json(indent=1))


def _link(source: str | Path, place: str | Path) -> None:
    try:
        os.link(source, place)
    except OSError:  # another disk, or one that has no links
        shutil.copy2(source, place)


def is_done(stage: Stage, folder: Path) -> bool:
    """Whether a stage has run, with these inputs."""
    return _finished(stage, folder, stage.fingerprint(folder)) is not None


def times(stages: Iterable[Stage], folder: Path) -> list[dict[str, str | float]]:
    """How long each of these stages took, of those that are done."""
    found = ((stage, _finished(stage, folder, stage.fingerprint(folder))) for stage in stages)
    return [{"stage": stage.name, "seconds": marker.seconds} for stage, marker in found if marker]


def _finished(stage: Stage, folder: Path, fingerprint: str) -> Marker | None:
    """The marker of a stage that is done, of these inputs."""
    found = _read_marker(_marker(folder, stage))
    there = all((folder / out).exists() for out in stage.outputs)
    return found if found and found.fingerprint == fingerprint and there else None


def _marker(folder: Path, stage: Stage) -> Path:
    return folder / STAGES / f"{stage.name}.json"


def _read_marker(path: Path) -> Marker | None:
    try:
        return Marker.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _listing(folder: Path, outputs: tuple[str, ...]) -> Iterator[str]:
    """Every file of the outputs, relative to the folder, in a fixed order."""
    for output in outputs:
        root = folder / output
        files = sorted(root.rglob("*")) if root.is_dir() else [root]
        yield from (str(file.relative_to(folder)) for file in files if file.is_file())


def _first_difference(folder: Path, files: dict[str, str], outputs: tuple[str, ...]) -> str | None:
    present = set(_listing(folder, outputs))
    return next((name for name in files if name not in present or _digest(folder / name) != files[name]), None)


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def tell(number: int, total: int, done: Done, of: str = "") -> None:
    """Say what became of a stage, and of which of several runs it is."""
    say(f"{of}[{number}/{total}] {done.stage}: {'done before' if done.skipped else f'{done.seconds:.0f} s'}")
