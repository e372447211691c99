"""What ``verbose`` shows: lines on stdout, and on stderr a bar with the time left."""

import multiprocessing
import sys
import threading
from contextlib import contextmanager

from tqdm import tqdm

# Seconds after which a bar appears: what is over sooner has none.
DELAY = 0.5
# Where a bar could not redraw itself, its state is a line of its own: after each tenth, but at
# least so many seconds apart.
LINES, SECONDS_BETWEEN_LINES = 10, 10


@contextmanager
def progress(who, total, verbose, done=0):
    """Show how far a ``with`` block is, if ``verbose``; it tells `update` of what this gives.

    Only the main thread of the main process shows anything: bars of joblib's workers would
    overwrite each other.

    Parameters
    ----------
    who : str
        Who is at work, such as a function's name.
    total : int or None
        The number of images; None: it is not known.
    verbose : int or bool
    done : int, default=0
        Images that an earlier run has done.
    """
    if not (verbose and _is_seen()):
        yield _Silent()
        return
    bar = _bar(desc=who, total=total, initial=done, unit=" images", leave=False)
    try:
        yield bar
        bar.total = bar.n  # what ends early has not failed: a notebook would leave it there in red
    finally:
        bar.delay = 0  # else `print_line` may have shown what is not wiped away
        bar.close()


def print_line(text):
    """Print ``text`` above the bars, in one go, so that other threads' lines stay apart."""
    with tqdm.external_write_mode(nolock=True):
        print(f"{text}\n", end="")


class _Silent:
    def update(self, n):
        pass

    def set_description_str(self, text, refresh):
        pass


class _Lines:
    """A stream to which a bar writes a line for each of its states."""

    def write(self, text):
        if text := text.strip():
            sys.stderr.write(f"{text}\n")

    def flush(self):
        sys.stderr.flush()


def _is_seen():
    in_main_thread = threading.current_thread() is threading.main_thread()
    in_worker = multiprocessing.parent_process() is not None
    return sys.stderr is not None and in_main_thread and not in_worker


def _bar(total, **options):
    if sys.stderr.isatty() or _in_notebook():
        from tqdm.auto import tqdm as bar_of_here  # loads widgets in a notebook

        return bar_of_here(total=total, delay=DELAY, dynamic_ncols=True, **options)
    return tqdm(
        total=total,
        file=_Lines(),
        position=0,
        delay=SECONDS_BETWEEN_LINES,
        mininterval=SECONDS_BETWEEN_LINES,
        maxinterval=float("inf"),
        miniters=None if total is None else total / LINES,
        bar_format="{desc}: {n_fmt} of {total_fmt} images [{elapsed}<{remaining}, {rate_fmt}]",
        **options,
    )


def _in_notebook():
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config
