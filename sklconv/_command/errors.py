"""Errors that the command ends with, in a sentence for the user."""

from contextlib import contextmanager


class ExtractionError(RuntimeError):
    """What stands in the way of an extraction, in a sentence for the user."""


@contextmanager
def writing(place):
    """Have errors of writing say where."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ExtractionError(f"{place}: can't be written: {reason}") from error
