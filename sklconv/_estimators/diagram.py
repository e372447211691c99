"""Fitted networks in scikit-learn's diagrams of estimators."""

from .._networks.table import (
    by_stage,
    count_parameters,
    sizes,
    table_lines,
    without_containers,
)
from .._platform.sklearn import VisualBlock

# A network of more parts is one box, with the table of all its layers inside.
MAX_BOXES = 40


def network_diagram(rows, counted, tapped=()):
    """Return the ``_sk_visual_block_`` of a network: its parts, one behind another.

    A part is a module of the network with all that is inside. Opened, it shows their table.

    Parameters
    ----------
    rows : list of dict
        As `layer_rows` returns them.
    counted : str
        What their numbers are numbers of.
    tapped : collection of str
        Names of the layers to mark.
    """
    parts, total = by_stage(rows, level=1), count_parameters(rows)
    if len(parts) > MAX_BOXES:
        parts = {"network": rows}
    boxes = [_box(name, inside, total, counted, tapped) for name, inside in parts.items()]
    return VisualBlock("serial", boxes)


def _box(name, rows, total, counted, tapped):
    shapes = [row["output_shape"] for row in rows if row["output_shape"] is not None]
    # What is called by the name of the whole stands behind what is inside.
    is_whole = rows[-1]["name"] == name
    kind = rows[-1]["type"] if is_whole else f"{len(without_containers(rows))} layers"
    caption = [*map(sizes, shapes[-1:])]
    if n_parameters := count_parameters(rows):
        caption.append(f"{n_parameters:,} {counted}")
    if any(row["name"] in tapped for row in rows):
        caption.append("tapped")
    return VisualBlock(
        "single",
        None,
        names=f"{name}: {kind}",
        name_caption=", ".join(caption),
        name_details="\n".join(table_lines(rows, total)),
    )
