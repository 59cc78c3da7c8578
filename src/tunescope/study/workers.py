"""What a process does that runs stages for another, on this machine or elsewhere."""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Thread

import torch

from tunescope.models.compute import deterministic, device_of
from tunescope.registry import load_plugins
from tunescope.settings import read_study
from tunescope.study.folders import CONFIG
from tunescope.study.graph import graph_of
from tunescope.study.stages import Done, Stage
from tunescope.study.work import do


class _Lines:
    """Standard error of a worker: lines are printed, and progress bars, which would overwrite each other, are not."""

    def __init__(self) -> None:
        self.write, self.flush = sys.stderr.write, sys.stderr.flush

    def isatty(self) -> bool:
        return False


def begin(plugins: Sequence[str]) -> None:
    """What a worker does before its first stage."""
    Thread(target=_end_with_parent, daemon=True).start()
    sys.stderr = _Lines()
    torch.set_num_threads(1)
    load_plugins(plugins)


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on with its stage, in a folder whose lock is free again."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


@cache
def laid_out(folder: Path, skip: tuple[str, ...], config: str) -> tuple[torch.device, dict[str, Stage]]:
    """Of the config as it is: a worker may see more than one in a folder."""
    study = read_study(folder / CONFIG)
    return device_of(study.compute), {stage.name: stage for stage in graph_of(study, folder, skip).stages}


def work_in(folder: Path, skip: tuple[str, ...], name: str, same: Path | None) -> Done:
    """Do a stage of a run in its folder, in a worker."""
    device, stages = laid_out(folder, skip, (folder / CONFIG).read_text(encoding="utf-8"))
    with deterministic(device):
        return do(stages[name], folder, same)
