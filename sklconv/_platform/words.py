"""Messages and pieces of them: what a wrong name may have meant, and sizes."""

import difflib

# What other libraries call the things that have another name here.
SYNONYMS = {
    "learning_rate": "lr",
    "learning_rate_init": "lr",
    "epochs": "max_epochs",
    "n_epochs": "max_epochs",
    "max_iter": "max_epochs",
    "patience": "n_iter_no_change",
    "seed": "random_state",
    "model": "module",
    "kernel": "kernel_size",
    "out_channels": "filters",
    "out_features": "units",
    "mean": "avg",
    "average": "avg",
    "nchw": "channels_first",
    "nhwc": "channels_last",
}


def did_you_mean(name, names, *, n=1, form="{!r}"):
    """Return " Did you mean 'x'?" for the up to ``n`` of ``names`` most like ``name``, or "".

    Upper and lower case are one. ``form`` is what a name is put into.
    """
    known = {other.lower(): other for other in reversed([*names])}
    synonym = SYNONYMS.get(name.lower())
    if synonym in known:
        nearest = [synonym]
    else:
        nearest = difflib.get_close_matches(name.lower(), known, n=n, cutoff=0.5)
    if not nearest:
        return ""
    return f" Did you mean {', '.join(form.format(known[other]) for other in nearest)}?"


# Names in a message.
MANY = 10


def not_a_layer(parameter, name, names, *words):
    """Return the error of a ``parameter`` that takes a layer's name, or one of ``words``."""
    names = list(names)
    listed = f"Its layers are: {', '.join(names)}"
    if len(names) > 2 * MANY:
        near = difflib.get_close_matches(name, names, n=MANY, cutoff=0.5) or names[:MANY]
        listed = (
            f"Of its {len(names)} layers: {', '.join(sorted(near, key=names.index))}, …; "
            "layer_table_ and `sklconv layers` list them all"
        )
    hint = did_you_mean(name, [*names, *words])
    return f"{parameter}={name!r} is not a layer of this network. {listed}.{hint}"


def by(sizes):
    """Return sizes as in "3×32×32"."""
    return "×".join(str(size) for size in sizes)
