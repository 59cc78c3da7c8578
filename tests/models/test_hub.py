"""Names of models and files: folders, repositories, and what is neither."""

from pathlib import Path

import pytest

from tunescope.errors import InputError
from tunescope.models import hub


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert hub.fetched(str(tmp_path), ("*.json",)) == (tmp_path.resolve(), tmp_path.name, None)
    (tmp_path / "prompts.csv").touch()
    assert hub.fetched_file(str(tmp_path / "prompts.csv")) == tmp_path / "prompts.csv"


def test_a_repository_is_fetched_at_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert hub.fetched("owner/base@v1.0", ("config.json",)) == (tmp_path, "owner/base", tmp_path.name)
    assert asked == [("owner/base", "v1.0", ["config.json"])]


@pytest.mark.parametrize("error", [OSError("cannot\nreach"), KeyError("x" * 5000), RuntimeError()])
def test_what_the_hub_does_not_give_is_told(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    monkeypatch.setattr(hub, "hf_hub_download", fail)
    for fetch in (lambda: hub.fetched("owner/base", ()), lambda: hub.fetched_file("hf://datasets/owner/name/a.csv")):
        with pytest.raises(InputError, match="the hub does not give it") as caught:
            fetch()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) <= 600


@pytest.mark.parametrize(
    "name", ["", "a\x00b", "x" * 5000, "a\nb/c", "../x", "owner/..", "a/b/c", "o/n@../../x", "\ud800"]
)
def test_what_is_no_name_is_refused(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # beside it there is no ../x
    monkeypatch.setattr(hub, "snapshot_download", None)
    monkeypatch.setattr(hub, "hf_hub_download", None)
    for fetch in (
        lambda: hub.fetched(name, ()),
        lambda: hub.fetched_file(name),
        lambda: hub.fetched_file(f"hf://datasets/owner/name/../{name}"),
    ):
        with pytest.raises(InputError, match="no such f") as caught:
            fetch()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) <= 600
