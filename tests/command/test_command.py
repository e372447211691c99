import csv
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import sklconv
from sklconv import Backbone, ConvFeatureExtractor, __main__, _progress
from sklconv.__main__ import main
from sklconv._command import outputs, partial_results
from sklconv._engines import choice, graph, runtime

NETS = '''
import os, signal

import numpy as np
import torch
from torch import nn


def is_probe(x):
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, *x.shape[2:]), dtype=np.uint8)
    return x.shape == noise.shape and np.corrcoef(x.flatten(), noise.flatten())[0, 1] > 0.99


class Watched(nn.Module):
    """Notes the size of each batch in a file, and stops where the environment says."""

    def forward(self, x):
        if (x == x[..., :1, :1]).all() or is_probe(x):
            return x * scale  # fit looks at the shapes of blank images
        way, _, n_before = os.environ.get("STOP", "").partition(" ")
        if way and n_computed() >= int(n_before):
            if way == "interrupt":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGKILL)
        with open("computed", "a") as log:
            log.write(f"{len(x)}\\n")
        return x * scale


scale = 1.0


def n_computed():
    with open("computed") as log:
        return sum(map(int, log))


def make():
    return nn.Sequential(
        Watched(),
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


def make_plain():
    return make()[1:]


def make_seeded():
    torch.manual_seed(3)
    return make()


def make_grey():
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU())


def broken():
    return 1 / 0


number = 3
network = make_seeded()
'''
NETWORK = ["--backbone", "nets:make", "--image-size", "12"]
OPTIONS = [*NETWORK, "--batch-size", "4"]

needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="has no limits on files' sizes")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder of each test, with a module that makes networks in it."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "computed").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    return tmp_path


