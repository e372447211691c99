"""A fit that fails leaves no trace."""

from contextlib import contextmanager


@contextmanager
def undone_if_it_fails(estimator):
    """Leave ``estimator`` as it was if the block raises.

    An interrupt keeps a network that has begun to be trained, and what is known of it.
    """
    before = dict(estimator.__dict__)
    try:
        yield
    except BaseException as error:
        # The layer table is replaced after the first batch, even if the net is the old one.
        trained = estimator.__dict__.get("layer_table_") is not before.get("layer_table_")
        if not (isinstance(error, KeyboardInterrupt) and trained):
            estimator.__dict__.clear()
            estimator.__dict__.update(before)
        raise
