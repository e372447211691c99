"""Errors that end the command."""

from contextlib import contextmanager


class CommandError(RuntimeError):
    """An error that ends the command, in one sentence for the user."""


@contextmanager
def writing(place):
    """Have errors of writing say where."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CommandError(f"{place}: can't be written: {reason}") from error
