"""Runs that are shared, stopped at every step, doubled, damaged: the result is that of an undisturbed run.

The pictures are empty files and the scorer is a fake; all else is the program's.
"""

import errno
import os
import random
import shutil
import signal
import stat
import sys
import time
import traceback
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.folders import find_pictures
from serving.batch import manifest as manifests
from serving.batch import run as program
from serving.batch.blocks import Store, block_name
from serving.batch.decoding import CHUNK
from serving.batch.manifest import LISTING, UsageError, make_manifest, run_folder, store_folder
from serving.batch.result import meta_path
from serving.batch.run import Settings, Stopped, to_file
from serving.batch.tables import answered, header
from serving.batch.tests.batch_runs import names, store_of

PICTURES = 3 * CHUNK + 7
STEPS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}  # and every file that is opened to be written
WHOLE = {"out.csv", "out.csv.meta.json"}


class FakeScorer:
    """It answers "A" for every path, without a look at the file, and remembers what it has scored."""

    recognizer = SimpleNamespace(version="fake")

    def __init__(self):
        self.scored = []

    def rows(self, paths, _folder):
        paths = iter(paths)
        while batch := list(islice(paths, CHUNK)):
            self.scored += batch
            yield [answered(path, "A", 0.5) for path in batch]


def fake_settings(folder, output, **options):
    whole = {
        "input": folder,
        "output": output,
        "alphabet": "alnum",
        "format": "csv",
        "min_confidence": 0.0,
        "model": Path("fake.pt"),
        "processes": 1,
        "run": "one",
    }
    return Settings(**whole | options)


@pytest.fixture
def score(tmp_path, monkeypatch, caplog):
    """A function that scores a shard, and returns the paths that were scored; `output` is the result's path."""
    caplog.set_level("INFO")
    monkeypatch.setattr(manifests, "BLOCK_ROWS", CHUNK)
    folder, output = tmp_path / "in", tmp_path / "out" / "out.csv"
    folder.mkdir()
    output.parent.mkdir()
    for number in range(PICTURES):
        (folder / f"{number:04d}.png").touch()

    def run(**options):
        scorer = FakeScorer()
        to_file(fake_settings(folder, output, **options), output, scorer)
        return scorer.scored

    run.folder, run.output, run.pictures = folder, output, list(find_pictures(folder))
    lines = [f"{path},A,65,0.5000,ok,\r\n" for path in run.pictures]
    run.expected = header("csv") + "".join(lines).encode()
    return run


def forked(score, step, action, **options):
    """Start a process that scores, and does `action` before its `step`th change of the disk; returns its id."""
    if process := os.fork():
        return process

    def watch(event, arguments):
        nonlocal step
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if opened and Path(arguments[0]).name.startswith(("out.csv", "block-")):
            raise AssertionError(f"{arguments[0]} does not appear whole")
        if opened or event in STEPS:
            step -= 1
            if step == 0:
                action()

    try:
        sys.addaudithook(watch)
        score(**options)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(3)


def anew(score, shards):
    """An earlier result, and a run of which all shards but the last are complete."""
    shutil.rmtree(score.output.parent)
    score.output.parent.mkdir()
    score.output.write_text("an earlier one")
    for shard in range(shards - 1):
        score(shards=shards, shard=shard)


def assert_result(score):
    assert score.output.read_bytes() == score.expected
    (earlier,) = score.output.parent.glob("out.2*.csv")
    assert earlier.read_text() == "an earlier one"
    assert names(score.output.parent) == {*WHOLE, earlier.name}


@pytest.mark.parametrize("shards", [1, 2])
def test_a_run_that_is_killed_at_any_step_goes_on(score, shards):
    """It scores what is not kept, and nothing else."""
    last = {"shards": shards, "shard": shards - 1, "keep_old": True}
    for step in range(1, 200):
        anew(score, shards)
        _, status = os.waitpid(forked(score, step, lambda: os._exit(1), **last), 0)
        if status == 0:
            break
        assert status == 1 << 8
        assert score.output.read_bytes() in {b"an earlier one", score.expected}
        if store := store_of(score.output):
            to_do = list(store.paths(store.missing(store.manifest.blocks(shards - 1))))
        else:
            to_do = [] if meta_path(score.output).exists() else score.pictures
        assert score(**last) == to_do
        assert_result(score)
    assert_result(score)
    assert step > 20


