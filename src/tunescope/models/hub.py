"""Model folders by name: a path on this machine, or a repository on the Hugging Face hub."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import hf_hub_download, snapshot_download

from tunescope.errors import InputError, shown
from tunescope.models.shards import plain

_DATASET = re.compile(
    r"hf://datasets/(?P<repo_id>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w.-]+))?/(?P<filename>[\w./ -]+)", re.ASCII
)
_REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)


class Source(NamedTuple):
    """Where a model lies, what it is called, and the commit that it was fetched at; None for a folder of one's own."""

    folder: Path
    label: str
    revision: str | None


def repository_of(name: str) -> str | None:
    """The repository that a name stands for, without its revision; None of a folder."""
    known = _REPOSITORY.fullmatch(name)
    return known["name"] if known and not os.path.exists(name) else None


def fetched(name: str, patterns: Sequence[str]) -> Source:
    """A folder as it is, or what a repository, `owner/name` or `owner/name@revision`, has of these files.

    Raises:
        InputError: there is no such folder, and no repository that can be fetched.
    """
    if os.path.isdir(name):
        folder = Path(name).resolve()
        return Source(folder, folder.name, None)
    known = _REPOSITORY.fullmatch(name)
    if not known or ".." in name or os.path.exists(name):
        raise InputError(
            f"{plain(name)}: no such folder, nor the name of a repository, as in owner/name or owner/name@revision"
        )
    try:
        fetched_to = snapshot_download(known["name"], revision=known["revision"], allow_patterns=list(patterns))
    except Exception as error:  # of the hub, the network, or the disk
        raise InputError(
            f"{plain(name)}: no such folder, and the hub does not give it ({shown(error)}); "
            "check the name and the network, or fetch the model and name its folder"
        ) from error
    return Source(Path(fetched_to), known["name"], Path(fetched_to).name)


def fetched_file(name: str) -> Path:
    """A file as it is, or one of a dataset on the hub, named as in hf://datasets/owner/name@revision/data/file.csv.

    Raises:
        InputError: there is no such file, or it cannot be fetched.
    """
    if os.path.isfile(name):
        return Path(name)
    if not (known := _DATASET.fullmatch(name)) or ".." in name:
        raise InputError(
            f"{plain(name)}: no such file, nor the name of one on the hub, as in hf://datasets/owner/name/file.csv"
        )
    try:
        found = hf_hub_download(known["repo_id"], known["filename"], repo_type="dataset", revision=known["revision"])
        return Path(found)
    except Exception as error:  # as above
        raise InputError(
            f"{plain(name)}: the hub does not give it ({shown(error)}); check the name and the network, or name a "
            "file of your own"
        ) from error
