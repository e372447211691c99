"""A contender in a process of its own: ``python -m benchmarks.race.worker MODULE``, over pipes.

Every contender lives in its own process, so none profits from another's allocations or threads,
and stays alive, so rounds can alternate between them. This file runs in Keras' environment too:
it imports only the standard library.

A request is one line of JSON, and so is its answer:

- ``{"prepare": FUNCTION, "task": {...}}`` calls ``MODULE.FUNCTION(task)``, which returns what is
  to be timed, and runs that once;
- ``{"repeats": N}`` times N calls of it, behind one that is not timed: while others had their
  turns, caches and pages of memory went to them. The answer is ``{"seconds": of one call}``.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class Worker:
    """The other end: a contender's process.

    Parameters
    ----------
    module : str
        Name of the contender's module in ``benchmarks.contenders``.
    python : str
        Interpreter to run it with.
    folder : Path
        Whose packages ``benchmarks`` and ``sklconv`` it imports.
    """

    def __init__(self, module, python=sys.executable, folder=ROOT):
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.race.worker", f"benchmarks.contenders.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
        )

    def prepare(self, function, task):
        self._ask({"prepare": function, "task": task})

    def time(self, repeats=1):
        """Return the seconds that one call took."""
        return self._ask({"repeats": repeats})["seconds"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contender died: {' '.join(self.process.args)}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


def serve(module, requests, answers):
    """Answer requests until there are no more."""
    run = None
    for line in requests:
        request = json.loads(line)
        answer = {}
        try:
            if "prepare" in request:
                run = getattr(module, request["prepare"])(request["task"])
                run()
            else:
                answer["seconds"] = _time(run, request["repeats"])
        except Exception as error:
            answer["error"] = f"{module.__name__}: {type(error).__name__}: {error}"
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _time(run, repeats):
    run()
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats


if __name__ == "__main__":
    # What a library prints must not get between the answers.
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(importlib.import_module(sys.argv[1]), sys.stdin, pipe)