@pytest.mark.parametrize("shards", [1, 2])
def test_a_twin_may_be_late_by_any_time(score, shards):
    """It stands still at one step while another process completes the run, then it goes on, and ends well."""
    last = {"shards": shards, "shard": shards - 1, "keep_old": True}
    for step in range(1, 200):
        anew(score, shards)
        twin = forked(score, step, lambda: os.kill(os.getpid(), signal.SIGSTOP), **last)
        _, status = os.waitpid(twin, os.WUNTRACED)
        was_stopped = os.WIFSTOPPED(status)
        if was_stopped:
            try:
                score(**last)
                assert_result(score)
            finally:
                os.kill(twin, signal.SIGCONT)
                _, status = os.waitpid(twin, 0)
        assert status == 0
        assert_result(score)
        if not was_stopped:
            break
    assert step > 20


def test_many_processes_at_once(score):
    """Three shards, each of them three times, and each process slow at another place."""
    for seed in range(5):
        chance = random.Random(seed)
        shutil.rmtree(score.output.parent)
        score.output.parent.mkdir()
        processes = [
            forked(score, chance.randrange(40), lambda: time.sleep(0.1), shards=3, shard=shard)
            for shard in [0, 1, 2] * 3
        ]
        assert [os.waitpid(process, 0)[1] for process in processes] == [0] * 9
        assert score.output.read_bytes() == score.expected
        assert names(score.output.parent) == WHOLE


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_one_clear_line_and_the_run_goes_on(score, monkeypatch, number):
    """Each write of a block or of the result once fails when it is brought to the disk."""

    def fail(descriptor):
        nonlocal left
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            left -= 1
            if left == 0:
                os.ftruncate(descriptor, 0)  # as NFS, which has lost the pages
                raise OSError(number, os.strerror(number))
        fsync(descriptor)

    fsync = os.fsync
    for last in range(1, 9):  # the listing, the manifest, four blocks, the result, its .meta.json
        shutil.rmtree(score.output.parent)
        score.output.parent.mkdir()
        left, done = last, min(max(last - 3, 0) * CHUNK, PICTURES)
        message = f"{os.strerror(number)} after {done} of {PICTURES} pictures; the same command goes on from there"
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(Stopped if last > 2 else OSError, match=message if last > 2 else os.strerror(number)):
                score()
        assert score() == score.pictures[done:]
        assert score.output.read_bytes() == score.expected
        assert names(score.output.parent) == WHOLE


def test_an_interruption_of_the_cleaning_up_changes_nothing(score, monkeypatch):
    def interrupted(*_, **__):
        monkeypatch.setattr(shutil, "rmtree", rmtree)
        raise KeyboardInterrupt

    rmtree = shutil.rmtree
    score(shards=2)
    monkeypatch.setattr(shutil, "rmtree", interrupted)
    score(shards=2, shard=1)
    assert names(score.output.parent) == WHOLE


def damage(store, block):
    path = store.folder / block_name(block)
    path.write_bytes(path.read_bytes().replace(b"ok", b"ko", 1))


def test_a_repair_that_is_killed_at_any_step_goes_on(score, caplog):
    """The damaged blocks are of a shard to which nobody comes back; no other block is scored again."""
    last = {"shards": 2, "shard": 1, "keep_old": True}
    for step in range(1, 200):
        anew(score, 2)
        store = store_of(score.output)
        damage(store, 0)
        damage(store, 1)
        _, status = os.waitpid(forked(score, step, lambda: os._exit(1), **last), 0)
        if status == 0:
            break
        store = store_of(score.output)
        to_do = list(store.paths(store.missing(store.manifest.blocks(1)))) if store else []
        damaged = list(store.paths(b for b in (0, 1) if store.read(b) is None)) if store else []
        assert score(**last) == [*to_do, *damaged]
        assert not damaged or "scoring again" in caplog.text
        caplog.clear()
        assert_result(score)
    assert_result(score)
    assert step > 20


