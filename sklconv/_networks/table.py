"""What a network looks like and how it trains, as tables."""

import torch

from .._activations.taps import PRE_LOGITS, layer_names
from .._platform.words import by
from ..layers._stack import LayerStack
from .building import LAYER_NAMES
from .receptive_fields import receptive_fields

# A longer table is printed by stages.
MAX_ROWS = 40

# The row of parameters that the network has outside of all its layers.
NETWORK = "(network)"


def layer_rows(network, calls, output, *, penultimate=None, learnable=True):
    """Return one dict a layer, with the columns of ``layer_table_`` as keys.

    Layers are all modules with parameters of their own and all without modules inside. Only its
    own parameters are counted for a layer, and shared ones once: the numbers add up. The other
    modules that ran are listed as well, without a number.

    Parameters
    ----------
    network : torch.nn.Module
    calls, output
        As `trace_layers` returns them.
    penultimate : Tap or None, default=None
        As `penultimate_tap` returns it: "output" marks the layer that it takes the output of,
        "input" the one that it takes the input of.
    learnable : bool, default=True
        Whether frozen parameters are left out.

    Returns
    -------
    list of dict
        In the order in which the modules end, then those whose output is unknown (they did not
        run, or put out something else than a tensor) with None as output shape.
    """
    modules = dict(network.named_modules()) | {call.name: call.module for call in calls}
    shapes = {call.name: tuple(call.output.shape[1:]) for call in calls}
    seen = dict.fromkeys(layer_names(calls))
    if isinstance(output, torch.Tensor):
        shapes[""] = tuple(output.shape[1:])
    rows: list[dict] = []
    counted: set = set()
    tapped = penultimate.module if penultimate else None
    fields = receptive_fields(calls) if isinstance(network, LayerStack) else {}
    for name in [*seen, *(name for name in modules if name and name not in seen), ""]:
        own = set(modules[name].parameters(recurse=False))
        is_layer = bool(own) or (name in seen and not any(modules[name].children()))
        if not is_layer and name not in seen:
            continue
        new = {p for p in own - counted if p.requires_grad or not learnable}
        counted |= new
        rows.append(
            {
                "name": name or NETWORK,
                "type": _type_name(modules[name]),
                "output_shape": shapes.get(name),
                "n_parameters": sum(p.numel() for p in new) if is_layer else None,
                "penultimate": _side(penultimate) if name and name == tapped else "",
            }
        )
    total = count_parameters(rows)
    for row in rows:
        row |= {
            "parameter_share": _share(row["n_parameters"], total),
            "receptive_field": fields.get(row["name"]),
        }
    return rows


def count_parameters(rows):
    """Return the number of parameters of all ``rows``."""
    return sum(row["n_parameters"] or 0 for row in rows)


def _share(n, total):
    return None if n is None else n / max(total, 1)


def _side(tap):
    return "input" if tap.of_input else "output"


def without_containers(rows):
    """Return those of the ``rows`` of `layer_rows` that are layers."""
    return [row for row in rows if row["n_parameters"] is not None]


def stage_rows(rows, network):
    """Return ``rows`` of `layer_rows`, joined to stages if there are more than `MAX_ROWS` layers.

    A stage is a module with all that is inside: of the levels of names ("layer1", "layer1.0")
    the deepest one that gives few enough. Where none does, or need not, the layers are returned.
    """
    layers = without_containers(rows)
    if len(layers) <= MAX_ROWS:
        return layers
    for level in range(max(row["name"].count(".") for row in layers), 0, -1):
        stages = by_stage(rows, level)
        if len(stages) <= MAX_ROWS:
            return [_joined(name, inside, network) for name, inside in stages.items()]
    return layers


def by_stage(rows, level):
    """Return a dict of the ``rows`` of each module whose name has at most ``level`` parts."""
    stages: dict[str, list] = {}
    for row in rows:
        stages.setdefault(".".join(row["name"].split(".")[:level]), []).append(row)
    return {name: inside for name, inside in stages.items() if without_containers(inside)}


