"""Errors that are the user's to mend: the message names the thing, its value and the remedy."""


class InputError(ValueError):
    """Bad input. The command line prints the message alone and exits with status 2."""
