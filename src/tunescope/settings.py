"""Settings from text: `tune.steps=300` applied to a study, and errors that name the key."""

from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tunescope.config import Study
from tunescope.errors import InputError


def override(study: Study, changes: list[str]) -> Study:
    """A study with some settings changed; each change is `section.key=value`, the value in YAML.

    Raises:
        InputError: a change is not of that form, or names an unknown key or a value out of range.
    """
    data: Any = study.model_dump(mode="json")
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals or not path:
            raise InputError(f"--set: {change!r} must be KEY=VALUE, e.g. tune.steps=300")
        *sections, key = path.split(".")
        model: Any = Study
        place: Any = data
        for section in sections:
            model = model.model_fields[section].annotation if section in getattr(model, "model_fields", {}) else None
            place = place.get(section)
            if not (isinstance(model, type) and issubclass(model, BaseModel)):
                raise InputError(f"--set: {path}: {section!r} is no section; there are {_sections()}")
        if key not in place:
            raise InputError(f"--set: {path}: unknown key {key!r}; there are {', '.join(place)}")
        if isinstance(place[key], dict):
            raise InputError(f"--set: {path} is a section; set one of its keys: {', '.join(place[key])}")
        try:
            place[key] = yaml.load(text, yaml.BaseLoader)  # safe: texts and lists of texts, so that `on` stays `on`
        except yaml.YAMLError as error:
            raise InputError(f"--set: {change!r}: the value is not YAML") from error
    try:
        return Study.model_validate(data)
    except ValidationError as error:
        raise InputError("\n".join(_messages(error))) from error


def _messages(error: ValidationError) -> list[str]:
    """One line per fault: key, what is wrong, and the value."""
    lines = []
    faults = error.errors()
    for fault in faults:
        if fault["type"] == "too_short" and any(other["loc"][:-1] == fault["loc"] for other in faults):
            continue  # of a list whose entries are at fault, pydantic counts the others
        key = ".".join(map(str, fault["loc"]))
        reason = fault["msg"].removeprefix("Value error, ")
        said = fault["type"] == "value_error"  # our own messages name the value themselves
        value = "" if said or isinstance(fault["input"], dict) else f" (got {fault['input']!r})"
        wanted = f"; a list is wanted, as in {key}=[a, b]" if fault["type"] == "tuple_type" else ""
        lines.append(f"{key}: {reason}{value}{wanted}")
    return lines


def _sections() -> str:
    fields = Study.model_fields.items()
    return ", ".join(n for n, f in fields if isinstance(f.annotation, type) and issubclass(f.annotation, BaseModel))
