"""One service of the committed model for all tests of this folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving.local import running
from serving.package import package


@pytest.fixture(scope="session")
def mar(tmp_path_factory, model_path) -> Path:
    path = tmp_path_factory.mktemp("mar") / "emnist.mar"
    package(model_path, path)
    return path


@pytest.fixture(scope="session")
def server(mar):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TS_ENABLE_MODEL_API", "true")  # so that a test can add a model; it is off in the product
        with running(mar) as server:
            yield server


@pytest.fixture(scope="session")
def launch():
    """A function that starts the batch program as a process of its own, with statements run before it, as to shorten a time limit."""

    def start(arguments, before="", **options):
        modules = "serving.pictures, serving.rows, serving.shards"
        program = f"import runpy, {modules}; {before or 'pass'}; runpy.run_module('serving.batch', run_name='__main__')"
        return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stderr=subprocess.PIPE, text=True, **options)

    return start
