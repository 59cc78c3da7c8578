"""Files appear whole or not at all: written beside their place, then renamed into it."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

PARTIAL = ".partial"  # ends the name of what is still being written


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path (for a file or a folder) that becomes `path` when the block ends well, and is gone otherwise.

    Raises:
        OSError: it cannot be written (no space, no permission); names the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}"
    try:
        yield temporary
        if path.is_dir() or temporary.is_dir():
            remove(path)
        os.replace(temporary, path)
    except SafetensorError as error:  # which is no OSError, even on a full disk
        raise OSError(errno.EIO, str(error), str(path)) from error
    except OSError as error:
        if error.errno is not None:  # a name would hide the text of an error that has no number
            error.filename = error.filename or str(path)
        raise
    finally:
        remove(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder or below."""
    for partial in list(folder.rglob(f".*{PARTIAL}")):
        remove(partial)
