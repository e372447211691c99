"""What training depends on, but for the images and the net that it goes on from."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from .._platform.devices import check_precision, resolve_device
from .._platform.digests import digest_of
from .._platform.randomness import draw_seed
from .._pretrained.backbones import Backbone
from .callbacks import sets_learning_rates
from .optimizers import LR, SCHEDULES, auto_batch_size, auto_lr

# What training shows, not what it does.
SHOWN = {"verbose"}

# Taken from the classifier as they are.
PARAMETERS = (
    *("module", "optimizer", "optimizer_params", "lr", "backbone_lr_scale", "weight_decay"),
    *("batch_size", "freeze", "augment", "precision", "tol", "callbacks", "net_params", "verbose"),
)


@dataclass(frozen=True)
class Recipe:
    """The parameters of `sklconv.ConvNetClassifier` that training reads, made definite.

    Attributes that are not parameters are what became of them: ``image_shape`` and ``n_classes``
    of X and y, ``is_final`` says that images are resized and cropped already, ``patience`` is the
    number of epochs without improvement that early stopping bears, or None, and ``schedule`` the
    course of the learning rate, or None.
    """

    module: object
    optimizer: object
    optimizer_params: dict | None
    lr: float | str
    backbone_lr_scale: float
    weight_decay: float
    batch_size: int | str
    freeze: object
    augment: Callable | None
    precision: str
    tol: float
    callbacks: list | None
    net_params: dict | None
    verbose: int
    image_shape: tuple
    n_classes: int
    is_final: bool
    standardize: bool
    epochs: int
    patience: int | None
    schedule: Callable | None
    seed: int
    device: torch.device

    @classmethod
    def of(cls, classifier, epochs, *, partial):
        """Return the recipe of a fit, or of a `partial_fit`, of ``classifier``.

        A seed is drawn from its ``random_state``.
        """
        device = resolve_device(classifier.device)
        check_precision(classifier.precision, device)
        stops = classifier.early_stopping and not partial
        return cls(
            **{name: getattr(classifier, name) for name in PARAMETERS},
            image_shape=classifier.image_shape_,
            n_classes=len(classifier.classes_),
            is_final=classifier._format.is_final,
            standardize=_standardizes(classifier),
            epochs=epochs,
            patience=classifier.n_iter_no_change if stops else None,
            schedule=None if partial else _schedule(classifier),
            seed=draw_seed(classifier.random_state),
            device=device,
        )

    def digest(self):
        """Return a digest that is equal where the same images give the same network, as text.

        Raises
        ------
        Undigestible
            Of users' objects of which no digest can be had.
        """
        counts = [field.name for field in fields(self) if field.name not in SHOWN]
        # Other than in networks, which are the same on every device, it decides on bits.
        return digest_of(
            {name: getattr(self, name) for name in counts} | {"device": str(self.device)}
        )

    def batch_size_of(self, n):
        """The number of images in a batch, of ``n`` in all."""
        return auto_batch_size(n) if self.batch_size == "auto" else self.batch_size

    def lr_of(self, n):
        """The learning rate, the highest one of a schedule, for ``n`` images."""
        if self.lr != "auto":
            return self.lr
        knows_how = self.optimizer in ("adam", "adamw") and self.schedule is not None
        if not knows_how or _is_pretrained(self.module):
            return LR
        batch_size = self.batch_size_of(n)
        return auto_lr(self.epochs * math.ceil(n / batch_size), batch_size)


def _standardizes(classifier):
    if classifier.standardize != "auto":
        return classifier.standardize
    return not _is_pretrained(classifier.module)


def _is_pretrained(module):
    return isinstance(module, (torch.nn.Module, Backbone))


def _schedule(classifier):
    if classifier.lr_schedule == "auto":
        is_left = classifier.early_stopping or sets_learning_rates(classifier.callbacks)
        return None if is_left else SCHEDULES["onecycle"]
    return SCHEDULES.get(classifier.lr_schedule)
