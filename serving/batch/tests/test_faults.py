"""Pictures, volumes, decoders and disks that vanish, hang or are full: a row or one clear line, and what was done is
kept.
"""

import csv
import errno
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from common.folders import find_pictures
from handlers.recognizer import Recognizer
from serving.batch import shards
from serving.batch.tests.batch_runs import OFTEN, PICTURES, SLOWLY, kept, parse, run, undisturbed, wait_until


@pytest.fixture
def long_run(tmp_path, emnist, launch):
    """A batch process that has kept some of its work, and the folder of its output, where an older CSV lies."""
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    output.mkdir()
    (output / "out.csv").write_text("the old one")
    image = np.asarray(Image.fromarray(emnist.images[0].numpy()).resize((700, 700)))
    Image.fromarray(image).save(source / "0.png")
    for copy in range(1, 3000):
        os.link(source / "0.png", source / f"{copy}.png")
    with launch(["--input", source, "--output", output / "out.csv"], OFTEN) as process:
        wait_until(lambda: kept(output / "out.csv"), process)
        yield process, output
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_the_result_alone_and_can_go_on(long_run, number):
    process, output = long_run
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert re.fullmatch(
        r"batch: interrupted after [0-9,]+ of 3,000 pictures; the same command goes on from there\n", stderr
    ), stderr
    (folder,) = output.glob("out.csv.run-*")
    assert (output / "out.csv").read_text() == "the old one"
    assert folder.is_dir()


def test_a_killed_decoder_is_one_clear_line(long_run):
    process, output = long_run
    decoders = [p for p in psutil.Process(process.pid).children(recursive=True) if not p.children()]
    max(decoders, key=lambda p: p.cpu_times().user).kill()
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert stderr.startswith(
        "batch: a decoding process was killed, perhaps for lack of memory (try --processes 1) after "
    )
    assert stderr.count("\n") == 1
    assert (output / "out.csv").read_text() == "the old one"


def test_decoders_that_hang_are_not_waited_for(pictures, call, launch):
    with launch(
        ["--input", pictures, "--output", call.output], f"{SLOWLY}; serving.batch.decoding.CHUNK_TIMEOUT_S = 3"
    ) as hanging:
        wait_until(lambda: kept(call.output), hanging)
        decoders = psutil.Process(hanging.pid).children()
        for decoder in decoders:
            decoder.suspend()
        _, stderr = hanging.communicate(timeout=30)
    assert hanging.returncode == 1
    assert decoders
    assert stderr.splitlines()[-1].startswith("batch: no picture was decoded for 3 s after ")
    _, alive = psutil.wait_procs(decoders, timeout=10)
    assert not alive


def test_a_full_disk_behind_standard_output_is_one_clear_line(pictures):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "serving.batch", "--input", pictures],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == b"batch: No space left on device\n"


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


def test_a_folder_that_comes_and_goes(pictures, call, launch, tmp_path):
    """Away as a volume is: an empty mount point is left."""
    expected = undisturbed(pictures)
    process = launch(["--input", pictures, "--output", call.output], SLOWLY)
    wait_until(lambda: kept(call.output), process)
    pictures.rename(tmp_path / "away")
    pictures.mkdir()
    line = process.stderr.readline()
    assert f"{pictures} is empty or cannot be listed: waiting up to 60 s for it to come back" in line
    pictures.rmdir()
    (tmp_path / "away").rename(pictures)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0
    assert f"{pictures} is back" in stderr
    assert call.output.read_bytes() == expected


def test_a_folder_that_stays_away(pictures, call, launch, tmp_path):
    expected = undisturbed(pictures)
    process = launch(
        ["--input", pictures, "--output", call.output], f"{SLOWLY}; serving.batch.decoding.VOLUME_TIMEOUT_S = 1"
    )
    wait_until(lambda: kept(call.output), process)
    pictures.rename(tmp_path / "away")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    last = stderr.splitlines()[-1]
    assert last.startswith(f"batch: {pictures} did not come back within 1 s after ")
    assert last.endswith(" of 600 pictures; the same command goes on from there")
    (tmp_path / "away").rename(pictures)
    assert 0 < kept(call.output) < PICTURES
    assert call(pictures) == 0
    assert call.output.read_bytes() == expected


def test_rows_that_a_failed_sync_may_have_lost_are_not_counted(small, call, monkeypatch, caplog):
    """As NFS tells of a full volume: once, and the pages are gone."""
    calls = 0

    def fail_once(descriptor):
        nonlocal calls
        if "/shard-0-" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            calls += 1
            if calls == 2:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - 100)
                raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    fsync = os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(shards, "CHECKPOINT_S", 0.0)
        patch.setattr(os, "fsync", fail_once)
        assert call(small, "--run", "one") == 1
    assert "No space left on device after 64 of 256 pictures" in caplog.text
    assert call(small, "--run", "one") == 0
    assert "going on after 64 of 256 pictures" in caplog.text
    assert "damaged" not in caplog.text
    assert call.output.read_bytes() == undisturbed(small)


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


def test_closed_streams(tmp_path):
    program, output = f"{shlex.quote(sys.executable)} -m serving.batch", shlex.quote(f"{tmp_path}/out.csv")
    done = subprocess.run(["bash", "-c", f"{program} >&-"], capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == b"batch: standard output is closed; name a file with --output\n"
    done = subprocess.run(
        ["bash", "-c", f"{program} --output {output} 2>&-"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert len(parse((tmp_path / "out.csv").read_text())) == 13


DISK = """
set -e
batch() {{ {python} -m serving.batch --input {pictures} --run one --output {disk}/out.csv; }}
mount -t tmpfs -o size=56k none {disk}
batch && exit 50 || echo "exit $?" >&2
mount -o remount,ro {disk}
batch && exit 51 || echo "exit $?" >&2
mount -o remount,rw,size=1m {disk}
batch
cat {disk}/out.csv
"""


def test_a_full_disk_and_one_that_turned_read_only(small, tmp_path):
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    probe = subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", tmp_path], check=False, capture_output=True)
    if probe.returncode:
        pytest.skip("no mount namespaces here")
    (tmp_path / "disk").mkdir()
    script = DISK.format(
        python=shlex.quote(sys.executable), pictures=shlex.quote(str(small)), disk=shlex.quote(str(tmp_path / "disk"))
    )
    done = subprocess.run([*unshare, "bash", "-c", script], capture_output=True, timeout=120, check=False)
    stderr = done.stderr.decode()
    assert done.returncode == 0, stderr
    assert done.stdout == undisturbed(small)
    assert "No space left on device" in stderr
    assert "Read-only file system" in stderr
    assert stderr.count("exit 1\n") == 2
    assert stderr.count("of 256 pictures; the same command goes on from there\n") == 2
    assert "Traceback" not in stderr
