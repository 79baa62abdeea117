"""What the tests of the batch program's runs share."""

import csv
import io
import logging
import os
import sys
import time
from tempfile import TemporaryFile

import pytest

from serving.batch import __main__ as batch
from serving.batch.__main__ import DONE
from serving.batch.blocks import Store
from serving.batch.manifest import read_manifest
from serving.batch.tables import Row

# Statements that run before the program: blocks are small; each file takes 5 ms to read, so that a test can step in.
SLOWLY = (
    "serving.batch.manifest.BLOCK_ROWS = 64; import time; read_file = serving.batch.decoding.read_file;"
    " serving.batch.decoding.read_file = lambda *arguments, **options: time.sleep(0.005) or read_file(*arguments,"
    " **options)"
)


def fill(folder, images, count):
    """Link `images` into a tree of `count` pictures, a few of them damaged."""
    for number in range(count):
        path = folder / f"box{number % 7}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 97 == 5:
            path.write_bytes(b"junk")
        else:
            os.link(images[number % len(images)], path)
    return folder


def unlistable(folder):
    """Make sub-folders in `folder` the last of which nobody can list, not even root: its path is too long for the
    system.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(22):
        os.mkdir("d" * 200, dir_fd=descriptor)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)


def printed(*arguments, expect=DONE):
    """Run the program here: the bytes of its standard output, and the text of its standard error."""
    with TemporaryFile("w+b") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(stream))
        patch.setattr(sys, "stderr", io.StringIO())
        # Pytest's, beside which the program would set up none of its own.
        patch.setattr(logging.getLogger(), "handlers", [])
        assert batch.main([*map(str, arguments)]) == expect, sys.stderr.getvalue()
        stream.seek(0)
        return stream.read(), sys.stderr.getvalue()


def undisturbed(folder, *arguments):
    """The bytes of a run to standard output, which keeps no state."""
    return printed("--input", folder, *arguments)[0]


def store_of(output):
    """The store of the only run that is to write `output`; None if there is none yet."""
    for folder in output.parent.glob(f"{output.name}.run-*"):
        if manifest := read_manifest(folder):
            return Store(output, manifest)
    return None


def kept(output, shard=0):
    """How many pictures of a shard are kept."""
    store = store_of(output)
    return store.pictures_kept(store.manifest.blocks(shard)) if store else 0


def names(folder):
    return {path.name for path in folder.iterdir()}


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def run(*arguments, expect=DONE):
    """Run the program here: its standard output and its standard error."""
    stdout, stderr = printed(*arguments, expect=expect)
    assert "Traceback" not in stderr
    return stdout.decode(), stderr


def parse(text):
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert tuple(rows[0]) == Row._fields
    return rows[1:]
