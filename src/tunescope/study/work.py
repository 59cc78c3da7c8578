"""What an executor is given and what it gives back: stages of runs, and what became of each."""

import hashlib
import json
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tunescope import __version__
from tunescope.errors import InputError
from tunescope.study.stages import Done, Stage, adopt, run_stage


class Work(NamedTuple):
    """A stage, and whose it is: the folder of a run, whose config is in it already, and the groups that it skips.

    Attributes:
        same: the folder of another run, whose stage of this name makes the same and is done before; its files are
            taken.
    """

    stage: Stage
    folder: Path
    skip: tuple[str, ...]
    same: Path | None = None

    @property
    def name(self) -> str:
        return _name(self.folder, self.stage)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the work that must be done before."""
        own = tuple(_name(self.folder, stage) for stage in self.stage.after)
        return own if self.same is None else (*own, _name(self.same, self.stage))


class Failed(NamedTuple):
    """A stage that ended with an error."""

    error: Exception

    @property
    def why(self) -> str:
        """What a user reads: the message of bad input, or of anything else where it happened, too."""
        if isinstance(self.error, InputError):
            return str(self.error)
        place = traceback.extract_tb(self.error.__traceback__)[-1:]
        where = "".join(f" ({Path(at.filename).name}, line {at.lineno})" for at in place)
        return f"{type(self.error).__name__}: {self.error}{where}"


Outcome = Done | Failed
# Runs all of the work, given in an order in which it can be done, and yields each piece when it is. Work that needs
# what has failed is not done, nor yielded.
Executor = Callable[[Sequence[Work]], Iterator[tuple[Work, Outcome]]]


def do(stage: Stage, folder: Path, same: Path | None) -> Done:
    """Run a stage, unless it is done, here or where it is the same."""
    if same is not None:
        adopt(stage, same, folder)
    return run_stage(stage, folder)


def without(work: Sequence[Work], lost: Collection[str]) -> list[Work]:
    """The work that can still be done when some of it is lost, given in an order in which it can be done."""
    gone, left = {*lost}, []
    for each in work:
        if gone.isdisjoint(each.needs):
            left.append(each)
        else:
            gone.add(each.name)
    return left


def shared(work: Sequence[Work]) -> list[Work]:
    """The same work, where each stage that another run has, too, is done by the first and taken from it."""
    first: dict[str, Path] = {}
    keys: dict[int, str] = {}
    found = []
    for each in work:
        owner = first.setdefault(_decides(each.stage, keys), each.folder)
        found.append(each if owner == each.folder else each._replace(same=owner))
    return found


def _decides(stage: Stage, known: dict[int, str]) -> str:
    """A hash of all settings that decide what a stage makes, those of stages before it among them."""
    if id(stage) not in known:
        before = [_decides(each, known) for each in stage.after]
        material = json.dumps([__version__, stage.name, stage.inputs.decides(), before], sort_keys=True, default=str)
        known[id(stage)] = hashlib.sha256(material.encode()).hexdigest()
    return known[id(stage)]


def _name(folder: Path, stage: Stage) -> str:
    return f"{folder.name}/{stage.name}"
