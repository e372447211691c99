"""TorchModule."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Self

from sklearn.base import BaseEstimator
from torch import nn


class TorchModule(BaseEstimator):
    """A user's own `torch.nn.Module` class, with keyword arguments that can be searched.

    The class is called at fit with these arguments, plus whichever of ``in_channels`` or
    ``in_chans``, ``num_classes`` or ``n_classes``, and ``image_shape`` (``(C, H, W)``) its
    signature takes and the arguments do not name. Its output must be logits, one column per
    class.

    Parameters
    ----------
    module_class : type
        A subclass of `torch.nn.Module`, or any callable that returns a module.
    **kwargs
        Passed to it. Each is a parameter: ``module__width`` in a grid.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from torch import nn
    >>> from sklconv import ConvNetClassifier, TorchModule
    >>> class Perceptron(nn.Sequential):
    ...     def __init__(self, image_shape, num_classes, width):
    ...         c, h, w = image_shape
    ...         super().__init__(
    ...             nn.Flatten(), nn.Linear(c * h * w, width), nn.ReLU(),
    ...             nn.Linear(width, num_classes),
    ...         )
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = ConvNetClassifier(module=TorchModule(Perceptron, width=32), random_state=0)
    >>> clf.set_params(module__width=64).fit(X, y).module_.body[1]
    Linear(in_features=64, out_features=64, bias=True)
    """

    __module__ = "sklconv"

    def __init__(self, module_class: Callable[..., nn.Module], **kwargs: Any) -> None:
        self.module_class = module_class
        self.kwargs = kwargs

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the class and its keyword arguments."""
        return {"module_class": self.module_class, **self.kwargs}

    def set_params(self, **params: Any) -> Self:
        """Set the class or keyword arguments; new names are accepted as well."""
        params = dict(params)
        self.module_class = params.pop("module_class", self.module_class)
        self.kwargs = {**self.kwargs, **params}
        return self

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
        """Call the class."""
        known = {
            "in_channels": image_shape[0],
            "in_chans": image_shape[0],
            "num_classes": n_classes,
            "n_classes": n_classes,
            "image_shape": image_shape,
        }
        accepted = inspect.signature(self.module_class).parameters
        inferred = {name: value for name, value in known.items() if name in accepted}
        module = self.module_class(**{**inferred, **self.kwargs})
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"TorchModule: {self.module_class!r} returned {type(module).__name__}, "
                "not a torch.nn.Module"
            )
        return module
