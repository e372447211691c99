"""Public names, their documentation, what imports what, and what an import costs."""

import ast
import importlib
import inspect
import os
import pickle
import pkgutil
import pydoc
import re
import subprocess
import sys
import textwrap
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from sklearn.base import BaseEstimator

import sklconv

PACKAGE = Path(sklconv.__file__).parent
# Each file by the name that it is imported under; the package's own front is "".
MODULES = {
    ".".join(
        part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__main__.py"
}
PUBLIC_MODULES = [
    "sklconv",
    *(
        f"sklconv.{module.name}"
        for module in pkgutil.iter_modules(sklconv.__path__)
        if not module.name.startswith("_")
    ),
]
API = Path(__file__).parents[2] / "docs" / "api.rst"
CONTRIBUTING = API.parents[1] / "CONTRIBUTING.md"

# What `import sklconv` must not load: each is imported where it is used.
OPTIONAL = {
    "PIL",
    "dask",
    "efficientnet_lite_pytorch",
    "matplotlib",
    "onnx",
    "pandas",
    "polars",
    "pyarrow",
    "skl2onnx",
    "tensorflow",
    "timm",
    "torchvision",
}


def parse(module):
    return ast.parse(MODULES[module].read_text())


def imports_of(module):
    """Yield ``(module, name)`` of every import in a file, those inside functions as well."""
    levels_above = 1 if MODULES[module].name == "__init__.py" else 0
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            package = []
            if node.level:
                parts = f"sklconv.{module}".strip(".").split(".")
                package = parts[: len(parts) + levels_above - node.level]
            source = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                yield source, alias.name


def own_imports(module):
    """The files of this package that one of them imports."""
    found = set()
    for source, name in imports_of(module):
        if source != "sklconv" and not source.startswith("sklconv."):
            continue
        candidate = source.removeprefix("sklconv").strip(".")
        submodule = f"{candidate}.{name}".strip(".")
        found.add(submodule if submodule in MODULES else candidate)
    return found & set(MODULES)


def room(module):
    """The folder that a file is in; a file that is in none is a room of its own."""
    return module.partition(".")[0]


def public_names(module):
    return list(importlib.import_module(module).__all__)


# Names ----------------------------------------------------------------------------------------


def test_the_names_of_the_package():
    assert {"ConvFeatureExtractor", "ConvNetClassifier", "TorchModule", "layers"} <= set(
        sklconv.__all__
    )
    assert set(public_names("sklconv.layers")) == {
        "Activation",
        "AvgPool",
        "BatchNorm",
        "Conv",
        "Dense",
        "Dropout",
        "Flatten",
        "GlobalAvgPool",
        "MaxPool",
        "SpatialDropout",
    }
    assert "load_mnist" in public_names("sklconv.datasets")
    assert public_names("sklconv.onnx") == ["to_onnx"]
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", sklconv.__version__)


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_all_names_what_there_is(module):
    loaded = importlib.import_module(module)
    assert sorted(loaded.__all__) == list(loaded.__all__)
    assert len(set(loaded.__all__)) == len(loaded.__all__)
    own = {
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith("sklconv")
        and (module == "sklconv" or value.__module__ == module)
    }
    classes_that_others_build_on = {"Layer"}
    assert own - classes_that_others_build_on <= set(loaded.__all__)
    for name in loaded.__all__:
        assert hasattr(loaded, name)


def documented_names():
    """Names in the reference's autosummaries, with their modules."""
    if not API.exists():
        pytest.skip("the documentation is not part of this distribution")
    module, found, inside = "", [], False
    for line in API.read_text().splitlines():
        if line.startswith(".. currentmodule::"):
            module = line.split("::")[1].strip()
        elif line.startswith(".. autosummary::"):
            inside = True
        elif line.strip() and not line.startswith(" "):
            inside = False
        elif inside and re.fullmatch(r"   [\w.]+", line):
            found.append(f"{module}.{line.strip()}")
    return found


def test_every_public_name_stands_in_the_reference_once():
    documented = documented_names()
    assert len(set(documented)) == len(documented)
    expected = {
        f"{module}.{name}"
        for module in PUBLIC_MODULES
        for name in public_names(module)
        if f"{module}.{name}" not in PUBLIC_MODULES  # a module stands there by its own names
    }
    assert set(documented) == expected


PUBLIC_CLASSES = sorted(
    {
        value
        for module in PUBLIC_MODULES
        for name in public_names(module)
        if inspect.isclass(value := getattr(importlib.import_module(module), name))
    },
    key=lambda value: value.__name__,
)


@pytest.mark.parametrize("value", PUBLIC_CLASSES, ids=lambda value: value.__name__)
def test_parameters_stand_in_one_order_everywhere(value):
    parameters = [
        name
        for name, parameter in inspect.signature(value.__init__).parameters.items()
        if name != "self"
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    if value.__init__ is object.__init__:
        parameters = []
    section = re.search(
        r"Parameters\n +-+\n(.*?)(\n\n +\w[\w ]*\n +-+\n|$)", value.__doc__, re.DOTALL
    )
    lines = re.findall(r"^    (\w[\w, ]*) : ", section.group(1) if section else "", re.MULTILINE)
    documented = [name for line in lines for name in line.split(", ")]
    assert sorted(documented) == sorted(parameters)
    alone = [line for line in lines if ", " not in line]  # others may share an entry
    assert alone == [name for name in parameters if name in alone]
    constraints = getattr(value, "_parameter_constraints", None)
    if constraints:
        assert list(constraints) == parameters


@pytest.mark.parametrize("value", PUBLIC_CLASSES, ids=lambda value: value.__name__)
def test_public_classes_have_summaries_and_examples(value):
    assert ">>>" in value.__doc__
    assert value.__doc__.splitlines()[0].endswith(".")
    own = {name: method for name, method in vars(value).items() if inspect.isfunction(method)}
    for name, method in own.items():
        if not name.startswith("_") and method.__module__.startswith("sklconv"):
            assert method.__doc__, name


@pytest.mark.parametrize("value", PUBLIC_CLASSES, ids=lambda value: value.__name__)
def test_constructors_only_assign(value):
    if not issubclass(value, BaseEstimator) or value.__init__ is object.__init__:
        return
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(value.__init__))).body
    for statement in function.body:
        assert isinstance(statement, ast.Assign)
        assert isinstance(statement.value, ast.Name)
        (target,) = statement.targets
        assert target.attr == statement.value.id


