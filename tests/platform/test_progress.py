"""What ``verbose`` shows, where, and what it does not: bars, lines, workers, notebooks."""

import io
import re
import sys
import threading
import types

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import ProgressBar
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier, _progress
from sklconv._progress import print_line, progress
from sklconv.datasets import load_images
from sklconv.inspection import layer_probe
from sklconv.layers import Conv, Dense, MaxPool

X, y = load_digits(return_X_y=True)
X, y = X[:300], y[:300]
TIMES = r"\[\d\d:\d\d<(\d\d:\d\d|\?), .*images/s\]"


class Terminal(io.StringIO):
    """Both streams of a process, and what its screen shows in the end and meanwhile."""

    def isatty(self):
        return True

    def screens(self):
        lines, column = [""], 0
        for character in self.getvalue():
            if character in "\r\n":
                column = 0
                lines += [""] * (character == "\n")
                yield [line.rstrip() for line in lines]
            else:
                lines[-1] = lines[-1][:column] + character + lines[-1][column + 1 :]
                column += 1
        yield [line.rstrip() for line in lines]


@pytest.fixture
def open_terminal(monkeypatch):
    """A function that makes both streams one `Terminal`; before a test they are pytest's."""

    def open_terminal():
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        return terminal

    monkeypatch.setattr(_progress, "DELAY", 0)
    return open_terminal


@pytest.fixture
def at_once(monkeypatch):
    """Lines come as soon as there is a tenth more."""
    monkeypatch.setattr(_progress, "SECONDS_BETWEEN_LINES", 1e-9)


class Bar:
    """A bar that nobody sees."""

    def __init__(self, desc, total, initial, **options):
        self.desc, self.total, self.n, self.is_open = desc, total, initial, True

    def update(self, n):
        self.n += n

    def set_description_str(self, text, refresh):
        self.desc = text

    def close(self):
        self.is_open = False


@pytest.fixture
def bars(monkeypatch):
    """The bars that are shown."""
    shown = []

    def show(**options):
        shown.append(Bar(**options))
        shown[-1].expected = options["total"]
        return shown[-1]

    monkeypatch.setattr(_progress, "_bar", show)
    return shown


def small(**params):
    layers = [("conv1", Conv(4, 3)), ("pool1", MaxPool(2)), ("dense", Dense(16))]
    defaults = {"module": layers, "max_epochs": 3, "random_state": 0, "verbose": 1}
    return ConvNetClassifier(**{**defaults, **params})


# Bars and lines -------------------------------------------------------------------------------


def work(total, verbose=1, step=5, n=100):
    with progress("work", total, verbose) as bar:
        for _ in range(n // step):
            bar.update(step)


@pytest.mark.parametrize(
    ("total", "states"), [(100, "work:  +\\d+%.*/100 "), (None, "work: \\d+")]
)
def test_a_bar_on_a_terminal_has_the_time_left_and_goes(open_terminal, total, states):
    terminal = open_terminal()
    work(total)
    *screens, last = terminal.screens()
    assert last == [""]
    assert any(re.match(states, line) for screen in screens for line in screen)
    if total is not None:
        assert re.search(TIMES, terminal.getvalue())


def test_what_is_over_soon_has_no_bar(open_terminal, monkeypatch):
    terminal = open_terminal()
    monkeypatch.setattr(_progress, "DELAY", 1000)
    work(100)
    assert terminal.getvalue().strip() == ""


def test_a_line_above_the_bar(open_terminal):
    terminal = open_terminal()
    with progress("work", 100, 1) as bar:
        bar.update(50)
        print_line("a row")
    assert list(terminal.screens())[-1] == ["a row", ""]


def test_a_line_is_written_whole(monkeypatch):
    """What another thread writes comes before or after it, not within."""

    class Stream(io.StringIO):
        pieces = []

        def write(self, text):
            self.pieces.append(text)

    monkeypatch.setattr(sys, "stdout", Stream())
    print_line("a row")
    assert list(filter(None, Stream.pieces)) == ["a row\n"]


@pytest.mark.parametrize("verbose", [0, False])
def test_silent_by_default(open_terminal, verbose):
    terminal = open_terminal()
    work(100, verbose)
    assert terminal.getvalue() == ""


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("step", "tenths"), [(5, range(10, 101, 10)), (20, range(20, 101, 20))])
def test_elsewhere_a_line_each_tenth(capsys, step, tenths):
    work(100, step=step)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    lines = err.splitlines()
    assert [re.fullmatch(f"work: (.*) {TIMES}", line).group(1) for line in lines] == [
        f"{n} of 100 images" for n in tenths
    ]


