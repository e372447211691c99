"""The skorch net inside a classifier: skorch's own, with a leaner training loop."""

import copy
import dis
import math
import signal
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from skorch import NeuralNetClassifier
from skorch.dataset import Dataset
from skorch.utils import TeeGenerator

from .._images.batches import ImageSet, SkorchBatches, augmented, training_batches
from .._images.sources import slices
from .._platform.devices import step_memory_kept
from .callbacks import check_callbacks, lacks_validation
from .optimizers import OPTIMIZERS, ScheduledRates, lean_step, optimizer_settings
from .pieces import backward_in_pieces, cut_in_pieces
from .state import TrainingState, set_values, values_of

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

# Parameters of skorch's net that the learning rates follow from.
RATES = {"lr", "optimizer__lr", "optimizer__param_groups"}

# Small operators take longer to call than to run: hits and losses are looked at together.
BATCHES_PER_CHECK = 16


@dataclass
class Training:
    """One stretch of training: its data and all else that stays the same throughout."""

    train: ImageSet
    valid: ImageSet | None
    epochs: int
    batch_size: int
    piece: float = math.inf  # images that go through the network at a time
    part: torch.nn.Module | None = None  # of the network; what is trained, None: all of it
    schedule: Callable[[int], np.ndarray] | None = None  # number of steps -> factors of lr
    augment: Callable | None = None
    report: Callable[[dict], None] | None = None
    tasks: Any = None  # which hear of epochs, and may end the training
    after_epoch: Callable[[TrainingState], None] | None = None
    bar: Any = None  # of all epochs' images

    @property
    def n_images(self):
        """The number of images in an epoch."""
        return len(self.train) + (0 if self.valid is None else len(self.valid))


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
        return SkorchBatches(dataset, cuts, shuffle=training)

    def train(self, training, state):
        """Train as ``training`` says from where ``state`` stands, which is carried on.

        A user's interrupt is raised on afterwards.
        """
        valid = None if training.valid is None else _as_dataset(training.valid)
        datasets = {"dataset_train": _as_dataset(training.train), "dataset_valid": valid}
        everything = {"X": datasets["dataset_train"].X, "y": datasets["dataset_train"].y}
        self.notify("on_train_begin", **everything)
        try:
            with step_memory_kept(), self._losses_to_weigh(training):
                self._train_epochs(training, state, datasets)
        except KeyboardInterrupt:
            self.notify("on_train_end", **everything)
            raise
        finally:
            self.module_.eval()
            self._lay_out_weights(training=False)
        self.notify("on_train_end", **everything)

    def _lay_out_weights(self, training):
        """Put the weights into the order that suits; the optimizer's state follows them.

        Torch's fused optimizers take weight and state value by value as they lie in memory.
        """
        self.module_.lay_out_weights(training)
        for parameter, state in self.optimizer_.state.items():
            for key, value in state.items():
                alike = isinstance(value, torch.Tensor) and value.shape == parameter.shape
                if alike and value.stride() != parameter.stride():
                    state[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)

    @contextmanager
    def _losses_to_weigh(self, training):
        """Have the criterion return one loss an image meanwhile if they are to be weighed."""
        sets = [part for part in (training.train, training.valid) if part is not None]
        if all(part.weights is None for part in sets):
            yield
            return
        reduction = getattr(self.criterion_, "reduction", None)
        if reduction not in ("mean", "none"):
            raise ValueError(
                "sample and class weights need a criterion whose reduction is 'mean', not "
                f"{self.criterion_}"
            )
        self.criterion_.reduction = "none"
        try:
            yield
        finally:
            self.criterion_.reduction = reduction

    def _train_epochs(self, training, state, datasets):
        cuts = training_batches(len(training.train), training.batch_size)
        rates = ScheduledRates(self.optimizer_, training.schedule, training.epochs * len(cuts))
        stopping = state.stopping
        try:
            for epoch in range(state.n_epochs, training.epochs):
                epoch_of = f"epoch {epoch + 1} of {training.epochs}"
                training.bar.set_description_str(epoch_of, refresh=False)
                if training.tasks is not None:
                    training.tasks.begin_epoch()
                self.notify("on_epoch_begin", **datasets)
                rates.check_unchanged()
                row = self._run_epoch(training, state, cuts, rates)
                rates.check_unchanged()
                state.n_epochs += 1
                if stopping is not None:
                    stopping.watch(self.module_, row["valid_loss"])
                stops = [
                    self._callback_stops(datasets),
                    training.tasks is not None and training.tasks.end_epoch(state),
                    stopping is not None and stopping.is_over,
                ]
                if any(stops):
                    break
                if training.after_epoch is not None:
                    training.after_epoch(state)
        finally:
            rates.restore()
        self._check_weights()
        if stopping is not None:
            stopping.restore_best(self.module_)

    def _check_weights(self):
        """Raise if the last steps, behind which there was no loss, have ruined the weights."""
        if not all(bool(torch.isfinite(p).all()) for p in self.module_.parameters()):
            raise ValueError(
                f"the weights became infinite or NaN in epoch {len(self.history)}, at a learning "
                f"rate of {self.optimizer_.param_groups[0]['lr']:.3g}: take a smaller lr"
            )

    def set_rates(self, rates):
        """Set the learning rates of further training to what `learning_rates` returned."""
        self._take_rates(rates)
        named = self.get_all_learnable_params()
        (groups,), settings = self.get_params_for_optimizer("optimizer", named)
        if len(groups) != len(self.optimizer_.param_groups):
            raise ValueError(
                "net_params: optimizer__param_groups can't change while partial_fit goes on; "
                "call fit"
            )
        for group, renewed in zip(self.optimizer_.param_groups, groups, strict=True):
            group["lr"] = renewed.get("lr", settings["lr"])

    def _run_epoch(self, training, state, cuts, rates):
        started = time.perf_counter()
        row = self._train_epoch(training, state, cuts, rates) | self._validate(training)
        lr = self.optimizer_.param_groups[0]["lr"]
        row |= {"lr": lr, "duration": time.perf_counter() - started}
        self._record(row, len(cuts))
        if training.report is not None:
            training.report(self.history_row(-1))
        return row

    def _train_epoch(self, training, state, cuts, rates):
        """Train on all batches; what a GPU computes is not waited for before the end."""
        module, data = training.part or self.module_, training.train
        self.module_.train()
        self.optimizer_.zero_grad(set_to_none=True)  # those of what has been frozen since
        self._lay_out_weights(training=True)  # each time: callbacks load weights and state
        order = torch.randperm(len(data), generator=state.order)
        targets = data.targets[order.to(data.targets.device)]
        weights = None if data.weights is None else data.weights[order.to(data.weights.device)]
        losses, logits, winners = [], [], []
        step = lean_step(self.optimizer_, alone=not self.callbacks_)
        train_batch = partial(
            self._train_batch, module, list(module.parameters()), training.piece, step
        )
        with data.batches(cuts, self.device, order.numpy()) as batches, _batch_norm_explained():
            for number, (cut, x) in enumerate(zip(cuts, batches, strict=True)):
                rates.set_those_of(state.n_epochs * len(cuts) + number)
                y, w = targets[cut], None if weights is None else weights[cut]
                if training.augment is not None:
                    x = augmented(x, training.augment, module)
                loss, outputs = train_batch(x, y, w)
                state.n_batches += 1
                training.bar.update(len(y))
                losses.append(loss)
                logits.append(outputs)
                if len(logits) == BATCHES_PER_CHECK or number == len(cuts) - 1:
                    winners.append(torch.cat(logits).argmax(1))
                    logits.clear()
                    # Once it is not finite it stays so; on a GPU to look at it is to wait for it.
                    if self.device == "cpu" and not math.isfinite(loss):
                        break
        self._check_losses(losses, cuts, first=state.n_epochs == 0)
        sizes = torch.tensor([cut.stop - cut.start for cut in cuts], dtype=torch.float64)
        hits = torch.cat(winners) == targets
        return {
            "train_loss": float(torch.stack(losses).cpu().double() @ sizes) / len(data),
            "train_accuracy": float(hits.sum()) / len(data),
        }

    def _check_losses(self, losses, cuts, first):
        finite = torch.isfinite(torch.stack(losses)).tolist()
        if all(finite):
            return
        batch = finite.index(False)
        if first and batch == 0:
            raise ValueError(
                f"the loss of the first batch is {float(losses[0])}, before any step was taken: "
                "what the network makes of X is not finite. Check the scale of X (which "
                "standardize=True learns), augment, the network's weights and the criterion"
            )
        lr = self.optimizer_.param_groups[0]["lr"]
        raise ValueError(
            f"the loss became {float(losses[batch])} in epoch {len(self.history)}, batch "
            f"{batch + 1} of {len(cuts)}, at a learning rate of {lr:.3g}: take a smaller lr, or "
            "check the scale of X"
        )

    def _train_batch(self, module, parameters, piece, optimizer_step, x, y, weights):
        listened = bool(self.callbacks_)
        batch: tuple = (x, y)
        step: dict = {}
        if listened:
            self.notify("on_batch_begin", batch=batch, training=True)
            self.module_.train()  # a callback may have predicted

        def closure():
            for parameter in parameters:
                parameter.grad = None
            y_pred, loss = self._backward(module, piece, x, y, weights)
            # Some optimizers evaluate a batch several times: the first counts, as in skorch.
            step.setdefault("y_pred", y_pred)
            step.setdefault("loss", loss)
            if listened:
                named = TeeGenerator(self.get_all_learnable_params())
                self.notify("on_grad_computed", named_parameters=named, batch=batch, training=True)
            return loss

        with torch.no_grad():
            optimizer_step(closure)
        if listened:
            self._end_batch(batch, "train", step)
        return step["loss"].detach(), step["y_pred"].detach()

    def _backward(self, module, piece, x, y, weights):
        cuts = cut_in_pieces(len(x), piece)
        if len(cuts) > 1:
            return backward_in_pieces(module, self.criterion_, cuts, x, y, weights)
        y_pred = module(x)
        loss = self._loss(y_pred, y, weights)
        with self.module_.right_layouts():  # checkpointed layers run anew
            loss.backward()
        return y_pred, loss

    def _validate(self, training):
        if training.valid is None:
            return {"valid_loss": None, "valid_accuracy": None}
        self.module_.eval()
        module, data = training.part or self.module_, training.valid
        cuts = slices(len(data), training.batch_size)
        total, hits = 0.0, 0
        with data.batches(cuts, self.device) as batches:
            for cut, x in zip(cuts, batches, strict=True):
                y, weights = data.targets[cut], None if data.weights is None else data.weights[cut]
                if self.callbacks_:
                    self.notify("on_batch_begin", batch=(x, y), training=False)
                with torch.no_grad():
                    logits = module(x)
                    loss = self._loss(logits, y, weights)
                if self.callbacks_:
                    self._end_batch((x, y), "valid", {"y_pred": logits, "loss": loss})
                total += loss * len(x)
                hits += (logits.argmax(1) == y).sum()
                training.bar.update(len(y))
        self.history.record("valid_batch_count", len(cuts))
        n = len(data)
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

    def _record(self, row, n_batches):
        for key, value in row.items():
            if value is not None:
                self.history.record(key, value)
        # Under skorch's own names as well, for the callbacks that look for them.
        self.history.record("dur", row["duration"])
        self.history.record("train_batch_count", n_batches)
        for key in ("train_loss", "valid_loss"):
            if row[key] is not None:
                earlier = [epoch[key] for epoch in self.history[:-1] if key in epoch]
                self.history.record(f"{key}_best", row[key] < min(earlier, default=math.inf))
        if row["valid_accuracy"] is not None:
            best = max((e.get("valid_acc", -1.0) for e in self.history[:-1]), default=-1.0)
            self.history.record("valid_acc", row["valid_accuracy"])
            self.history.record("valid_acc_best", row["valid_accuracy"] > best)

    def history_row(self, position):
        """Return one epoch's records under this package's names."""
        epoch = self.history[position]
        keys = ("epoch", "train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "lr")
        return {key: epoch.get(key) for key in (*keys, "duration")}

    def _callback_stops(self, datasets):
        try:
            self.notify("on_epoch_end", **datasets)
        except (KeyError, ValueError) as error:
            if not lacks_validation(error, datasets["dataset_valid"]):
                raise
            raise ValueError(
                f"callbacks: {error.args[0]} There are no validation data: pass X_val and y_val "
                "to fit, or early_stopping=True, which holds some out"
            ) from error
        except KeyboardInterrupt as interrupt:
            # skorch's callbacks wish to stop by raising it; a Ctrl-C goes on.
            if not _raised_by_code(interrupt):
                raise
            return True
        return False

    def fitted_copy(self):
        """Return a copy, as the net would be left if training ended now, without callbacks."""
        # These may hold what can't be copied, such as outputs with their gradients.
        copied = copy.deepcopy(self, {id(self.callbacks): [], id(self.callbacks_): []})
        copied.module_.eval()
        copied._lay_out_weights(training=False)
        return copied

    def snapshot(self):
        """Return what `rollback` needs to undo further training."""
        values = [values_of(module) for module in self.learning()]
        optimizer = copy.deepcopy(self.optimizer_.state_dict())
        return values, optimizer, self.module_.settings(), self._rates(), len(self.history)

    def rollback(self, snapshot):
        """Go back to the weights, optimizer, settings and history of a `snapshot`."""
        values, optimizer, settings, rates, n_epochs = snapshot
        for module, before in zip(self.learning(), values, strict=True):
            set_values(module, before)
        self.module_.restore(settings)
        self.optimizer_.load_state_dict(optimizer)
        self._take_rates(rates)
        del self.history[n_epochs:]

    def learning(self):
        """Return the network, and the criterion, which may have weights as well."""
        return [m for m in (self.module_, self.criterion_) if isinstance(m, torch.nn.Module)]

    def _rates(self):
        return {name: value for name, value in vars(self).items() if name in RATES}

    def _take_rates(self, rates):
        for name in self._rates().keys() - rates:
            delattr(self, name)
        self.__dict__.update(rates)


def make_net(
    network,
    *,
    n_classes,
    optimizer,
    optimizer_params,
    rates,
    weight_decay,
    batch_size,
    callbacks,
    net_params,
    device,
    verbose,
):
    """Return an initialized `LeanNet` around ``network``."""
    net_params = dict(net_params or {})
    _check_net_params(net_params)
    check_callbacks(callbacks)
    optimizer = OPTIMIZERS.get(optimizer, optimizer)
    settings = _optimizer_arguments(optimizer, optimizer_params or {}, weight_decay, device)
    net_params.setdefault("criterion", torch.nn.CrossEntropyLoss)
    net_params |= rates
    if twice := settings.keys() & net_params:
        raise ValueError(f"net_params: {min(twice)!r} is set by weight_decay or optimizer_params")
    net = LeanNet(
        network,
        optimizer=optimizer,
        batch_size=batch_size,
        callbacks=copy.deepcopy(callbacks or []),
        device=device,
        classes=np.arange(n_classes),
        train_split=None,
        verbose=verbose,
        **settings,
        **net_params,
    )
    try:
        return net.initialize()
    except (TypeError, ValueError, AttributeError) as error:
        raise type(error)(
            f"optimizer, optimizer_params, callbacks or net_params: {error}"
        ) from error


def learning_rates(network, lr, backbone_lr, net_params):
    """Return skorch's parameters of the learning rates; those in ``net_params`` come first."""
    rates = {name: value for name, value in (net_params or {}).items() if name in RATES}
    if network.head is None:
        return {"lr": lr, **rates}
    # The head's group comes first: its rate is the one that is recorded.
    groups = [(f"body.{name}.*", {"lr": lr}) for name in network.head]
    return {"lr": backbone_lr, "optimizer__param_groups": groups, **rates}


def _check_net_params(net_params):
    for key in net_params:
        owner = key.partition("__")[0]
        if owner in ENGINE_OWNED:
            raise ValueError(f"net_params: {key!r} is set by the engine and can't be given")
        if key in CLASSIFIER_OWNED:
            raise ValueError(f"net_params: {key!r} is a parameter of ConvNetClassifier itself")


def _optimizer_arguments(optimizer, params, weight_decay, device):
    """Return skorch's parameters of the optimizer's arguments, but for its learning rates."""
    settings = optimizer_settings(optimizer, weight_decay, device)
    for key in ("lr", "weight_decay"):
        # One that the signature of a class does not show reaches it by its params alone.
        if key in params and (key == "lr" or key in settings):
            raise ValueError(
                f"optimizer_params: {key!r} is a parameter of ConvNetClassifier itself"
            )
    return {f"optimizer__{key}": value for key, value in (settings | params).items()}


@contextmanager
def _batch_norm_explained():
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            "batch normalisation needs two values or more of each channel in a batch, and there "
            "was one: take a larger batch_size, more than 1 image, or leave the layer out"
        ) from error


def _as_dataset(image_set):
    """Return images and targets as skorch's callbacks expect them."""
    return Dataset(image_set.images.unwrap(), image_set.targets.cpu().numpy())


def _raised_by_code(error):
    """Whether a ``raise`` statement raised ``error``, not a signal from outside."""
    handler = getattr(signal.getsignal(signal.SIGINT), "__code__", None)
    traceback = error.__traceback__
    while True:
        if traceback.tb_frame.f_code is handler:
            return False
        if traceback.tb_next is None:
            break
        traceback = traceback.tb_next
    instruction = traceback.tb_frame.f_code.co_code[traceback.tb_lasti]
    return dis.opname[instruction] == "RAISE_VARARGS"
