"""Models from elsewhere: where they are, whether they match, how they read, and what they are known by."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from tunescope.config import AnyTask, Checkpoint, Config, Given, TaskConfig, checked
from tunescope.errors import InputError
from tunescope.models.checkpoint import ADAPTER, convert_command, load_config, load_tokenizer
from tunescope.models.hub import Source, fetched
from tunescope.models.pair import Pair, changed_elsewhere, open_pair, rounding
from tunescope.records.names import BASE, GIVEN
from tunescope.settings import read_yaml
from tunescope.study.context import ModelRef
from tunescope.tasks.base import TASKS, Reader, Task
from tunescope.tasks.language.readers import digest, readers_of, require_fits, require_same_tokens
from tunescope.tasks.language.task import Language

TASK = "task.yaml"  # in the folder of a model of a study: the task that it was made for
SETTINGS = ("config.json", "model.safetensors.index.json", ADAPTER)
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "adapter_model.safetensors")
_TEXT = ("*.json", "*.jinja", "tokenizer.model")  # what a tokenizer is made of


class _Kept(Config):
    task: AnyTask


@dataclass(frozen=True)
class Sources:
    """The base and the given fine-tunes of a study, checked.

    Attributes:
        given: by label. cautions: what a reader must know of them.
    """

    base: ModelRef
    given: dict[str, ModelRef]
    cautions: tuple[str, ...]

    @classmethod
    def of(cls, task: TaskConfig, base: Checkpoint, given: Sequence[Given], device: torch.device) -> "Sources":
        """Raises InputError: a model is not there, or the two do not match, or cannot read the task's prompts."""
        if not base.name:
            raise InputError(
                "base.name: no model is named; add --set base.name=FOLDER, or a hub's owner/name[@revision]"
            )
        if nameless := [tune.label for tune in given if not tune.name]:
            raise InputError(
                f"tunes: {nameless[0]} names no model; set its name, as in tunes.0.name=FOLDER, or a hub's "
                "owner/name[@revision]"
            )
        names = {BASE: base.name, **{tune.label: tune.name for tune in given}}
        found = dict(zip(names, with_weights([*names.values()], *_TEXT), strict=True))
        folders = {label: source.folder for label, source in found.items()}
        adapters = {label for label, folder in folders.items() if (folder / ADAPTER).exists()}
        for label in names.keys() - {BASE}:
            open_pair(folders[BASE], folders[label])
        if base.memory and adapters:
            raise InputError(
                f"{names[min(adapters)]}: an adapter cannot be put into a model that is spread (base.memory). "
                "Merge it first."
            )
        formats = {BASE: base.format, **{tune.label: tune.format for tune in given}}
        readers = readers_of(folders, formats)
        read = {}
        for label, reader in readers.items():
            built: Task = TASKS[task.type](task, device, reader)
            whole = folders[BASE] if label in adapters else folders[label]
            read[label] = _read(built, whole)
        refs = {
            label: ModelRef(
                label=label,
                protocol=BASE if label == BASE else GIVEN,
                step=0,
                source=known_by(found[label]) | {"reads": read[label]},
                reader=True,
                template=readers[label].template,
                folder=str(folders[label]),
                text=str(folders[label] if _has_text(folders[label]) else folders[BASE]),
                base=str(folders[BASE]) if label in adapters else "",
            )
            for label in names
        }
        cautions = [
            f"The base reads prompts in the {_form(readers[BASE])} format, {label} in {_form(reader)}: claims that set "
            "one against the other (0, 1, 4 and 5) are of the format, too. With base.format=chat (--base-format chat), "
            "or plain for the fine-tune, they are not; examples/sweeps/formats.yaml runs all four."
            for label, reader in readers.items()
            if (reader.template is None) != (readers[BASE].template is None)
        ]
        return cls(refs.pop(BASE), refs, tuple(cautions))


def notes_on(pair: Pair, label: str) -> list[str]:
    """What a reader must know of the weights of a pair.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    notes = [note for note in (rounding(pair.before, pair.after),) if note]
    if elsewhere := changed_elsewhere(pair.before, pair.after):
        few = ", ".join(elsewhere[:3]) + (", ..." if len(elsewhere) > 3 else "")
        notes.append(
            f"{label}: {len(elsewhere)} parameters outside the layers' matrices have changed, too ({few}). No probe of "
            "dW sees these."
        )
    return notes


def with_weights(names: Sequence[str], *more: str) -> list[Source]:
    """Folders, or what repositories have, of settings, weights, and more.

    Raises:
        InputError: one is not there, or has no safetensors.
    """
    for name in names:
        fetched(name, SETTINGS)  # of all before the weights of one: names may be wrong, and weights are large
    found = []
    for name in names:
        found.append(fetched(name, (*SETTINGS, *_WEIGHTS, TASK, *more)))
        if found[-1].revision and not any(found[-1].folder.glob("*.safetensors")):
            raise InputError(f"{name}: has no safetensors; convert what it has: {convert_command(found[-1].label)}")
    return found


def known_by(source: Source) -> dict[str, Any]:
    """Settings by their content, weights by their files' sizes and times."""
    settings = sorted(file for pattern in ("*.json", "*.jinja") for file in source.folder.glob(pattern))
    hashes = {file.name: sha256(file.read_bytes()).hexdigest() for file in settings}
    files = sorted(source.folder.glob("*.safetensors"))
    stats = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    place = source.label if source.revision else str(source.folder)
    return {"name": place, "revision": source.revision, "settings": hashes, "files": stats}


def task_of(names: Sequence[str]) -> TaskConfig | None:
    """The task that all of these models were made for, with the last one's safety data; None if they are of no study.

    Raises:
        InputError: two were made for different tasks, or what one says of its task cannot be read.
    """
    found = [folder / TASK for name in names if (folder := Path(name)).is_dir() and (folder / TASK).exists()]
    if len(found) < len(names):
        return None
    tasks = [checked(_Kept, {"task": read_yaml(path)}, f"{path}: ").task for path in found]
    if any(task.without_lessons() != tasks[0].without_lessons() for task in tasks):
        raise InputError(f"{' and '.join(names)}: were made for different tasks; compare models of one")
    return tasks[-1]


def _read(task: Task, folder: Path) -> str:
    """Digest of what a model reads, which it must be able to."""
    if isinstance(task, Language):
        require_fits(task, load_config(folder), folder)
        return digest(task)
    require_same_tokens(task.tokenizer, load_tokenizer(folder), ("the task", str(folder)))
    return ""


def _has_text(folder: Path) -> bool:
    return (folder / "tokenizer.json").exists()


def _form(reader: Reader) -> str:
    return "plain" if reader.template is None else "chat"
