"""Errors that are the user's to mend: the message names the thing, its value and the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input. The command line prints the message alone and exits with status 2."""


class InapplicableError(Exception):
    """What was asked for cannot be done to this model, which is nobody's fault: it is left out, and the reason told."""


def shown(value: object, limit: int = 120) -> str:
    """What a message quotes: of an error its first line, of a text its repr; printable, in one line, and not long."""
    if isinstance(value, BaseException):
        text = (str(value).strip() or type(value).__name__).splitlines()[0]
    else:
        text = repr(value[: 4 * limit] if isinstance(value, str | bytes) else value)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def choices(wanted: object, known: Iterable[str]) -> str:
    """What a message ends with where a name is none of those that are known."""
    names = list(known)
    near = get_close_matches(str(wanted), names, 1)
    return f"Choose from: {', '.join(names) or 'none'}.{f' Did you mean {near[0]}?' if near else ''}"
