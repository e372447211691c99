"""Contenders side by side: rounds that alternate between them, and what the rounds say."""

import os
import random
import statistics
from contextlib import ExitStack, closing

from .worker import Worker

KERAS_VARIABLE = "SKLCONV_BENCH_KERAS"

# Contender -> its module and, per job, the function that prepares it.
CONTENDERS = {
    "sklconv": (
        "ours",
        {"fit": "prepare_fit", "predict": "prepare_predict", "transform": "prepare_transform"},
    ),
    "textbook": (
        "textbook",
        {"fit": "prepare_fit", "predict": "prepare_predict", "one image": "prepare_one_image"},
    ),
    "textbook, DataLoader": ("textbook", {"fit": "prepare_fit_loader"}),
    "tuned": (
        "tuned",
        {
            "fit": "prepare_fit",
            "predict": "prepare_predict",
            "transform": "prepare_transform",
            "one image": "prepare_one_image",
        },
    ),
    "channels-last": (
        "channels_last",
        {"fit": "prepare_fit", "fine-tune": "prepare_fine_tune"},
    ),
    "sklconv, Backbone": ("lite0", {"fine-tune": "prepare_fit"}),
    # skorch has no transform: a net of all layers but the last stands in.
    "skorch": (
        "peers_skorch",
        {
            "fit": "prepare_fit",
            "predict": "prepare_predict",
            "transform": "prepare_transform",
            "one image": "prepare_one_image",
        },
    ),
    "Keras": (
        "peers_keras",
        {"fit": "prepare_fit", "predict": "prepare_predict", "one image": "prepare_one_image"},
    ),
    "sklconv predict_proba, uint8": ("ours", {"one image": "prepare_one_image"}),
    "sklconv predict_proba, float32": ("ours", {"one image": "prepare_one_image_float32"}),
    "sklconv transform, uint8": ("ours", {"one image": "prepare_one_image_transform"}),
}


class Field:
    """All contenders that are there, each started when first asked; a context manager."""

    def __init__(self):
        self._workers, self._stack = {}, ExitStack()
        self.keras_python = os.environ.get(KERAS_VARIABLE)
        if not self.keras_python:
            print(f"Keras is left out: {KERAS_VARIABLE} does not name its environment's python\n")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stack.close()

    def entrants(self, job):
        """Names of the contenders that do ``job``."""
        return [
            name
            for name, (_, jobs) in CONTENDERS.items()
            if job in jobs and (name != "Keras" or self.keras_python)
        ]

    def race(self, job, task, rounds, names=None, repeats=1):
        """Return for each contender the seconds of a call in each round.

        Parameters
        ----------
        job : {"fit", "fine-tune", "predict", "transform", "one image"}
        task : dict
            What to do it with.
        rounds : int
            In each round every contender has one turn, in an order that is drawn anew.
        names : list of str, optional
            The contenders; all that do the job by default.
        repeats : int, default=1
            Calls a turn.
        """
        workers = {}
        for name in names or self.entrants(job):
            try:
                self._worker(name).prepare(CONTENDERS[name][1][job], task)
                workers[name] = self._worker(name)
            except RuntimeError as error:
                print(f"{name} is left out of {job}, {task['network']}: {error}")
        return take_turns(workers, rounds, repeats)

    def _worker(self, name):
        if name not in self._workers:
            python = {"python": self.keras_python} if name == "Keras" else {}
            worker = Worker(CONTENDERS[name][0], **python)
            self._workers[name] = self._stack.enter_context(closing(worker))
        return self._workers[name]


def take_turns(workers, rounds, repeats=1, seed=0):
    """Return for each of ``workers``, a dict by name, the seconds of a call in each round."""
    order, seconds = random.Random(seed), {name: [] for name in workers}
    for _ in range(rounds):
        # Nobody always comes behind the one whose threads are slow to come to rest.
        for name in order.sample(list(workers), len(workers)):
            seconds[name].append(workers[name].time(repeats))
    return seconds


def compare(other, ours):
    """Return median, lowest and highest ratio of the rounds: how often ours fits into theirs."""
    ratios = [a / b for a, b in zip(other, ours, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)
