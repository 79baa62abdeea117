"""Imports point one way, training -> handlers <- serving, and importing does nothing."""

import ast
import subprocess
import sys

import pytest

FORBIDDEN = {"handlers": {"training", "serving"}, "training": {"serving"}, "serving": {"training"}}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(root, package):
    modules = [p for p in (root / package).rglob("*.py") if "tests" not in p.parts]
    assert modules
    for module in modules:
        roots = {name.partition(".")[0] for name in imports(module)}
        assert not roots & FORBIDDEN[package], module
        if module.name != "emnist_handler.py":
            assert "ts" not in roots, module


def test_importing_does_nothing(root, tmp_path):
    names = [f"{p.parent.name}.{p.stem}" for d in FORBIDDEN for p in (root / d).glob("*.py") if p.stem != "__init__"]
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
