"""Experiment trackers, through accelerate: what a finished stage has measured, told step by step."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from tunescope.errors import InputError, choices, shown
from tunescope.files import remove, write_text
from tunescope.progress import say
from tunescope.records.names import BASE
from tunescope.records.tables import read_records
from tunescope.study.stages import Stage

TRACKERS = ("tensorboard", "wandb", "mlflow")
LOGS = "logs"  # folder in a run's, of trackers that write files
TOLD = ("pretrain", "tune", "behave")  # groups of stages whose records have steps


def require(tracker: str) -> None:
    """Raises InputError: there is no such tracker, or its package is not installed."""
    if tracker not in TRACKERS:
        raise InputError(f"log: unknown tracker {shown(tracker)}. {choices(tracker, TRACKERS)}")
    if find_spec(tracker) is None:
        raise InputError(f"log: {tracker} is not installed; pip install {tracker}")


def track(tracker: str, stage: Stage, folder: Path, *, again: bool = False) -> None:
    """Tell what a stage that is done has measured of a model, of plain prompts: learning curves and behaviour.

    The project is the run's folder, and each stage a run in it, so that curves of all fine-tunes lie over each other.
    A tracker that fails is no reason to stop a study.

    Args:
        again: even if it has been told before.
    """
    if stage.group not in TOLD:
        return
    told = folder / LOGS / f".{tracker}-{stage.name}"
    if told.exists() and not again:
        return
    try:
        _tell(tracker, stage, folder)
        write_text(told, "")
    except Exception as error:  # whatever a library for networks raises
        say(f"warning: --log {tracker}: {stage.name} was not told: {shown(error)}")


def _tell(tracker: str, stage: Stage, folder: Path) -> None:
    records = read_records(next(folder / out for out in stage.outputs if out.endswith(".parquet")))
    plain = records[records["strength"].isna() & records["layer"].isna()].dropna(subset="value")
    if plain.empty:
        return
    PartialState()  # trackers ask it which process they are in
    project, name = folder.name, stage.name if stage.name != stage.group else f"{stage.name}-{BASE}"
    remove(folder / LOGS / name)  # of a stage that was told before
    opened = _open(tracker, project, name, folder / LOGS)
    opened.start()
    for step in sorted(plain["step"].unique()):
        rows = plain[plain["step"] == step]
        names = rows["metric"].where(rows["kind"] == "", rows["metric"] + "/" + rows["kind"])
        opened.log(dict(zip(names, rows["value"], strict=True)), step=int(step))
    opened.finish()


def _open(tracker: str, project: str, name: str, logs: Path) -> Any:
    made = LOGGER_TYPE_TO_CLASS[tracker]
    if tracker == "tensorboard":
        return made(name, logs)
    if tracker == "mlflow":  # where it keeps its runs, MLFLOW_TRACKING_URI says
        return made(project, run_name=name)
    logs.mkdir(parents=True, exist_ok=True)
    return made(project, name=name, group=name.partition("-")[0], dir=str(logs))
