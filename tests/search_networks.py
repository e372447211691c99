"""Search for networks that are used wrongly: ``python tests/search_networks.py --help``.

Networks of timm, with seeded random weights, go through this package as a backbone, and are
compared with the same network alone: the pixels that reach it, some of its layers, by hooks of
its own, what timm itself calls pre-logits, an image alone and in a batch, copies, and fine-tuning
with a frozen backbone and whole. They run in a child process, which a crash or a time limit ends
for one network only. Each line says right, wrong, refused (by an error or a warning of this
package), or that the network was skipped, with the reason.
"""

import argparse
import copy
import json
import os
import pickle
import random
import select
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager

SIDES = (64, 96, 128, 160, 192, 224, 240, 256, 288, 384)

# Largest error allowed, as a share of a layer's largest value: the same operators on the same
# numbers, in another memory layout at most.
TOLERANCE = 1e-4


class Skipped(Exception):
    """There is nothing to compare with."""


class Warned(Exception):
    """This package says in a warning what it does instead."""


class Wrong(AssertionError):
    """What this package does is not what the network does."""


def import_torchvision():
    """Import torchvision, also one that is built for another torch, and what keeps it alive."""
    import torch

    try:
        import torchvision

        return torchvision, None
    except RuntimeError:
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        return torchvision, operators


def n_parameters(name):
    """Return how many parameters timm's network ``name`` has, without memory for them."""
    import timm
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name).parameters())


def smallest_side(network, sides=SIDES):
    """Return the smallest of ``sides`` at which the library's own network runs."""
    import torch

    errors = []
    for side in sides:
        try:
            module = _create(network, side).eval()
            with torch.no_grad():
                module(torch.zeros(2, 3, side, side))
            return side
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    raise Skipped(f"does not run by itself at any side up to {sides[-1]}: {errors[-1]}")


def _create(network, side):
    """Return a new network of the library, built for images of ``side`` where it has to be."""
    library, _, name = network.partition("/")
    if library == "timm":
        import timm

        fixed = timm.get_pretrained_cfg(name).fixed_input_size
        return timm.create_model(name, **({"img_size": side} if fixed else {}))
    torchvision, _ = import_torchvision()
    options = {"image_size": side} if name.startswith("vit_") else {}
    if name in ("inception_v3", "googlenet"):
        options = {"init_weights": True}
    return torchvision.models.get_model(name, weights=None, **options)


class Case:
    """A network as a backbone, and by itself."""

    def __init__(self, network, side, seed):
        import numpy as np
        import torch

        from sklconv import Backbone

        torch.manual_seed(seed)
        named = Backbone(network, weights=None, image_size=side, crop_pct=1.0).resolve()
        self.module = named.load()
        _move_constants(self.module)
        self.reference = copy.deepcopy(self.module)
        self.backbone = Backbone(
            self.module, mean=named.mean, std=named.std, image_size=side, crop_pct=1.0
        )
        rng = np.random.default_rng(seed)
        self.X = rng.integers(0, 256, (16, 3, side, side), dtype=np.uint8)
        self.y = np.arange(16) % 2
        # So that there is something to learn.
        self.X[self.y == 1, 0] //= 2
        pixels = torch.from_numpy(self.X[:3] / 255)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (named.mean, named.std))
        self.pixels = ((pixels - mean) / std).float()
        self.network, self.seed, self.in_float64 = network, seed, None

    def extractor(self, layer, pool="auto"):
        from sklconv import ConvFeatureExtractor

        extractor = ConvFeatureExtractor(self.backbone, layer=layer, pool=pool, random_state=0)
        return extractor.fit(self.X[:1])

    def layers(self):
        """Return the activations, by name, of all layers that put out a row an image."""
        import torch

        found = {}

        def note(name):
            def hook(module, inputs, output):
                kept = isinstance(output, torch.Tensor) and output.ndim > 1
                found[name] = output.clone() if kept else None

            return hook

        handles = [
            module.register_forward_hook(note(name))
            for name, module in self.reference.named_modules()
            if name
        ]
        with torch.no_grad():
            self.reference(self.pixels[:2])
            rows_of_two = {name for name, value in found.items() if _rows(value) == 2}
            self.reference(self.pixels)
        for handle in handles:
            handle.remove()
        return {
            name: value
            for name, value in found.items()
            if _rows(value) == 3 and name in rows_of_two and value.is_floating_point()
        }

    def rounding(self, name, value):
        """Return how far a layer's ``value`` in float32 is off float64, times 3."""
        if self.in_float64 is None:
            self.in_float64 = _by_itself(
                copy.deepcopy(self.reference).double(), self.pixels.double()
            )
        return 3 * _error(value, self.in_float64[name].flatten(1))


