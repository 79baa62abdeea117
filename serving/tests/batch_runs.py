"""What the tests of the batch program's runs share."""

import csv
import io
import os
import subprocess
import sys
import time
from tempfile import TemporaryFile

import pytest

from serving import batch
from serving.batch import DONE
from serving.plan import read_plan
from serving.report import Row
from serving.shards import Run

PICTURES = 1000  # of the fixture `pictures`
OFTEN = "serving.shards.CHECKPOINT_S = 0.05"


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


def undisturbed(folder, *arguments):
    """The bytes of a run to standard output, which keeps no state."""
    with TemporaryFile("w+b") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(stream))
        assert batch.main(["--input", str(folder), *arguments]) == 0
        stream.seek(0)
        return stream.read()


def run_of(output):
    (folder,) = output.parent.glob(f"{output.name}.run-*")
    return Run(output, read_plan(folder))


def kept(output, shard=0):
    """How many pictures of a shard are kept."""
    try:
        return run_of(output).done(shard)
    except (ValueError, AttributeError):  # no folder, or no plan yet
        return 0


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def run(*arguments, expect=DONE):
    command = [sys.executable, "-m", "serving.batch", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == expect, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done.stdout.decode(), done.stderr.decode()


def parse(text):
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert tuple(rows[0]) == Row._fields
    return rows[1:]
