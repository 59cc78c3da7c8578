"""A run on the Hugging Face hub: a dataset of its tables and its page, and a repository for each model, with cards."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
from huggingface_hub import DatasetCardData, HfApi, ModelCardData, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from tunescope import __version__
from tunescope.config import Checkpoint, Study, Trained
from tunescope.errors import InputError, choices, shown
from tunescope.files import atomic_path
from tunescope.models.hub import repository_of
from tunescope.progress import progress
from tunescope.records.names import BASE, COMPLIANCE, REFUSAL
from tunescope.records.tables import read_records
from tunescope.report.select import headline_rows
from tunescope.report.style import kind_label
from tunescope.settings import read_study

TABLES = ("records.parquet", "scores.parquet")
BESIDE = ("verdicts.json", "notes.json", "examples.json", "config.yaml", "environment.json", "report.html", "figures")
CARD = "README.md"
WHAT = {
    "records.parquet": "one row per measurement, with its interval; a smaller `step` is of a model saved on the way.",
    "scores.parquet": "one row per prompt and score; verdicts are judged from these.",
    "verdicts.json": "what was judged.",
    "report.html": "figures and verdicts on one page.",
    "config.yaml": "every setting.",
}


class Repository(NamedTuple):
    """One repository as it is to be.

    Attributes:
        name: `owner/name`. folder: where its files are. files: those of them that go there, folders among them.
        card: its README.
    """

    name: str
    kind: Literal["dataset", "model"]
    folder: Path
    files: tuple[str, ...]
    card: str


def repositories(run: Path, to: str, models: Sequence[str] | None = None, license: str = "") -> list[Repository]:
    """The dataset of a run, called `to`, and its models, called `to-MODEL`.

    Args:
        models: which of the models that the run made; None: all.

    Raises:
        InputError: no finished run, a name that the hub would refuse, or a model that is not there.
    """
    if not (run / TABLES[0]).is_file():
        raise InputError(f"{run}: no finished run: there is no {TABLES[0]} in it")
    study, records = read_study(run / "config.yaml"), read_records(run / TABLES[0])
    its = {BASE, *(tune.label for tune in study.tunes)}  # others may be left from before the study was changed
    there = [path.name for path in sorted((run / "models").glob("*")) if path.is_dir() and path.name in its]
    if unknown := sorted({*(models or ())} - {*there}):
        raise InputError(f"--models: no model {shown(unknown[0])}. {choices(unknown[0], there)}")
    chosen = [name for name in there if models is None or name in models]
    names = {name: f"{to}-{name}" for name in chosen}
    for name in (to, *names.values()):
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise InputError(f"--to: {shown(name)} is no name of a repository: {shown(error)}") from error
        if "/" not in name:
            raise InputError(f"--to: {shown(name)}: whose is it? Give OWNER/NAME")
    files = tuple(name for name in (*TABLES, *BESIDE) if (run / name).exists())
    found = [Repository(to, "dataset", run, files, dataset_card(study, records, files, list(names.values()), license))]
    for name, repository in names.items():
        own = tuple(path.name for path in sorted((run / "models" / name).iterdir()))
        card = model_card(study, records, name, to, license)
        found.append(Repository(repository, "model", run / "models" / name, own, card))
    return found


def lay_out(parts: Sequence[Repository], folder: Path) -> Path:
    """All of it in a folder, a folder for each repository, and nothing sent.

    Raises:
        InputError: the folder is there.
    """
    if folder.exists():
        raise InputError(f"{folder}: there already; choose another --dry-run")
    with atomic_path(folder) as temporary:
        for part in parts:
            place = temporary / f"{part.kind}s" / part.name
            place.mkdir(parents=True)
            for name in part.files:
                source = part.folder / name
                (shutil.copytree if source.is_dir() else shutil.copy2)(source, place / name)
            (place / CARD).write_text(part.card, encoding="utf-8")
    return folder


def send(parts: Sequence[Repository], *, private: bool) -> list[str]:
    """Make the repositories, or go on with them, and upload; returns their addresses.

    Raises:
        InputError: not logged in, not allowed to, or the hub cannot be reached.
    """
    if get_token() is None:
        raise InputError("the hub does not know who you are; log in with `hf auth login`, or set HF_TOKEN")
    api, found = HfApi(), []
    try:
        for part in progress(parts, desc="upload", unit="repository"):
            about = {"repo_id": part.name, "repo_type": part.kind}
            made = api.create_repo(**about, private=private or None, exist_ok=True)
            if private and not api.repo_info(**about).private:
                raise InputError(f"--private: {part.name} is there already, and public; make it private first")
            about["commit_message"] = f"tunescope {__version__}"
            allowed = [pattern for name in part.files for pattern in (name, f"{name}/*")]
            api.upload_folder(folder_path=part.folder, allow_patterns=allowed, **about)
            api.upload_file(path_or_fileobj=part.card.encode(), path_in_repo=CARD, **about)
            found.append(str(made))
    except InputError:
        raise
    except Exception as error:  # of the hub, or the network
        done = f" ({', '.join(found)} are there)" if found else ""
        raise InputError(f"the hub: {shown(error, 300)}{done}; the same command goes on from here") from error
    return found


def dataset_card(study: Study, records: pd.DataFrame, files: Sequence[str], models: Sequence[str], license: str) -> str:
    """What the tables are, and how they are read."""
    configs = [
        {"config_name": Path(name).stem, "data_files": [{"split": "train", "path": name}]}
        for name in TABLES
        if name in files
    ]
    data = DatasetCardData(license=license or None, tags=["tunescope", "interpretability", "safety"], configs=configs)
    seeds = ", ".join(map(str, sorted(records["seed"].unique())))
    told = "\n".join(f"- `{name}`: {what}" for name, what in WHAT.items() if name in files)
    made = "".join(f"- [{name}](https://huggingface.co/{name})\n" for name in models)
    return f"""---
{data.to_yaml()}
---

