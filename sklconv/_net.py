"""The skorch net inside a classifier: skorch's own, with a leaner training loop."""

import copy
import dis
import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import ProgressBar as ProgressBar
from skorch.dataset import Dataset
from skorch.utils import TeeGenerator

from ._images import slices, take_batch

OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "nadam": torch.optim.NAdam,
    "lbfgs": torch.optim.LBFGS,
}
# These update all weights in one kernel instead of several a weight.
FUSED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad)

# Parameters of skorch's net that the engine sets, and those that the classifier has itself.
ENGINE_OWNED = {"module", "iterator_train", "iterator_valid", "dataset", "train_split", "classes"}
CLASSIFIER_OWNED = {
    "optimizer",
    "lr",
    "max_epochs",
    "batch_size",
    "callbacks",
    "warm_start",
    "verbose",
    "device",
}


@dataclass
class ImageSet:
    """Images with their targets: what a net trains on or is validated on."""

    images: np.ndarray  # (n, C, H, W)
    targets: torch.Tensor  # (n,), int64, on the net's device
    weights: torch.Tensor | None = None  # (n,), float32, of mean 1

    def __len__(self):
        return len(self.images)

    def as_dataset(self):
        """Return it as skorch's callbacks expect it."""
        return Dataset(self.images, self.targets.cpu().numpy())

    def batch(self, index, device):
        """Return the rows that ``index``, a slice or an array of rows, names."""
        rows = index if isinstance(index, slice) else torch.from_numpy(index)
        weights = None if self.weights is None else self.weights[rows]
        return take_batch(self.images, index, device), self.targets[rows], weights


@dataclass
class Training:
    """One stretch of training: its data and all that stays the same throughout."""

    train: ImageSet
    valid: ImageSet | None
    epochs: int
    batch_size: int
    order: torch.Generator
    schedule: Callable[[int], np.ndarray] | None = None  # number of steps -> factors of lr
    augment: Callable | None = None
    patience: int | None = None
    tol: float = 0.0
    report: Callable[[dict], None] | None = None
    n_batches: int = 0  # trained so far


