"""Settings from text: `tune.steps=300` applied to a study, and studies from YAML."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml

from tunescope.config import Config, Study, checked
from tunescope.errors import InputError, choices, shown

_OPEN = ("settings", "learning_rates")  # sections whose keys are the user's own


def described(section: str, settings: type[Config]) -> Iterator[str]:
    """A line of Markdown for every setting: its key, its default and what it is."""
    for name, field in settings.model_fields.items():
        if name == "type":
            continue
        key, default = f"{section}.{name}" if section else name, field.get_default(call_default_factory=True)
        if isinstance(default, Config):
            yield from described(key, type(default))
            continue
        value = "" if field.is_required() else f" = {json.dumps(default, default=str)}"
        yield f"- `{key}{value}`" + (f": {field.description}" if field.description else "")
        for inner in get_args(field.annotation):
            if isinstance(inner, type) and issubclass(inner, Config):  # one that may be null
                yield from described(key, inner)


def override(study: Study, changes: list[str]) -> Study:
    """A study with some settings changed; each change is `section.key=value`, the value in YAML.

    Raises:
        InputError: a change is not of that form, or names an unknown key or a value out of range.
    """
    data: Any = study.model_dump(mode="json")
    other: set[str] = set()  # sections that are of another type now, which has other keys
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals or not path:
            raise InputError(f"--set: {shown(change)} must be KEY=VALUE, e.g. tune.steps=300")
        *sections, key = path.split(".")
        place: Any = data
        free = bool({*sections[:1]} & other)  # whose keys are checked when all is known
        for number, section in enumerate(sections):
            if isinstance(place, dict) and section not in place and (free or {*sections[:number]} & {*_OPEN}):
                place[section] = {}
            inner = _sections(place)
            if section not in inner:
                raise InputError(f"--set: {shown(path)}: {shown(section)} is no section. {choices(section, inner)}")
            place = inner[section]
        if isinstance(place, list):
            entry = next(iter(_sections(place)))
            raise InputError(
                f"--set: {shown(path)}: {'.'.join(sections)} is a list; set a key of one entry, as in "
                f"{'.'.join(sections)}.{entry}.{next(iter(place[int(entry)]))}, or all of it"
            )
        own = bool({*sections, key} & {*_OPEN})
        if key not in place and not own and not free:
            raise InputError(f"--set: {shown(path)}: unknown key {shown(key)}. {choices(key, place)}")
        if isinstance(place.get(key), dict) and key not in _OPEN:
            raise InputError(f"--set: {path} is a section; set one of its keys: {', '.join(place[key])}")
        before = place.get(key)
        try:
            # Both are safe; the second leaves texts as they are, so that `on` stays `on`.
            place[key] = yaml.safe_load(text) if own else _texts(yaml.load(text, yaml.BaseLoader))
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            whole = ' (quote what has spaces: "tunes=[a, b]")' if text[:1] in "[{" else ""
            raise InputError(f"--set: {shown(change)}: the value is not YAML{whole}") from error
        if sections in (["base"], ["task"]) and key == "type" and place[key] != before:
            data[sections[0]] = {"type": place[key]}
            other.add(sections[0])
    return checked(Study, data)


def _sections(place: Any) -> dict[str, Any]:
    """What has keys of its own: sections by name, and those of a list, as `tunes`, by number."""
    named = {str(n): each for n, each in enumerate(place)} if isinstance(place, list) else place
    return {name: each for name, each in named.items() if isinstance(each, dict) or _listed(each)}


def _listed(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, dict) for each in value)


def _texts(value: Any) -> Any:
    """Texts as they are, but for null."""
    if isinstance(value, dict):
        return {key: _texts(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_texts(each) for each in value]
    return None if value == "null" else value


def read_study(path: Path) -> Study:
    """A study from a YAML file; what it does not set has its default.

    Raises:
        InputError: no such file, or it holds no study.
    """
    return checked(Study, read_yaml(path), f"{path}: ")


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file.

    Raises:
        InputError: no such file, or no mapping in it.
    """
    try:
        if os.path.getsize(path) > 10_000_000:
            raise ValueError("more than 10 MB")
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{path}{where}: is not YAML ({shown(error.problem or error)})") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({shown(error)})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: a mapping of settings is wanted, got {shown(found)}")
    return found
