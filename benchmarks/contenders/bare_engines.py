"""Networks in bare ONNX Runtime and in channels-last torch, without sklconv.

Both start from prepared float32 images, with torch's number of threads: frozen networks compute
what goes into the classifier, in batches of 32; digits' networks probabilities. What it takes to
export a network is not timed.
"""

import io

import numpy as np
import torch

from ..race import data, networks, photo_networks

BATCH, DIGITS_BATCH = 32, 256
TOLERANCE = 1e-4  # of the largest feature


def prepare_session(task):
    """Return a function that computes all features in ONNX Runtime."""
    network, X = photo_networks.headless(task["network"]), _prepared(task)
    session = _session(network, X[:2])
    _check(session, network, X[:BATCH])
    return _all_batches(session, X, BATCH)


def prepare_channels_last(task):
    """Return a function that computes all features in torch, channels last."""
    network, X = photo_networks.headless(task["network"]), _prepared(task)
    network.to(memory_format=torch.channels_last)
    batches = X.to(memory_format=torch.channels_last).split(BATCH)

    @torch.inference_mode()
    def run():
        return torch.cat([network(batch) for batch in batches])

    return run


def prepare_digits_session(task):
    """Return a function that computes the probabilities of all digits in ONNX Runtime."""
    plain = networks.plain(task["network"], task["side"], task["n_classes"])
    network = torch.nn.Sequential(plain, torch.nn.Softmax(1)).eval()
    X = torch.from_numpy(data.read_float(task)[0]).unsqueeze(1)
    session = _session(network, X[[0, 0]])
    _check(session, network, X[:BATCH])
    return _all_batches(session, X, DIGITS_BATCH)


def _all_batches(session, X, batch_size):
    batches = [batch.numpy() for batch in X.split(batch_size)]
    if len(batches) == 1:
        return lambda: _run(session, batches[0])
    return lambda: np.concatenate([_run(session, batch) for batch in batches])


def _prepared(task):
    """Return grey images as three equal channels around 0, (N, 3, H, W)."""
    X, _ = data.read_float(task)
    return torch.from_numpy(2 * X - 1).unsqueeze(1).repeat(1, 3, 1, 1)


def _session(network, example):
    import onnxruntime

    file = io.BytesIO()
    # The batch is dynamic; an example of one image would be taken for a constant 1.
    program = torch.onnx.export(
        network, (example,), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False
    )
    program.save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )


def _run(session, batch):
    return session.run(None, {session.get_inputs()[0].name: batch})[0]


def _check(session, network, batch):
    with torch.inference_mode():
        expected = network(batch).numpy()
    error = np.abs(_run(session, batch.numpy()) - expected).max() / np.abs(expected).max()
    if not error <= TOLERANCE:
        raise ValueError(f"ONNX Runtime's features are off by {error:.1e} of the largest")
