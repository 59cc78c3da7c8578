"""Errors that are the user's to mend: the message names the thing, its value and the remedy."""


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