# Imports --------------------------------------------------------------------------------------


def test_no_imports_go_in_circles():
    graph = {module: own_imports(module) for module in MODULES if module}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def rooms_from_the_top():
    """The rooms in the picture of them, each above those that it may import from."""
    if not CONTRIBUTING.exists():
        pytest.skip("the guide for contributors is not part of this distribution")
    picture = CONTRIBUTING.read_text().partition("```text\nsklconv/\n")[2].partition("```")[0]
    return re.findall(r"^  (\w+)(?:/|\.py) ", picture, re.MULTILINE)


def test_rooms_import_only_from_those_below_them():
    order = rooms_from_the_top()
    assert sorted(order) == sorted({room(module) for module in MODULES if module} | {"__main__"})
    upwards = {
        (module, other)
        for module in MODULES
        if module
        for other in own_imports(module)
        if other and order.index(room(other)) < order.index(room(module))
    }
    assert not upwards


def test_rooms_are_not_crowded_and_say_what_they_are_for():
    files: dict = {}
    for module, path in MODULES.items():
        if "." in module:
            files.setdefault(room(module), []).append(path)
    assert len(files) >= 8
    for name, inside in files.items():
        assert len(inside) <= {"layers": 12, "inspection": 14}.get(name, 8), name
        assert ast.get_docstring(parse(name)), name


def test_no_file_imports_from_the_packages_front():
    for module in filter(None, MODULES):
        names = {name for source, name in imports_of(module) if source == "sklconv"}
        assert names <= {room(other) for other in MODULES}, module


def test_skorch_is_imported_in_one_file():
    importers = [
        module
        for module in MODULES
        if any(source.partition(".")[0] == "skorch" for source, _ in imports_of(module))
    ]
    assert importers == ["_training.net"]


def test_private_names_of_scikit_learn_are_imported_in_one_file():
    importers = set()
    for module in MODULES:
        for source, name in imports_of(module):
            parts = [*source.split("."), *([name] if name else [])]
            if parts[0] == "sklearn" and any(part.startswith("_") for part in parts):
                importers.add(module)
        text = MODULES[module].read_text()
        if re.search(
            r"\bsklearn(\.\w+)*\._\w", re.sub(r"^\s*(from|import) .*", "", text, flags=re.M)
        ):
            importers.add(module)
    assert importers == {"_platform.sklearn"}


