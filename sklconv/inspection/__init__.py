"""Pictures of what a network learnt, in scikit-learn's Display manner.

Drawing takes matplotlib, the extra ``plot``.
"""

__all__ = []

# Where users import them from is what pickles say, and the documentation.
for _name in __all__:
    globals()[_name].__module__ = __name__
