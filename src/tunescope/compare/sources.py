"""The two models of a comparison: where they are, whether they match, and what they are known by."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tunescope.errors import InputError
from tunescope.folders import LOCK
from tunescope.models.checkpoint import ADAPTER, convert_command, first_line
from tunescope.models.hub import Source, fetched
from tunescope.models.pair import StoredPair
from tunescope.models.shards import Adapter, Shards, require_pair

DESCRIPTION = "pair.json"  # by which the folder of a comparison is known
SETTINGS = ("config.json", "model.safetensors.index.json", ADAPTER)
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "adapter_model.safetensors")


def sources(base: str, tuned: str, *more: str) -> tuple[Source, Source]:
    """Both, with their weights and what else is wanted of their files.

    Raises:
        InputError: one is not there, or has no safetensors.
    """
    for name in (base, tuned):
        fetched(name, SETTINGS)  # of both before the weights of one: names may be wrong, and weights are large
    return with_weights(base, *more), with_weights(tuned, *more)


def opened(base: Path, tuned: Path) -> StoredPair:
    """The weights of two folders.

    Raises:
        CheckpointError: one cannot be read, or the two do not match.
    """
    before = Shards(base)
    if (tuned / ADAPTER).exists():
        return StoredPair(before, Adapter(tuned, before))
    after = Shards(tuned)
    require_pair(before, after)
    return StoredPair(before, after)


def with_weights(name: str, *more: str) -> Source:
    """A folder, or what a repository has, of settings, weights, and more.

    Raises:
        InputError: it is not there, or has no safetensors.
    """
    source = fetched(name, (*SETTINGS, *_WEIGHTS, *more))
    if source.revision and not any(source.folder.glob("*.safetensors")):
        raise InputError(f"{name}: has no safetensors; convert what it has: {convert_command(source.label)}")
    return source


def told(source: Source) -> dict[str, Any]:
    """What a model is known by: settings by their content, weights by their files' sizes and times."""
    settings = {name: source.folder / name for name in SETTINGS}
    hashes = {name: sha256(file.read_bytes()).hexdigest() for name, file in settings.items() if file.exists()}
    files = sorted(source.folder.glob("*.safetensors"))
    stats = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    place = source.label if source.revision else str(source.folder)
    return {"name": place, "revision": source.revision, "settings": hashes, "files": stats}


def check(out: Path, told: dict[str, Any]) -> None:
    """Refuse a folder that holds anything but this comparison.

    Raises:
        InputError: it does.
    """
    if not out.exists() or (
        out.is_dir() and not [e for e in out.iterdir() if e.name != LOCK and (not e.is_dir() or any(e.iterdir()))]
    ):
        return  # new, or left by a run that was stopped at its very start
    try:
        found = json.loads((out / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{out}: there already, and not a comparison of two models; choose another --out") from error
    if found != told:
        changed = [key for key in told if not isinstance(found, dict) or found.get(key) != told[key]]
        raise InputError(f"{out}: holds a comparison with another {', '.join(changed)}; choose another --out")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Says at what it was that memory was too small, or numbers failed.

    Raises:
        InputError: in place of what torch, safetensors or a probe raised.
    """
    try:
        yield
    except (torch.OutOfMemoryError, torch.linalg.LinAlgError, SafetensorError, ValueError) as error:  # type: ignore[attr-defined]
        raise InputError(f"{what}: {first_line(error)}; another --device or --dtype may do") from error
