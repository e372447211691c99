import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def _no_figures_of_others():
    plt.close("all")
    yield
    plt.close("all")
