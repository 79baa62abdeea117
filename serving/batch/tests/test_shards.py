"""Runs that are stopped, shared and gone on with end in the bytes of an undisturbed run."""

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from common.folders import find_pictures
from serving.batch import run, tables
from serving.batch.merge import meta_path
from serving.batch.plan import run_folder
from serving.batch.tests.batch_runs import OFTEN, SLOWLY, fill, kept, run_of, undisturbed, wait_until

# Not getrusage: that counts the process which started this one, too.
PEAK = (
    "import atexit, sys; atexit.register(lambda: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0],"
    " file=sys.stderr))"
)


@pytest.mark.parametrize(("form", "numbers"), [("csv", (1, 4)), ("ascii", (3,))])
def test_any_number_of_shards_gives_the_same_bytes(pictures, call, caplog, form, numbers):
    expected = undisturbed(pictures, "--format", form)
    assert expected.count(b"\n") > 550
    for shards in numbers:
        for shard in reversed(range(shards)):
            assert not call.output.exists()
            assert call(pictures, "--format", form, "--shards", shards, "--shard", shard) == 0
        assert call.output.read_bytes() == expected
        assert {path.name for path in call.output.parent.iterdir()} == {"out.csv", "out.csv.meta.json"}
        meta = json.loads(meta_path(call.output).read_text())
        assert meta["shards"] == shards
        assert meta["counts"] == {"ok": 593, "rejected": 0, "error": 7}
        assert ("s of all shards: 593 ok" in caplog.text) == (shards > 1)
        caplog.clear()
        call.output.unlink()


@pytest.mark.slow
def test_shards_and_twins_at_once(pictures, call, launch):
    """Two shards as processes, each of them twice, as when a node was cut off and its pods were started anew."""
    arguments = ["--input", pictures, "--output", call.output, "--run", "one", "--shards", 2, "--processes", 1]
    started = [launch([*arguments, "--shard", shard], OFTEN) for shard in range(2) for _ in range(2)]
    for process in started:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    assert call.output.read_bytes() == undisturbed(pictures)
    assert {path.name for path in call.output.parent.iterdir()} == {"out.csv", "out.csv.meta.json"}


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
        first = run_of(call.output).plan.cuts[shard].pictures
        for path in order[first + before : first + kept(call.output, shard)]:
            Path(path).unlink()
            Path(path).write_bytes(b"damaged")
    for shard in range(shards):
        assert call(folder, "--run", "one", "--shards", shards, "--shard", shard) == 0


def test_a_run_that_is_killed_at_random_goes_on(tmp_path, images, call, launch):
    folder = fill(tmp_path / "pictures", images, 1000)
    expected = undisturbed(folder)
    kill_and_go_on(folder, call, launch, 2, random.Random(1))
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shards", "3"], "shards 2 there and 3 here"),
        (["--shards", "2", "--alphabet", "digits"], "alphabet 'alnum' there and 'digits' here"),
        (["--shards", "2", "--format", "ascii"], "format 'csv' there and 'ascii' here"),
        (["--shards", "2", "--min-confidence", "0.5"], "min_confidence 0.0 there and 0.5 here"),
    ],
)
def test_a_run_of_other_settings_is_refused(small, call, caplog, arguments, message):
    assert call(small, "--shards", 2) == 0
    assert call(small, "--shard", 1, *arguments) == 2
    assert message in caplog.text
    assert "finish it with the same settings, or delete it" in caplog.text
    assert call(small, "--shards", 2, "--shard", 1) == 0


def test_a_marker_of_another_run_is_refused(small, call, caplog):
    for name in ("one", "two"):
        assert call(small, "--run", name, "--shards", 2) == 0
    one, two = (run_folder(call.output, name) / "shard-0-done.json" for name in ("one", "two"))
    shutil.copy(one, two)
    assert call(small, "--run", "two", "--shards", 2) == 2
    assert f"shard-0-done.json belongs to another plan; delete {two.parent} to begin anew" in caplog.text
    assert f"other runs of {call.output} are unfinished, delete what is not wanted: {one.parent.name}" in caplog.text
    assert one.exists()


def test_a_run_that_other_versions_began_is_refused(small, call, monkeypatch, caplog):
    assert call(small, "--run", "one", "--shards", 2) == 0
    with monkeypatch.context() as patch:
        patch.setattr(run.cv2, "__version__", "0.0")
        assert call(small, "--run", "one", "--shards", 2, "--shard", 1) == 2
    assert "has other settings: versions " in caplog.text
    assert call(small, "--run", "one", "--shards", 2, "--shard", 1) == 0


def test_what_is_no_run_is_not_named(small, call, caplog):
    run_folder(call.output, "a file").touch()
    run_folder(call.output, "an empty folder").mkdir()
    assert call(small) == 0
    assert "other runs" not in caplog.text


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
