import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from training import compare
from training.evaluation.predictions import Answers


@pytest.fixture
def other_run(finished_run, tmp_path):
    """A copy of the finished run with another learning rate."""
    folder = tmp_path / "other"
    shutil.copytree(finished_run, folder)
    settings = (folder / "settings.yaml").read_text()
    (folder / "settings.yaml").write_text(settings.replace("lr: 0.15", "lr: 0.05"))
    return folder


def answered(right, n, fingerprint):
    """Answers on `n` images of two classes of which the first `right` are read right."""
    labels = np.zeros(n, np.int64)
    probabilities = np.where(np.arange(n)[:, None] < right, [0.9, 0.1], [0.1, 0.9])
    return Answers(probabilities, labels, ("a", "b"), fingerprint)


def test_mcnemars_test_counts_what_only_one_reads_right():
    how, p = compare.difference(answered(90, 100, "x"), answered(98, 100, "x"))
    assert "McNemar" in how
    assert "0 read right by the first alone, 8 by the other alone" in how
    assert p == pytest.approx(2 * binom.cdf(0, 8, 0.5))
    assert compare.difference(answered(90, 100, "x"), answered(90, 100, "x"))[1] == 1


def test_other_test_images_are_judged_by_proportions():
    how, p = compare.difference(answered(90, 100, "x"), answered(98, 100, "y"))
    assert "two-proportion" in how
    assert p == pytest.approx(0.0171, abs=2e-4)  # z = 0.08 / sqrt(0.94 * 0.06 * 0.02) = 2.382
    assert compare.difference(answered(100, 100, "x"), answered(50, 50, "y"))[1] == 1


def test_two_runs_side_by_side(finished_run, other_run, tmp_path, capsys):
    same = Answers.load(finished_run / "test.npz")
    better = same.probabilities.copy()
    better[np.arange(len(better)), same.labels] = 2
    Answers(better, same.labels, same.classes, same.fingerprint).save(other_run / "test.npz")
    plot = tmp_path / "plots" / "compare.png"
    assert compare.main([str(finished_run), str(other_run), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    differing = out.split("\n\n")[0].splitlines()[1:]
    assert [line.split() for line in differing] == [["settings.optimizer.lr", "0.15", "0.05"]]
    assert "100.00 %" in out
    assert "more than chance (McNemar's exact test, 0 read right by the first alone" in out
    with Image.open(plot) as image:
        assert min(image.size) > 500


def test_runs_that_are_the_same_say_so(finished_run, capsys):
    assert compare.main([str(finished_run), str(finished_run)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("settings, versions and data are the same")
    assert "p = 1: chance may do as much" in out


def test_an_older_run_has_gaps_and_no_judgement(finished_run, other_run, capsys):
    for name in ("test.npz", "run.json"):
        (other_run / name).unlink()
    lines = [json.loads(line) for line in (other_run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["validation_loss"], line["lr"]
    (other_run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compare.main([str(finished_run), str(other_run)]) == 0
    out = capsys.readouterr().out
    assert f"no judgement, for {other_run} kept no answers on the test part" in out
    assert "versions.torch" in out


def test_what_is_no_run_is_one_line(finished_run, tmp_path, capsys):
    assert compare.main([str(finished_run), str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds no run of training.train" in line
    with pytest.raises(SystemExit):
        compare.main([str(finished_run)])
