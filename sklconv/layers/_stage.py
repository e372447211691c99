"""What layers are run as: one at a time, or several together."""


class Stage:
    """A single layer. Stages of several are subclasses, beside the layers that they begin with.

    Called with ``joined``, a stage that ``leaves_relu`` leaves its ReLU to the one behind.
    """

    activation: str | None = None
    leaves_relu = takes_relu = takes_onednn = feeds_onednn = False

    def __init__(self, layers):
        self.layers = layers

    def __call__(self, x, joined=False):
        return self.layers[0][1](as_dense(x))


def as_dense(x):
    """``x`` in torch's own layout."""
    return x.to_dense() if x.is_mkldnn else x