def _rows(value):
    return None if value is None else len(value)


def _move_constants(module):
    """Add noise to weights that are all the same, such as zeros, which would hide errors."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter), alpha=0.05)


def flattened(activation):
    """What a pool returns that leaves everything as it is."""
    return activation.flatten(1)


def check_pixels(case):
    """The pixels that reach the network."""
    seen = []
    extractor = case.extractor(layer=-1, pool=flattened)
    body = extractor.module_.body
    handle = body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    extractor.transform(case.X[:3])
    handle.remove()
    _compare("pixels", seen[-1], case.pixels, 1e-5)


def check_layers(case, n_layers=None):
    """Layers, each image alone as well, and copies of the fitted extractor."""
    from sklearn.base import clone

    expected = case.layers()
    names = list(expected)
    if n_layers is not None:
        names = random.Random(case.seed).sample(names, min(n_layers, len(names)))
    extractor = case.extractor(names, flattened)
    if extractor.layers_ != names:
        raise Wrong(f"layers_ is {extractor.layers_}, not {names}")
    features = extractor.transform(case.X[:3])
    alone = extractor.transform(case.X[1:2])
    if not (pickle.loads(pickle.dumps(extractor)).transform(case.X[:3]) == features).all():
        raise Wrong("the pickled extractor has other features")
    if not (clone(extractor).fit(case.X[:2]).transform(case.X[:3]) == features).all():
        raise Wrong("the clone has other features")
    itself = _by_itself(case.reference, case.pixels[1:2])
    start = 0
    for name in names:
        want = expected[name].flatten(1)
        cut = slice(start, start + want.shape[1])
        start = cut.stop
        tolerance = TOLERANCE
        if _error(features[:, cut], want) > tolerance:
            tolerance += case.rounding(name, want)
        _compare(f"layer {name}", features[:, cut], want, tolerance)
        # As far as the network itself is one of single images.
        tolerance += 10 * _error(itself[name].flatten(1), want[1:2])
        _compare(f"layer {name}, alone", alone[:, cut], want[1:2], tolerance)
    if features.shape[1] != start:
        raise Wrong(f"there are {features.shape[1]} features of layers with {start}")


def _by_itself(network, pixels):
    import torch

    found = {}
    handles = [
        module.register_forward_hook(
            lambda _, __, output, name=name: found.update(
                {name: output.clone() if isinstance(output, torch.Tensor) else output}
            )
        )
        for name, module in network.named_modules()
    ]
    with torch.no_grad():
        network(pixels)
    for handle in handles:
        handle.remove()
    return found


def check_penultimate(case):
    """What goes into the classifier, against the library's own word for it."""
    want = pre_logits(case.reference, case.pixels)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        features = case.extractor("penultimate").transform(case.X[:3])
    tolerance = TOLERANCE
    if features.shape == want.shape and _error(features, want) > tolerance:
        exact = pre_logits(copy.deepcopy(case.reference).double(), case.pixels.double())
        tolerance += 3 * _error(want, exact)
    try:
        _compare("penultimate", features, want, tolerance)
    except Wrong as error:
        said = [str(one.message) for one in heard if "penultimate" in str(one.message)]
        if said:
            raise Warned(said[0]) from error
        raise


def pre_logits(network, pixels):
    """Return what timm calls so; of torchvision's networks, what the last linear layer gets."""
    import torch

    with torch.no_grad():
        if not hasattr(network, "forward_head"):
            return _input_of_last_layer(network, pixels)
        features = network.forward_features(pixels)
        try:
            return network.forward_head(features, pre_logits=True).flatten(1)
        except (TypeError, AttributeError) as error:
            raise Skipped(f"timm has no pre-logits: {error}") from None


