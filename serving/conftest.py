"""Folders of pictures for the batch program, and how it is run."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from serving.batch import __main__ as batch
from serving.batch import manifest
from serving.batch.decoding import CHUNK
from serving.batch.tests.batch_runs import fill
from serving.local import running


@pytest.fixture(scope="session")
def launch():
    """A function that starts the batch program as a process of its own, with statements run before it, as to shorten a
    time limit.
    """

    def start(arguments, before="", **options):
        modules = "serving.batch.decoding, serving.batch.manifest"
        program = (
            f"import runpy, {modules}; {before or 'pass'}; runpy.run_module('serving.batch.__main__',"
            " run_name='__main__')"
        )
        return subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)], stderr=subprocess.PIPE, text=True, **options
        )

    return start


ONE_WORKER = {"TS_DEFAULT_WORKERS_PER_MODEL": "1"}


@pytest.fixture
def one_worker(monkeypatch):
    """The services that the test starts have one worker, which is there sooner than two."""
    for name, value in ONE_WORKER.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def tight(mar, tmp_path_factory):
    """A service with few places, which logs every request; its log is the file `log`."""
    settings = {"LOG_LEVEL": "info", "MAX_IN_FLIGHT": "2", "MAX_STREAMED_IN_FLIGHT": "1", "MAX_QUEUE": "1"} | ONE_WORKER
    path = tmp_path_factory.mktemp("tight") / "log"
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(path.open("wb"))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            server = stack.enter_context(running(mar, log=log))
        yield SimpleNamespace(server=server, log=path)


@pytest.fixture(scope="module")
def images(tmp_path_factory, emnist):
    """Some hundred different pictures."""
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(emnist.images.numpy()):
        Image.fromarray(image).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def small(tmp_path, images):
    return fill(tmp_path / "small", images, 4 * CHUNK)


@pytest.fixture
def call(tmp_path, caplog, monkeypatch):
    """A function that runs the program here, with small blocks; `output` is its result's path."""
    monkeypatch.setattr(manifest, "BLOCK_ROWS", CHUNK)
    caplog.set_level("INFO")
    output = tmp_path / "out" / "out.csv"
    output.parent.mkdir()

    def run(folder, *arguments):
        return batch.main(["--input", str(folder), "--output", str(output), *map(str, arguments)])

    run.output = output
    return run
