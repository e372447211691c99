"""Figures of the guide's pages are closed, as the documentation's build does it."""

import sys

import pytest


def close_figures():
    if plt := sys.modules.get("matplotlib.pyplot"):
        plt.close("all")


@pytest.fixture(autouse=True)
def _close_figures():
    close_figures()
    yield
    close_figures()
