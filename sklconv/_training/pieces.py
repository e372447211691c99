"""Training steps on batches of large images, piece by piece."""

import copy
import math

import torch
from torch import nn

from .. import layers
from .._images.sources import slices
from .._networks.image_network import LayerNetwork

# Of a piece's activations: so that together with their gradients they take some 100 MB, whatever
# the batch. Measured before `step_memory_kept`, when more than 64 MB were faulted in at each step.
PIECE_BYTES = 48 * 2**20
# Each piece reads the weights and adds to their gradients: it has to be worth that.
PIECE_BYTES_A_WEIGHT_BYTE = 8

# Losses that are sums over images.
LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)


def images_a_piece(network, criterion, calls):
    """Return how many images a piece of a batch should have; infinity: leave batches whole.

    Parameters
    ----------
    network : ImageNetwork
    criterion
        The loss: an object of torch's own classes is known to be a sum over images.
    calls : list of LayerCall
        Of a pass of ``network``.
    """
    if not (_is_image_wise(network) and _sums_over_images(criterion)):
        return math.inf
    image_bytes = sum(call.output.nbytes / len(call.output) for call in calls)
    weight_bytes = sum(parameter.nbytes for parameter in network.parameters())
    piece_bytes = max(PIECE_BYTES, PIECE_BYTES_A_WEIGHT_BYTE * weight_bytes)
    return max(1, piece_bytes / image_bytes)


def cut_in_pieces(n, size):
    """Cut ``range(n)`` into equal slices of about ``size``."""
    return slices(n, math.ceil(n / max(1, round(n / size))))


def backward_in_pieces(network, criterion, cuts, x, y, weights):
    """Add the gradients of a batch's loss to those of the weights, for one of ``cuts`` at a time.

    Returns
    -------
    logits : torch.Tensor of shape (n_images, n_classes)
    loss : torch.Tensor
        The mean that ``criterion`` defines for the whole batch, weighted as `LeanNet` does.
    """
    criterion, divisor = copy.copy(criterion), _divisor(criterion, y)
    criterion.reduction = "none"
    outputs, total = [], torch.zeros((), dtype=torch.float32)
    with network.in_pieces(len(x)) as pieces:
        for rows in cuts:
            pieces.rows = rows
            logits = network(x[rows])
            losses = criterion(logits, y[rows])
            loss = (losses if weights is None else losses * weights[rows]).sum() / divisor
            loss.backward()
            outputs.append(logits.detach())
            total += loss.detach()
    return torch.cat(outputs), total


def _is_image_wise(network):
    """Whether each image's output depends on that image alone, on a CPU."""
    if network.device.type != "cpu" or not isinstance(network, LayerNetwork):
        return False
    image_wise = {
        torch_class
        for name in layers.__all__
        if name != "BatchNorm"
        for torch_class in getattr(layers, name).torch_classes
    }
    return all(type(module) in image_wise for module in network.body)


def _sums_over_images(criterion):
    return (
        type(criterion) in LOSSES
        and criterion.reduction in ("mean", "none")
        and getattr(criterion, "ignore_index", -1) < 0
    )


def _divisor(criterion, y):
    """Return what the losses' sum is divided by: in torch's mean, the weights of the classes."""
    weighs = criterion.reduction == "mean" and not isinstance(criterion, nn.MultiMarginLoss)
    return criterion.weight[y].sum() if weighs and criterion.weight is not None else len(y)
