"""Registries: what a study is made of, by name. Plug-ins add to them; see docs/extending.md."""

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from tunescope.errors import InputError, choices, shown

GROUP = "tunescope"  # entry points of installed packages that register something
_FILE = "tunescope_plugin_"  # begins the names of modules that are loaded from a file
T = TypeVar("T")
_plugins: set[str] = set()  # modules outside this package that have registered something


class Registry(Generic[T]):
    """Entries of one kind by name, in the order in which they were registered.

    Args:
        what: what an entry is, for messages: `protocol`.
        arguments: what its function is called with, one by one.
    """

    def __init__(self, what: str, *arguments: str) -> None:
        self.what, self.arguments = what, arguments
        self._entries: dict[str, T] = {}
        self._modules: dict[str, str] = {}
        self._about: dict[str, str] = {}

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
        if _foreign(module):
            _plugins.add(module)

    def define(self, name: str, entry: T, function: Callable[..., Any]) -> None:
        """Register an entry that is a function, or has one.

        Raises:
            InputError: as `add`; or the function cannot be called as it will be.
        """
        try:
            inspect.signature(function).bind(*self.arguments)
        except TypeError as error:
            wanted = ", ".join(self.arguments)
            raise InputError(f"{self.what} {shown(name)}: its function must take ({wanted}): {shown(error)}") from error
        self.add(name, entry, function.__module__)
        told = function.__doc__ or sys.modules[function.__module__].__doc__ or ""
        self._about[name] = " ".join(told.split("\n\n")[0].split())

    def about(self, name: str) -> str:
        """The first paragraph of what its function, or its module, says of an entry; empty where there is none."""
        return self._about.get(name, "")

    def __getitem__(self, name: str) -> T:
        """Raises InputError: there is none of this name."""
        if name not in self._entries:
            raise InputError(f"Unknown {self.what} {shown(name)}. {choices(name, self._entries)}")
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
        if file is None or not _foreign(module):
            return ""
        files = sorted(path for path in Path(file).parent.glob(f"{Path(file).stem}.*") if path.is_file())
        return sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def calling_module() -> str:
    """The module that calls the function that calls this one; type checkers that stand between are passed over."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] in ("jaxtyping", "beartype"):
        frame = frame.f_back
    return str(frame.f_globals["__name__"])


def _foreign(module: str) -> bool:
    return module.partition(".")[0] != "tunescope"


@contextmanager
def plugins_blamed(what: str) -> Iterator[None]:
    """Where a plug-in's own code fails, says what failed, and in which line.

    Raises:
        InputError: in place of what was raised in a plug-in.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever foreign code raises
        if not (place := place_in_plugin(error)):
            raise
        raise InputError(f"{what}: a plug-in failed ({place}): {_reason(error)}") from error


def place_in_plugin(error: Exception) -> str:
    """The line of a plug-in at which an error came about; empty where no plug-in takes part."""
    calls = traceback.walk_tb(error.__traceback__)
    at = [(frame.f_code, line) for frame, line in calls if frame.f_globals.get("__name__") in _plugins]
    if not at:
        return ""
    code, line = at[-1]
    return f"{code.co_filename}, line {line}, in {code.co_name}"


def place_of(function: Callable[..., Any]) -> str:
    """Where a function is defined."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}, line {code.co_firstlineno}" if code else function.__module__


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


def plugin_files() -> tuple[str, ...]:
    """The files that were loaded as plug-ins, in the order in which they were."""
    return tuple(str(module.__file__) for name, module in sys.modules.items() if name.startswith(_FILE))


def _load_file(file: Path) -> None:
    path = file.resolve()
    name = f"{_FILE}{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
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