@pytest.mark.usefixtures("at_once")
def test_lines_of_unknown_length(capsys):
    work(None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("work: 5 of ? images [00:00<")
    assert len(lines) <= 20


def test_elsewhere_lines_are_some_seconds_apart(capsys):
    work(10**6, step=1, n=10**5)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("at_once")
def test_lines_begin_where_an_earlier_run_stopped(capsys):
    with progress("work", 100, 1, done=60) as bar:
        bar.update(10)
    assert capsys.readouterr().err.startswith("work: 70 of 100 images")


def test_without_streams(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    work(100)
    print_line("a row")


def test_an_error_closes_the_bar(bars):
    with pytest.raises(ZeroDivisionError), progress("work", 10, 1):
        raise ZeroDivisionError
    assert not bars[0].is_open
    assert bars[0].total == 10  # it has not come to its end


# Workers --------------------------------------------------------------------------------------


def make_probe():
    def shows_a_bar():  # not a function of this module, which workers would have to import
        from sklconv._progress import progress

        with progress("work", 10, 1) as bar:
            return hasattr(bar, "total")

    return shows_a_bar


def test_the_main_thread_of_the_main_process_shows_bars(capsys):
    assert make_probe()()


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_workers_of_joblib_show_none(backend):
    with joblib.parallel_config(backend=backend):
        shown = joblib.Parallel(n_jobs=2)(joblib.delayed(make_probe())() for _ in range(4))
    assert not any(shown)


def test_a_search_in_threads_shows_whole_rows_and_one_bar_at_a_time(open_terminal):
    terminal = open_terminal()
    with joblib.parallel_config(backend="threading"):
        search = GridSearchCV(small(max_epochs=2), {"lr": [1e-2]}, cv=2, n_jobs=2)
        search.fit(X, y)
    final = [line for line in list(terminal.screens())[-1] if line]
    rows = [line for line in final if re.fullmatch(r" +[12] +\d+\.\d{4} +\d+\.\d\d s", line)]
    assert len(rows) == 2 * (2 + 1)
    assert not any("images" in line for line in final)


def test_another_thread_shows_none(open_terminal):
    terminal = open_terminal()
    thread = threading.Thread(target=work, args=(100,))
    thread.start()
    thread.join()
    assert terminal.getvalue() == ""


# Notebooks ------------------------------------------------------------------------------------


@pytest.fixture
def notebook(monkeypatch):
    """What a kernel has: IPython's shell, and streams that are no terminals."""
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    module = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setattr(_progress, "DELAY", 0)
    return shell


@pytest.mark.usefixtures("notebook")
def test_a_notebook_shows_a_bar(capsys):
    work(100)
    assert re.search(r"work: .*/100 " + TIMES, capsys.readouterr().err)


def test_a_terminal_in_ipython_is_a_terminal(notebook, capsys):
    notebook.config = {"TerminalIPythonApp": {}}
    work(100)
    assert capsys.readouterr().err == ""  # as elsewhere: stderr is none here


def test_a_notebook_has_tqdms_own_bar_there_and_none_is_left_in_red(notebook, monkeypatch):
    import tqdm.auto

    shown = []

    class Widget(Bar):
        def __init__(self, **options):
            super().__init__(**options)
            shown.append(self)

        def close(self):
            super().close()
            self.is_red = self.n < self.total

    monkeypatch.setattr(tqdm.auto, "tqdm", Widget)
    patience = {"early_stopping": True, "n_iter_no_change": 1, "tol": 1000.0}
    small(**patience).fit(X, y)
    assert [(bar.is_open, bar.is_red) for bar in shown] == [(False, False)]
    assert shown[0].desc == "epoch 2 of 3"  # it stopped early


# What shows progress --------------------------------------------------------------------------


def test_layer_probe_counts_the_images_that_it_looks_at(bars):
    net = small(max_epochs=1, verbose=0).fit(X, y)
    layer_probe(net, X, y, cv=2)
    assert bars == []
    layer_probe(net, X, y, cv=2, verbose=1)
    assert [(bar.desc, bar.n, bar.total) for bar in bars] == [("layer_probe", len(X), len(X))]


def test_the_bar_of_a_fit_counts_the_images_of_all_epochs(bars):
    small().fit(X, y, X_val=X[:40], y_val=y[:40])
    (bar,) = bars
    assert bar.n == bar.expected == 3 * (300 + 40)
    assert bar.desc == "epoch 3 of 3"
    assert not bar.is_open


def test_the_bar_of_partial_fit(bars):
    small().partial_fit(X, y, classes=np.arange(10))
    assert [bar.n for bar in bars] == [300]


def test_the_pass_through_what_is_frozen_has_a_bar(bars):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    backbone = Backbone(module, image_size=8)
    options = {"freeze": "backbone", "max_epochs": 2, "image_shape": (8, 8), "verbose": 1}
    ConvNetClassifier(backbone, **options).fit(X, y)
    assert [(bar.desc, bar.n) for bar in bars] == [
        ("ConvNetClassifier", 300),
        ("epoch 2 of 2", 600),
    ]


def test_predictions(bars):
    clf = small(verbose=0).fit(X, y)
    clf.predict(X)
    assert not bars
    clf.set_params(verbose=1).predict_proba(X)
    clf.predict(X[:10])  # one batch
    assert [(bar.desc, bar.expected, bar.n) for bar in bars] == [("ConvNetClassifier", 300, 300)]


@pytest.mark.parametrize("verbose", [0, 1])
def test_transform(bars, verbose):
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10))
    extractor = ConvFeatureExtractor(module, image_shape=(8, 8), verbose=verbose, layer="auto")
    extractor.fit(X, y)
    extractor.set_params(layer="2").fit(X)
    extractor.transform(X)
    assert len(list(extractor.transform_batches(X))) == 2
    shown = [(bar.desc, bar.expected, bar.n) for bar in bars]
    assert shown == [("ConvFeatureExtractor", 300, 300)] * 3 * verbose


