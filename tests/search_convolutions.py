"""Search for wrong convolutions: ``python tests/search_convolutions.py --help``.

Random convolutions go through the networks of this package, and are compared with the same in
float64 and torch's own memory order: outputs, gradients of input, weights and bias, and the
weights behind a step of SGD. Each is computed twice. They run in child processes, whose fresh
memory holds large numbers: what is read of foreign memory shows, and a crash ends one case only.
"""

import argparse
import json
import math
import os
import random
import select
import subprocess
import sys
import time

# At most, of a case: values of an activation (64 MB of float32), and multiply-adds. Most cases get
# a share of that: the largest would take nearly all of the time.
MAX_VALUES, MAX_PRODUCTS, SHARES = 2**24, 2e8, (1 / 8,) * 7 + (1,)

# Largest error allowed, as a share of the largest value: sums of rounded products.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}

SECONDS_ALLOWED = 120


def draw_case(rng, precisions):
    """Draw the geometry of a convolution and how it is computed."""
    share = rng.choice(SHARES)
    while True:
        case = _draw_geometry(rng)
        size = _output_size(case)
        if min(size) < 1:
            continue
        n, (out_channels, in_channels, groups) = case["n"], case["channels"]
        values = n * max(in_channels * math.prod(case["image"]), out_channels * math.prod(size))
        products = n * out_channels * math.prod(size) * in_channels // groups
        products *= math.prod(case["kernel"])
        if values <= share * MAX_VALUES and products <= share * MAX_PRODUCTS:
            return case | {"precision": rng.choice(precisions)}


