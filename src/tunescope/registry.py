"""Registries: what a study is made of, by name. Plug-ins add to them; see docs/extending.md."""

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

from tunescope.errors import InputError, shown

GROUP = "tunescope"  # entry points of installed packages that register something
T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind by name, in the order in which they were registered.

    Args:
        what: what an entry is, for messages: `protocol`.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, T] = {}
        self._modules: dict[str, str] = {}

    def add(self, name: str, entry: T, module: str) -> None:
        """Register an entry that a module defines.

        Raises:
            InputError: another module has registered one of this name.
        """
        if self._modules.get(name, module) != module:
            raise InputError(
                f"Two {self.what}s are called {shown(name)}: one of {self._modules[name]}, one of {module}. Rename one."
            )
        self._entries[name], self._modules[name] = entry, module

    def __getitem__(self, name: str) -> T:
        """Raises InputError: there is none of this name."""
        if name not in self._entries:
            raise InputError(f"Unknown {self.what} {shown(name)}. Choose from: {', '.join(self._entries)}.")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def values(self) -> list[T]:
        return list(self._entries.values())

    def code(self, name: str) -> str:
        """Digest of the file that registered an entry from outside this package, by which an edit of it is noticed.

        Files beside it of the same name are taken for its data, and are part of it.
        """
        module = self._modules.get(name, "tunescope")
        file = getattr(sys.modules.get(module), "__file__", None)
        if module.partition(".")[0] == "tunescope" or file is None:
            return ""
        files = sorted(path for path in Path(file).parent.glob(f"{Path(file).stem}.*") if path.is_file())
        return sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def import_all(package: str) -> None:
    """Import every module of a package, so that each registers what it defines."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def load_plugins(files: Iterable[str | Path] = ()) -> None:
    """Import plug-ins: those of installed packages (entry points of the group `tunescope`), then these files.

    Raises:
        InputError: one cannot be imported, or registers a name that is taken.
    """
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except InputError:
            raise
        except Exception as error:  # whatever foreign code raises
            raise InputError(f"plug-in {point.name} ({point.value}): cannot be imported: {_reason(error)}") from error
    for file in files:
        _load_file(Path(file))


def _load_file(file: Path) -> None:
    path = file.resolve()
    name = f"tunescope_plugin_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    if not path.is_file() or path.suffix != ".py":
        raise InputError(f"--plugin: {shown(str(file))} is no Python file; name one that registers something")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"--plugin: {shown(str(file))} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except InputError:
        del sys.modules[name]
        raise
    except Exception as error:  # whatever foreign code raises
        del sys.modules[name]
        raise InputError(f"--plugin: {shown(str(file))} cannot be imported: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {shown(error)}"
