"""Runs that are stopped, shared and gone on with end in the bytes of an undisturbed run."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from common.folders import find_pictures
from serving.batch import tables
from serving.batch.result import meta_path
from serving.batch.tests.batch_runs import SLOWLY, fill, kept, names, store_of, undisturbed, wait_until

# Not getrusage: that counts the process which started this one, too.
PEAK = (
    "import atexit, sys; atexit.register(lambda: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0],"
    " file=sys.stderr))"
)


@pytest.mark.parametrize(("form", "numbers"), [("csv", (1, 3)), ("ascii", (2,))])
def test_any_number_of_shards_gives_the_same_bytes(small, call, caplog, form, numbers):
    expected = undisturbed(small, "--format", form)
    assert expected.count(b"\n") > 250
    for shards in numbers:
        for shard in reversed(range(shards)):
            assert not call.output.exists()
            assert call(small, "--format", form, "--shards", shards, "--shard", shard) == 0
        assert call.output.read_bytes() == expected
        assert names(call.output.parent) == {"out.csv", "out.csv.meta.json"}
        meta = json.loads(meta_path(call.output).read_text())
        assert meta["shards"] == shards
        assert meta["counts"] == {"ok": 253, "rejected": 0, "error": 3}
        assert ("s of all shards: 253 ok" in caplog.text) == (shards > 1)
        caplog.clear()
        call.output.unlink()


def kill_and_go_on(folder, call, launch, kills, chance, shards=1):
    """Kill the shards at random, and damage the pictures that are kept before they go on: if one is scored again, its
    row shows it.
    """
    order = list(find_pictures(folder))
    arguments = ["--input", folder, "--output", call.output, "--run", "one", "--shards", shards]
    goals = sorted((chance.uniform(0, 0.8), chance.randrange(shards)) for _ in range(kills))
    for share, shard in goals:
        before = kept(call.output, shard)
        process = launch([*arguments, "--shard", shard], SLOWLY)
        goal = max(share * len(order) / shards, before + 1)
        wait_until(lambda shard=shard, goal=goal: kept(call.output, shard) >= goal, process)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        _, stderr = process.communicate(timeout=30)
        assert process.returncode in {1, -signal.SIGKILL}
        assert (f"going on after {before:,} of " in stderr) == (before > 0)
        assert not call.output.exists()
        store = store_of(call.output)
        first = store.manifest.pictures_in(range(store.manifest.blocks(shard).start))
        for path in order[first + before : first + kept(call.output, shard)]:
            Path(path).unlink()
            Path(path).write_bytes(b"damaged")
    for shard in range(shards):
        assert call(folder, "--run", "one", "--shards", shards, "--shard", shard) == 0


def test_a_process_that_is_killed_at_random_goes_on(small, call, launch):
    expected = undisturbed(small)
    kill_and_go_on(small, call, launch, 1, random.Random(1))
    assert call.output.read_bytes() == expected


@pytest.mark.slow
def test_four_shards_of_20000_pictures_and_ten_kills(tmp_path, images, call, launch):
    folder = fill(tmp_path / "pictures", images, 20_000)
    expected = undisturbed(folder)
    kill_and_go_on(folder, call, launch, 10, random.Random(2), shards=4)
    assert call.output.read_bytes() == expected


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pictures(tmp_path, images, call, launch):
    """Of the program itself, whose decoders are processes of their own. Nine of ten files are damaged, which is
    quick.
    """
    damaged = [tmp_path / f"{number}.bin" for number in range(9 * len(images))]
    for path in damaged:
        path.write_bytes(b"junk")
    peaks = {}
    for count in (20_000, 200_000):
        folder = fill(tmp_path / str(count), images + damaged, count)
        for name, output in (("file", ["--output", call.output]), ("standard output", [])):
            with launch(["--input", folder, *output], PEAK, stdout=subprocess.DEVNULL) as process:
                _, stderr = process.communicate(timeout=900)
            assert process.returncode == 0, stderr
            peaks[name, count] = int(stderr.rsplit(maxsplit=1)[-1]) / 1024
        assert call.output.read_bytes().count(b"\n") == count + 1
    print("peak memory in MiB:", peaks)
    for name in ("file", "standard output"):
        assert peaks[name, 200_000] < 1.2 * peaks[name, 20_000]


def test_kubernetes_tells_the_shard(small, call, monkeypatch, caplog):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert call(small, "--shards", 2) == 0
    (line,) = (record for record in caplog.records if "not yet" in record.message)
    assert line.message == f"shard 1 of 2 is complete; not yet: 0; whoever completes the last writes {call.output}"
    assert line.levelname == "WARNING"
    assert call(small, "--shards", 1) == 2
    assert call(small, "--shards", 2, "--shard", 0) == 0
    assert call.output.exists()


def test_progress_tells_of_all_shards(small, call, monkeypatch, caplog):
    monkeypatch.setattr(tables, "PROGRESS_S", 0.0)
    for shard in range(2):
        assert call(small, "--shards", 2, "--shard", shard) == 0
    assert "shard 1 of 2: 64 of 128 pictures, " in caplog.text
    assert "; all shards: 128 of 256" in caplog.text
