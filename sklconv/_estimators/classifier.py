"""ConvNetClassifier."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.metaestimators import available_if
from torch import nn

from .._activations.tap_set import output_taps
from .._engines.choice import ENGINES, check_engine, choose_run
from .._engines.runtime import forget
from .._images import ImagesLike
from .._images.forms import ImageFormat, check_images, is_dask
from .._networks.building import auto_layers, check_layers, is_auto
from .._networks.image_network import ImageNetwork
from .._networks.inference import collect_outputs, read_images
from .._networks.torch_module import TorchModule
from .._platform.randomness import draw_seed
from .._platform.sklearn import (
    BaseComposition,
    CallbackSupportMixin,
    Interval,
    StrOptions,
    SuggestingEstimator,
    clone_parametrized,
    fit_context,
)
from .._pretrained.backbones import Backbone, file_options
from .._training.optimizers import OPTIMIZERS, SCHEDULES
from .._training.recipe import Recipe
from .._training.state import TrainingState
from .._training.training import train
from .dask import by_blocks, empty_table
from .diagram import network_diagram
from .targets import check_labels, combined_weights, encode_labels, hold_out
from .tasks import FitTasks, fitted_attributes
from .undo import undone_if_it_fails

# Values that a softmax takes at a time.
SOFTMAX_VALUES = 2**11


class ConvNetClassifier(
    ClassifierMixin, CallbackSupportMixin, BaseComposition, SuggestingEstimator
):
    """Convolutional network as a classifier.

    Parameters
    ----------
    module : "auto", list of (str, layer), TorchModule, Backbone or torch.nn.Module, \
            default="auto"
        The network. ``"auto"``: a small CNN with layers named ``conv1``, ``pool1``,
        ``conv2``, ``pool2``, ``dense`` and ``output``. A list of named layers from
        :mod:`sklconv.layers`, whose parameters become the estimator's own
        (``conv1__filters``); ``"passthrough"`` in a layer's place leaves it out; an output
        layer is added unless there is a ``Dense("n_classes")``. A `TorchModule`, built at
        fit. A `Backbone`, whose head is replaced by one for the classes. A module
        instance: copied, never changed, in float32 if all of its weights are in another
        precision; it must return one column per class.
    image_shape : tuple of int or None, default=None
        ``(height, width)`` or ``(channels, height, width)`` of the images, in pixels; needed
        where ``X`` does not determine it.
    data_format : {"auto", "channels_first", "channels_last"}, default="auto"
        Where the channels are in a 4-D ``X``, and in the pixel order of a flat one. "auto": on
        the axis of size 1 to 4 in a 4-D ``X``, first in a flat one.
    reader : callable or None, default=None
        Reads image files that Pillow can't: called with an entry of ``X``, from several
        threads at a time, it returns an array of shape (H, W) or (H, W, C). A fit calls it for
        each entry once, unless the images take more than 1 GiB: what is random goes into
        ``augment``.
    standardize : bool or "auto", default="auto"
        Whether each channel's mean and standard deviation are learnt at fit and applied
        inside the network. "auto": unless ``module`` is a `Backbone`, which has its own
        preprocessing, or a module instance. Without it, uint8 is divided by 255 and other
        numbers go in unchanged.
    optimizer : str or type, default="adamw"
        ``"adamw"``, ``"adam"``, ``"sgd"``, ``"rmsprop"``, ``"adagrad"``, ``"adadelta"``,
        ``"nadam"``, ``"lbfgs"`` or a class of `torch.optim`.
    optimizer_params : dict or None, default=None
        Further arguments of the optimizer, such as ``{"momentum": 0.9, "nesterov": True}``;
        ``lr`` and ``weight_decay`` are parameters of the classifier, and an error here.
    lr : float or "auto", default="auto"
        Learning rate; with a schedule, the highest one. "auto": 3e-3; where a network is
        trained from scratch by "adamw" or "adam" with a schedule, 3e-3 for 1,500 batches of 128
        images, that is three epochs of 60,000, more for shorter trainings and less for longer
        ones (``3e-3 * sqrt(1500 / n_batches * batch_size / 128)``, from 1e-3 to 1e-2).
    weight_decay : float, default=0.01
        Decoupled for ``"adamw"``, an L2 penalty for the other optimizers.
    lr_schedule : {"auto", "onecycle", "cosine"} or None, default="auto"
        How the learning rate changes from batch to batch. "auto": "onecycle", or None with
        ``early_stopping``, as the number of epochs is then not known beforehand, and with skorch's
        ``LRScheduler`` among the ``callbacks``. None: it is constant, or as callbacks set it.
    max_epochs : int, default=10
        Number of passes over the training data.
    batch_size : int or "auto", default="auto"
        Images in a training batch. "auto": 128; for small data about a fortieth of the
        images, down to 8.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes in the training loss; 1 for those that a dict does not name. A
        dict that names all classes may name others, which can be missing in a fold.
    augment : callable or None, default=None
        Called on each training batch, a float32 tensor of shape (N, C, H, W); returns one.
        Pixels are as in ``X``, or divided by 255 if they are uint8 and ``standardize`` is
        off.
    freeze : "backbone", str, list of str or None, default=None
        Layers that are not trained, batch-norm statistics and dropout included: all but the
        new head of a `Backbone`, or those named, also by globs (``"layer[123]*"``). The output
        of a frozen backbone is computed only once, unless there is ``augment``.
    backbone_lr_scale : float, default=1.0
        Factor on the learning rate of all layers but the head of a `Backbone`.
    early_stopping : bool, default=False
        Whether to stop when the validation loss no longer improves, and to restore the weights
        that had the lowest. Without ``X_val``, ``validation_fraction`` of the training data
        is held out, stratified.
    validation_fraction : float, default=0.1
        Fraction of the training data that early stopping holds out.
    n_iter_no_change : int, default=5
        Epochs without improvement after which early stopping stops.
    tol : float, default=1e-4
        Smallest improvement of the validation loss that counts.
    warm_start : bool, default=False
        Whether the next ``fit`` starts from the current weights, with a new schedule.
    callbacks : list of skorch callbacks or None, default=None
        Copied at fit. They receive the same events as in skorch. scikit-learn's own callbacks are
        set by `set_callbacks` (since scikit-learn 1.9); see :ref:`sklearn_callbacks`.
    net_params : dict or None, default=None
        Further parameters of skorch's net, such as ``{"criterion__label_smoothing": 0.1}``.
    engine : {"auto", "torch", "onnxruntime"}, default="auto"
        What computes predictions; training is torch's. ``"onnxruntime"`` is ONNX Runtime (the
        extra ``onnxruntime``): one digit takes it about a third of torch's time. The network is
        exported at the first prediction after a fit, which takes up to some seconds. ``"auto"`` is
        torch.
    device : str, default="auto"
        ``"cpu"``, ``"cuda"``, ``"mps"`` or another name that torch knows. "auto": a GPU if
        there is one.
    precision : {"float32", "bfloat16"}, default="float32"
        "bfloat16": layers compute with 16-bit numbers, weights stay 32-bit. For GPUs, and CPUs
        with instructions for it; an error elsewhere.
    random_state : int, RandomState instance or None, default=None
        Seeds the weights, the order of the images and dropout; during fit also the global
        generators, for ``augment`` and for networks not made of declarative layers. With the
        same int, machine and number of threads, results are the same to the bit.
    verbose : int, default=0
        1 or more: `fit` prints the layer table and a line per epoch; it and predictions of many
        images show a progress bar with the time left; see :ref:`progress`.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The class labels.
    module_ : torch.nn.Module
        The trained network: raw images of shape (N, C, H, W) to logits. Its ``body`` is the
        network without the preprocessing.
    net_ : skorch.NeuralNetClassifier
        The skorch net.
    image_shape_ : tuple of int
        ``(C, H, W)``.
    n_features_in_ : int
        ``C * H * W``, whatever the form of ``X``.
    feature_names_in_ : ndarray of str
        Names of the columns, if ``X`` had names that are all strings.
    n_iter_ : int
        Number of epochs of the last fit.
    history_ : list of dict
        One dict per epoch: epoch, train_loss, train_accuracy, valid_loss, valid_accuracy, lr,
        duration (seconds). Continued by ``warm_start`` and ``partial_fit``.
    layer_table_ : pandas.DataFrame or list of dict
        Name, type, output shape and number of learnable parameters of each layer, without
        those of layers inside it, so that the numbers add up. ``penultimate`` is "output" in
        the row of the layer whose output ``layer="penultimate"`` of a `ConvFeatureExtractor`
        takes or, if there is none, "input" in the row of the classifier. ``parameter_share`` is
        the share of the network's learnable parameters. ``receptive_field`` is the height and
        width, in pixels, of the part of the image that one value of the layer depends on: of
        the largest such part, within the image; None where layers are not declarative.

    See Also
    --------
    ConvFeatureExtractor : The activations of a network's layers as features.

    Notes
    -----
    A fit that fails leaves the estimator as it was. Ctrl-C is re-raised, and the current
    weights are kept.

    Networks of declarative layers have random generators of their own; others, and
    ``augment``, draw from the global ones, so their fits in parallel threads take turns.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from sklconv import ConvNetClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    >>> clf = ConvNetClassifier(random_state=0).fit(X_train, y_train)
    >>> clf.score(X_test, y_test) > 0.97
    True
    """

    __module__ = "sklconv"

    _parameter_constraints: dict = {
        "module": "no_validation",
        "image_shape": "no_validation",
        "data_format": [StrOptions({"auto", "channels_first", "channels_last"})],
        "reader": [callable, None],
        "standardize": ["boolean", StrOptions({"auto"})],
        "optimizer": [StrOptions(set(OPTIMIZERS)), type],
        "optimizer_params": [dict, None],
        "lr": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "lr_schedule": [StrOptions({"auto", *SCHEDULES}), None],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "augment": [callable, None],
        "freeze": [str, list, None],
        "backbone_lr_scale": [Interval(Real, 0, None, closed="neither")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "callbacks": [list, None],
        "net_params": [dict, None],
        "engine": [StrOptions(ENGINES)],
        "device": [str],
        "precision": [StrOptions({"float32", "bfloat16"})],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    classes_: NDArray[Any]
    net_: Any
    image_shape_: tuple[int, int, int]
    n_features_in_: int
    n_iter_: int
    layer_table_: Any

    def __init__(
        self,
        module: Literal["auto"]
        | list[tuple[str, Any]]
        | TorchModule
        | Backbone
        | nn.Module = "auto",
        *,
        image_shape: Sequence[int] | None = None,
        data_format: Literal["auto", "channels_first", "channels_last"] = "auto",
        reader: Callable[[Any], Any] | None = None,
        standardize: bool | Literal["auto"] = "auto",
        optimizer: str | type[torch.optim.Optimizer] = "adamw",
        optimizer_params: dict[str, Any] | None = None,
        lr: float | Literal["auto"] = "auto",
        weight_decay: float = 0.01,
        lr_schedule: Literal["auto", "onecycle", "cosine"] | None = "auto",
        max_epochs: int = 10,
        batch_size: int | Literal["auto"] = "auto",
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
        freeze: str | list[str] | None = None,
        backbone_lr_scale: float = 1.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        tol: float = 1e-4,
        warm_start: bool = False,
        callbacks: list[Any] | None = None,
        net_params: dict[str, Any] | None = None,
        engine: Literal["auto", "torch", "onnxruntime"] = "auto",
        device: str = "auto",
        precision: Literal["float32", "bfloat16"] = "float32",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.module = module
        self.image_shape = image_shape
        self.data_format = data_format
        self.reader = reader
        self.standardize = standardize
        self.optimizer = optimizer
        self.optimizer_params = optimizer_params
        self.lr = lr
        self.weight_decay = weight_decay
        self.lr_schedule = lr_schedule
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.class_weight = class_weight
        self.augment = augment
        self.freeze = freeze
        self.backbone_lr_scale = backbone_lr_scale
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.net_params = net_params
        self.engine = engine
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters; with ``deep``, also those of the layers (``conv1__filters``).

        Parameters
        ----------
        deep : bool, default=True
            Whether to include the layers and their parameters.

        Returns
        -------
        dict
        """
        return self._get_params("_named_layers", deep=deep)

    def set_params(self, **params: Any) -> Self:
        """Set parameters, including those of the layers; a whole layer can be replaced.

        Parameters
        ----------
        **params
            ``lr=0.01``, ``conv1__filters=16``, ``drop="passthrough"``.

        Returns
        -------
        self
        """
        if "module" in params:
            self.module = params.pop("module")
        names = dict(self._named_layers)
        if is_auto(self.module) and any(key.partition("__")[0] in names for key in params):
            self.module = auto_layers()
        return self._set_params("module", **params)

    @property
    def _named_layers(self):
        if is_auto(self.module):
            return auto_layers()
        if not isinstance(self.module, list):
            return []
        return [step for step in self.module if isinstance(step, tuple) and len(step) == 2]

    def __sklearn_clone__(self):
        # skorch's callbacks may keep state that clone takes for parameters.
        without_callbacks = copy.copy(self)
        without_callbacks.callbacks = None
        clone = clone_parametrized(without_callbacks)
        clone.callbacks = copy.deepcopy(self.callbacks)
        return clone

    @fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: ImagesLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        X_val: ImagesLike | None = None,
        y_val: ArrayLike | None = None,
        sample_weight_val: ArrayLike | None = None,
    ) -> Self:
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W), \
                (n_samples, C, H, W) or (n_samples, H, W, C)
            Images. Those of dask are computed, and taken into memory.
        y : array-like of shape (n_samples,)
            Labels of any kind.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the images in the training loss.
        X_val, y_val, sample_weight_val : default=None
            Images, labels and weights to validate on after each epoch, instead of data that
            early stopping would hold out.

        Returns
        -------
        self
        """
        tasks = FitTasks(self, "fit", self.max_epochs, X, y, sample_weight)
        with undone_if_it_fails(self):
            warm = self.warm_start and hasattr(self, "net_")
            images, y = self._read_training_data(X, y, reset=not warm)
            classes = np.unique(y)
            if len(classes) < 2:
                raise ValueError(
                    f"{type(self).__name__} needs samples of at least 2 classes; y has 1 class, "
                    f"{classes[0]!r}"
                )
            if not warm:
                self.classes_ = classes
            data = self._with_targets(images, y, sample_weight, self.class_weight)
            valid = self._read_validation_data(X_val, y_val, sample_weight_val)
            if self.early_stopping and valid is None:
                data, valid = self._hold_out(data)
            old = self.net_ if warm else None
            self._train(data, valid, self.max_epochs, old, tasks)
            tasks.end()
        return self

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self,
        X: ImagesLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Train for one epoch at a constant learning rate.

        Parameters
        ----------
        X : array-like
            Images, in any of the forms that `fit` takes.
        y : array-like of shape (n_samples,)
            Labels.
        classes : array-like of shape (n_classes,) or None, default=None
            All labels that will ever occur; needed at the first call.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the images in the training loss.

        Returns
        -------
        self
        """
        tasks = FitTasks(self, "partial_fit", 1, X, y, sample_weight)
        with undone_if_it_fails(self):
            first = not hasattr(self, "net_")
            if not first:
                # scikit-learn checks them at the first call only; they may have been set since.
                self._validate_params()
            images, y = self._read_training_data(X, y, reset=first)
            if self.class_weight == "balanced":
                raise ValueError(
                    "class_weight='balanced' needs all of y, which partial_fit does not have; "
                    "give a dict, or sample_weight"
                )
            self._note_classes(classes, first)
            data = self._with_targets(images, y, sample_weight, self.class_weight)
            old = None if first else self.net_
            self._train(data, None, 1, old, tasks, partial=True)
            tasks.end()
        return self

    def decision_function(self, X: ImagesLike) -> NDArray[np.float32]:
        """Return the logits.

        Parameters
        ----------
        X : array-like
            Images, in any of the forms that `fit` takes.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            For two classes: the logit of the second minus that of the first. A dask array,
            nothing of which is computed yet, if X is one or a dask DataFrame or Series.
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: ImagesLike) -> NDArray[np.float32]:
        """Return the probabilities of the classes.

        Parameters
        ----------
        X : array-like
            Images, in any of the forms that `fit` takes.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Or a dask array, as from `decision_function`.
        """
        if is_dask(X):
            return by_blocks(self, "predict_proba", X, lambda: empty_table(len(self.classes_)))
        probabilities = torch.from_numpy(self._logits(X))
        # So few values that torch takes one thread: others would wait for those of ONNX Runtime.
        n = max(1, SOFTMAX_VALUES // len(self.classes_))
        for start in range(0, len(probabilities), n):
            rows = probabilities[start : start + n]
            torch.softmax(rows, 1, out=rows)
        return probabilities.numpy()

    def predict(self, X: ImagesLike) -> NDArray[Any]:
        """Return the most probable class of each image.

        Parameters
        ----------
        X : array-like
            Images, in any of the forms that `fit` takes.

        Returns
        -------
        ndarray of shape (n_samples,)
            Or a dask array, as from `decision_function`.
        """
        if is_dask(X):
            return by_blocks(self, "predict", X, lambda: self.classes_[:0])
        winners = self._logits(X).argmax(1)
        return self.classes_[winners]

    @property
    def module_(self) -> ImageNetwork:
        """The trained network."""
        return self.net_.module_

    @property
    def history_(self) -> list[dict[str, Any]]:
        """One dict per epoch."""
        rows = [self.net_.history_row(i) for i in range(len(self.net_.history))]
        # An epoch that was interrupted has no losses.
        return [row for row in rows if row["train_loss"] is not None]

    def __sklearn_is_fitted__(self):
        return hasattr(self, "net_")

    @available_if(__sklearn_is_fitted__)
    def _sk_visual_block_(self):
        return network_diagram(self._layer_rows, "learnable parameters")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _with_targets(self, images, y, sample_weight, class_weight, suffix=""):
        """Return images, class numbers and weights; arguments' names end in ``suffix``."""
        targets = encode_labels(y, self.classes_, f"y{suffix}")
        name = f"sample_weight{suffix}"
        weights = combined_weights(sample_weight, class_weight, images, y, self.classes_, name)
        return images, targets, weights

    def _train(self, data, valid, epochs, old, tasks, *, partial=False):
        if old is None and isinstance(self.module, list):
            check_layers(self.module)
            self._validate_names([name for name, _ in self._named_layers])
        state = TrainingState()
        try:
            recipe = Recipe.of(self, epochs, partial=partial)
            check_engine(self.engine, recipe.device, recipe.precision)
            train(recipe, data, valid, state, old=old, partial=partial, tasks=tasks)
        finally:  # an interrupt keeps what there is
            if state.n_batches:
                forget(state.net.module_)
                self.__dict__.update(fitted_attributes(state, state.net))

    def _logits(self, X):
        if is_dask(X):
            return by_blocks(self, "_logits", X, lambda: empty_table(len(self.classes_)))
        images, network = read_images(self, X), self.module_
        run = network
        if self.engine == "onnxruntime":
            taps, n = output_taps(len(self.classes_)), len(images)
            run = choose_run(self.engine, network, taps, network.precision, n, network)
        name = type(self).__name__
        return collect_outputs(network, images, run, name, verbose=self.verbose)

    def _read_training_data(self, X, y, *, reset):
        """Check X and y; return an `ImageSource` and labels (n,)."""
        name = type(self).__name__
        if y is None:
            raise ValueError(f"{name} requires y to be passed, but the target y is None")
        X = check_images(self, X, reset=reset)
        if reset:
            files = file_options(self.module, X, self.reader)
            self._format = ImageFormat.infer(X, self.image_shape, self.data_format, files)
            self.image_shape_ = self._format.shape
            self.n_features_in_ = self._format.n_features
        images = self._format.read(X, name)
        y = check_labels(y, images, "y")
        images.check_finite(name)
        return images, y

    def _read_validation_data(self, X_val, y_val, sample_weight_val):
        """Return images, class numbers and weights to validate on, or None."""
        if X_val is None and y_val is None:
            if sample_weight_val is not None:
                raise ValueError("sample_weight_val needs X_val and y_val")
            return None
        if X_val is None or y_val is None:
            raise ValueError("X_val and y_val go together: one of them is missing")
        images = self._format.read(check_images(self, X_val, reset=False), type(self).__name__)
        images.check_finite(type(self).__name__)
        y_val = check_labels(y_val, images, "y_val")
        return self._with_targets(images, y_val, sample_weight_val, None, suffix="_val")

    def _hold_out(self, data):
        """Return what to train on and what early stopping validates on."""
        seed = draw_seed(self.random_state)
        parts = hold_out(data[1], self.validation_fraction, seed)
        images, targets, weights = data
        return tuple(
            (images.take(rows), targets[rows], None if weights is None else weights[rows])
            for rows in parts
        )

    def _note_classes(self, classes, first):
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        if classes is None:
            return
        classes = np.unique(classes)
        if first:
            if len(classes) < 2:
                raise ValueError(f"classes={classes.tolist()}: at least 2 classes are needed")
            self.classes_ = classes
        elif not np.array_equal(self.classes_, classes):
            raise ValueError(
                f"classes={classes.tolist()} is not the same as on the first call to "
                f"partial_fit, which was {self.classes_.tolist()}"
            )
