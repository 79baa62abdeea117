"""Runs that are stopped, shared, disturbed and gone on with end in the bytes of an undisturbed run."""

import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from PIL import Image

from serving import batch, rows
from serving.pictures import CHUNK, find_pictures
from serving.plan import Listing, read_listing, read_plan, run_folder, write_listing
from serving.rows import csv_bytes
from serving.shards import DamagedShard, Run, meta_path

PICTURES = 1000
OFTEN = "serving.shards.CHECKPOINT_S = 0.05"


@pytest.fixture(scope="module")
def images(tmp_path_factory, emnist):
    """Some hundred different pictures."""
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(emnist.images.numpy()):
        Image.fromarray(image).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


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


@pytest.fixture
def pictures(tmp_path, images):
    return fill(tmp_path / "pictures", images, PICTURES)


@pytest.fixture
def small(tmp_path, images):
    return fill(tmp_path / "small", images, 4 * CHUNK)


@pytest.fixture
def call(tmp_path, caplog):
    """A function that runs the program here; `output` is its result's path."""
    caplog.set_level("INFO")
    output = tmp_path / "out" / "out.csv"
    output.parent.mkdir()

    def run(folder, *arguments):
        return batch.main(["--input", str(folder), "--output", str(output), *map(str, arguments)])

    run.output = output
    return run


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


