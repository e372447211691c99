"""What the command says, in lines that any terminal can show."""

import sys


def say(text, file=None):
    """Print to stderr, or ``file``."""
    file = file or sys.stderr
    # File names hold what a terminal's encoding may not have.
    encoding = file.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


def count(things, noun):
    """Return how many of ``noun`` there are: "1 class", "2,000 photos"."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{len(things):,} {noun if len(things) == 1 else plural}"


def in_one_line(error):
    """Return an error's message and notes without line breaks."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: " * bool(error.filename) + error.strerror.lower()
    return " ".join("; ".join([text, *getattr(error, "__notes__", [])]).split())
