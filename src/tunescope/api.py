"""The Python API: run studies, compare models, read what a run left behind. `import tunescope as ts`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from tunescope.config import LanguageConfig, Study, Sweep
from tunescope.errors import InputError, choices
from tunescope.evidence.claims import claims_for
from tunescope.evidence.verdicts import Judgement, judge
from tunescope.explore.live import LiveModel, live_models
from tunescope.models.checkpoint import load_model
from tunescope.recipes import comparison
from tunescope.records.names import BASE
from tunescope.records.pool import pool
from tunescope.records.tables import read_records, read_scores
from tunescope.report.figures import draw
from tunescope.report.html import to_draw
from tunescope.report.select import finished
from tunescope.report.together import MARKER
from tunescope.settings import read_study, read_yaml
from tunescope.study import pipeline
from tunescope.study.executors import Where
from tunescope.study.sources import task_of
from tunescope.study.sweeps import Swept, read_spec, run_sweep


@dataclass(frozen=True)
class Run:
    """What a run left in its folder.

    Attributes:
        folder: of the run. report: its page.
    """

    folder: Path

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @cached_property
    def study(self) -> Study:
        return read_study(self.folder / "config.yaml")

    @cached_property
    def records(self) -> pd.DataFrame:
        """One row per measurement; columns as in `tunescope.records.tables.Record`."""
        return read_records(self.folder / "records.parquet")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per prompt and score: what verdicts are tested on."""
        return read_scores(self.folder / "scores.parquet")

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        """One row per claim, model and rung (the control it is set against), judged anew from the scores."""
        return pd.DataFrame([vars(verdict) for verdict in self._judgement.verdicts])

    @cached_property
    def _judgement(self) -> Judgement:
        return judge(self.scores, claims_for(self.scores))

    @cached_property
    def final(self) -> pd.DataFrame:
        """`records` of finished models alone, without those saved on the way to them."""
        return finished(self.records)

    @cached_property
    def pooled(self) -> pd.DataFrame:
        """`final` with one row per measurement of several runs: the mean, and Student's interval over the runs."""
        return finished(pool(self.records))

    def figure(self, name: str) -> Figure:
        """One of the report's figures, drawn anew, to change or to save: `run.figure("clusters").savefig("a.pdf")`.

        Raises:
            InputError: there is no such figure, or nothing of what it shows was measured.
        """
        return draw(name, self._drawn)

    @cached_property
    def _drawn(self) -> pd.DataFrame:
        if not (self.folder / "scores.parquet").is_file():
            return to_draw(pool(self.records), None, Judgement())
        return to_draw(pool(self.records), self.scores, self._judgement)

    @property
    def models(self) -> Mapping[str, Path | str]:
        """Where the models of the study are, by name, the base first: of those made here the folders, which
        `transformers` loads; of those from elsewhere their folder, or their name on the hub (`owner/name[@revision]`).
        """
        config = self.folder / "config.yaml"
        found = read_yaml(config) if config.is_file() else {}  # plug-ins that it names need not be loaded
        told = [{"label": BASE, **found["base"]}, *found["tunes"]] if found else []
        named = [(of["label"], of["name"]) for of in told if of["type"] in ("checkpoint", "given")]
        models = self._made | {label: Path(name).resolve() if Path(name).is_dir() else name for label, name in named}
        return dict(sorted(models.items(), key=lambda item: item[0] != BASE))

    @property
    def _made(self) -> dict[str, Path]:
        """Folders of the models that the study made, by name."""
        return {path.name: path for path in sorted((self.folder / "models").glob("[!.]*")) if path.is_dir()}

    @cached_property
    def live(self) -> Mapping[str, LiveModel]:
        """The models of the study, by name, to be asked and changed one prompt at a time: what `explore` shows.

        Raises:
            InputError: they are not in the folder.
        """
        return live_models(self.folder)

    def load(self, model: str) -> PreTrainedModel:
        """One of the models that the study made, on the CPU.

        Raises:
            InputError: it made no such model.
        """
        made = self._made
        if model not in made:
            where = " Models are in the folders of the single runs." if (self.folder / MARKER).is_file() else ""
            raise InputError(f"{self.folder}: no model {model!r} made here. {choices(model, made)}{where}")
        return load_model(made[model], torch.device("cpu"))[0]


def run(
    study: Study,
    out: str | Path,
    *,
    update: bool = False,
    skip: Collection[str] = (),
    jobs: int | None = 1,
    on: str = "",
    store: str = "",
    log: str = "",
) -> Run:
    """Run a study in a folder, or go on with it; see `tunescope.study.pipeline.run`.

    Args:
        jobs, on, store, log: where its stages run, and a tracker; see `tunescope.study.executors.Where`.
    """
    pipeline.run(study, Path(out), update=update, skip=skip, where=Where(jobs, on, store, log))
    return Run(Path(out))


def compare(
    base: str | Path,
    tuned: str | Path,
    out: str | Path,
    *,
    skip: Collection[str] = ("attack",),
    **settings: Any,
) -> Run:
    """A base and its fine-tune beside each other: a study of two models that someone else made.

    Args:
        base, tuned: folders, or names on the hub; tuned may be a LoRA adapter. Two models of one study bring its task.
        settings: of the study, as in `Study.changed`: `task={"prompts": [...]}, tunes=...`.

    Raises:
        InputError: as `run`.
    """
    asked = settings.get("task", {})
    language = isinstance(asked, Mapping) and bool({"prompts", "openings", "new_tokens"} & asked.keys())
    return run(comparison_of(str(base), str(tuned), language=language).changed(**settings), out, skip=skip)


def comparison_of(base: str, tuned: str, *, language: bool = False) -> Study:
    """The study that `compare` runs, before any settings.

    Args:
        language: prompts in natural language even where both models are of one study.
    """
    return comparison(base, tuned, LanguageConfig() if language else task_of([base, tuned]))


def sweep(
    spec: Sweep | str | Path,
    out: str | Path,
    *,
    update: bool = False,
    jobs: int | None = 1,
    on: str = "",
    store: str = "",
    log: str = "",
) -> Swept:
    """Run a study at every point of a grid, or go on with it; see `tunescope.study.sweeps.run_sweep`.

    Args:
        spec: a sweep, or the YAML file of one. jobs, on, store, log: as in `run`.
    """
    found, beside = (spec, Path()) if isinstance(spec, Sweep) else (read_spec(Path(spec)), Path(spec).parent)
    return run_sweep(found, Path(out), update=update, where=Where(jobs, on, store, log), beside=beside)


def load_run(folder: str | Path) -> Run:
    """A run that was done before.

    Raises:
        InputError: the folder holds none.
    """
    if not (Path(folder) / "records.parquet").is_file():
        near = next(iter(sorted(Path(folder).parent.glob(f"{Path(folder).name}-seed*/records.parquet"))), None)
        hint = f". Did you mean {near.parent}?" if near else ""
        raise InputError(f"{folder}: no finished run: there is no records.parquet in it{hint}")
    return Run(Path(folder))