class LeanNet(NeuralNetClassifier):
    """A `skorch.NeuralNetClassifier` with a loop that does nothing nobody asked for.

    Callbacks get every event that they get in skorch. Without callbacks there are no events,
    and the history has no records of single batches.
    """

    @property
    def _default_callbacks(self):
        # The loop keeps the records that these would keep.
        return []

    def get_iterator(self, dataset, training=False):
        """Return batches for skorch's own methods, each gathered from memory as a whole."""
        n = len(dataset)
        size = n if self.batch_size == -1 else self.batch_size
        cuts = training_batches(n, size) if training else slices(n, size)
        return _Batches(dataset, cuts, shuffle=training)

    def train(self, training):
        """Train as ``training`` says; a user's interrupt is raised on afterwards."""
        valid = None if training.valid is None else training.valid.as_dataset()
        datasets = {"dataset_train": training.train.as_dataset(), "dataset_valid": valid}
        everything = {"X": datasets["dataset_train"].X, "y": datasets["dataset_train"].y}
        self.notify("on_train_begin", **everything)
        try:
            self._train_epochs(training, datasets)
        except KeyboardInterrupt:
            self.notify("on_train_end", **everything)
            raise
        finally:
            self.module_.eval()
        self.notify("on_train_end", **everything)

    def _train_epochs(self, training, datasets):
        cuts = training_batches(len(training.train), training.batch_size)
        groups = self.optimizer_.param_groups
        base_lrs = [group["lr"] for group in groups]
        factors = None
        if training.schedule is not None:
            factors = training.schedule(training.epochs * len(cuts)).reshape(training.epochs, -1)
        stopping = None if training.patience is None else _EarlyStopping(training)
        for epoch in range(training.epochs):
            started = time.perf_counter()
            self.notify("on_epoch_begin", **datasets)
            lrs = None if factors is None else [f * np.array(base_lrs) for f in factors[epoch]]
            row = self._train_epoch(training, cuts, lrs)
            row |= self._validate(training)
            row |= {"lr": groups[0]["lr"], "duration": time.perf_counter() - started}
            self._record(row)
            if training.report is not None:
                training.report(self.history_row(-1))
            if self._callback_stops(datasets):
                break
            if stopping is not None and stopping.should_stop(self.module_, row["valid_loss"]):
                break
        for group, lr in zip(groups, base_lrs, strict=True):
            group["lr"] = lr
        if stopping is not None:
            stopping.restore_best(self.module_)

    def _train_epoch(self, training, cuts, lrs):
        module, device = self.module_, self.device
        module.train()
        order = torch.randperm(len(training.train), generator=training.order).numpy()
        losses, hits = [], []
        for number, cut in enumerate(cuts):
            if lrs is not None:
                for group, lr in zip(self.optimizer_.param_groups, lrs[number], strict=True):
                    group["lr"] = float(lr)
            x, y, weights = training.train.batch(order[cut], device)
            if training.augment is not None:
                x = _augmented(x, training.augment, module)
            loss, logits = self._train_batch(x, y, weights)
            training.n_batches += 1
            losses.append(loss.detach())
            hits.append((logits.detach().argmax(1) == y).sum())
            if device == "cpu" and not math.isfinite(loss.item()):
                break
        return self._summarize(losses, hits, cuts, len(training.train))

    def _train_batch(self, x, y, weights):
        listened = bool(self.callbacks_)
        batch, step = (x, y), {}
        if listened:
            self.notify("on_batch_begin", batch=batch, training=True)

        def closure():
            for parameter in self.module_.parameters():
                parameter.grad = None
            step["y_pred"] = self.module_(x)
            step["loss"] = self._loss(step["y_pred"], y, weights)
            step["loss"].backward()
            if listened:
                parameters = TeeGenerator(self.get_all_learnable_params())
                self.notify(
                    "on_grad_computed", named_parameters=parameters, batch=batch, training=True
                )
            return step["loss"]

        self.optimizer_.step(closure)
        if listened:
            self._end_batch(batch, "train", step)
        return step["loss"], step["y_pred"]

    def _validate(self, training):
        if training.valid is None:
            return {"valid_loss": None, "valid_accuracy": None}
        self.module_.eval()
        total, hits = 0.0, 0
        for cut in slices(len(training.valid), training.batch_size):
            x, y, weights = training.valid.batch(cut, self.device)
            if self.callbacks_:
                self.notify("on_batch_begin", batch=(x, y), training=False)
            with torch.no_grad():
                logits = self.module_(x)
                loss = self._loss(logits, y, weights)
            if self.callbacks_:
                self._end_batch((x, y), "valid", {"y_pred": logits, "loss": loss})
            total += loss * len(x)
            hits += (logits.argmax(1) == y).sum()
        n = len(training.valid)
        return {"valid_loss": float(total) / n, "valid_accuracy": float(hits) / n}

    def _end_batch(self, batch, prefix, step):
        self.history.record_batch(f"{prefix}_loss", step["loss"].item())
        self.history.record_batch(f"{prefix}_batch_size", len(batch[0]))
        self.notify("on_batch_end", batch=batch, training=prefix == "train", **step)

    def _loss(self, logits, y, weights):
        losses = self.criterion_(logits, y)
        if weights is not None:
            # The weights have mean 1 over all of the training set: a batch of light rows
            # counts less than a batch of heavy ones.
            losses = losses * weights
        return losses.mean() if losses.ndim else losses

    def _summarize(self, losses, hits, cuts, n):
        losses = torch.stack(losses).cpu().numpy().astype(np.float64)
        if not np.isfinite(losses).all():
            batch = int(np.flatnonzero(~np.isfinite(losses))[0])
            lr = self.optimizer_.param_groups[0]["lr"]
            raise ValueError(
                f"the loss became {losses[batch]} in epoch {len(self.history)}, batch "
                f"{batch + 1} of {len(cuts)}, at a learning rate of {lr:.3g}: take a smaller "
                "lr, or check the scale of X"
            )
        sizes = np.array([cut.stop - cut.start for cut in cuts])
        return {
            "train_loss": float(losses @ sizes / n),
            "train_accuracy": int(torch.stack(hits).sum()) / n,
        }

    def _record(self, row):
        for key, value in row.items():
            if value is None:
                continue
            self.history.record(key, value)
        # Under skorch's own names as well, for the callbacks that look for them.
        self.history.record("dur", row["duration"])
        for key in ("train_loss", "valid_loss"):
            if row[key] is not None:
                earlier = [epoch[key] for epoch in self.history[:-1] if key in epoch]
                self.history.record(f"{key}_best", row[key] < min(earlier, default=math.inf))
        if row["valid_accuracy"] is not None:
            best = max((e.get("valid_acc", -1.0) for e in self.history[:-1]), default=-1.0)
            self.history.record("valid_acc", row["valid_accuracy"])
            self.history.record("valid_acc_best", row["valid_accuracy"] > best)

    @property
    def n_learnable(self):
        """Number of learnable parameters."""
        return sum(p.numel() for p in self.module_.parameters() if p.requires_grad)

    def history_row(self, position):
        """Return one epoch's records under this package's names."""
        epoch = self.history[position]
        keys = ("epoch", "train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "lr")
        return {key: epoch.get(key) for key in (*keys, "duration")}

    def _callback_stops(self, datasets):
        try:
            self.notify("on_epoch_end", **datasets)
        except KeyboardInterrupt as interrupt:
            # skorch's callbacks wish to stop by raising it; a Ctrl-C goes on.
            if not _raised_by_code(interrupt):
                raise
            return True
        return False

    def snapshot(self):
        """Return what `rollback` needs to undo further training."""
        return copy.deepcopy(
            (self.module_.state_dict(), self.optimizer_.state_dict(), len(self.history))
        )

    def rollback(self, snapshot):
        """Go back to the weights, optimizer and history of a `snapshot`."""
        module, optimizer, n_epochs = snapshot
        self.module_.load_state_dict(module)
        self.optimizer_.load_state_dict(optimizer)
        del self.history[n_epochs:]


def make_net(
    network,
    *,
    n_classes,
    weighted,
    optimizer,
    optimizer_params,
    lr,
    weight_decay,
    batch_size,
    callbacks,
    net_params,
    device,
):
    """Return an initialized `LeanNet` around ``network``."""
    net_params = dict(net_params or {})
    _check_net_params(net_params)
    if weighted:
        if "criterion__reduction" in net_params:
            raise ValueError(
                "net_params: 'criterion__reduction' can't be set beside sample or class weights"
            )
        net_params["criterion__reduction"] = "none"
    optimizer = OPTIMIZERS.get(optimizer, optimizer)
    settings = _optimizer_settings(optimizer, weight_decay, device) | (optimizer_params or {})
    net_params.setdefault("criterion", torch.nn.CrossEntropyLoss)
    net = LeanNet(
        network,
        optimizer=optimizer,
        lr=lr,
        batch_size=batch_size,
        callbacks=copy.deepcopy(callbacks or []),
        device=device,
        classes=np.arange(n_classes),
        train_split=None,
        verbose=0,
        **{f"optimizer__{key}": value for key, value in settings.items()},
        **net_params,
    )
    return net.initialize()


def _check_net_params(net_params):
    for key in net_params:
        owner = key.partition("__")[0]
        if owner in ENGINE_OWNED:
            raise ValueError(f"net_params: {key!r} is set by the engine and can't be given")
        if key in CLASSIFIER_OWNED:
            raise ValueError(f"net_params: {key!r} is a parameter of ConvNetClassifier itself")


def _optimizer_settings(optimizer, weight_decay, device):
    accepted = inspect.signature(optimizer).parameters
    settings = {}
    if "weight_decay" in accepted:
        settings["weight_decay"] = weight_decay
    if optimizer in FUSED and torch.device(device).type in ("cpu", "cuda"):
        settings["fused"] = True
    return settings


def resolve_device(device):
    """Return the name of the torch device that ``device`` means; raise if it is not there."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={device!r} is not to be had here ({reason}); take 'auto' or 'cpu'"
        ) from None
    return device


class _EarlyStopping:
    """Watches the validation loss and keeps the best weights in memory."""

    def __init__(self, training):
        self.patience, self.tol = training.patience, training.tol
        self.reference, self.lowest, self.waited, self.best = math.inf, math.inf, 0, None

    def should_stop(self, module, loss):
        if loss < self.lowest:
            self.lowest, self.best = loss, copy.deepcopy(module.state_dict())
        if loss < self.reference - self.tol:
            self.reference, self.waited = loss, 0
        else:
            self.waited += 1
        return self.waited >= self.patience

    def restore_best(self, module):
        if self.best is not None:
            module.load_state_dict(self.best)


class _Batches:
    """Batches of a skorch dataset, as ``(images, targets)``."""

    def __init__(self, dataset, cuts, shuffle):
        self.dataset, self.cuts, self.shuffle = dataset, cuts, shuffle

    def __len__(self):
        return len(self.cuts)

    def __iter__(self):
        n, y = len(self.dataset), self.dataset.y
        order = torch.randperm(n).numpy() if self.shuffle else np.arange(n)
        for cut in self.cuts:
            rows = order[cut]
            target = torch.zeros(len(rows)) if y is None else torch.as_tensor(y[rows])
            yield take_batch(self.dataset.X, rows), target


def training_batches(n, size):
    """Cut ``range(n)`` into slices of ``size``; a last one of one row joins the one before."""
    cuts = slices(n, size)
    if len(cuts) > 1 and cuts[-1].stop - cuts[-1].start == 1:
        cuts[-2:] = [slice(cuts[-2].start, n)]
    return cuts


def one_cycle(n_steps):
    """Factors of the learning rate: up from 1/25 for 30% of the steps, then down to nearly 0.

    L. N. Smith and N. Topin, "Super-convergence: very fast training of neural networks using
    large learning rates", 2019; the cosine form and the figures are torch's `OneCycleLR`'s.
    """
    peak = max(0.3 * n_steps - 1, 0)
    step = np.arange(n_steps)
    up = np.clip(step / peak, 0, 1) if peak else np.ones(n_steps)
    down = np.clip((step - peak) / max(n_steps - 1 - peak, 1), 0, 1)
    rising = 1 + (1 / 25 - 1) * (1 + np.cos(np.pi * up)) / 2
    falling = (1 - 4e-6) * (1 + np.cos(np.pi * down)) / 2 + 4e-6
    return np.where(step < peak, rising, falling)


def cosine(n_steps):
    """Factors of the learning rate: half a cosine from 1 to 0 (Loshchilov and Hutter, 2017)."""
    return (1 + np.cos(np.pi * np.arange(n_steps) / n_steps)) / 2


SCHEDULES = {"onecycle": one_cycle, "cosine": cosine}


def auto_batch_size(n):
    """Return a batch size that leaves about 20 steps an epoch, from 8 to 128."""
    return min(max(2 ** round(math.log2(max(n, 20) / 20)), 8), 128)


def _augmented(x, augment, module):
    x = x.float().div_(255) if x.dtype == torch.uint8 and not module.prepare.standardize else x
    images = augment(x.float())
    if not isinstance(images, torch.Tensor) or images.shape[:2] != x.shape[:2]:
        came = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(
            f"augment returned {came} for a batch of shape {tuple(x.shape)}; it must return a "
            "tensor of as many images and channels"
        )
    return images


def _raised_by_code(error):
    """Whether a ``raise`` statement raised ``error``, not a signal from outside."""
    traceback = error.__traceback__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    instruction = traceback.tb_frame.f_code.co_code[traceback.tb_lasti]
    return dis.opname[instruction] == "RAISE_VARARGS"
