"""Files and folders appear whole or not at all, whatever happens while they are written."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from tunescope.files import PARTIAL, atomic_path, remove, sweep, write_text


def write_file(path: Path) -> None:
    path.write_text("new")


def write_folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_text("new")


def write_other_folder(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "stale").write_text("old")


@pytest.mark.parametrize("old", [None, write_file, write_other_folder])
@pytest.mark.parametrize("new", [write_file, write_folder])
def test_the_new_takes_the_place_of_the_old(
    old: Callable | None, new: Callable, tmp_path: Path, contents: Callable
) -> None:
    path = tmp_path / "deep" / "down" / "thing"
    if old:
        path.parent.mkdir(parents=True)
        old(path)
    before = contents(tmp_path)
    with atomic_path(path) as temporary:
        new(temporary)
        assert {name: data for name, data in contents(tmp_path).items() if PARTIAL not in name} == before
    assert contents(path.parent) == {"thing" if new is write_file else "thing/inner/file": b"new"}


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_failure_leaves_the_old_and_nothing_else(
    write: Callable, error: BaseException, tmp_path: Path, contents: Callable
) -> None:
    write(tmp_path / "thing")
    before = contents(tmp_path)

    def fails() -> None:
        with atomic_path(tmp_path / "thing") as temporary:
            write(temporary)
            raise error

    with pytest.raises(type(error)):
        fails()
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_a_failed_write_names_the_path(tmp_path: Path) -> None:
    def fails(error: Exception) -> None:
        with atomic_path(tmp_path / "thing"):
            raise error

    with pytest.raises(OSError, match="No space left") as caught:
        fails(OSError(errno.ENOSPC, "No space left on device"))
    assert caught.value.filename == str(tmp_path / "thing")
    with pytest.raises(OSError, match="No space left") as caught:
        fails(SafetensorError("I/O error: No space left on device"))
    assert caught.value.filename == str(tmp_path / "thing")


def test_safetensors_that_cannot_be_written_are_an_os_error(tmp_path: Path) -> None:
    def fails() -> None:
        with atomic_path(tmp_path / "weights") as temporary:
            temporary.mkdir()
            save_file({"a": torch.zeros(3)}, temporary)

    with pytest.raises(OSError, match="serializing") as caught:
        fails()
    assert "weights" in str(caught.value.filename)
    assert not list(tmp_path.iterdir())


def test_text_is_utf_8_with_its_line_ends_as_they_are(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "text", "naïve → ∆W\n")
    assert (tmp_path / "new" / "text").read_bytes() == "naïve → ∆W\n".encode()


def test_remove_takes_files_folders_and_nothing(tmp_path: Path) -> None:
    write_file(tmp_path / "file")
    write_folder(tmp_path / "folder")
    for name in ("file", "folder", "absent"):
        remove(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_sweep_takes_what_was_left_half_written_and_no_more(tmp_path: Path, contents: Callable) -> None:
    write_folder(tmp_path / "models" / "base")
    write_file(tmp_path / "notes.partial")
    write_file(tmp_path / ".hidden")
    before = contents(tmp_path)
    for path in (tmp_path / "records", tmp_path / "models" / "base"):
        left = atomic_path(path)
        write_folder(left.__enter__())  # killed: never left
        assert contents(tmp_path) != before
        sweep(tmp_path)
        assert contents(tmp_path) == before
    assert not list(tmp_path.rglob("*/.*"))
