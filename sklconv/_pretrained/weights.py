"""Files of weights: read without running code in them, compared, and loaded."""

import pickle
from collections.abc import Mapping

import torch

from .libraries import adapt_weights


def load_weights(module, path):
    """Give ``module`` the weights of a file; raise if they are those of another network."""
    state = adapt_weights(module, _read_weights(path))
    expected = module.state_dict()
    missing, unexpected = sorted(expected.keys() - state), sorted(state.keys() - expected)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(expected[key].shape)}"
        for key in expected.keys() & state
        if state[key].shape != expected[key].shape
    ]
    if missing or unexpected or shapes:
        parts = [
            f"{what}: {', '.join(keys[:5])}{' …' if len(keys) > 5 else ''} ({len(keys)})"
            for what, keys in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", sorted(shapes)),
            )
            if keys
        ]
        raise ValueError(f"weights={path!r} are those of another network: {'; '.join(parts)}")
    module.load_state_dict(state, strict=False)


def _read_weights(path):
    if path.endswith(".safetensors"):
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError:
            raise ImportError(
                '.safetensors files need safetensors: pip install "sklconv[timm]"'
            ) from None
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"weights={path!r} is not a file of weights: {error}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error):  # what is not a tensor is not unpickled: it can be code
            raise ValueError(
                f"weights={path!r} holds more than tensors and is not read: save the network's "
                "state_dict() instead"
            ) from error
        raise ValueError(f"weights={path!r} is not a file of weights") from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"weights={path!r} is not a file of weights: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise ValueError(
            f"weights={path!r} holds {type(state).__name__}, not named tensors: a dict from names "
            "such as 'conv1.weight' to tensors"
        )
    return {key.removeprefix("module."): value for key, value in state.items()}
