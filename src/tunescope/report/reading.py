"""The files beside the tables of a run: read, and checked, in one way."""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from tunescope.errors import InputError, shown


class Stage(BaseModel):
    """How long a stage took; skipped: in an earlier run."""

    stage: str
    seconds: float
    skipped: bool = False


class Reply(BaseModel):
    """What a model says to a prompt; and by layer tau, and |dW a| / |a|, where there are any."""

    text: str = ""
    outcome: str = ""
    tau: list[float] = []
    gain: list[float] = []


class Entry(BaseModel, extra="allow"):
    """An example: a prompt, and the reply of each model, by name. What a task says beyond that is not checked."""

    kind: str
    prompt: str
    answers: dict[str, Reply]
    answer: str | None = None
    why: str | None = None
    safe: bool | None = None


def read_file(path: Path, kind: Any, default: Any = None) -> Any:
    """What a JSON or YAML file holds, as a value of this type; `default`, unless None, where there is no file.

    Raises:
        InputError: no such file, or it holds anything else; names the file and the place.
    """
    if default is not None and not path.is_file():
        return default
    try:
        text = path.read_text(encoding="utf-8")
        value: Any = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        return TypeAdapter(kind).validate_python(value)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; {path.parent} is no run folder") from error
    except ValidationError as error:
        at = ".".join(map(str, error.errors()[0]["loc"]))
        reason = ": ".join(shown(text) for text in (at, error.errors()[0]["msg"]) if text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = shown(error)
    raise InputError(f"{path}: cannot be read: {reason}")
