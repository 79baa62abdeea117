"""Pictures, volumes, decoders and disks that vanish, hang or are full: a row or one clear line, and what was done is
kept.
"""

import contextlib
import csv
import multiprocessing
import os
import shlex
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from common.folders import find_pictures
from handlers.recognizer import Recognizer
from serving.batch import __main__ as batch
from serving.batch import decoding
from serving.batch.tests.batch_runs import kept, parse, run, undisturbed


@contextlib.contextmanager
def meanwhile(*steps):
    """Do each of `steps`, pairs of a condition and an action, as soon as its condition holds."""

    def work():
        for condition, action in steps:
            while not condition():
                if over.wait(0.01):
                    return
            action()
        done.append(True)

    over, done = threading.Event(), []
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert done, "a condition never held"


@pytest.fixture
def slow(small, call):
    """A run that a test can step in: each file takes 5 ms to read."""

    def slowly(*arguments, **options):
        time.sleep(0.005)
        return read_file(*arguments, **options)

    def run():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoding, "read_file", slowly)
            return call(small, "--processes", 1)

    read_file = decoding.read_file
    call.output.write_text("the old one")
    return run


def last_line(call, caplog):
    """What is said of a run that was stopped and can go on."""
    assert call.output.read_text() == "the old one"
    done = kept(call.output)
    assert 0 < done < 256
    end = f" after {done} of 256 pictures; the same command goes on from there"
    (line,) = (record.message for record in caplog.records if record.levelname == "ERROR")
    assert line.endswith(end)
    return line.removesuffix(end)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_the_result_alone_and_can_go_on(slow, small, call, caplog, number):
    with meanwhile((lambda: kept(call.output), lambda: os.kill(os.getpid(), number))):
        assert slow() == 1
    assert last_line(call, caplog) == "batch: interrupted"
    assert call(small) == 0


def test_a_killed_decoder_is_one_clear_line(slow, call, caplog):
    def kill_a_decoder():
        multiprocessing.active_children()[0].kill()

    with meanwhile((lambda: kept(call.output), kill_a_decoder)):
        assert slow() == 1
    expected = "batch: a decoding process was killed, perhaps for lack of memory (try --processes 1)"
    assert last_line(call, caplog) == expected


def test_decoders_that_hang_are_not_waited_for(slow, call, caplog, monkeypatch):
    def suspend():
        decoders.extend(psutil.Process(child.pid) for child in multiprocessing.active_children())
        for decoder in decoders:
            decoder.suspend()

    decoders = []
    monkeypatch.setattr(decoding, "CHUNK_TIMEOUT_S", 3)
    with meanwhile((lambda: kept(call.output), suspend)):
        assert slow() == 1
    assert last_line(call, caplog) == "batch: no picture was decoded for 3 s"
    assert decoders
    _, alive = psutil.wait_procs(decoders, timeout=10)
    assert not alive


def test_a_folder_that_comes_and_goes(slow, small, call, caplog, tmp_path, monkeypatch):
    """Away as a volume is: an empty mount point is left."""

    def leave():
        small.rename(tmp_path / "away")
        small.mkdir()

    def come_back():
        small.rmdir()
        (tmp_path / "away").rename(small)

    monkeypatch.setattr(decoding, "VOLUME_POLL_S", 0.1)
    expected = undisturbed(small)
    waiting = f"{small} is empty or cannot be listed: waiting up to 60 s for it to come back"
    with meanwhile((lambda: kept(call.output), leave), (lambda: waiting in caplog.text, come_back)):
        assert slow() == 0
    assert f"{small} is back" in caplog.text
    assert call.output.read_bytes() == expected


def test_a_folder_that_stays_away(slow, small, call, caplog, tmp_path, monkeypatch):
    expected = undisturbed(small)
    monkeypatch.setattr(decoding, "VOLUME_TIMEOUT_S", 1)
    monkeypatch.setattr(decoding, "VOLUME_POLL_S", 0.1)
    with meanwhile((lambda: kept(call.output), lambda: small.rename(tmp_path / "away"))):
        assert slow() == 1
    assert last_line(call, caplog) == f"batch: {small} did not come back within 1 s"
    (tmp_path / "away").rename(small)
    assert call(small) == 0
    assert call.output.read_bytes() == expected


def test_a_full_disk_behind_standard_output_is_one_clear_line(small, monkeypatch, caplog):
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=full))
        assert batch.main(["--input", str(small)]) == 1
    assert caplog.messages == ["batch: No space left on device"]


def test_a_picture_of_500_megapixels_is_a_row(tmp_path):
    def part(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = zlib.compressobj()
    pixels = b"".join(lines.compress(bytes(1 + 25_000 // 8)) for _ in range(20_000)) + lines.flush()
    head = struct.pack(">IIBBBBB", 25_000, 20_000, 1, 0, 0, 0, 0)
    (tmp_path / "huge.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", pixels) + part(b"IEND", b"")
    )
    assert (tmp_path / "huge.png").stat().st_size < 1_000_000
    (row,) = parse(run("--input", tmp_path)[0])
    assert row[4:] == ["error", "image_too_large: too many pixels; at most 64 million are read"]


def test_a_picture_that_vanishes_is_a_row(small, call):
    same = ["--run", "one", "--shards", 2, "--shard"]
    assert call(small, *same, 0) == 0
    gone = list(find_pictures(small))[-1]
    Path(gone).unlink()
    assert call(small, *same, 1) == 0
    *_, last = csv.reader(call.output.read_text().splitlines())
    assert last == [gone, "", "", "", "error", "unreadable: No such file or directory"]


TORCHSCRIPT = (
    "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript:\nRuntimeError: can't"
    " allocate memory\n"
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "MemoryError"),
        (RuntimeError("can't start new thread"), "RuntimeError: can't start new thread"),
        (RuntimeError(TORCHSCRIPT), "RuntimeError: can't allocate memory"),
    ],
)
def test_memory_that_runs_out_is_one_clear_line(small, call, monkeypatch, caplog, error, line):
    def fail(*_):
        raise error

    monkeypatch.setattr(Recognizer, "probabilities", fail)
    assert call(small) == 1
    assert caplog.messages[-1] == f"batch: {line} after 0 of 256 pictures; the same command goes on from there"


def test_a_signal_after_the_result_changes_nothing(small, call, monkeypatch):
    def interrupted(pool, *arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        shutdown(pool, *arguments, **options)

    shutdown = ProcessPoolExecutor.shutdown
    monkeypatch.setattr(ProcessPoolExecutor, "shutdown", interrupted)
    assert call(small) == 0


def test_closed_streams(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys, "stdout", None)
    assert batch.main([]) == 2
    assert caplog.messages == ["batch: standard output is closed; name a file with --output"]
    command = f"{shlex.quote(sys.executable)} -m serving.batch --output {shlex.quote(f'{tmp_path}/out.csv')} 2>&-"
    assert subprocess.run(["bash", "-c", command], timeout=60, check=False).returncode == 0
    assert len(parse((tmp_path / "out.csv").read_text())) == 13
