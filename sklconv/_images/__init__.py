"""X: its forms, image files, and what it takes to make all images one size."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from numpy.typing import ArrayLike

# What public methods take as X: arrays, tables and tensors of pixels, or image files.
ImagesLike: TypeAlias = ArrayLike | Sequence[Any]