def test_blocks_that_stay_damaged_end_the_run(score, monkeypatch):
    monkeypatch.setattr(Store, "read", lambda *_: None)
    with pytest.raises(Stopped, match="4 blocks are damaged, the first is block-000000 after 199 of 199 pictures"):
        score()
    monkeypatch.undo()
    assert not score.output.exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"shards": 3}, "shards 2 there and 3 here"),
        ({"alphabet": "digits"}, "alphabet 'alnum' there and 'digits' here"),
        ({"format": "ascii"}, "format 'csv' there and 'ascii' here"),
        ({"min_confidence": 0.5}, "min_confidence 0.0 there and 0.5 here"),
        ({"model": Path("other.pt")}, "model {'file': 'fake.pt', 'version': 'fake'} there and "),
        ({"input": Path("/tmp")}, "there and '/tmp' here"),
    ],
)
def test_a_run_of_other_settings_is_refused(score, other, message):
    first, second = {"shards": 2, "shard": 0}, {"shards": 2, "shard": 1}
    score(**first)
    with pytest.raises(UsageError, match="finish it with the same settings, or delete it") as refused:
        score(**second | other)
    assert message in str(refused.value)
    score(**second)
    with pytest.raises(UsageError, match="name another --run") as refused:
        score(**second | other)
    assert message in str(refused.value)


def test_a_run_that_other_versions_began_is_refused(score, monkeypatch):
    score(shards=2)
    with monkeypatch.context() as patch:
        patch.setattr(program.cv2, "__version__", "0.0")
        with pytest.raises(UsageError, match="has other settings: versions "):
            score(shards=2, shard=1)
    score(shards=2, shard=1)


def test_a_named_run_that_is_complete_is_not_run_again(score, caplog):
    assert score() == score.pictures
    inode = score.output.stat().st_ino
    (score.folder / "new.png").touch()
    assert score() == []
    assert score.output.stat().st_ino == inode
    assert "run one is complete already" in caplog.text
    (score.folder / "new.png").unlink()
    for _ in range(2):
        assert score(run=None) == score.pictures


def test_a_run_without_a_name_is_that_of_its_pictures(score):
    score(run=None, shards=2)
    assert score(run=None, shards=2) == []
    os.utime(score.pictures[-1], ns=(0, 0))
    assert len(score(run=None, shards=2)) > 0


def test_other_unfinished_runs_are_named(score, caplog):
    for folder in ("a file", "an empty folder"):
        run_folder(score.output, folder).mkdir()
    score(shards=2)
    assert "other runs" not in caplog.text
    score(run="two")
    (line,) = (line for line in caplog.messages if "other runs" in line)
    assert line.endswith(f"are unfinished, delete what is not wanted: {run_folder(score.output, 'one').name}")


def test_an_earlier_result_is_not_kept_with_the_facts_of_another(score, monkeypatch):
    """A run that is stopped between the result and its .meta.json leaves that of the run before."""

    def stop(store, path, data):
        if path == meta_path(score.output):
            raise KeyboardInterrupt
        put(store, path, data)

    put = Store.put
    score()
    (score.folder / "0000.png").rename(score.folder / "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", stop)
        with pytest.raises(Stopped, match="interrupted after 199 of 199"):
            score(run="stopped")
    content = score.output.read_bytes()
    assert content != score.expected
    (score.folder / "a.png").rename(score.folder / "0000.png")
    score(run="three", keep_old=True)
    (old,) = score.output.parent.glob("out.2*.csv")
    assert old.read_bytes() == content
    assert not meta_path(old).exists()


def test_no_picture_is_a_result_by_the_first_shard_to_come(score):
    """In Kubernetes its exit code ends the others."""
    (score.folder / "empty").mkdir()
    for shard in (1, 0, 1):
        settings = fake_settings(score.folder / "empty", score.output, shards=2, shard=shard)
        assert to_file(settings, score.output, FakeScorer()).pictures == 0
        assert names(score.output.parent) == WHOLE
    assert score.output.read_bytes() == header("csv")


def test_a_listing_that_lost_its_end_meanwhile_is_no_wrong_row(score, monkeypatch):
    def damaged(*arguments):
        found = make_manifest(*arguments)
        listing = store_folder(run_folder(score.output, "one")) / LISTING
        os.truncate(listing, listing.stat().st_size // 2)
        return found

    monkeypatch.setattr(program, "make_manifest", damaged)
    with pytest.raises(Stopped, match="has lost its end after 64 of 199 pictures"):
        score()
