"""ConvFeatureExtractor."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral
from os import PathLike
from typing import Any, Literal, Self

import numpy as np
import torch
from joblib import Memory
from numpy.typing import ArrayLike, NDArray
from sklearn.base import TransformerMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from .._activations.pooling import POOLINGS
from .._activations.tap_set import place_candidates, place_taps, tap_set
from .._activations.taps import NETWORK_OUTPUT, penultimate_tap
from .._cache.features import KeptFeatures
from .._cache.folder import Folder
from .._cache.networks import KeptFit, KeptNotes
from .._engines.choice import ENGINES, check_engine, choose_run, engine_of
from .._engines.runtime import forget
from .._images import ImagesLike
from .._images.forms import (
    ImageFormat,
    check_image_shape,
    check_images,
    computed,
    is_dask,
    refuse_single_photo,
)
from .._images.sources import digested_once
from .._networks.building import N_TRACED, blank_images, trace_network
from .._networks.image_network import ImageNetwork, PreparePixels
from .._networks.inference import collect_outputs, iterate_outputs, read_images
from .._networks.layer_choice import N_BEST, choose_layers, sample_rows
from .._networks.table import NETWORK, as_table, format_scores, layer_rows, without_containers
from .._platform.devices import check_precision, resolve_device
from .._platform.digests import digest_of, once, remembered
from .._platform.layouts import ready_weights
from .._platform.modules import own_copy
from .._platform.randomness import draw_seed, seeded_global_states
from .._platform.sklearn import (
    CallbackSupportMixin,
    Interval,
    InvalidParameterError,
    StrOptions,
    SuggestingEstimator,
    VisualBlock,
    check_feature_names_in,
    fit_context,
    has_callbacks,
)
from .._pretrained.backbones import Backbone, file_options
from .._pretrained.libraries import suggest_network
from .._progress import print_line
from .classifier import ConvNetClassifier
from .dask import by_blocks, empty_table
from .diagram import network_diagram
from .targets import check_choice
from .tasks import FitTasks
from .undo import undone_if_it_fails

# Parameters that, unless they are None, take the place of those of a classifier to train.
OVERRIDE = "image_shape", "data_format", "reader", "device", "precision", "random_state", "verbose"


def _in_eval_mode(prepare, body):
    network = ImageNetwork(prepare, body)
    prepare.to(network.device)
    return network.eval()


class ConvFeatureExtractor(TransformerMixin, CallbackSupportMixin, SuggestingEstimator):
    """Activations of a convolutional network's layers as features.

    Parameters
    ----------
    estimator : ConvNetClassifier, FrozenEstimator, Backbone, torch.nn.Module or None, \
            default=None
        The network. A `ConvNetClassifier`, fitted or not, is cloned and trained at fit; None
        means one with default parameters. Wrapped in
        :class:`~sklearn.frozen.FrozenEstimator`, a fitted one is used as it is. A `Backbone`
        is a pretrained network with its preprocessing; its weights are loaded at fit, nothing
        is trained and no y is needed. A module is copied and used in the same way, in float32
        if all of its weights are in another precision.
    layer : str, int or list of these, default="penultimate"
        Which activations: a layer's name (``"dense"``, ``"layer4.1.conv2"``), a negative index
        into the layers in the order in which they run, a glob (``"conv*"``), or several of
        these, from one pass. ``"penultimate"`` is the input of the classifier: what timm
        calls pre-logits in its networks; else the input of the last linear layer, if that
        layer's output is the network's, apart from a softmax; else the input of a final 1×1
        convolution, if the means of its maps are the network's output. If none of these is
        found, the network's output is taken, with a warning. ``"auto"``: those layers that tell
        the classes of y apart best. `fit` passes the images through the network once more, or
        a part of very many, and scores its stages and blocks by leave-one-out ridge regression
        on their features. It keeps the best four, or the best one where it has trained the
        network on these images. A layer that runs several times is tapped at its last call.
        Layers that return lists, tuples or dicts can't be tapped.
    pool : {"auto", "avg", "max", "flatten", "cls"} or callable, default="auto"
        How feature maps and tokens become vectors: the mean or maximum of each channel, all
        values, or the class token. "auto": the mean; with ``layer="auto"`` also all values, if
        these are at most 16,384 and score better. Means and maxima of tokens (N, T, C) are
        over the patches, without class token and registers, if the network states how many of
        these there are (timm's and torchvision's do). Maps are read as (N, C, H, W), or as
        (N, H, W, C) where the network computes them so. A callable takes the activation as it
        is, a tensor, and returns one of shape (N, n_features). Vectors are left unchanged.
    image_shape, data_format, reader, device, precision, random_state : default=None
        As for `ConvNetClassifier`; None: the estimator's value.
    on_bad_image : {"raise", "nan"}, default="raise"
        What `transform` does with an image file that can't be read: raise an error, or fill its
        row with NaN and list it in ``bad_images_``. A `fit` that trains raises in any case; the
        choice of ``layer="auto"`` leaves such images out.
    batch_size : int or None, default=None
        Images in a batch of `transform`, and of the pass of ``layer="auto"``; None: 256 for
        images of at most 1,024 values, else 128.
    engine : {"auto", "torch", "onnxruntime"} or None, default=None
        What computes the features. ``"onnxruntime"`` is ONNX Runtime (the extra
        ``onnxruntime``), on a CPU 1.3 to 3.5 times as fast as torch, once a network has been
        exported, which takes some seconds. ``"auto"`` takes it for modules, Backbones and frozen
        classifiers where it is installed and the images of the call are enough work to pay for
        that; networks that can't be exported stay in torch, with a warning. None: as the
        estimator has it, or "auto" where there is none or it is frozen.
    memory : str, path-like, joblib.Memory or None, default=None
        A folder in which trained networks and features are kept (of a `joblib.Memory`, its
        ``location``), so that candidates and folds of a search, later runs and other processes
        take them from there: a network from an equal fit (the same parameters of the estimator,
        data, packages and number of threads), with the same bits; features of networks that were
        trained from the same images, likewise; features of frozen networks that cost much image
        by image, equal to rounding. `random_state=None` counts as equal, too. Not kept, with a
        warning: fits with ``callbacks`` or a generator as ``random_state``, and of code that has
        no digest. What is kept is read by `pickle`: nobody else should be able to write to the
        folder. None: nothing is kept.
    verbose : int or None, default=None
        1 or more: a `ConvNetClassifier` is trained with this ``verbose``; what ``layer="auto"``
        has scored is printed, and how much ``memory`` had; `fit` and `transform` of many images
        show a progress bar with the time left; see :ref:`progress`. None: the estimator's value.

    Attributes
    ----------
    estimator_ : ConvNetClassifier
        The trained (or frozen) classifier; absent if ``estimator`` is a `Backbone` or a module.
    module_ : torch.nn.Module
        The network: raw images to outputs.
    backbone_ : Backbone
        The backbone with its preprocessing filled in, if ``estimator`` is one.
    bad_images_ : list of (int, item, str)
        Row, file and reason of each image file that the last transform could not read.
    layers_ : list of str
        Names of the tapped layers.
    pools_ : list of str or callable
        How each of them is pooled; "auto" for vectors, which stay as they are, and for means where
        a layer was named.
    layer_scores_ : pandas.DataFrame or list of dict
        With ``layer="auto"``, the best first: layer, pool, score and number of features of all
        that was tried. The score is R², the share of the variance of the classes' indicators that
        is predicted for images that are left out.
    layer_table_ : pandas.DataFrame or list of dict
        One row per layer, with the columns of that of `ConvNetClassifier`, but including modules
        that contain others, which can be tapped as well, and parameters that are not learnable.
    image_shape_ : tuple of int
        ``(C, H, W)``.
    n_features_in_ : int
        ``C * H * W``, whatever the form of ``X``.
    feature_names_in_ : ndarray of str
        Names of the columns, if ``X`` had names that are all strings.

    See Also
    --------
    ConvNetClassifier : The network as a classifier.

    Notes
    -----
    The network always runs in evaluation mode. The features of images that it was trained on
    look better than those of new images: evaluate the model that follows on other data.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.svm import SVC
    >>> from sklconv import ConvFeatureExtractor, ConvNetClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> net = ConvNetClassifier(max_epochs=5, random_state=0)
    >>> model = make_pipeline(ConvFeatureExtractor(net, layer="dense"), SVC())
    >>> model.fit(X[:1000], y[:1000]).score(X[1000:], y[1000:]) > 0.9
    True
    >>> model[0].get_feature_names_out()[:2]
    array(['dense_0', 'dense_1'], dtype=object)
    """

    __module__ = "sklconv"

    _parameter_constraints: dict = {
        "estimator": [ConvNetClassifier, FrozenEstimator, Backbone, torch.nn.Module, None],
        "layer": [str, Integral, list],
        "pool": [StrOptions(POOLINGS), callable],
        "image_shape": "no_validation",
        "data_format": [StrOptions({"auto", "channels_first", "channels_last"}), None],
        "reader": [callable, None],
        "on_bad_image": [StrOptions({"raise", "nan"})],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "engine": [StrOptions(ENGINES), None],
        "memory": [str, PathLike, Memory, None],
        "device": [str, None],
        "precision": [StrOptions({"float32", "bfloat16"}), None],
        "random_state": ["random_state"],
        "verbose": ["verbose", None],
    }

    estimator_: ConvNetClassifier
    backbone_: Backbone
    bad_images_: list[tuple[int, Any, str]]
    layers_: list[str]
    pools_: list[str | Callable]
    layer_scores_: Any
    image_shape_: tuple[int, int, int]
    n_features_in_: int

    def __init__(
        self,
        estimator: ConvNetClassifier | FrozenEstimator | Backbone | torch.nn.Module | None = None,
        *,
        layer: str | int | Sequence[str | int] = "penultimate",
        pool: Literal["auto", "avg", "max", "flatten", "cls"]
        | Callable[[torch.Tensor], torch.Tensor] = "auto",
        image_shape: Sequence[int] | None = None,
        data_format: Literal["auto", "channels_first", "channels_last"] | None = None,
        reader: Callable[[Any], Any] | None = None,
        on_bad_image: Literal["raise", "nan"] = "raise",
        batch_size: int | None = None,
        engine: Literal["auto", "torch", "onnxruntime"] | None = None,
        memory: str | PathLike[str] | Memory | None = None,
        device: str | None = None,
        precision: Literal["float32", "bfloat16"] | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | None = None,
    ) -> None:
        self.estimator = estimator
        self.layer = layer
        self.pool = pool
        self.image_shape = image_shape
        self.data_format = data_format
        self.reader = reader
        self.on_bad_image = on_bad_image
        self.batch_size = batch_size
        self.engine = engine
        self.memory = memory
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        X: ImagesLike,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        X_val: ImagesLike | None = None,
        y_val: ArrayLike | None = None,
    ) -> Self:
        """Train the network, unless it is frozen, and find its layers.

        Parameters
        ----------
        X : array-like
            Images, in any of the forms that `ConvNetClassifier.fit` takes.
        y : array-like of shape (n_samples,) or None, default=None
            Labels; needed where a network is trained, and by ``layer="auto"``.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the images in the training loss, and in the choice of ``layer="auto"``.
        X_val, y_val : default=None
            Images and labels to validate on after each epoch.

        Returns
        -------
        self
        """
        tasks = FitTasks(self, "fit", int(self._trains()), X, y, sample_weight)
        with undone_if_it_fails(self):
            for name in ("estimator_", "_kept", "backbone_", "bad_images_", "layer_scores_"):
                self.__dict__.pop(name, None)
            X, y = computed(X), computed(y)
            images = check_images(self, X, reset=True)
            if self._trains():
                self._train_classifier(tasks, images, X, y, sample_weight, X_val, y_val)
            else:
                self._take_network(images)
                self._look_at_network(images, y, sample_weight)
            self._warn_of_output()
            tasks.end()
        return self

    def fit_transform(
        self, X: ImagesLike, y: ArrayLike | None = None, **fit_params: Any
    ) -> NDArray[np.float32]:
        """Train the network, unless it is frozen, find its layers, and return the features of X.

        Parameters
        ----------
        X, y
            As `fit` takes them.
        **fit_params
            The other arguments of `fit`.

        Returns
        -------
        ndarray of shape (n_samples, n_features) and dtype float32
        """
        with digested_once(X):
            return self.fit(X, y, **fit_params).transform(X)

    def transform(self, X: ImagesLike) -> NDArray[np.float32]:
        """Return the features.

        Parameters
        ----------
        X : array-like
            Images, in any of the forms that `fit` takes.

        Returns
        -------
        ndarray of shape (n_samples, n_features) and dtype float32
            A dask array, nothing of which is computed yet, if X is one or a dask DataFrame or
            Series. ``bad_images_`` then lists nothing; their rows are NaN all the same.
        """
        if is_dask(X):
            return by_blocks(self, "transform", X, lambda: empty_table(self._taps.n_features))
        images = read_images(self, X)
        folder = Folder.of(self.memory)
        features = self._compute(images) if folder is None else self._recall(folder, images)
        self._note_bad_images(images, features, start=0)
        return features

    def transform_batches(self, X: ImagesLike) -> Iterator[NDArray[np.float32]]:
        """Yield the features batch by batch, for data larger than memory.

        Parameters
        ----------
        X : array-like
            Images, in any of the forms that `fit` takes. The batches of a dask array are its
            blocks, one after the other.

        Yields
        ------
        ndarray of shape (batch, n_features) and dtype float32
        """
        if is_dask(X):
            features: Any = self.transform(X)
            yield from (rows.compute() for rows in features.blocks.ravel())
            return
        images, start = read_images(self, X), 0
        _, batches = self._iterate(images)
        for rows in batches:
            self._note_bad_images(images, rows, start)
            start += len(rows)
            yield rows

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray[Any]:
        """Return the names of the features.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Only compared with the names at fit.

        Returns
        -------
        ndarray of str
            ``dense_0``; of pooled maps ``conv2_0``, one per channel; of flattened maps
            ``conv2_3_y0_x5``, of flattened tokens ``norm_3_t5``.
        """
        check_is_fitted(self)
        check_feature_names_in(self, input_features, generate_names=False)
        return np.array(self._taps.names(), dtype=object)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_taps")

    @available_if(__sklearn_is_fitted__)
    def _sk_visual_block_(self):
        network = network_diagram(self._layer_rows, "parameters", self.layers_)
        if not hasattr(self, "estimator_"):
            return network
        network.dash_wrapped = False  # else its frame would touch the first box
        name = f"estimator_: {type(self.estimator_).__name__}"
        return VisualBlock("parallel", [network], names=[name], name_details=[self.estimator_])

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        tags.target_tags.required = self._trains() or self._is_auto()
        return tags

    @property
    def _n_features_out(self):
        return self._taps.n_features

    @property
    def module_(self) -> ImageNetwork:
        """The network: raw images to outputs."""
        return self.estimator_.module_ if hasattr(self, "estimator_") else self._network

    @property
    def layer_table_(self) -> Any:
        """The network's layers."""
        return as_table(self._layer_rows)

    def __getattr__(self, name):
        kept = self.__dict__.get("_kept")
        if name == "estimator_" and kept is not None:
            # Threads that share this object get one classifier.
            return self.__dict__.setdefault(name, kept.get())
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getstate__(self):
        if self._pending() is not None:
            _ = self.estimator_  # a pickle is whole, wherever it goes
        state = {**super().__getstate__()}
        state.pop("_kept", None)
        network = state.get("_network")
        if network is not None and network.device.type != "cpu":
            # Else it could not be unpickled on a machine without a GPU.
            state["_network"] = copy.deepcopy(network).cpu()
        return state

    def _trains(self):
        return not isinstance(self.estimator, (FrozenEstimator, Backbone, torch.nn.Module))

    def _is_auto(self):
        return isinstance(self.layer, str) and self.layer == "auto"

    def _looks_at_more(self):
        """Whether the taps follow from more than network and parameters: y, or a user's code."""
        return self._is_auto() or callable(self.pool)

    def _validate_params(self):
        if isinstance(self.estimator, str):
            raise InvalidParameterError(
                f"estimator={self.estimator!r} is none of a ConvNetClassifier, a FrozenEstimator "
                "of one, a Backbone, a torch.nn.Module and None."
                + suggest_network(self.estimator, form="Backbone({!r})")
            )
        super()._validate_params()

    def _note_bad_images(self, images, features, start):
        """Record the files that could not be read; their rows become NaN."""
        if (bad := images.bad) is not None:
            self.bad_images_ = bad
            rows = [row - start for row, _, _ in bad if 0 <= row - start < len(features)]
            features[rows] = np.nan

    def _take_network(self, images):
        if isinstance(self.estimator, Backbone):
            self._take_backbone(images, self.estimator)
        elif isinstance(self.estimator, torch.nn.Module):
            self._take_module(images, self.estimator)
        elif isinstance(self.estimator, FrozenEstimator):
            self._take_frozen(images, self.estimator.estimator)

    def _train_classifier(self, tasks, images, X, y, sample_weight, X_val, y_val):
        estimator = ConvNetClassifier() if self.estimator is None else clone(self.estimator)
        own = {name: getattr(self, name) for name in OVERRIDE}
        estimator.set_params(**{name: own[name] for name in own if own[name] is not None})

        def fit():
            with tasks.inner_fit(estimator):
                return estimator.fit(X, y, sample_weight, X_val=X_val, y_val=y_val)

        data = X, y, sample_weight, X_val, y_val
        is_watched = any(map(has_callbacks, (self, estimator)))
        training = KeptFit(Folder.of(self.memory), estimator, fit, is_watched, *data)
        kept = KeptNotes(training, self._parameters_of_notes())
        if (recalled := kept.recall()) is not None:
            self._kept, notes = recalled
            self._note(*notes)
            return
        self.estimator_ = training.fit()
        self._format = self._with_file_options(self.estimator_._format)
        self._look_at_network(images, y, sample_weight)
        kept.keep((self._format, self._taps, self._layer_rows), self.module_)

    def _parameters_of_notes(self):
        """Return what decides on the notes of a trained network, or None: they are not kept."""
        if self._looks_at_more():
            return None
        own = self.get_params(deep=False)
        return {name: own[name] for name in own if name not in ("estimator", "memory")}

    def _take_frozen(self, X, classifier):
        if not isinstance(classifier, ConvNetClassifier):
            raise TypeError(
                "estimator: what FrozenEstimator holds must be a ConvNetClassifier, not "
                f"{type(classifier).__name__}"
            )
        check_is_fitted(classifier)
        for name, own, its in (
            ("image_shape", check_image_shape(self.image_shape), classifier.image_shape_),
            ("data_format", self.data_format, classifier.data_format),
        ):
            if own not in (None, its):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not that of the frozen estimator, {its!r}"
                )
        device = classifier.module_.device
        if self.device not in (None, "auto") and torch.device(self.device).type != device.type:
            raise ValueError(
                f"device={self.device!r} is not where the frozen estimator is, {device.type!r}"
            )
        self._format = self._with_file_options(classifier._format)
        self._format.read(X, type(self).__name__)
        self.estimator_ = classifier

    def _with_file_options(self, image_format):
        reader = image_format.files.reader if self.reader is None else self.reader
        files = replace(image_format.files, reader=reader, on_bad_image=self.on_bad_image)
        return replace(image_format, files=files)

    def _take_backbone(self, X, backbone):
        if self.image_shape is None and isinstance(backbone.network, str):
            refuse_single_photo(X)
        self._infer_format(X)
        self.backbone_ = backbone.resolve()
        with seeded_global_states(draw_seed(self.random_state)):  # for weights=None
            body = self.backbone_.load(resolve_device(self.device or "auto"))
        prepare = self.backbone_.preparation(body)
        if self._format.is_final:
            prepare.leave_size()
        self._network = _in_eval_mode(prepare, body)

    def _infer_format(self, X):
        files = file_options(self.estimator, X, self.reader, self.on_bad_image)
        self._format = ImageFormat.infer(X, self.image_shape, self.data_format or "auto", files)

    def _take_module(self, X, module):
        self._infer_format(X)
        body = own_copy(module).to(resolve_device(self.device or "auto"))
        self._network = _in_eval_mode(PreparePixels(), remembered(ready_weights(body)))

    def _look_at_network(self, images, y, sample_weight):
        """Find the layers to tap, and note them."""
        network = self.module_
        check_precision(self.precision, network.device)
        forget(network)  # what was written through .data into a frozen one is seen now
        check_engine(self._engine(), network.device, self._precision(), [self.pool])
        look = partial(self._find_taps, network, images, y, sample_weight)
        if self._looks_at_more():
            taps, rows, network.risks = look()
        else:
            asked_for = self.layer, self.pool, self._precision(), self._format.shape
            key = digest_of(network.prepare), repr(asked_for)
            taps, rows, network.risks = once(network.body, key, look)
        self._note(self._format, taps, [dict(row) for row in rows])

    def _find_taps(self, network, images, y, sample_weight):
        """Return the taps, the rows of the layer table and the network's risks."""
        shape = self._format.shape
        trace = trace_network(network, shape)
        penultimate = penultimate_tap(trace, network)
        placing = self.pool, network, trace, blank_images(network, shape), penultimate
        if self._is_auto() and all(call.name != "auto" for call in trace.calls):
            self._taps = place_candidates(*placing)
            self._taps = tap_set(self._choose_layers(images, y, sample_weight), trace)
        else:
            self._taps = place_taps(self.layer, *placing)
        self._check_rows()
        rows = layer_rows(network.body, *trace, penultimate=penultimate, learnable=False)
        return self._taps, rows, network.risks

    def _note(self, image_format, taps, rows):
        """Set what is known of the network beside itself."""
        self._format, self._taps, self._layer_rows = image_format, taps, rows
        self.image_shape_, self.n_features_in_ = image_format.shape, image_format.n_features
        self.layers_, self.pools_ = taps.layers, taps.pools

    def _choose_layers(self, images, y, sample_weight):
        """Return those of the tapped layers whose features tell the classes apart best."""
        name = type(self).__name__
        classes, weights = check_choice(y, sample_weight, images, name, warn=not self._trains())
        rows = sample_rows(classes, weights, self._taps)
        source = self._format.read(images, name).take(rows)
        verbose, network = self._verbose(), self.module_
        features = collect_outputs(network, source, self._features, name, self.batch_size, verbose)
        read = np.setdiff1d(np.arange(len(rows)), [row for row, *_ in source.bad or []])
        rows, features = rows[read], features[read]
        # Where the network has learned these very rows, later layers are flattered.
        n_best = 1 if self._trains() else N_BEST
        best, scores = choose_layers(self._taps, features, classes[rows], weights[rows], n_best)
        self.layer_scores_ = as_table(scores)
        if verbose:
            print_line(format_scores(scores, best))
        return best

    def _check_rows(self):
        """Raise if only for the number of traced images there is a row an image."""
        with torch.no_grad():
            self._features(blank_images(self.module_, self._format.shape, N_TRACED + 1))

    def _warn_of_output(self):
        has_layers = any(row["name"] != NETWORK for row in without_containers(self._layer_rows))
        if NETWORK_OUTPUT in self._taps.taps and has_layers:
            warnings.warn(
                "layer='penultimate' takes the network's output, which may be scores of classes: "
                f"nothing tells what goes into a classifier in {type(self.module_.body).__name__}."
                " Name a layer instead, such as layer=-1, the last",
                UserWarning,
                stacklevel=4,
            )

    def _features(self, x):  # (N, C, H, W) -> (N, n_features)
        return self._taps.compute(self.module_, x, self._precision())

    def _precision(self):
        return self.precision or (self._pending() or self.module_).precision

    def _pending(self):
        """Return the `KeptNetwork` that is not unpickled yet, or None."""
        return None if "estimator_" in vars(self) else vars(self).get("_kept")

    def _classifier(self):
        """Return the classifier, or its equal that is not fitted, or None if there is none."""
        kept = self._pending()
        return getattr(self, "estimator_", None) if kept is None else kept.unfitted

    def _verbose(self):
        own = self._classifier()
        return self.verbose if self.verbose is not None or own is None else own.verbose

    def _engine(self):
        """Return this extractor's engine, or else its estimator's, whose "auto" is torch."""
        own = self._classifier()
        if self.engine is not None or own is None:
            return self.engine or "auto"
        is_frozen = isinstance(self.estimator, FrozenEstimator)
        return "torch" if own.engine == "auto" and not is_frozen else own.engine

    def _compute(self, images):
        run, name = self._choose_run(len(images)), type(self).__name__
        return collect_outputs(self.module_, images, run, name, self.batch_size, self._verbose())

    def _recall(self, folder, images):
        """Return the features, of which those that are kept in ``folder`` are not computed."""
        network, engines = self._pending() or self.module_, self._engines(len(images))
        kept = KeptFeatures(folder, network, self._taps, self._precision(), engines, images)
        compute, iterate = partial(self._compute, images), partial(self._iterate, images)
        name = type(self).__name__ if self._verbose() else None
        return kept.recall(compute, iterate, is_frozen=not self._trains(), name=name)

    def _iterate(self, images, rows=None, taps=None):
        """Return what computes, and an iterator over batches of features of these rows, or all."""
        run, name = self._choose_run(len(images), taps), type(self).__name__
        how = run, name, self.batch_size, rows, self._verbose()
        return run, iterate_outputs(self.module_, images, *how)

    def _engines(self, n_images):
        """Return those whose features serve; the first is the one that computes."""
        engine = self._engine()
        if engine != "auto":
            return [engine]
        engine = engine_of(self._choose_run(n_images))
        return [engine, *{"torch", "onnxruntime"}.difference([engine])]

    def _choose_run(self, n_images, taps=None):
        taps, network, precision = taps or self._taps, self.module_, self._precision()
        in_torch = partial(taps.compute, network, precision=precision)
        return choose_run(self._engine(), network, taps, precision, n_images, in_torch)
