"""Files of runs where nodes that share no disk can reach them: any file system that pyarrow opens."""

from collections.abc import Iterable
from pathlib import Path

from pyarrow import ArrowException, fs

from tunescope.errors import InputError, shown
from tunescope.study.stages import STAGES, Stage


class Store:
    """A folder of runs by URI, as `s3://bucket/path`; runs go by the names of their folders.

    Raises:
        InputError: no such file system, or it cannot be reached.
    """

    def __init__(self, uri: str) -> None:
        try:
            self.system, self.root = fs.FileSystem.from_uri(uri)
            self.system.create_dir(self.root, recursive=True)
        except (ArrowException, OSError, ValueError) as error:
            raise InputError(f"store: {shown(uri)} cannot be used: {shown(error, 200)}") from error

    def pull(self, stages: Iterable[Stage], folder: Path) -> None:
        """What these stages have made, and their markers, into a run folder; nothing of stages that are not done."""
        for stage in stages:
            if not self._there(marker := self._marker(folder, stage)):
                continue
            for output in stage.outputs:
                self._copy(f"{self.root}/{folder.name}/{output}", folder / output, down=True)
            self._copy(marker, folder / STAGES / f"{stage.name}.json", down=True)

    def push(self, stage: Stage, folder: Path) -> None:
        """What a stage has made in a run folder, then its marker."""
        for output in stage.outputs:
            self._copy(f"{self.root}/{folder.name}/{output}", folder / output, down=False)
        self._copy(self._marker(folder, stage), folder / STAGES / f"{stage.name}.json", down=False)

    def _marker(self, folder: Path, stage: Stage) -> str:
        return f"{self.root}/{folder.name}/{STAGES}/{stage.name}.json"

    def _there(self, path: str) -> bool:
        return self.system.get_file_info(path).type != fs.FileType.NotFound

    def _copy(self, there: str, here: Path, *, down: bool) -> None:
        local = fs.LocalFileSystem()
        source, target = (there, str(here)) if down else (str(here), there)
        systems = (self.system, local) if down else (local, self.system)
        folder = systems[0].get_file_info(source).type == fs.FileType.Directory
        systems[1].create_dir(target if folder else target.rpartition("/")[0], recursive=True)
        fs.copy_files(source, target, source_filesystem=systems[0], destination_filesystem=systems[1])


def before(stage: Stage) -> list[Stage]:
    """All stages that one rests on, each once, and before those that rest on it."""
    found: dict[str, Stage] = {}
    for each in stage.after:
        found |= {one.name: one for one in (*before(each), each)}
    return list(found.values())
