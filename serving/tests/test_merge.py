"""The merge of shards: many at once, killed, damaged, done before."""

import os
import shutil
import sys
import threading

import pytest
from batch_runs import undisturbed

from serving import rows
from serving.plan import read_plan, run_folder
from serving.rows import csv_bytes
from serving.shards import DamagedShard, Run, meta_path


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
