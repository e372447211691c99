"""The digest of what training depends on."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits

from sklconv import ConvNetClassifier, TorchModule
from sklconv._training.recipe import Recipe
from sklconv.layers import Conv, Dense


class First:
    pass


def recipe(model, X=None):
    X = load_digits().images[:8] if X is None else X
    model = clone(model)
    model._read_training_data(X, np.arange(8) % 2, reset=True)
    model.classes_ = np.arange(2)
    return Recipe.of(model, model.max_epochs, partial=False)


MODEL = ConvNetClassifier([("conv", Conv(4, 3)), ("dense", Dense(8))], random_state=0)


def test_equal_recipes_have_equal_digests():
    assert recipe(MODEL).digest() == recipe(MODEL).digest()


def test_what_is_only_shown_does_not_count():
    shown = clone(MODEL).set_params(verbose=1)
    assert recipe(shown).digest() == recipe(MODEL).digest()


@pytest.mark.parametrize(
    "params",
    [
        {"lr": 0.1},
        {"conv__filters": 5},
        {"max_epochs": 3},
        {"random_state": 1},
        {"optimizer": "sgd"},
        {"lr_schedule": "cosine"},
        {"early_stopping": True},
        {"augment": lambda x: x + 1},
        {"net_params": {"optimizer__eps": 1e-3}},
        {"standardize": False},
    ],
    ids=lambda params: next(iter(params)),
)
def test_what_decides_on_the_network_counts(params):
    changed = clone(MODEL).set_params(**params)
    assert recipe(changed).digest() != recipe(MODEL).digest()


def test_code_that_is_called_counts():
    digests = {
        recipe(clone(MODEL).set_params(augment=augment)).digest()
        for augment in (lambda x: x + 1, lambda x: x + 2)
    }
    assert len(digests) == 2


def test_the_shape_of_images_counts():
    wide = np.zeros((8, 6, 9))
    assert recipe(MODEL, wide).digest() != recipe(MODEL).digest()


def test_a_class_with_other_arguments_counts():
    few, many = (ConvNetClassifier(TorchModule(First, width=n), random_state=0) for n in (1, 2))
    assert recipe(few).digest() != recipe(many).digest()