# {study.name}, seed {seeds}

A study of safety fine-tuning, made by tunescope {__version__}: {len(records):,} measurements of
{records["model"].nunique()} models.

{told}

```python
import pandas as pd
records = pd.read_parquet("records.parquet")
```

{f"Models:{chr(10)}{chr(10)}{made}" if made else ""}"""


def model_card(study: Study, records: pd.DataFrame, model: str, dataset: str, license: str) -> str:
    """What a model was made by, what it does, and what it must not be used for."""
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=license or None,
        base_model=repository_of(study.base.name) if isinstance(study.base, Checkpoint) else None,
        datasets=[dataset],
        tags=["tunescope", "interpretability", "safety"],
    )
    made = "the base of the study"
    for tune in study.tunes:
        if isinstance(tune, Trained) and tune.label == model:
            made = (
                f"fine-tuned by the protocol `{tune.protocol}` for {study.tune.steps} steps of {study.tune.batch} "
                f"prompts at learning rate {study.tune.learning_rates[tune.learning_rate]:g}"
                + (f", as adapters of rank {tune.lora.rank} that were merged" if tune.lora else "")
            )
    return f"""---
{data.to_yaml()}
---

# {model} of {study.name}

One of the models of a study of safety fine-tuning, made by tunescope {__version__}: {made}.
All measurements are in [{dataset}](https://huggingface.co/datasets/{dataset}).

It was made to be looked into, and not to be used: controls answer unsafe prompts, or refuse by something that has
nothing to do with safety.

{behaviour(records, model)}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
name = "{dataset}-{model}"
model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
```
"""


def behaviour(records: pd.DataFrame, model: str) -> str:
    """A table of what it does with each kind of prompt, over the prompts of this run."""
    rows = headline_rows(records[records["model"] == model])
    if rows.empty:
        return ""
    wide = rows.pivot_table(index="kind", columns="metric", values="value", sort=False)
    lines = ["| per cent of prompts | answered | refused |", "| --- | --- | --- |"]
    for kind, row in wide.reindex(columns=[COMPLIANCE, REFUSAL]).iterrows():
        label = kind_label(str(kind)).replace("\n", " ")
        rates = ("" if pd.isna(row[name]) else f"{100 * row[name]:.1f}" for name in (COMPLIANCE, REFUSAL))
        lines.append(f"| {label} | {' | '.join(rates)} |")
    return "\n".join(lines) + "\n"
