"""What memory this process holds: its peak, and what it has allocated itself."""

import resource
import sys
import threading
from pathlib import Path

STATUS = Path("/proc/self/status")
MIB = 2**20


def peak_resident():
    """Return the highest resident memory so far, in MiB."""
    # In KiB on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def own_memory():
    """Return the allocated memory, in MiB; 0 where the system does not tell."""
    if not STATUS.exists():
        return 0.0
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


class Sampler:
    """Reads the process' own memory every few milliseconds; ``peak`` is the highest."""

    def __enter__(self):
        self.peak, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._done.set()
        self._thread.join()

    def _watch(self):
        while not self._done.wait(0.002):
            self.peak = max(self.peak, own_memory())