def _input_of_last_layer(network, pixels):
    from torch import nn

    seen = []
    handles = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
        for module in network.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    network(pixels)
    for handle in handles:
        handle.remove()
    return seen[-1] if seen[-1].ndim == 2 else seen[-1].mean((2, 3))


def check_fine_tuning(case, n_epochs=2):
    """Epochs of the head alone, then of all; what may not change does not."""
    import numpy as np

    from sklconv import ConvNetClassifier

    before = case.reference.state_dict()
    clf = ConvNetClassifier(
        case.backbone,
        freeze="backbone",
        max_epochs=n_epochs,
        batch_size=8,
        lr=1e-3,
        random_state=0,
    ).fit(case.X, case.y)
    if clf.predict_proba(case.X).shape != (16, 2):
        raise Wrong(f"probabilities have shape {clf.predict_proba(case.X).shape}")
    network = clf.module_
    inside = tuple(f"{name}." for name in network.head)
    after = network.body.state_dict()
    for key, value in after.items():
        if not key.startswith(inside) and not _equal(before[key], value):
            raise Wrong(f"{key} has changed, though the backbone is frozen")
    learning = {name for name, p in network.body.named_parameters() if p.requires_grad}
    if not learning or not all(name.startswith(inside) for name in learning):
        raise Wrong(f"the head is {network.head}, but {sorted(learning)} learn")
    head = {name: after[name].clone() for name in learning}
    clf.set_params(freeze=None, warm_start=True, backbone_lr_scale=0.1)
    clf.fit(case.X, case.y)
    losses = [row["train_loss"] for row in clf.history_]
    if len(losses) != 2 * n_epochs or not np.isfinite(losses).all():
        raise Wrong(f"training losses are {losses}")
    state = clf.module_.body.state_dict()
    still = [name for name, value in head.items() if _equal(state[name], value)]
    if still:
        raise Wrong(f"{still} of the head did not learn")
    learnt = [name for name, p in clf.module_.body.named_parameters() if p.requires_grad]
    moved = [n for n in learnt if n not in head and not _equal(state[n], before[n])]
    if len(moved) < len(learnt) / 2:
        raise Wrong(f"of {len(learnt)} weights only {len(moved)} learnt")
    if not (
        pickle.loads(pickle.dumps(clf)).predict_proba(case.X) == clf.predict_proba(case.X)
    ).all():
        raise Wrong("the pickled classifier predicts otherwise")


def _equal(one, other):
    import torch

    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _compare(what, came, want, tolerance):
    if came.shape != want.shape:
        raise Wrong(f"{what} has shape {tuple(came.shape)}, not {tuple(want.shape)}")
    error = _error(came, want)
    if not error <= tolerance:
        raise Wrong(f"{what} is off by {error:.2g} of its largest value")


def _error(came, want):
    import torch

    came = torch.as_tensor(came)
    return float((came - want).abs().max() / want.abs().max().clamp_min(1e-12))


CHECKS = {
    "pixels": check_pixels,
    "layers": check_layers,
    "penultimate": check_penultimate,
    "fine-tuning": check_fine_tuning,
}


def run_check(check, *arguments):
    """Return ("right", ""), or what else came of it and why."""
    try:
        with without_warnings():
            check(*arguments)
    except Skipped as reason:
        return "skipped", str(reason)
    except Warned as warning:
        return "refused", str(warning)
    except Wrong as error:
        return "wrong", str(error)
    except (ValueError, TypeError) as error:
        return "refused" if _is_ours(error) else "wrong", f"{type(error).__name__}: {error}"
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}"
    return "right", ""


def _is_ours(error):
    """Whether a line of this package raised ``error`` itself."""
    raised = traceback.extract_tb(error.__traceback__)[-1].filename
    return os.path.join("sklconv", "") in raised


