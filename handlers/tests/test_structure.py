"""Imports point one way, training -> handlers <- serving, never in a circle, and importing does nothing."""

import ast
import graphlib
import subprocess
import sys

import pytest

# What the modules of a folder may import of ours: the deepest entry that holds them counts, each names what it may use
# beside itself.
MAY_IMPORT = {
    "common": (),
    "handlers": (),
    "handlers.pictures": (),
    "handlers.protocols": ("handlers.pictures", "handlers.recognizer", "handlers.alphabets"),
    "training": ("handlers", "common"),
    "training.data": ("training.settings", "handlers", "common"),
    "training.degrade": ("training.data", "handlers", "common"),
    "training.evaluation": ("training.data", "training.degrade", "handlers", "common"),
    "serving": ("handlers", "common"),
    "serving.service": ("serving.keys", "common"),
    "serving.batch": ("serving.package", "handlers", "common"),
    "serving.client": ("serving.batch.tables", "serving.keys", "handlers.alphabets", "common"),
    "serving.web": ("serving.keys", "common"),
    "benchmarks": ("training", "serving", "handlers", "common"),
    "load_tests": (),
}
OURS = {name.partition(".")[0] for name in MAY_IMPORT}
# What only these import from elsewhere.
ALONE = {
    "ts": ("handlers.emnist_handler",),
    "cv2": ("handlers.pictures", "handlers.emnist_handler", "training", "serving.batch", "benchmarks"),
}


def within(module, folders):
    return any(module == folder or module.startswith(folder + ".") for folder in folders)


def imports(path, modules):
    """The names of all modules that a file imports, whatever the form of the import."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in inner)


@pytest.fixture(scope="module")
def graph(root):
    """{module: the modules that it imports}, of all that is ours, without the tests."""
    paths = {}
    for folder in OURS:
        for path in (root / folder).rglob("*.py"):
            if "tests" not in path.parts and path.name != "conftest.py":
                parts = path.relative_to(root).with_suffix("").parts
                paths[".".join(parts).removesuffix(".__init__")] = path
    assert len(paths) > 90
    return {module: set(imports(path, paths)) for module, path in paths.items()}


def test_imports_point_one_way(graph):
    wrong = []
    for module, imported in graph.items():
        folder = max((name for name in MAY_IMPORT if within(module, [name])), key=len)
        allowed = (folder, *MAY_IMPORT[folder])
        wrong += [(module, name) for name in imported if name.partition(".")[0] in OURS and not within(name, allowed)]
    assert not wrong


def test_nothing_is_imported_in_a_circle(graph):
    # A package names what its modules offer; they import one another, not it.
    modules = {module: {name for name in imported if name in graph} - {module} for module, imported in graph.items()}
    graphlib.TopologicalSorter(modules).prepare()


@pytest.mark.parametrize("library", ALONE)
def test_a_library_stays_where_it_belongs(graph, library):
    users = {
        module for module, imported in graph.items() if within(library, {name.partition(".")[0] for name in imported})
    }
    assert users
    assert {module for module in users if not within(module, ALONE[library])} == set()


def test_importing_does_nothing(graph, root, tmp_path):
    packages = ["common", "handlers", "serving", "training"]
    names = sorted(name for name in graph if within(name, packages) and name != "training.reports.__main__")
    code = f"""
import importlib, logging, sys
sys.path.insert(0, {str(root)!r})
for name in {names!r}:
    importlib.import_module(name)
assert not logging.getLogger().handlers, "a logger was configured"
assert "torchvision" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