def test_the_listing_is_in_the_order_of_the_whole_paths(tmp_path):
    names = ["box.png", "box-1.png", "box!.png", "box0.png", "box/2.png", "box/1/a.png", "box/1.png", "box/1-.png", 'a b,"c".png', "new\nline.png"]
    names += ["é.png", "\U0001f600.png", "\uffff.png", "z/\U0001f600/1.png", "z/\uff5e/1.PNG", "Z.Jpg", "z/lost+found/1.png"]
    for name in [*names, "lost+found/not.png", "notes.txt", "box.png.d/x.png", "real/1.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).touch()
    (tmp_path / "linked.png").symlink_to(tmp_path / "real")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    (tmp_path / "circle").symlink_to(tmp_path)
    walked = [f"{parent}/{name}" for parent, _, files in os.walk(tmp_path) for name in files if name.lower().endswith((".png", ".jpg"))]
    expected = sorted(path for path in walked if not path.startswith(f"{tmp_path}/lost+found/"))
    assert len(expected) == len(names) + 4
    assert list(find_pictures(tmp_path)) == expected
    with (tmp_path / "listing").open("w+b") as stream:
        listing = write_listing(tmp_path, stream)
    first, last = listing.cuts(1)
    assert list(read_listing(tmp_path / "listing", first, last)) == expected


def test_a_folder_that_vanishes_while_it_is_listed_is_passed_over(tmp_path, caplog):
    for name in ("a/1.png", "b/1.png", "c/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    found = find_pictures(tmp_path)
    assert next(found) == f"{tmp_path}/a/1.png"
    shutil.rmtree(tmp_path / "b")
    assert list(found) == [f"{tmp_path}/c/1.png"]
    assert f"{tmp_path}/b/ was removed" in caplog.text
    found = find_pictures(tmp_path)
    next(found)
    shutil.rmtree(tmp_path)
    with pytest.raises(OSError, match=r"c/"):
        list(found)


def test_cuts_lie_between_chunks_and_share_the_cost():
    """The last tenth of the chunks is as dear as all before it."""
    costs = [0]
    for chunk in range(1000):
        costs.append(costs[-1] + (9 if chunk >= 900 else 1))
    listing = Listing("", "", 1000 * CHUNK - 3, [10 * chunk for chunk in range(1001)], costs)
    assert [cut.pictures // CHUNK for cut in listing.cuts(2)] == [0, 900, 999]
    for shards in (1, 3, 7, 64):
        cuts = listing.cuts(shards)
        assert cuts[0] == (0, 0)
        assert cuts[-1] == (1000 * CHUNK - 3, 10_000)
        assert all(cut.pictures % CHUNK == 0 and cut.bytes == 10 * cut.pictures // CHUNK for cut in cuts[:-1])
        shares = [costs[b.bytes // 10] - costs[a.bytes // 10] for a, b in pairwise(cuts)]
        assert max(shares) - min(shares) <= 18


@pytest.mark.parametrize(("form", "numbers"), [("csv", (1, 2, 4)), ("ascii", (3,))])
def test_any_number_of_shards_gives_the_same_bytes(pictures, call, form, numbers):
    expected = undisturbed(pictures, "--format", form)
    assert expected.count(b"\n") > 900
    for shards in numbers:
        for shard in reversed(range(shards)):
            assert not call.output.exists()
            assert call(pictures, "--format", form, "--shards", shards, "--shard", shard) == 0
        assert call.output.read_bytes() == expected
        assert {path.name for path in call.output.parent.iterdir()} == {"out.csv", "out.csv.meta.json"}
        meta = json.loads(meta_path(call.output).read_text())
        assert meta["shards"] == shards
        assert meta["counts"] == {"ok": 989, "rejected": 0, "error": 11}
        call.output.unlink()


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
    """Kill the shards at random, and damage the pictures that are kept before they go on: if one is scored again, its row shows it."""
    order = list(find_pictures(folder))
    arguments = ["--input", folder, "--output", call.output, "--run", "one", "--shards", shards]
    goals = sorted((chance.uniform(0, 0.8), chance.randrange(shards)) for _ in range(kills))
    for share, shard in goals:
        before = kept(call.output, shard)
        process = launch([*arguments, "--shard", shard], OFTEN)
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
    folder = fill(tmp_path / "pictures", images, 3000)
    expected = undisturbed(folder)
    kill_and_go_on(folder, call, launch, 3, random.Random(1))
    assert call.output.read_bytes() == expected


@pytest.mark.slow
def test_four_shards_of_20000_pictures_and_ten_kills(tmp_path, images, call, launch):
    folder = fill(tmp_path / "pictures", images, 20_000)
    expected = undisturbed(folder)
    kill_and_go_on(folder, call, launch, 10, random.Random(2), shards=4)
    assert call.output.read_bytes() == expected


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pictures(tmp_path, images, call, launch):
    """Of the program itself, whose decoders are processes of their own. Nine of ten files are damaged, which is quick."""
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


# Not getrusage: that counts the process which started this one, too.
PEAK = "import atexit, sys; atexit.register(lambda: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr))"


@pytest.fixture
def almost_merged(small, call, monkeypatch):
    """A run of two complete shards, stopped right before the merge; returns its folder and the bytes to come."""

    def stop(*_):
        raise KeyboardInterrupt

    assert call(small, "--shards", 2, "--run", "one", "--shard", 0) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Run, "merge", stop)
        assert call(small, "--shards", 2, "--run", "one", "--shard", 1) == 1
    return run_folder(call.output, "one"), undisturbed(small)


def test_many_that_merge_at_once(almost_merged, call, tmp_path):
    folder, expected = almost_merged
    shutil.copytree(folder, tmp_path / "copy")
    call.output.write_text("an earlier one")
    failures = []

    def merge(run):
        try:
            run.merge(csv_bytes([rows.Row._fields]), True, lambda counts, seconds: {"counts": counts, "seconds": seconds})
        except (OSError, DamagedShard) as error:
            if not run.is_merged():
                failures.append(error)

    for _ in range(20):
        plan = read_plan(folder)
        threads = [threading.Thread(target=merge, args=[Run(call.output, plan)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert call.output.read_bytes() == expected
        assert [path.read_text() for path in call.output.parent.glob("out.2*.csv")] == ["an earlier one"]
        assert not folder.exists()
        shutil.copytree(tmp_path / "copy", folder)
        meta_path(call.output).unlink()


def merge_until(last, output, folder):
    """Merge in this process, which ends at the `last`th change of a name."""
    plan = read_plan(folder)

    def count(event, _):
        nonlocal last
        if event in {"os.rename", "os.remove", "os.rmdir"}:
            last -= 1
            if last == 0:
                os._exit(1)

    sys.addaudithook(count)
    Run(output, plan).merge(rows.header("csv"), True, lambda *_: plan.settings | {"pictures": plan.pictures})
    os._exit(0)


def test_a_merge_that_is_killed_anywhere_is_merged_again(almost_merged, call, small, tmp_path):
    """Every change of a name on the way to the result is once the last that happens."""
    folder, expected = almost_merged
    shutil.copytree(folder, tmp_path / "copy")
    for last in range(1, 30):
        shutil.rmtree(call.output.parent)
        shutil.copytree(tmp_path / "copy", folder)
        call.output.write_text("an earlier one")
        meta_path(call.output).write_text("{}")
        if (child := os.fork()) == 0:
            merge_until(last, call.output, folder)
        _, status = os.waitpid(child, 0)
        assert call(small, "--shards", 2, "--run", "one", "--shard", 0, "--keep-old") == 0
        assert call.output.read_bytes() == expected
        assert [path.read_text() for path in call.output.parent.glob("out.2*.csv")] == ["an earlier one"]
        assert not folder.exists()
        if status == 0:
            break
    assert last > 10


def test_a_merged_run_is_not_run_again(small, call, caplog):
    same = ["--run", "one", "--shards", 2]
    assert [call(small, *same, "--shard", shard) for shard in range(2)] == [0, 0]
    before = call.output.stat().st_ino
    assert [call(small, *same, "--shard", shard) for shard in range(2)] == [0, 0]
    assert call.output.stat().st_ino == before
    assert "run one is complete already" in caplog.text
    assert call(small, *same, "--alphabet", "digits") == 2
    assert call(small) == 0
    assert call.output.stat().st_ino != before


def test_an_earlier_result_is_kept_once_whatever_the_shards(small, call):
    call.output.write_text("an earlier one")
    for _ in range(2):
        for shard in range(3):
            assert call(small, "--run", "one", "--shards", 3, "--shard", shard, "--keep-old") == 0
    assert [path.read_text() for path in call.output.parent.glob("out.2*.csv")] == ["an earlier one"]


def test_no_picture_is_exit_code_3_for_every_shard(tmp_path, call):
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        assert [call(tmp_path / "empty", "--run", "one", "--shards", 2, "--shard", shard) for shard in range(2)] == [3, 3]
    assert call.output.read_bytes() == csv_bytes([rows.Row._fields])


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
    for run in ("one", "two"):
        assert call(small, "--run", run, "--shards", 2) == 0
    one, two = (run_folder(call.output, run) / "shard-0-done.json" for run in ("one", "two"))
    shutil.copy(one, two)
    assert call(small, "--run", "two", "--shards", 2) == 2
    assert "shard-0-done.json belongs to another plan (run one, 2 shards" in caplog.text
    assert f"other runs of {call.output} are unfinished, delete what is not wanted: {one.parent.name}" in caplog.text
    assert one.exists()


@pytest.mark.parametrize("what", ["segment", "marker", "missing"])
@pytest.mark.parametrize("shard", [0, 1])
def test_a_damaged_shard_begins_anew(almost_merged, small, call, caplog, what, shard):
    folder, expected = almost_merged
    (segment,) = (path for path in folder.glob("shard-0-*") if path.suffix != ".json")
    if what == "missing":
        segment.unlink()
    elif what == "segment":
        segment.write_bytes(segment.read_bytes().replace(b"ok", b"ko", 1))
    else:
        (folder / "shard-0-done.json").write_text('{"plan": ')
    assert call(small, "--run", "one", "--shards", 2, "--shard", shard) == 0
    assert "is damaged or missing: it begins anew" in caplog.text
    assert call.output.read_bytes() == expected


def test_a_picture_that_vanishes_is_a_row(small, call):
    same = ["--run", "one", "--shards", 2, "--shard"]
    assert call(small, *same, 0) == 0
    gone = list(find_pictures(small))[-1]
    Path(gone).unlink()
    assert call(small, *same, 1) == 0
    *_, last = csv.reader(call.output.read_text().splitlines())
    assert last == [gone, "", "", "", "error", "unreadable: No such file or directory"]


def test_kubernetes_tells_the_shard(small, call, monkeypatch, caplog):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert call(small, "--shards", 2) == 0
    assert "shard 1 of 2 is complete; not yet: 0" in caplog.text
    assert call(small, "--shards", 1) == 2
    assert call(small, "--shards", 2, "--shard", 0) == 0
    assert call.output.exists()


def test_progress_tells_of_all_shards(small, call, monkeypatch, caplog):
    monkeypatch.setattr(rows, "PROGRESS_S", 0.0)
    for shard in range(2):
        assert call(small, "--shards", 2, "--shard", shard) == 0
    assert "shard 1 of 2: 64 of 128 pictures, " in caplog.text
    assert "; all shards: 128 of 256" in caplog.text


def test_a_folder_that_comes_and_goes(pictures, call, launch, tmp_path):
    """Away as a volume is: an empty mount point is left."""
    expected = undisturbed(pictures)
    process = launch(["--input", pictures, "--output", call.output], OFTEN)
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
    process = launch(["--input", pictures, "--output", call.output], f"{OFTEN}; serving.pictures.VOLUME_TIMEOUT_S = 1")
    wait_until(lambda: kept(call.output), process)
    pictures.rename(tmp_path / "away")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    last = stderr.splitlines()[-1]
    assert last.startswith(f"batch: {pictures} did not come back within 1 s after ")
    assert last.endswith(" of 1,000 pictures; the same command goes on from there")
    (tmp_path / "away").rename(pictures)
    assert 0 < kept(call.output) < PICTURES
    assert call(pictures) == 0
    assert call.output.read_bytes() == expected


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
    script = DISK.format(python=sys.executable, pictures=small, disk=tmp_path / "disk")
    done = subprocess.run([*unshare, "bash", "-c", script], capture_output=True, timeout=120, check=False)
    stderr = done.stderr.decode()
    assert done.returncode == 0, stderr
    assert done.stdout == undisturbed(small)
    assert "No space left on device" in stderr
    assert "Read-only file system" in stderr
    assert stderr.count("exit 1\n") == 2
    assert stderr.count("of 256 pictures; the same command goes on from there\n") == 2
    assert "Traceback" not in stderr