@pytest.mark.parametrize("module", MODULES)
def test_optional_packages_are_not_imported_at_the_top(module):
    tree = parse(module)
    top = {
        alias.name.partition(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        (node.module or "").partition(".")[0]
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert not top & OPTIONAL


def run_python(*arguments):
    """Run this package, and not another one that is installed, in a new process."""
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path.strip(os.pathsep)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_public_names_load_no_optional_package():
    # scikit-learn itself loads pandas where it is installed.
    code = (
        "import sys, sklearn, skorch, torch; before = set(sys.modules)\n"
        "from sklconv import *\n"
        "assert ConvNetClassifier\n"
        "assert inspection.FiltersDisplay\n"
        "print(*(set(sys.modules) - before))"
    )
    result = run_python("-W", "error", "-c", code)  # an import that warns fails
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert "sklconv" in loaded
    assert "tqdm.notebook" not in loaded
    assert not {name.partition(".")[0] for name in loaded} & OPTIONAL


# Lazy imports: what takes seconds to load is loaded when it is used -----------------------------

SLOW = {"joblib", "matplotlib", "numpy", "scipy", "skorch", "sklearn", "torch", "tqdm"}


def imported(*arguments):
    """The exit code of a new process, and the packages that it has imported."""
    result = run_python("-X", "importtime", *arguments)
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    assert lines
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    return result.returncode, names


def test_importing_the_package_loads_nothing_slow():
    code, names = imported("-c", "import sklconv; sklconv.__version__; dir(sklconv)")
    assert code == 0
    assert "sklconv" in names
    assert not names & SLOW


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["--help"], 0),
        (["extract", "--help"], 0),
        (["layers", "--help"], 0),
        (["--version"], 0),
        ([], 2),
        (["extract", "photos", "--nonsense"], 2),
    ],
)
def test_help_and_usage_errors_load_nothing_slow(arguments, exit_code):
    code, names = imported("-m", "sklconv", *arguments)
    assert code == exit_code
    assert "argparse" in names
    assert not names & SLOW


def test_the_package_tells_its_names():
    assert set(dir(sklconv)) == {*sklconv.__all__, "__version__"}
    found: dict = {}
    exec("from sklconv import *", found)
    assert set(sklconv.__all__) <= set(found)
    text = pydoc.plain(pydoc.render_doc(sklconv))
    for name in ("class ConvNetClassifier", "class Backbone", "layers", "datasets"):
        assert name in text


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="module 'sklconv' has no attribute 'ConvNet'"):
        sklconv.ConvNet  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'ConvNet'"):
        exec("from sklconv import ConvNet")


@pytest.mark.parametrize("name", sklconv.__all__)
def test_names_are_what_type_checkers_take_them_for(name):
    """What is imported for type checkers alone is what comes when the name is used."""
    (block,) = (
        node
        for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    sources = {alias.name: node.module for node in block.body for alias in node.names}
    assert set(sources) == set(sklconv.__all__)
    home = "sklconv" if sources[name] is None else f"sklconv.{sources[name]}"
    expected = getattr(importlib.import_module(home), name)
    assert getattr(sklconv, name) is expected
    if inspect.isclass(expected):
        assert pickle.loads(pickle.dumps(expected)) is expected


@pytest.mark.parametrize("value", PUBLIC_CLASSES, ids=lambda value: value.__name__)
def test_public_objects_say_where_they_are_imported_from(value):
    assert getattr(importlib.import_module(value.__module__), value.__name__) is value
    assert value.__module__ in PUBLIC_MODULES
    assert pickle.loads(pickle.dumps(value)) is value
    own = {name: method for name, method in vars(value).items() if inspect.isfunction(method)}
    for name, method in own.items():
        assert f"def {name}" in inspect.getsource(method)


def docstrings_with_examples(module):
    parents = [("", parse(module))]
    for path, node in parents:
        if ">>>" in (ast.get_docstring(node) or ""):
            yield path
        parents += [
            (f"{path}.{child.name}".strip("."), child)
            for child in node.body
            if isinstance(child, (ast.ClassDef, ast.FunctionDef))
        ]


def test_all_examples_in_docstrings_are_collected():
    result = run_python(
        "-m",
        "pytest",
        *("-c", os.devnull, "-p", "no:cacheprovider"),
        *("--doctest-modules", "--collect-only", "-q", str(PACKAGE)),
    )
    collected = re.findall(
        r"^\S+::\S*?\.([A-Z]\w*|load_\w+|to_onnx)$", result.stdout, re.MULTILINE
    )
    expected = [name for module in MODULES for name in docstrings_with_examples(module)]
    assert len(expected) >= 15
    assert sorted(collected) == sorted(expected)