def _draw_geometry(rng):
    kind = rng.choice(["layers", "module", "module", "function", "channels first", "transposed"])
    kernel = _draw_pair(rng, [1, 1, 1, 2, 3, 3, 4, 5, 7])
    stride = _draw_pair(rng, [1, 1, 2, 2, 3, 4])
    padding = [rng.choice([0, 0, size // 2, size - 1]) for size in kernel]
    declarative = kind in ("layers", "transposed")
    dilation = [1, 1] if declarative else _draw_pair(rng, [1, 1, 1, 1, 2, 3])
    groups = 1 if declarative else rng.choice([1, 1, 1, "each", 2, 3, 4])
    in_channels, out_channels = _log_uniform(rng, 130), _log_uniform(rng, 130)
    if groups == "each":
        groups, out_channels = in_channels, in_channels * rng.choice([1, 1, 2])
    in_channels, out_channels = (
        -(-in_channels // groups) * groups,
        -(-out_channels // groups) * groups,
    )
    height = _log_uniform(rng, 256)
    return {
        "kind": kind,
        "n": _log_uniform(rng, 256),
        "channels": [out_channels, in_channels, groups],
        "image": [height, height if rng.random() < 0.6 else _log_uniform(rng, 256)],
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "bias": rng.random() < 0.5,
    }


def _draw_pair(rng, sizes):
    first = rng.choice(sizes)
    return [first, first if rng.random() < 0.65 else rng.choice(sizes)]


def _log_uniform(rng, most):
    return round(math.exp(rng.uniform(0, math.log(most))))


def _output_size(case):
    sizes = zip(
        case["image"],
        case["kernel"],
        case["stride"],
        case["padding"],
        case["dilation"],
        strict=True,
    )
    if case["kind"] == "transposed":
        return [(n - 1) * s - 2 * p + k for n, k, s, p, _ in sizes]
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]


def errors_of(case, seed):
    """Return the largest errors of a case as shares of the largest values, by name."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    network = _build(case, generator)
    # Neither around 0: the sums that are the gradients of weights and biases do not cancel out.
    x = 0.5 + torch.randn(case["n"], case["channels"][1], *case["image"], generator=generator)
    with torch.no_grad():
        shape = _reference_body(case, network)(x[:1].double()).shape[1:]
    pull = 1 + torch.randn(case["n"], *shape, generator=generator)
    expected = _run(_reference_body(case, network), x.double(), pull.double())
    found = [_run(network, x, pull) for _ in range(2)]
    return {
        name: max(_error(values[name], expected[name]) for values in found) for name in expected
    }


def _error(values, expected):
    error = (values.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    return float(error) if math.isfinite(error) else math.inf


def _build(case, generator):
    import torch
    from torch import nn

    from sklconv._networks.building import trace_network
    from sklconv._networks.image_network import ImageNetwork, PreparePixels

    body = _body(case, nn)
    with torch.no_grad():
        for parameter in body.parameters():
            spread = math.sqrt(max(1, parameter[0].numel())) if parameter.ndim > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / spread)
    network = ImageNetwork(PreparePixels(), body)
    if case["kind"] != "channels first":
        network.to(memory_format=torch.channels_last)
    trace_network(network, (case["channels"][1], *case["image"]))
    network.precision = case["precision"]
    return network


def _body(case, nn):
    import torch

    from sklconv.layers._conv import ConvActivation
    from sklconv.layers._stack import LayerStack

    out_channels, in_channels, groups = case["channels"]
    keywords = {name: tuple(case[name]) for name in ("stride", "padding")} | {"bias": case["bias"]}
    if case["kind"] == "layers":
        kernel = tuple(case["kernel"])
        return LayerStack(
            ConvActivation(in_channels, out_channels, kernel, activation=None, **keywords)
        )
    if case["kind"] == "transposed":
        return nn.Sequential(
            nn.ConvTranspose2d(in_channels, out_channels, tuple(case["kernel"]), **keywords)
        )
    keywords |= {"dilation": tuple(case["dilation"]), "groups": groups}
    convolution = nn.Conv2d(in_channels, out_channels, tuple(case["kernel"]), **keywords)
    if case["kind"] != "function":
        return nn.Sequential(convolution)

    class Function(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = convolution.weight, convolution.bias

        def forward(self, x):
            keywords = {name: case[name] for name in ("stride", "padding", "dilation")}
            return torch.conv2d(x, self.weight, self.bias, groups=groups, **keywords)

    return Function()


def _reference_body(case, network):
    """The same layers in float64, one behind another, in torch's own memory order."""
    import copy

    from torch import nn

    body = copy.deepcopy(network.body).double()
    for parameter in body.parameters():
        parameter.data = parameter.data.reshape(-1).view(parameter.shape).clone()
    if case["kind"] != "layers":
        return body
    plain = _body(case | {"kind": "module"}, nn).double()
    plain.load_state_dict(body.state_dict())
    return plain


def _run(network, x, pull):
    """Output, gradients and the weights behind a step of SGD."""
    import torch

    network.train()
    network.zero_grad()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    x = x.clone().requires_grad_()
    output = network(x)
    with network.right_layouts() if hasattr(network, "right_layouts") else torch.enable_grad():
        # Smooth, and so nearly linear that it magnifies no rounding of the output.
        (torch.tanh(output / 8) * pull).mean().backward()
    names = ["weight", "bias"][: len(before)]
    found = {"output": output.detach().clone(), "input's gradient": x.grad.clone()}
    for name, parameter in zip(names, network.parameters(), strict=True):
        found[f"{name}'s gradient"] = parameter.grad.clone()
    # A step of a size that shows.
    scale = max(float(parameter.grad.abs().max()) for parameter in network.parameters())
    torch.optim.SGD(network.parameters(), lr=0.1 / max(scale, 1e-12)).step()
    with torch.no_grad():
        for name, parameter, old in zip(names, network.parameters(), before, strict=True):
            # Beside what it was: one weight alone may come to lie near 0.
            found[f"{name} behind a step"] = torch.stack([old, parameter.detach()])
            parameter.copy_(old)
    return found


def serve():
    """Compute the cases that come in, a line of JSON each, one after another."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for line in sys.stdin:
        seed, case = json.loads(line)
        try:
            answer = errors_of(case, seed)
        except Exception as error:
            answer = {f"{type(error).__name__}: {error}": math.inf}
        print(json.dumps(answer), flush=True)


class Child:
    """A process that computes cases."""

    def __init__(self):
        # glibc fills fresh memory with 0x7F bytes: 3.4e38 as float32.
        environment = {**os.environ, "MALLOC_PERTURB_": "128"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, seed, case):
        """Return the errors of a case, or how the process died of it."""
        try:
            self.process.stdin.write(json.dumps([seed, case]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"died before": math.inf}
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS_ALLOWED)
        line = self.process.stdout.readline() if ready else ""
        return json.loads(line) if line else {f"died: {self.process.poll()}": math.inf}

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def search(n_cases, seed, precisions=("float32",), report=None):
    """Return those of ``n_cases`` random cases that are wrong, each with its errors."""
    rng, wrong, child = random.Random(seed), [], Child()
    try:
        for number in range(n_cases):
            case = draw_case(rng, precisions)
            errors = child.ask(number, case)
            if max(errors.values()) > TOLERANCE[case["precision"]]:
                wrong.append((case, errors))
            if any(name.startswith("died") for name in errors):
                child.close()
                child = Child()
            if report is not None:
                report(number + 1, wrong)
    finally:
        child.close()
    return wrong


def able_precisions():
    """The precisions that this machine computes in."""
    from sklconv._platform.devices import check_precision

    try:
        check_precision("bfloat16", "cpu")
    except ValueError:
        return ["float32"]
    return ["float32", "float32", "bfloat16"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    started, n_shown = time.time(), 0

    def report(number, wrong):
        nonlocal n_shown
        for case, errors in wrong[n_shown:]:
            print(json.dumps({"errors": errors, "case": case}), flush=True)
        n_shown = len(wrong)
        if number % 1000 == 0:
            print(f"{number} cases, {len(wrong)} wrong, {time.time() - started:.0f} s", flush=True)

    wrong = search(options.cases, options.seed, able_precisions(), report)
    n_dead = sum(any(name.startswith("died") for name in errors) for _, errors in wrong)
    print(f"{options.cases} cases, {n_dead} crashes, {len(wrong) - n_dead} beyond rounding")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
