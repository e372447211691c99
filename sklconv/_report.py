"""What a network looks like and how it trains, as tables."""

from ._taps import layer_names


def layer_rows(calls):
    """Return one dict a layer: name, type, output shape, learnable parameters.

    Only layers without layers of their own, in the order in which they run.
    """
    last = {call.name: call for call in calls}
    return [
        {
            "name": name,
            "type": _type_name(last[name].module),
            "output_shape": tuple(last[name].output.shape[1:]),
            "n_parameters": sum(
                p.numel() for p in last[name].module.parameters() if p.requires_grad
            ),
        }
        for name in layer_names(calls)
        if not any(last[name].module.children())
    ]


def as_table(rows):
    """Return ``rows`` as a DataFrame if pandas is there, else as they are."""
    try:
        import pandas as pd
    except ImportError:
        return rows
    return pd.DataFrame(rows)


def format_layers(rows, image_shape, n_parameters):
    """Return the layer table as text, with the total of learnable parameters."""
    cells = [("input", "", _sizes(image_shape), "")]
    cells += [
        (r["name"], r["type"], _sizes(r["output_shape"]), f"{r['n_parameters']:,}") for r in rows
    ]
    header = ("name", "type", "output", "parameters")
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  "
        f"{row[3]:>{widths[3]}}"
        for row in [header, *cells]
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:], rule, f"{n_parameters:,} learnable parameters"])


EPOCH_HEADER = "epoch  train loss  valid loss  valid acc      time"


def format_epoch(row):
    """Return one line of the training's progress."""
    valid_loss = "" if row["valid_loss"] is None else f"{row['valid_loss']:.4f}"
    accuracy = "" if row["valid_accuracy"] is None else f"{row['valid_accuracy']:.4f}"
    return (
        f"{row['epoch']:>5}  {row['train_loss']:>10.4f}  {valid_loss:>10}  {accuracy:>9}  "
        f"{row['duration']:>6.2f} s"
    )


def _type_name(module):
    # What a declarative layer is called in sklconv.layers.
    names = {
        "ConvActivation": "Conv",
        "LinearActivation": "Dense",
        "MaxPool2d": "MaxPool",
        "AvgPool2d": "AvgPool",
        "BatchNorm1d": "BatchNorm",
        "BatchNorm2d": "BatchNorm",
    }
    name = type(module).__name__
    return names.get(name, name)


def _sizes(shape):
    return "×".join(str(n) for n in shape)
