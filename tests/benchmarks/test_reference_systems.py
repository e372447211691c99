"""Published systems: their networks, and the file in which a benchmark collects their results."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sklconv import ConvNetClassifier

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where benchmarks/ is
from benchmarks.reference import __main__ as benchmark
from benchmarks.reference import results
from benchmarks.reference.systems import SYSTEMS

N_PARAMETERS = {
    "r1": 160_362,
    "r2": 54_410,
    "r3": 6_642_462,
    "r4_dense": 101_770,
    "r4_cnn": 515_146,
    "r5_softmax": 7_840,
    "r5_hidden": 496_250,
    "r5_two_hidden": 886_875,
    "r5_convnet": 818_698,
}
SHAPES = {
    "r1": ["32×24×24", "32×12×12", "32×8×8", "32×4×4", "32×4×4", "512", "256", "256", "10"],
    "r2": ["32×26×26", "32×13×13", "32×13×13", "32×13×13", "5408", "10"],
    "r5_convnet": [
        *("32×30×30", "32×15×15", "32×15×15"),
        *("64×13×13", "64×7×7", "64×7×7"),
        *("128×5×5", "128×3×3", "128×3×3", "1152", "625", "625", "10"),
    ],
}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 10
    X = rng.integers(0, 50, (60, 28, 28), dtype=np.uint8)
    X[np.arange(60), 2 * y + 4] += 200  # each class has a row of its own
    return X, y


@pytest.mark.parametrize("variant", ["recipe", "defaults"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_each_network_is_the_authors_and_learns(name, variant, images):
    system = SYSTEMS[name]
    parameters = system.parameters(variant) | {"max_epochs": 1, "batch_size": 30}
    clf = ConvNetClassifier(system.network, **parameters, random_state=0).fit(*images)
    assert sum(p.numel() for p in clf.module_.parameters()) == N_PARAMETERS[name]
    assert system.author["n_parameters"] == N_PARAMETERS[name]
    if name in SHAPES:
        shapes = [row["output_shape"] for row in _table(clf)]
        assert ["×".join(map(str, shape)) for shape in shapes] == SHAPES[name]
    before = clf.history_[0]["train_loss"]
    after = clf.set_params(warm_start=True).fit(*images).history_[1]["train_loss"]
    # R5's ConvNet, whose weights begin next to zero, stands still at first, up to rounding.
    assert after < before + (1e-5 if name == "r5_convnet" else 0)


def test_third_of_the_epochs():
    thirds = {
        name: system.parameters("defaults")["max_epochs"] for name, system in SYSTEMS.items()
    }
    assert thirds == {
        "r1": 3,
        "r2": 2,
        "r3": 3,
        "r4_dense": 1,
        "r4_cnn": 6,
        "r5_softmax": 33,
        "r5_hidden": 33,
        "r5_two_hidden": 33,
        "r5_convnet": 7,
    }
    assert [name for name, system in SYSTEMS.items() if system.is_exempt] == ["r4_dense"]


def test_weights_without_bias_are_drawn_from_a_narrow_normal(images):
    recipe = SYSTEMS["r5_convnet"].recipe | {"max_epochs": 1, "lr": 1e-12}
    clf = ConvNetClassifier(SYSTEMS["r5_convnet"].network, **recipe, random_state=0).fit(*images)
    for name, weights in clf.module_.named_parameters():
        assert name.endswith("weight")
        assert weights.std().item() == pytest.approx(0.01, rel=0.2)


def test_rmsprop_adds_epsilon_under_the_root():
    optimizer_class = SYSTEMS["r5_convnet"].recipe["optimizer"]
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = optimizer_class([weight], lr=0.1)
    expected, square = weight.detach().numpy().astype(np.float64), np.zeros(3)
    for _ in range(3):
        gradient = 1e-3 * expected**2

        def closure():
            weight.grad = 1e-3 * weight.detach() ** 2
            return torch.tensor(0.0)

        optimizer.step(closure)
        square = 0.9 * square + 0.1 * gradient**2
        expected = expected - 0.1 * gradient / np.sqrt(square + 1e-6)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-5)


def _row(accuracy):
    return {"accuracy": accuracy, "further": {}, "epochs": 2, "machine": "a machine"}


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    path, measured = tmp_path / "results.json", []

    def measure(*key):
        if len(measured) == 5:
            raise KeyboardInterrupt
        measured.append(key)
        return _row(0.97)

    monkeypatch.setattr(benchmark, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(["r2", "r1"], path)
    assert len(json.loads(path.read_text())["rows"]) == 5

    monkeypatch.setattr(benchmark, "measure", lambda *key: measured.append(key) or _row(0.96))
    benchmark.run(["r2", "r1"], path)
    assert len(measured) == len(set(measured)) == 12  # two networks, two variants, three seeds
    assert measured[:4] == [
        ("r2", "recipe", 0),
        ("r1", "recipe", 0),
        ("r2", "defaults", 0),
        ("r1", "defaults", 0),
    ]
    accuracies = [row["accuracy"] for row in results.read(path)["rows"].values()]
    assert sorted(accuracies) == [0.96] * 7 + [0.97] * 5


def test_a_write_that_fails_leaves_the_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    results.add(path, "rows", "r2/recipe/0", _row(0.97))

    def fail(_):
        raise OSError("the disk is full")

    monkeypatch.setattr(results.os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        results.add(path, "rows", "r2/recipe/1", _row(0.97))
    assert list(results.read(path)["rows"]) == ["r2/recipe/0"]


@pytest.mark.parametrize(("accuracy", "word"), [(0.9668, "yes"), (0.9667, "no")])
def test_a_figure_is_reached_within_a_standard_error(tmp_path, accuracy, word):
    # .9685 of 10,000 images: a standard error of .00175, so .96675 is enough.
    path = tmp_path / "results.json"
    for seed, difference in enumerate([-0.002, 0, 0.002]):
        results.add(path, "rows", f"r2/recipe/{seed}", _row(accuracy + difference))
    page = path.with_suffix(".rst").read_text()
    section = page[page.index("R2.") : page.index("R3.")]
    assert f"- {accuracy:.5f}\n     - ≥\N{NO-BREAK SPACE}0.96675\n     - {word}\n" in section
    assert ("- yes" in page) == (word == "yes")


def test_errors_are_shown_as_errors(tmp_path):
    path = tmp_path / "results.json"
    for seed in range(3):
        results.add(path, "rows", f"r5_convnet/defaults/{seed}", _row(0.9925))
    page = path.with_suffix(".rst").read_text()
    assert "- 0.00750\n     - ≤\N{NO-BREAK SPACE}0.00783\n     - yes" in page


def _table(clf):
    table = clf.layer_table_
    return table if isinstance(table, list) else table.to_dict("records")


def test_the_page_says_what_keras_makes_of_a_recipe(tmp_path):
    path = tmp_path / "results.json"
    found = {"version": "3.15.1", "accuracies": [0.96, 0.965, 0.97]}
    results.add(path, "in_keras", "r2", found)
    page = path.with_suffix(".rst").read_text()
    line = next(line for line in page.splitlines() if "in Keras 3.15.1" in line)
    assert line.endswith(": 0.96000, 0.96500, 0.97000, mean 0.96500")