@contextmanager
def without_warnings():
    """Ignore what the libraries warn of when they make a network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_network(network, seed, most_parameters, n_layers, checks):
    """Run ``checks`` on a network; return what `search` reports of it."""
    name = network.partition("/")[2]
    with without_warnings():
        try:
            n = n_parameters(name)
        except Exception as error:
            return {"verdicts": {"all": ("skipped", f"can't be counted: {error}")}}
        report = {"parameters": n}
        if n > most_parameters:
            return report | {"verdicts": {"all": ("skipped", "has more parameters")}}
        try:
            side = smallest_side(network)
        except Skipped as reason:
            return report | {"verdicts": {"all": ("skipped", str(reason))}}
    case = []
    made = run_check(lambda: case.append(Case(network, side, seed)))
    if made[0] != "right":
        return report | {"side": side, "verdicts": {"all": made}}
    verdicts = {
        what: run_check(CHECKS[what], case[0], *([n_layers] if what == "layers" else []))
        for what in checks
    }
    return report | {"side": side, "verdicts": verdicts}


def serve():
    """Check the networks that come in, a line of JSON each, one after another."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    _, operators = import_torchvision()
    for line in sys.stdin:
        print(json.dumps(check_network(*json.loads(line))), flush=True)
    del operators


class Child:
    """A process that checks networks."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, question, seconds):
        """Return what the child answers, or None if it dies of it or takes longer."""
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else ""
        return json.loads(line) if line else None

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


# Memory that torch and timm keep goes with the process.
NETWORKS_A_CHILD = 25


def search(names, seed, most_parameters, n_layers, checks, seconds):
    """Yield the name of each network, what came of it, and the seconds it took."""
    child, asked = Child(), 0
    try:
        for name in names:
            if asked == NETWORKS_A_CHILD:
                child.close()
                child, asked = Child(), 0
            started, asked = time.time(), asked + 1
            answer = child.ask([f"timm/{name}", seed, most_parameters, n_layers, checks], seconds)
            if answer is None:
                died = child.process.poll()
                reason = f"takes over {seconds} s" if died is None else f"died: {died}"
                answer = {"verdicts": {"all": ("skipped" if died is None else "wrong", reason)}}
                child.close()
                child, asked = Child(), 0
            yield name, answer, time.time() - started
    finally:
        child.close()


def overall(verdicts):
    """Return the worst of several verdicts."""
    found = {verdict for verdict, _ in verdicts.values()}
    return next(word for word in ("wrong", "refused", "skipped", "right") if word in found)


def describe(name, answer, seconds):
    """Return the line of a network."""
    verdicts = answer["verdicts"]
    size = f"{answer['parameters'] / 1e6:.1f} M" if "parameters" in answer else ""
    side = f"{answer['side']} px" if "side" in answer else ""
    reasons = [f"{what} {verdict}: {why}" for what, (verdict, why) in verdicts.items() if why]
    # Long lists of layers and shapes are cut.
    reasons = "; ".join(" ".join(reason.split())[:300] for reason in reasons)
    return f"{overall(verdicts):8}{name:44}{size:>8}{side:>8}{seconds:6.1f} s  {reasons}".rstrip()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="networks of timm; default: all")
    parser.add_argument("--start", help="go on from this network, in alphabetical order")
    parser.add_argument("--stop", help="end before this network")
    parser.add_argument("--parameters", type=float, default=30e6, help="at most; default: 30e6")
    parser.add_argument("--layers", type=int, default=3, help="of each network; default: 3")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--seconds", type=float, default=120, help="for a network; default: 120")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    names = options.names
    if not names:
        _, operators = import_torchvision()
        import timm

        names = sorted(timm.list_models())
        del operators
    names = [name for name in names if name >= (options.start or "")]
    names = [name for name in names if options.stop is None or name < options.stop]
    tables = Counter()
    limits = options.parameters, options.layers
    found = search(names, options.seed, *limits, options.checks, options.seconds)
    for name, answer, seconds in found:
        print(describe(name, answer, seconds), flush=True)
        verdicts = answer["verdicts"]
        tables.update((what, verdict) for what, (verdict, _) in verdicts.items())
        tables["network", overall(verdicts)] += 1
    print_table(tables)
    return 1 if tables["network", "wrong"] else 0


def print_table(tables):
    """Print how often each check ended how."""
    words = ("right", "refused", "skipped", "wrong")
    print("\n" + f"{'':12}" + "".join(f"{word:>9}" for word in words))
    for what in ("network", "all", *CHECKS):
        print(f"{what:12}" + "".join(f"{tables[what, word]:>9}" for word in words))


if __name__ == "__main__":
    sys.exit(main())
