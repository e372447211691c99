import sys

import pytest


@pytest.fixture(autouse=True)
def _no_figures_of_others():
    # Some of these tests need no matplotlib, and the others skip without it.
    plt = sys.modules.get("matplotlib.pyplot")
    if plt is None:
        yield
        return
    plt.close("all")
    yield
    plt.close("all")