def _joined(name, rows, network):
    if [row["name"] for row in rows] == [name]:
        return rows[0]
    # A list of modules does not run itself: what it puts out is what ends last in it.
    ran = [row for row in rows if row["output_shape"] is not None]
    return {
        "name": name,
        "type": _type_name(network.get_submodule(name)),
        "output_shape": ran[-1]["output_shape"] if ran else None,
        "n_parameters": count_parameters(rows),
    }


def as_table(rows):
    """Return ``rows`` as a DataFrame if pandas is there, else as they are."""
    try:
        import pandas as pd
    except ImportError:
        return rows
    return pd.DataFrame(rows)


def format_layers(rows, image_shape, counted, penultimate=None):
    """Return the layer table as text.

    ``counted`` says what the numbers are numbers of; ``penultimate`` is that of `layer_rows`.
    """
    lines = table_lines(rows, count_parameters(rows), image_shape)
    rule = "-" * len(lines[0])
    ends = [f"{count_parameters(rows):,} {counted}"]
    if penultimate == PRE_LOGITS:
        ends.append("penultimate: what the network's forward_head calls pre-logits")
    elif penultimate and penultimate.module:
        ends.append(f"penultimate: the {_side(penultimate)} of {penultimate.module}")
    return "\n".join([lines[0], rule, *lines[1:], rule, *ends])


def table_lines(rows, total, image_shape=None):
    """Return the header and a line a row; ``total`` is what parameters are shares of."""
    cells = [("name", "type", "output", "parameters", "share", "receptive field")]
    if image_shape is not None:
        cells.append(("input", "", sizes(image_shape), "", "", ""))
    for row in rows:
        n, field = row["n_parameters"], row.get("receptive_field")
        numbers = ("", "") if n is None else (f"{n:,}", f"{_share(n, total):.1%}")
        shape = sizes(row["output_shape"])
        cells.append((row["name"], row["type"], shape, *numbers, by(field or ())))
    columns = [_aligned(column, "<<>>>>"[i]) for i, column in enumerate(zip(*cells, strict=True))]
    if all(cell[-1] == "" for cell in cells[1:]):
        del columns[-1]
    return ["  ".join(row) for row in zip(*columns, strict=True)]


def _aligned(cells, side):
    width = max(map(len, cells))
    return [f"{cell:{side}{width}}" for cell in cells]


EPOCH_HEADER = "epoch  train loss  valid loss  valid acc      time"


def format_epoch(row):
    """Return one line of the training's progress."""
    valid_loss = "" if row["valid_loss"] is None else f"{row['valid_loss']:.4f}"
    accuracy = "" if row["valid_accuracy"] is None else f"{row['valid_accuracy']:.4f}"
    return (
        f"{row['epoch']:>5}  {row['train_loss']:>10.4f}  {valid_loss:>10}  {accuracy:>9}  "
        f"{row['duration']:>6.2f} s"
    )


def format_scores(rows, chosen):
    """Return the layers that were scored, as in ``layer_scores_``, and mark the chosen ones."""
    marked = {(layer.tap.name, layer.pool) for layer in chosen}
    width = max(len("layer"), *(len(row["layer"]) for row in rows))
    lines = [f"  {'layer':<{width}}  {'pool':<8}  score  features"]
    for row in rows:
        mark = "*" if (row["layer"], row["pool"]) in marked else " "
        pool = getattr(row["pool"], "__name__", row["pool"])
        lines.append(
            f"{mark} {row['layer']:<{width}}  {pool:<8}  {row['score']:5.3f}  {row['features']:8,}"
        )
    return "\n".join(lines)


def _type_name(module):
    return LAYER_NAMES.get(type(module), type(module).__name__)


def sizes(shape):
    """Return a shape as in "3×32×32"."""
    return "–" if shape is None else by(shape)
