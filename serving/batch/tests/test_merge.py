"""The merge of shards: many at once, killed, damaged, done before."""

import os
import shutil
import sys
import threading

import pytest

from serving.batch import run, tables
from serving.batch.merge import is_merged, merge, meta_path, remove_run
from serving.batch.plan import make_plan, read_plan, run_folder
from serving.batch.shards import Attempt, DamagedShard, Run
from serving.batch.tables import csv_bytes
from serving.batch.tests.batch_runs import undisturbed


@pytest.fixture
def almost_merged(small, call, monkeypatch):
    """A run of two complete shards, stopped right before the merge; returns its folder and the bytes to come."""

    def stop(*_):
        raise KeyboardInterrupt

    assert call(small, "--shards", 2, "--run", "one", "--shard", 0) == 0
    with monkeypatch.context() as patch:
        patch.setattr(run, "merge", stop)
        assert call(small, "--shards", 2, "--run", "one", "--shard", 1) == 1
    return run_folder(call.output, "one"), undisturbed(small)


def test_many_that_merge_at_once(almost_merged, call, tmp_path):
    folder, expected = almost_merged
    shutil.copytree(folder, tmp_path / "copy")
    call.output.write_text("an earlier one")
    failures = []

    def merge_or_find_merged(run):
        try:
            merge(run, csv_bytes([tables.Row._fields]), True)
        except (OSError, DamagedShard) as error:
            if not is_merged(run):
                failures.append(error)
            remove_run(run.folder)  # as the program does

    for _ in range(20):
        plan = read_plan(folder)
        threads = [threading.Thread(target=merge_or_find_merged, args=[Run(call.output, plan)]) for _ in range(4)]
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
    merge(Run(output, plan), tables.header("csv"), True)
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
    else:
        pytest.fail("no merge came to its end")
    assert last > 10


def test_a_merged_run_is_not_run_again(small, call, caplog):
    same = ["--run", "one", "--shards", 2]
    assert [call(small, *same, "--shard", shard) for shard in range(2)] == [0, 0]
    before = call.output.stat().st_ino
    assert [call(small, *same, "--shard", shard) for shard in range(2)] == [0, 0]
    assert call.output.stat().st_ino == before
    assert "run one is complete already" in caplog.text
    assert call(small, *same, "--alphabet", "digits") == 2
    other = small / "box0"
    assert call(other, *same) == 2
    assert f"input '{small}' there and '{other}' here; name another --run" in caplog.text
    assert call(small) == 0
    assert call.output.stat().st_ino != before


@pytest.mark.parametrize("shards", [1, 2])
def test_a_twin_that_plans_late_finds_the_run_done(small, call, monkeypatch, shards):
    """While it lists the pictures, the others complete the whole run."""

    def others_first(*arguments):
        monkeypatch.undo()
        for shard in range(shards):
            assert call(small, "--run", "one", "--shards", shards, "--shard", shard) == 0
        inodes.append(call.output.stat().st_ino)
        return make_plan(*arguments)

    inodes = []
    monkeypatch.setattr(run, "make_plan", others_first)
    assert call(small, "--run", "one", "--shards", shards) == 0
    assert inodes == [call.output.stat().st_ino]
    assert {path.name for path in call.output.parent.iterdir()} == {"out.csv", "out.csv.meta.json"}


def test_what_a_twin_leaves_after_the_merge_is_removed(small, call, monkeypatch):
    """Its marker comes into the folder when the others have emptied it."""

    def late(settings, run, scorer):
        finish(settings, run, scorer)
        run.folder.mkdir()
        run.marker_path(0, False).write_text("{}")
        raise OSError("the twin's own end")

    finish = run.finish
    monkeypatch.setattr(run, "finish", late)
    assert call(small) == 0
    assert {path.name for path in call.output.parent.iterdir()} == {"out.csv", "out.csv.meta.json"}


def test_an_earlier_result_is_kept_once_whatever_the_shards(small, call):
    call.output.write_text("an earlier one")
    for _ in range(2):
        for shard in range(3):
            assert call(small, "--run", "one", "--shards", 3, "--shard", shard, "--keep-old") == 0
    assert [path.read_text() for path in call.output.parent.glob("out.2*.csv")] == ["an earlier one"]


def test_an_earlier_result_is_not_kept_with_the_facts_of_another(small, call, monkeypatch):
    """A run that is stopped between the result and its .meta.json leaves that of the run before."""

    def stop(run, path, data):
        if path == meta_path(call.output):
            raise KeyboardInterrupt
        put(run, path, data)

    put = Run.put
    assert call(small, "--alphabet", "digits") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Run, "put", stop)
        assert call(small, "--run", "stopped") == 1
    assert call(small, "--alphabet", "letters", "--keep-old") == 0
    (old,) = call.output.parent.glob("out.2*.csv")
    assert old.read_bytes() == undisturbed(small)
    assert not meta_path(old).exists()


def test_no_picture_is_exit_code_3_for_every_shard(tmp_path, call):
    """The first of them writes the result: in Kubernetes its exit code ends the others."""
    (tmp_path / "empty").mkdir()
    for shard in (1, 0, 1):
        assert call(tmp_path / "empty", "--run", "one", "--shards", 2, "--shard", shard) == 3
        assert {path.name for path in call.output.parent.iterdir()} == {"out.csv", "out.csv.meta.json"}
    assert call.output.read_bytes() == csv_bytes([tables.Row._fields])


@pytest.mark.parametrize(("what", "shard"), [("segment", 0), ("segment", 1), ("marker", 1), ("missing", 0)])
def test_a_damaged_shard_is_scored_again(almost_merged, small, call, caplog, what, shard):
    folder, expected = almost_merged
    (segment,) = (path for path in folder.glob("shard-0-*") if path.suffix != ".json")
    if what == "missing":
        segment.unlink()
    elif what == "segment":
        segment.write_bytes(segment.read_bytes().replace(b"ok", b"ko", 1))
    else:
        (folder / "shard-0-done.json").write_text('{"plan": ')
    assert call(small, "--run", "one", "--shards", 2, "--shard", shard) == 0
    assert "is damaged or missing: rows are scored again" in caplog.text
    assert call.output.read_bytes() == expected


def test_a_repair_that_is_stopped_is_gone_on_with(almost_merged, small, call, monkeypatch, caplog):
    """By another shard than the damaged one, to which nobody comes back."""

    def stop(attempt, *block):
        add(attempt, *block)
        raise KeyboardInterrupt

    add = Attempt.add
    folder, expected = almost_merged
    (segment,) = (path for path in folder.glob("shard-0-*") if path.suffix != ".json")
    segment.write_bytes(segment.read_bytes().replace(b"ok", b"ko", 1))
    with monkeypatch.context() as patch:
        patch.setattr(Attempt, "add", stop)
        assert call(small, "--run", "one", "--shards", 2, "--shard", 1) == 1
    assert call(small, "--run", "one", "--shards", 2, "--shard", 1) == 0
    assert "shard 0 of 2: going on after 64 of 128 pictures" in caplog.text
    assert call.output.read_bytes() == expected
