"""A batch that layers see piece by piece."""


class Pieces:
    """What layers do as for the whole batch while they see it piece by piece.

    Parameters
    ----------
    n_images : int
        In the whole batch.

    Attributes
    ----------
    rows : slice
        The images of the piece that layers see now.
    """

    def __init__(self, n_images):
        self.n_images = n_images
        self.rows = slice(0, n_images)
        self._drawn = {}

    def draw(self, layer, x, draw):
        """Return this piece's rows of what ``draw`` returns for the input ``x`` of a whole batch.

        It is drawn once for each ``layer``, with the first piece: so draws keep their order.
        """
        if layer not in self._drawn:
            # Images come one behind another in either layout.
            strides = (x[0].numel(), *x.stride()[1:])
            whole = x.new_empty(0).new_empty_strided((self.n_images, *x.shape[1:]), strides)
            self._drawn[layer] = draw(whole)
        return self._drawn[layer][self.rows]