def save_photo(path, seed=0):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (9 + seed % 5, 14, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(folder):
    """22 photos of two classes."""
    paths = [f"photos/{'cat' if i < 10 else 'dog'}/{i:02}.png" for i in range(22)]
    for i, path in enumerate(paths):
        save_photo(path, i)
    return paths


def n_computed():
    return sum(map(int, Path("computed").read_text().split()))


def extract(*arguments, output="features.npz"):
    return main(["extract", *arguments, "-o", str(output)])


def in_a_process(*arguments, **environment):
    # The same number of threads as here: else sums may be formed in another order.
    n_threads = str(torch.get_num_threads())
    environment = {**os.environ, "OMP_NUM_THREADS": n_threads, **environment}
    return subprocess.run(
        [sys.executable, "-m", "sklconv", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def leftovers():
    return sorted(str(path) for path in Path().iterdir() if path.name.startswith("features"))


# What is written


def test_features_are_those_of_the_estimator_in_sorted_order(photos):
    assert extract("photos", *OPTIONS, "--layer", "1, 4") == 0
    sys.path.append("")
    import nets

    extractor = ConvFeatureExtractor(
        Backbone(nets.make, image_size=12), layer=["1", "4"], batch_size=4, random_state=0
    )
    with np.load("features.npz") as written:
        assert set(written) == {"features", "names", "paths", "classes"}
        assert written["paths"].tolist() == photos
        assert written["classes"].tolist() == ["cat"] * 10 + ["dog"] * 12
        assert written["features"].dtype == np.float32
        np.testing.assert_array_equal(written["features"], extractor.fit_transform(photos))
        assert written["names"].tolist() == list(extractor.get_feature_names_out())


@pytest.mark.parametrize("pool", ["auto", "max"])
def test_layers_that_tell_the_classes_apart_are_found(photos, pool):
    Path("photos/cat/03.png").write_bytes(b"no image")
    assert extract("photos", *OPTIONS, "--layer", "auto", "--pool", pool) == 0
    sys.path.append("")
    import nets

    backbone = Backbone(nets.make, image_size=12)
    options = {"batch_size": 4, "random_state": 0, "on_bad_image": "nan"}
    extractor = ConvFeatureExtractor(backbone, layer="auto", pool=pool, **options)
    expected = extractor.fit(photos, ["cat"] * 10 + ["dog"] * 12).transform(photos)
    with np.load("features.npz") as written:
        np.testing.assert_array_equal(written["features"], expected)
        assert written["names"].tolist() == list(extractor.get_feature_names_out())


def test_the_scores_of_layers_are_shown(photos, capsys):
    assert extract("photos", *OPTIONS, "--layer", "auto") == 0
    table, _ = capsys.readouterr().out.split("features.npz: ")
    assert table.split()[:4] == ["layer", "pool", "score", "features"]
    assert "* " in table
    assert extract("photos", *OPTIONS, "--layer", "auto", "-o", "again.npz", "--quiet") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("places", [["photos/cat"], ["photos/cat/00.png", "photos/dog"]])
def test_layers_are_found_by_classes_only(photos, places, capsys):
    assert extract(*places, *OPTIONS, "--layer", "auto") == 2
    assert "--layer auto" in capsys.readouterr().err
    assert leftovers() == []


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".PARQUET"])
def test_tables_hold_the_same_features(photos, suffix, monkeypatch):
    monkeypatch.setattr(outputs, "CHUNK_BYTES", 5 * 24 * 4)
    Path("photos/cat/03.png").write_bytes(b"no image")
    extract("photos", *OPTIONS)
    assert extract("photos", *OPTIONS, output=f"features{suffix}") == 0
    read = pd.read_csv if suffix == ".csv" else pd.read_parquet
    table = read(f"features{suffix}")
    with np.load("features.npz") as expected:
        assert list(table) == ["path", "class", *expected["names"]]
        assert table["path"].tolist() == expected["paths"].tolist()
        assert table["class"].tolist() == expected["classes"].tolist()
        features = table.iloc[:, 2:].to_numpy(np.float32)
        np.testing.assert_array_equal(features, expected["features"])


def test_same_bytes_from_each_run_and_nothing_else_left(photos):
    # The network's weights are random, and drawn by the user's own function.
    extract("photos", *OPTIONS)
    first = Path("features.npz").read_bytes()
    extract("photos", *OPTIONS)
    assert Path("features.npz").read_bytes() == first
    assert leftovers() == ["features.npz"]


def test_network_may_be_a_module_itself(photos):
    assert extract("photos", *OPTIONS) == 0
    assert extract("photos", *OPTIONS, "--backbone", "nets:network", output="other.npz") == 0
    assert np.load("other.npz")["features"].shape == np.load("features.npz")["features"].shape


def test_mean_and_std_and_weights_reach_the_backbone(photos):
    sys.path.append("")
    import nets

    network = nets.make()
    torch.save(network.state_dict(), "weights.pth")
    mean, std = [0.5, 0.4, 0.3], [0.25, 0.25, 0.5]
    given = ["--mean", "0.5,0.4,0.3", "--std", "0.25,0.25,0.5", "--weights", "weights.pth"]
    assert extract("photos", *OPTIONS, *given) == 0
    backbone = Backbone(network, mean=mean, std=std, image_size=12)
    expected = ConvFeatureExtractor(backbone, batch_size=4).fit_transform(photos)
    np.testing.assert_array_equal(np.load("features.npz")["features"], expected)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_crop_reaches_the_backbone(photos, crop_mode):
    sys.path.append("")
    import nets

    given = ["--crop-pct", "0.8", "--crop-mode", crop_mode]
    assert extract("photos", "--backbone", "nets:network", "--image-size", "12", *given) == 0
    backbone = Backbone(nets.network, image_size=12, crop_pct=0.8, crop_mode=crop_mode)
    expected = ConvFeatureExtractor(backbone, batch_size=32).fit_transform(photos)
    np.testing.assert_array_equal(np.load("features.npz")["features"], expected)
    whole = ConvFeatureExtractor(Backbone(nets.network, image_size=12)).fit_transform(photos)
    assert (expected != whole).any()


def printed_code(capsys):
    """What the command has printed before its lines of Python, and these lines."""
    said, mark, code = capsys.readouterr().out.partition("next, in Python:\n\n")
    assert mark
    assert max(map(len, code.splitlines())) < 80
    return said.splitlines(), code


@pytest.mark.parametrize("has_bad", [False, True])
@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_next_step_runs_as_printed(photos, suffix, has_bad, capsys):
    Path("photos/cat").rename("photos/NA")  # a missing value, if pandas reads text as it likes
    output = f"it's {suffix}"
    if has_bad:
        Path("photos/NA/03.png").write_bytes(b"no image")
    assert extract("photos", *OPTIONS, output=output) == 0
    said, code = printed_code(capsys)
    bad = f"1 photo, listed in {output}.bad.csv; their rows are NaN"
    assert said == [
        f"{output}: 22 photos, 24 features, 2 classes",
        f"not read: {bad if has_bad else 'none, all photos are good'}",
    ]
    found: dict = {}
    exec(code, found)
    assert found["X"].shape == (22 - has_bad, 24)
    assert sorted(set(found["y"])) == ["NA", "dog"]
    assert len(capsys.readouterr().out.strip("[]\n").split()) == 5


@pytest.mark.parametrize("has_bad", [False, True])
@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
@pytest.mark.parametrize("given", ["single files", "a class of few good ones"])
def test_next_step_where_there_is_nothing_to_score(photos, given, suffix, has_bad, capsys):
    for path in photos[4 + has_bad : 10]:
        os.remove(path)
    if has_bad:
        Path(photos[3]).write_bytes(b"no image")
    del photos[4 + has_bad : 10]
    places = photos if given == "single files" else ["photos"]
    assert extract(*places, *OPTIONS, output=f"features{suffix}") == 0
    said, code = printed_code(capsys)
    n_photos, n_classes = 16 + has_bad, 0 if given == "single files" else 2
    assert said[0].endswith(f"{n_photos} photos, 24 features, {n_classes} classes")
    found: dict = {}
    exec(code, found)
    assert found["X"].shape == (16, 24)
    assert len(found["y"]) == 16
    assert capsys.readouterr().out == ""


def test_quiet(photos, capsys):
    assert extract("photos", *OPTIONS, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_bar_on_a_terminal(photos, capsys, monkeypatch, quiet):
    monkeypatch.setattr(_progress, "DELAY", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    extract("photos", *OPTIONS, *["--quiet"] * quiet)
    shown = capsys.readouterr().err
    assert bool(re.search(r"sklconv extract: .*/22 \[\d\d:\d\d<.* images/s\]", shown)) == (
        not quiet
    )


def test_a_few_lines_of_progress_elsewhere(photos, capsys, monkeypatch):
    monkeypatch.setattr(_progress, "SECONDS_BETWEEN_LINES", 1e-9)
    extract("photos", *OPTIONS)
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "22 photos, 2 classes"
    assert [line.partition(" [")[0] for line in lines] == [
        f"sklconv extract: {n} of 22 images" for n in (4, 8, 12, 16, 20)
    ]
    extract("photos", *OPTIONS, "--quiet")
    assert capsys.readouterr().err == ""


def test_no_lines_of_progress_for_what_is_soon_done(photos, capsys):
    extract("photos", *OPTIONS)
    assert capsys.readouterr().err == "22 photos, 2 classes\n"


# Which photos


def test_folders_are_walked_sorted_and_their_names_are_classes(folder, capsys):
    for path in ("b/2.JPG", "b/10.jpeg", "b/deep/er/1.png", "a.png", "A/x.tif", "b.gif"):
        save_photo(f"photos/{path}")
    for path in (".hidden.png", ".cache/1.png", "b/.hidden.png"):
        save_photo(f"photos/{path}")
    Path("photos/b/notes.txt").write_text("none")
    save_photo("one.webp")
    assert extract("one.webp", "photos", *OPTIONS) == 0
    with np.load("features.npz") as written:
        found = list(zip(written["paths"], written["classes"], strict=True))
    assert found == [
        ("one.webp", ""),
        ("photos/A/x.tif", "A"),
        ("photos/a.png", "photos"),
        ("photos/b/10.jpeg", "b"),
        ("photos/b/2.JPG", "b"),
        ("photos/b/deep/er/1.png", "b/deep/er"),
        ("photos/b.gif", "photos"),
    ]
    said = capsys.readouterr().err
    assert said == "7 photos, 4 classes; left out: 1 file not named like photos\n"


def test_folders_of_classes_can_be_given_one_by_one(photos):
    extract("photos/dog/", "photos/cat", *OPTIONS)
    with np.load("features.npz") as written:
        assert written["classes"].tolist() == ["dog"] * 12 + ["cat"] * 10
        assert written["paths"].tolist() == photos[10:] + photos[:10]


def test_photo_given_twice_is_taken_once_where_it_comes_first(photos):
    twice = ["photos/dog/11.png", os.path.abspath("photos/dog/12.png")]
    extract(*twice, "photos", "./photos/cat", *OPTIONS)
    with np.load("features.npz") as written:
        paths = written["paths"].tolist()
    assert len(paths) == 22
    assert paths[:3] == [*twice, "photos/cat/00.png"]


def test_same_name_in_two_folders_is_two_photos(folder):
    save_photo("photos/a/1.png", 1)
    save_photo("photos/b/1.png", 2)
    extract("photos", *OPTIONS)
    features = np.load("features.npz")["features"]
    assert len(features) == 2
    assert (features[0] != features[1]).any()


@pytest.mark.skipif(sys.platform == "win32", reason="links take rights there")
def test_links_are_followed_but_not_in_circles(photos, capsys):
    Path("photos/cat/up").symlink_to("..", target_is_directory=True)
    Path("elsewhere").mkdir()
    save_photo("elsewhere/1.png", 5)
    Path("photos/linked").symlink_to("../elsewhere", target_is_directory=True)
    Path("photos/broken.png").symlink_to("nowhere.png")
    assert extract("photos", *OPTIONS) == 0
    with np.load("features.npz") as written:
        assert written["paths"].tolist() == ["photos/broken.png", *photos, "photos/linked/1.png"]
        assert np.isnan(written["features"]).all(axis=1).tolist() == [True] + [False] * 23
    assert "photos/broken.png: no such file or directory" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="links take rights, and pipes have no names")
@pytest.mark.parametrize("places", ["folder", "files"])
def test_pipes_devices_and_links_to_themselves_are_bad_photos(photos, places, capsys):
    os.mkfifo("photos/pipe.png")
    Path("photos/device.png").symlink_to("/dev/zero")
    Path("photos/loop.png").symlink_to("loop.png")
    Path("photos/loop").symlink_to("loop", target_is_directory=True)
    specials = ["photos/device.png", "photos/loop.png", "photos/pipe.png"]
    named = ["photos"] if places == "folder" else [*specials, *photos]
    assert extract(*named, *OPTIONS) == 0
    with np.load("features.npz") as written:
        bad = written["paths"][np.isnan(written["features"]).all(axis=1)]
    assert sorted(bad) == specials
    said = capsys.readouterr().err
    assert "photos/pipe.png: it is not a regular file" in said
    assert "photos/device.png: it is not a regular file" in said
    assert "photos/loop.png: " in said


def test_names_with_spaces_and_letters_of_any_script(folder):
    names = ['pho tos/grün, "und" blau/ä 1.png', "pho tos/猫/ねこ.png"]
    for name in names:
        save_photo(name)
    for suffix in (".npz", ".csv", ".parquet"):
        assert extract("pho tos", *OPTIONS, output=f"ö {suffix}") == 0
    assert np.load("ö .npz")["paths"].tolist() == names
    assert pd.read_csv("ö .csv")["path"].tolist() == names
    assert pd.read_parquet("ö .parquet")["class"].tolist() == ['grün, "und" blau', "猫"]


@pytest.mark.skipif(sys.platform == "win32", reason="names hold no line ends there")
def test_names_with_line_ends(folder):
    names = [f"photos/a{end}b/{end}1.png" for end in ("\n", "\r\n", "\r")]
    for name in names:
        save_photo(name)
    Path("photos/b\r.png").write_bytes(b"")
    assert extract("photos", *OPTIONS, output="features.csv") == 0
    found = pd.read_csv("features.csv")
    assert found["path"].tolist() == [*names, "photos/b\r.png"]
    assert found["class"].tolist()[:3] == ["a\nb", "a\r\nb", "a\rb"]
    assert found.dtypes.iloc[2:].eq(float).all()
    for name, rows in (("features.csv", 5), ("features.csv.bad.csv", 2)):
        with open(name, newline="") as file:
            lines = list(csv.reader(file))
        assert len(lines) == rows
        assert lines[-1][0] == "photos/b\r.png"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are text")
def test_names_that_are_no_text(folder, capsys):
    for name in (b"photos/\xff.png", b"photos/bad\xfe.png"):
        save_photo(os.fsdecode(name))
    Path(os.fsdecode(b"photos/bad\xfe.png")).write_bytes(b"")
    for suffix in (".npz", ".csv", ".parquet"):
        assert extract("photos", *OPTIONS, output=f"features{suffix}") == 0
    assert os.fsencode(np.load("features.npz")["paths"][1]) == b"photos/\xff.png"
    assert pd.read_csv("features.csv")["path"][1] == "photos/\\xff.png"
    assert pd.read_parquet("features.parquet")["path"][1] == "photos/\\xff.png"
    assert pd.read_csv("features.npz.bad.csv")["path"].tolist() == ["photos/bad\\xfe.png"]
    assert "photos/bad\\udcfe.png: it is empty (0 bytes)" in capsys.readouterr().err


def test_a_network_of_one_channel_gets_grey_photos(photos):
    network = ["--backbone", "nets:make_grey", "--image-size", "12"]
    assert extract("photos", *network, "--layer", "1") == 0
    features = np.load("features.npz")["features"]
    assert features.shape == (22, 6)
    assert np.isfinite(features).all()


# Bad photos


@pytest.fixture
def bad_photos(photos):
    whole = Path(photos[5]).read_bytes()
    Path(photos[5]).write_bytes(whole[: len(whole) // 2])
    Path(photos[6]).write_bytes(b"")
    Path(photos[21]).write_text("a letter")
    return [photos[5], photos[6], photos[21]]


def test_bad_photos_are_nan_and_listed(photos, bad_photos, capsys):
    assert extract("photos", *OPTIONS) == 0
    is_bad = np.isnan(np.load("features.npz")["features"])
    assert is_bad.any(axis=1).tolist() == is_bad.all(axis=1).tolist()
    assert [photos[i] for i in np.flatnonzero(is_bad.any(axis=1))] == bad_photos
    with open("features.npz.bad.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    assert [row[0] for row in rows[1:]] == bad_photos
    assert rows[2][1] == "it is empty (0 bytes)"
    warned = capsys.readouterr().err.splitlines()[1:]
    assert warned == [f"sklconv: not read: {path}: {reason}" for path, reason in rows[1:]]


@pytest.mark.parametrize(("way", "exit_code"), [("nan", 0), ("raise", 2)])
def test_reasons_advise_nothing_that_the_command_has_not(photos, way, exit_code, capsys):
    Path("text.png").write_text("a letter")
    Image.fromarray(np.zeros((9, 9), np.int32)).save("integers.tif")
    reasons = {"text.png": "it is none of AVIF, BMP, ", "integers.tif": "have no fixed range"}
    for name, reason in reasons.items():
        assert extract(name, photos[0], *OPTIONS, "--on-bad-image", way) == exit_code
        said = capsys.readouterr().err
        assert name in said
        assert reason in said
        assert "reader" not in said


def test_list_of_bad_photos_goes_when_they_are_good(photos, bad_photos):
    extract("photos", *OPTIONS)
    for path in bad_photos:
        save_photo(path)
    extract("photos", *OPTIONS)
    assert leftovers() == ["features.npz"]


def test_many_bad_photos_are_counted_on_the_terminal(photos, capsys):
    for i in range(23):
        Path(f"photos/cat/bad{i:02}.png").touch()
    assert extract("photos", *OPTIONS) == 0
    warned = capsys.readouterr().err.splitlines()[1:]
    assert len(warned) == 21
    assert warned[-1] == "sklconv: not read: 3 more"
    assert len(pd.read_csv("features.npz.bad.csv")) == 23


def test_nothing_is_written_if_all_are_bad(folder, capsys):
    Path("photos").mkdir()
    Path("photos/1.jpg").write_text("a letter")
    assert extract("photos", *OPTIONS) == 2
    assert "none of the photos could be read; nothing was written" in capsys.readouterr().err
    assert leftovers() == []


def test_stops_at_a_bad_photo_if_told_to_and_goes_on_if_not(photos, bad_photos, capsys):
    assert extract("photos", *OPTIONS, "--on-bad-image", "raise") == 2
    (error,) = capsys.readouterr().err.splitlines()[1:]
    assert error.startswith(f"sklconv: error: {bad_photos[0]} can't be read: ")
    assert error.endswith(
        "are kept in features.npz.partial: the same command continues from there"
    )
    assert extract("photos", *OPTIONS) == 0
    assert n_computed() == 22


def test_bad_photo_of_an_earlier_run_stops_too(photos, bad_photos, monkeypatch, capsys):
    monkeypatch.setenv("STOP", "interrupt 8")
    extract("photos", *OPTIONS)
    assert extract("photos", *OPTIONS, "--on-bad-image", "raise") == 2
    assert f"{bad_photos[0]} can't be read: " in capsys.readouterr().err


# Stopped and resumed


def test_killed_and_resumed(photos, bad_photos, capsys):
    extract("photos", *OPTIONS)
    undisturbed = Path("features.npz").read_bytes()
    Path("features.npz").write_text("of an earlier run")
    Path("computed").write_text("")
    killed = in_a_process("extract", "photos", *OPTIONS, "-o", "features.npz", STOP="kill 12")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert n_computed() == 12
    assert Path("features.npz").read_text() == "of an earlier run"

    resumed = in_a_process("extract", "photos", *OPTIONS, "-o", "features.npz")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after 12 photos" in resumed.stderr
    assert n_computed() == 22
    assert Path("features.npz").read_bytes() == undisturbed
    assert len(pd.read_csv("features.npz.bad.csv")) == 3
    assert leftovers() == ["features.npz", "features.npz.bad.csv"]


def interrupt(monkeypatch, n_before=12, *options):
    with monkeypatch.context() as patch:
        patch.setenv("STOP", f"interrupt {n_before}")
        assert extract("photos", *OPTIONS, *options) == 130


def test_interrupted_and_resumed(photos, monkeypatch, capsys):
    interrupt(monkeypatch)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "sklconv: interrupted; 12 of 22 photos are kept in features.npz.partial: the same command "
        "continues from there"
    )
    assert leftovers() == ["features.npz.partial"]
    assert extract("photos", *OPTIONS) == 0
    assert n_computed() == 22
    resumed = Path("features.npz").read_bytes()
    extract("photos", *OPTIONS)
    assert Path("features.npz").read_bytes() == resumed


def test_nothing_is_left_of_a_run_that_computed_nothing(photos, monkeypatch, capsys):
    interrupt(monkeypatch, 0)
    assert capsys.readouterr().err.splitlines()[-1] == "sklconv: interrupted"
    assert leftovers() == []


def test_progress_begins_where_the_run_before_stopped(photos, monkeypatch, capsys):
    interrupt(monkeypatch)
    monkeypatch.setattr(_progress, "DELAY", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    extract("photos", *OPTIONS)
    assert "12/22" in capsys.readouterr().err


DAMAGES = {
    "rows without their line": ("features", lambda content: content + bytes(70), 12),
    "half a batch": ("features", lambda content: content[:-5], 8),
    "another value": ("features", lambda content: content[:-9] + b"\x01" + content[-8:], 8),
    "the first batch": ("features", lambda content: b"\x01" + content[1:], 0),
    "no rows": ("features", lambda content: b"", 0),
    "half a line": ("batches", lambda content: content[:-5], 8),
    "half a line more": ("batches", lambda content: content + b"[4, 123", 12),
    "zeros": ("batches", lambda content: content[:-9] + bytes(9), 8),
    "no lines": ("batches", lambda content: b"", 0),
    "no settings": ("settings", lambda content: b"", 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_whole_is_computed_again(photos, damage, monkeypatch):
    extract("photos", *OPTIONS)
    undisturbed = Path("features.npz").read_bytes()
    Path("computed").write_text("")
    interrupt(monkeypatch)
    name, change, n_kept = DAMAGES[damage]
    file = Path("features.npz.partial", name)
    file.write_bytes(change(file.read_bytes()))
    assert extract("photos", *OPTIONS) == 0
    assert n_computed() == 12 + 22 - n_kept
    assert Path("features.npz").read_bytes() == undisturbed


def change_a_photo(path):
    save_photo("photos/cat/03.png", 99)


def add_a_photo(path):
    save_photo("photos/cat/99.png", 99)


def rename_a_class(path):
    Path("photos/cat").rename("photos/cats")


def keep_photos(path):
    pass


@pytest.mark.parametrize(
    ("change", "options", "names"),
    [
        (change_a_photo, [], "the photos"),
        (add_a_photo, [], "the photos"),
        (rename_a_class, [], "the photos"),
        (keep_photos, ["--layer", "1"], "--layer"),
        (
            keep_photos,
            ["--pool", "max", "--image-size", "13"],
            "--pool, --image-size, the network",
        ),
        (keep_photos, ["--crop-pct", "0.9"], "--crop-pct, --crop-mode"),
        (keep_photos, ["--crop-mode", "border"], "--crop-mode"),
        (keep_photos, ["--batch-size", "5"], "--batch-size"),
        (keep_photos, ["--backbone", "nets:make_seeded"], "--backbone, the network"),
        (keep_photos, ["--mean", "0.1", "--std", "1"], "the network"),
    ],
)
def test_starts_over_if_anything_changed(photos, change, options, names, monkeypatch, capsys):
    interrupt(monkeypatch)
    Path("computed").write_text("")
    change("photos")
    assert extract("photos", *OPTIONS, *options) == 0
    said = f"sklconv: starting over, because these changed since the last run: {names}\n"
    assert said in capsys.readouterr().err
    assert n_computed() == len(np.load("features.npz")["paths"])
    resumed = Path("features.npz").read_bytes()
    extract("photos", *OPTIONS, *options)
    assert Path("features.npz").read_bytes() == resumed


def rewrite_nets(old, new):
    """Write the networks' module anew, as the next run would import it."""
    assert old in NETS
    Path("nets.py").write_text(NETS.replace(old, new))
    sys.modules.pop("nets", None)
    importlib.invalidate_caches()


def test_starts_over_with_other_code_around_the_same_weights(photos, monkeypatch, capsys):
    interrupt(monkeypatch, 12, "--backbone", "nets:make_seeded")
    rewrite_nets("nn.ReLU(),\n        nn.Adapt", "nn.Tanh(),\n        nn.Adapt")
    Path("computed").write_text("")
    assert extract("photos", *OPTIONS, "--backbone", "nets:make_seeded") == 0
    assert "changed since the last run: the network\n" in capsys.readouterr().err
    assert n_computed() == 22


def change_a_global():
    # Which the digest does not follow.
    rewrite_nets("scale = 1.0", "scale = -1.0")


def remove_the_probe():
    Path("features.npz.partial/probe.npy").unlink()


def cut_the_probe():
    probe = Path("features.npz.partial/probe.npy")
    probe.write_bytes(probe.read_bytes()[:-7])


@pytest.mark.parametrize("change", [change_a_global, remove_the_probe, cut_the_probe])
def test_starts_over_if_the_network_computes_something_else(photos, change, monkeypatch, capsys):
    interrupt(monkeypatch)
    change()
    Path("computed").write_text("")
    assert extract("photos", *OPTIONS) == 0
    assert "changed since the last run: what the network computes\n" in capsys.readouterr().err
    assert n_computed() == 22


def test_an_error_before_the_first_photo_keeps_what_there_is(photos, monkeypatch):
    interrupt(monkeypatch)
    assert extract("photos", *OPTIONS, "--layer", "nowhere") == 2
    assert extract("photos", *OPTIONS, "--backbone", "nets:broken") == 2
    assert extract("photos", *OPTIONS) == 0
    assert n_computed() == 22


def test_partial_folder_keeps_what_somebody_else_put_there(photos):
    Path("features.npz.partial").mkdir()
    Path("features.npz.partial/letter").write_text("mine")
    assert extract("photos", *OPTIONS) == 0
    assert [path.name for path in Path("features.npz.partial").iterdir()] == ["letter"]


def test_two_runs_at_a_time_do_not_mix(photos, capsys):
    other = partial_results.PartialResults(Path("features.npz.partial"))
    for _ in range(2):  # the one that is turned away leaves the other's lock alone
        assert extract("photos", *OPTIONS) == 2
        assert capsys.readouterr().err.splitlines()[1:] == [
            "sklconv: error: features.npz.partial: another run is writing to this output"
        ]
    other.close()
    assert extract("photos", *OPTIONS) == 0
    assert leftovers() == ["features.npz"]


def test_lock_is_no_part_of_what_is_kept(photos, monkeypatch):
    interrupt(monkeypatch)
    kept = sorted(path.name for path in Path("features.npz.partial").iterdir())
    assert kept == ["batches", "features", "probe.npy", "settings"]


# Full disks


@pytest.fixture
def limit_files(monkeypatch):
    """A function that lets no file grow beyond a number of bytes, as a full disk would."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(n_bytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_disk_full_while_the_output_is_written(photos, suffix, limit_files, capsys):
    output = f"features{suffix}"
    Path(output).write_text("of an earlier run")
    limit_files(22 * 24 * 4)  # the rows fit, but not what is around them
    assert extract("photos", *OPTIONS, output=output) == 2
    limit_files(10**9)
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"sklconv: error: {output}: can't be written: file too large; 22 of 22 photos are kept "
        f"in {output}.partial: the same command continues from there"
    ]
    assert Path(output).read_text() == "of an earlier run"
    assert not Path(f"{output}.partial", "output").exists()
    assert extract("photos", *OPTIONS, output=output) == 0
    assert n_computed() == 22


def test_disk_full_while_photos_are_computed(photos, limit_files, capsys):
    limit_files(10 * 24 * 4)
    assert extract("photos", *OPTIONS) == 2
    limit_files(10**9)
    (error,) = capsys.readouterr().err.splitlines()[1:]
    assert error.startswith(
        "sklconv: error: features.npz.partial: can't be written: file too large; 8 of 22 photos"
    )
    assert leftovers() == ["features.npz.partial"]
    assert extract("photos", *OPTIONS) == 0
    assert n_computed() == 12 + 14  # the third batch was computed, but could not be kept


# What users get wrong


def error_of(capsys, *arguments):
    try:
        code = main([*arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    out, err = capsys.readouterr()
    *notes, error = err.splitlines()
    assert all(re.fullmatch(r"\d+ photos?, \d+ class(es)?(; .*)?", note) for note in notes)
    assert out == ""
    assert leftovers() == []
    return error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", *NETWORK], "nowhere: no such file or folder"),
        (["photos/nowhere.png", *NETWORK], "photos/nowhere.png: no such file or folder"),
        (["empty", *NETWORK], "empty: no photos in this folder: no files that end in"),
        (["photos", "texts", *NETWORK], "texts: no photos in this folder: no files that end in"),
        (["photos", *NETWORK, "-o", "features.xls"], "must end in .npz, .csv, .parquet"),
        (
            ["photos", *NETWORK, "-o", "no/where/f.npz"],
            "no/where: no such folder to write f.npz to",
        ),
        (["photos", *NETWORK, "-o", "folder.npz"], "folder.npz: is a folder"),
        (
            ["photos", *NETWORK, "-o", "nets.py/f.npz"],
            "nets.py: no such folder to write f.npz to",
        ),
        (["photos", *NETWORK, "--layer", "9"], "its layers are: 0, 1, 2, 3, 4, 5"),
        (["photos", *NETWORK, "--layer", "-9"], "layer=-9"),
        (["photos", *NETWORK, "--weights", "no.pth"], "no.pth: no such file or directory"),
        (["photos", *NETWORK, "--weights", "nets.py"], "weights='nets.py'"),
        (["photos", *NETWORK, "--device", "abacus"], "device='abacus'"),
        (["photos", *NETWORK, "--mean", "0.5"], "mean and std go together"),
        (["photos", "--backbone", "resnet18"], "neither 'timm/name' nor 'torchvision/name'"),
        (["photos", "--backbone", "nets:make"], "--image-size is missing"),
        (["photos", "--backbone", "no.nets:make"], "no module named 'no'"),
        (["photos", *NETWORK, "--backbone", "nets:maek"], "has no attribute 'maek'"),
        (
            ["photos", *NETWORK, "--backbone", "nets:number"],
            "nets:number is 3, neither a torch.nn.module nor",
        ),
        (
            ["photos", *NETWORK, "--backbone", "nets:broken"],
            "nets:broken: zerodivisionerror: division by zero",
        ),
        (["photos", *NETWORK, "--batch-size", "0"], "'0' is not a number from 1 up"),
        (["photos", *NETWORK, "--mean", "a,b"], "'a,b' is not a list of numbers"),
        (["photos", *NETWORK, "--crop-pct", "a"], "--crop-pct: invalid float value: 'a'"),
        (["photos", *NETWORK, "--crop-pct", "2"], "'crop_pct' parameter of backbone"),
        (["photos", *NETWORK, "--crop-mode", "middle"], "invalid choice: 'middle'"),
        (["photos", *NETWORK, "--pool", "sum"], "invalid choice: 'sum'"),
        (["photos", *NETWORK, "--nonsense"], "unrecognized arguments: --nonsense"),
        (["photos"], "required: --backbone"),
    ],
)
def test_errors_are_one_line(photos, arguments, message, capsys):
    Path("empty").mkdir()
    Path("folder.npz").mkdir()
    Path("texts").mkdir()
    Path("texts/a.txt").touch()
    error = error_of(capsys, "extract", "-o", "features.npz", *arguments)
    assert error.startswith("sklconv")
    assert "error: " in error
    assert message in error.lower()
    assert n_computed() == 0


def test_no_command(capsys):
    assert error_of(capsys).startswith("sklconv: error: the following arguments are required")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="this user may write anywhere")
def test_folder_that_may_not_be_written_to(photos, capsys):
    Path("mine").mkdir(mode=0o500)
    error = error_of(capsys, "extract", "photos", *NETWORK, "-o", "mine/f.npz")
    assert "mine/f.npz.partial: can't be written: permission denied" in error


def test_file_in_the_partial_folders_place(photos, capsys):
    Path("f.npz.partial").touch()
    error = error_of(capsys, "extract", "photos", *NETWORK, "-o", "f.npz")
    assert "f.npz.partial: can't be written: file exists" in error


def test_parquet_without_pyarrow(photos, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    error = error_of(capsys, "extract", "photos", *NETWORK, "-o", "f.parquet")
    assert error == (
        'sklconv: error: .parquet files are written by pyarrow: pip install "sklconv[parquet]"'
    )


# Layers, help


def test_layers(capsys):
    assert main(["layers", "nets:make", "--image-size", "12"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["name", "type", "output", "parameters", "share"]
    assert lines[2] == ["input", "3×12×12"]
    assert lines[4] == ["1", "Conv2d", "6×10×10", "168", "57.3%"]
    assert lines[-4] == ["5", "Linear", "5", "125", "42.7%"]
    assert lines[-2] == ["293", "parameters"]
    assert lines[-1] == ["penultimate:", "the", "output", "of", "4"]


def test_layers_lists_all_that_extract_takes(photos, capsys):
    Path("nested.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\n"
        "    return nn.Sequential(part, nn.Sequential(nn.Flatten(), nn.Linear(400, 2)))\n"
    )
    network = ["nested:make", "--image-size", "12"]
    main(["layers", *network])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:-3]]
    names = [row[0] for row in rows]
    assert names == ["0.0", "0.1", "0", "1.0", "1.1", "1"]
    # Those of a layer's parts are not counted again: the column adds up.
    assert [row[3:4] for row in rows] == [["112"], ["0"], [], ["0"], ["802"], []]
    layers = [argument for name in names for argument in ("--layer", name)]
    assert extract("photos", "--backbone", *network, *layers, "-q") == 0
    written = np.load("features.npz")["names"]
    assert list(dict.fromkeys(name.rpartition("_")[0] for name in written)) == names


def test_layers_into_an_encoding_without_the_sign(photos):
    shown = in_a_process("layers", "nets:make", "--image-size", "12", PYTHONIOENCODING="ascii")
    assert shown.returncode == 0, shown.stderr
    assert r"3\xd712\xd712" in shown.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break otherwise there")
def test_layers_to_a_reader_who_stops_reading(photos):
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "sklconv", "layers", "nets:make", "--image-size", "12"]
    stopped = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert (stopped.returncode, stopped.stderr) == (0, b"")


def test_unknown_network_of_a_library(photos, monkeypatch, capsys):
    class Library:
        __name__ = "timm"
        is_model = staticmethod(lambda name: False)
        list_models = staticmethod(lambda: ["resnet18", "resnet50", "vit_tiny"])

    monkeypatch.setitem(sys.modules, "timm", Library())
    error = error_of(capsys, "layers", "timm/resnet19")
    assert "timm/resnet18" in error


def test_library_that_is_not_installed(photos, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    error = error_of(capsys, "extract", "photos", "--backbone", "timm/resnet18", "-o", "f.npz")
    assert 'pip install "sklconv[timm]"' in error


@pytest.mark.parametrize("command", [[], ["extract"], ["layers"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(" ".join(["usage: sklconv", *command]))
    assert max(map(len, text.splitlines())) < 100


def commands_shown():
    page = Path(__file__).parents[2] / "docs" / "user_guide" / "command.rst"
    shown = [__main__.EXTRACT_EXAMPLES, __main__.LAYERS_EXAMPLES]
    shown += [page.read_text()] if page.exists() else []  # the source distribution has no docs
    return re.findall(r"^ +(?:\$ )?sklconv (\w+ .*)$", "\n".join(shown), flags=re.MULTILINE)


@pytest.mark.parametrize("command", commands_shown())
def test_commands_shown_are_understood(command):
    arguments = __main__.make_parser().parse_args(shlex.split(command))
    assert "/" in arguments.backbone or ":" in arguments.backbone


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"sklconv {sklconv.__version__}\n"


def test_module_and_script_are_the_same_command(capsys):
    (script,) = entry_points(group="console_scripts", name="sklconv")
    assert script.load() is main
    with pytest.raises(SystemExit):
        main(["--help"])
    assert in_a_process("--help").stdout == capsys.readouterr().out


# Engines


@pytest.mark.parametrize(
    ("engine", "worthwhile", "by_sessions"),
    [
        ("auto", 1, True),
        ("auto", 1e30, False),
        ("torch", 1, False),
        ("onnxruntime", 1e30, True),
    ],
)
def test_the_engine_is_chosen_once(photos, engine, worthwhile, by_sessions, monkeypatch):
    pytest.importorskip("onnxruntime")
    made = []
    original = runtime.SessionRun.__init__
    monkeypatch.setattr(
        runtime.SessionRun, "__init__", lambda self, *a: (made.append(1), original(self, *a))[1]
    )
    monkeypatch.setattr(choice, "WORTHWHILE", worthwhile)
    options = ["photos", "--backbone", "nets:make_plain", "--image-size", "12"]
    assert extract(*options, "--engine", "torch", output="torch.npz") == 0
    assert not made
    assert extract(*options, "--engine", engine) == 0
    assert bool(made) is by_sessions
    with np.load("features.npz") as came, np.load("torch.npz") as wanted:
        np.testing.assert_allclose(came["features"], wanted["features"], atol=1e-5)
        assert np.array_equal(came["features"], wanted["features"]) or by_sessions


def test_auto_is_torch_where_a_network_cant_be_exported(photos, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")

    def fail(*_, **__):
        raise graph.NotExportable("no such operator")

    monkeypatch.setattr(runtime, "Graph", fail)
    monkeypatch.setattr(runtime, "_registry", runtime._Registry())
    monkeypatch.setattr(choice, "WORTHWHILE", 1)
    options = ["photos", "--backbone", "nets:make_plain", "--image-size", "12"]
    assert extract(*options) == 0
    assert "no such operator; torch computes the features" in capsys.readouterr().err
    assert extract(*options, "--engine", "onnxruntime", output="other.npz") != 0
    assert "no such operator" in capsys.readouterr().err