def test_none_is_as_the_estimator_has_it(bars):
    extractor = ConvFeatureExtractor(small(max_epochs=1)).fit(X, y)
    extractor.transform(X)
    assert [bar.n for bar in bars] == [300, 300]
    extractor.set_params(verbose=0).transform(X)
    assert len(bars) == 2


@pytest.mark.parametrize("verbose", [0, 1])
def test_load_images(bars, verbose):
    pillow = pytest.importorskip("PIL.Image")
    images = [pillow.fromarray(np.uint8(image.reshape(8, 8))) for image in X[:7]]
    load_images(images, (8, 8), verbose=verbose)
    assert [(bar.desc, bar.n) for bar in bars] == [("load_images", 7)] * verbose


@pytest.mark.parametrize("users_own", [False, True])
def test_a_fit_on_a_terminal_has_its_bar_below_the_rows(open_terminal, monkeypatch, users_own):
    terminal = open_terminal()
    if users_own:  # skorch's alone, for this terminal has no bars one below another
        monkeypatch.setattr(_progress, "_bar", Bar)
    small(callbacks=[ProgressBar()] if users_own else None).fit(X, y)
    *screens, last = terminal.screens()
    table = last.index("802 learnable parameters")
    assert [line.split()[0] for line in last[table + 3 : -1]] == ["1", "2", "3"]
    assert last[-1] == ""
    shown = {
        line for screen in screens for line in screen if re.search(r"it/s|it \[|images/s", line)
    }
    assert shown
    assert not any(re.search(r"\] +\d+ ", line) for line in shown)  # no row behind a bar


@pytest.mark.usefixtures("at_once")
def test_a_fit_into_a_file(capsys):
    small().fit(X, y)
    out, err = capsys.readouterr()
    assert "\r" not in out + err
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["1", "2", "3"]
    assert all(
        re.fullmatch(rf"epoch \d of 3: \d+ of 900 images {TIMES}", line)
        for line in err.splitlines()
    )
    assert err


def test_weights_are_the_same_with_and_without(bars):
    shown, silent = small().fit(X, y), small(verbose=0).fit(X, y)
    assert bars
    np.testing.assert_array_equal(shown.predict_proba(X), silent.predict_proba(X))
