import json

import numpy as np
import pytest

from benchmarks import readers
from handlers.alphabets import BY_MERGE
from training import evaluate
from training.evaluate import table
from training.evaluation.metrics import calibration_error, coverage, measure, wilson
from training.reports import card


def one_hot(labels, classes=47):
    return np.eye(classes)[labels]


def test_perfect_and_folded_answers():
    labels = np.arange(47)
    result = measure(one_hot(labels), labels, BY_MERGE)
    assert all(s["accuracy"] == 1 and s["ece"] < 1e-6 for s in result["alphabets"].values())
    assert result["alphabets"]["digits"]["n"] == 10
    assert result["alphabets"]["letters"]["n"] == 37
    assert result["alphabets"]["vin"]["n"] == 47 - 4  # without I, O, Q and q
    assert result["confusions"] == []


def test_a_case_error_is_none_after_folding():
    labels = np.full(10, BY_MERGE.index("A"))
    result = measure(one_hot(np.full(10, BY_MERGE.index("a"))), labels, BY_MERGE)
    assert result["alphabets"]["classes"]["accuracy"] == 0
    assert result["alphabets"]["alnum"]["accuracy"] == 1
    assert result["confusions"] == [["A", "a", 10]]
    assert result["recall"] == {"A": 0.0}


def test_the_standard_error_is_the_binomial_one():
    labels = np.zeros(100, dtype=int)
    said = np.array([0] * 80 + [1] * 20)
    score = measure(one_hot(said), labels, BY_MERGE)["alphabets"]["classes"]
    assert (score["accuracy"], score["standard_error"]) == (0.8, 0.04)


def test_calibration_error_by_hand():
    confidence = np.array([0.95] * 10 + [0.55] * 10)
    right = np.array([True] * 9 + [False] + [True] * 3 + [False] * 7)
    assert calibration_error(confidence, right) == pytest.approx(0.5 * 0.05 + 0.5 * 0.25)
    assert calibration_error(np.ones(5), np.ones(5, dtype=bool)) == 0


def test_the_committed_model_scores_as_its_card_says(model_path, recognizer, emnist):
    """The fixture's images are a part of those that the card reports on."""
    result = evaluate.evaluate(recognizer, emnist, pictures=0)
    reported = recognizer.meta["metrics"]["test"]["alphabets"]
    for name, score in result["alphabets"].items():
        expected = reported[name]["accuracy"]
        error = (expected * (1 - expected) / score["n"]) ** 0.5
        assert abs(score["accuracy"] - expected) < 4 * error + 1e-9, name
    assert (model_path.parent / "README.md").read_text() == card.card(recognizer)
    assert reported["classes"]["accuracy"] >= 0.895
    assert reported["alnum"]["accuracy"] >= 0.914


def test_the_command(model_path, emnist_root, capsys):
    command = [str(model_path), "--emnist-root", str(emnist_root), "--pictures", "2"]
    assert evaluate.main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["alphabets"]["alnum"]["n"] == 282
    assert {row["n"] for row in result["pictures"]} == {2}
    assert table(result).splitlines()[1].startswith("alnum")
    assert evaluate.main([*command[:-1], "0"]) == 0
    assert "alnum" in capsys.readouterr().out


def test_the_command_refuses_with_one_line(model_path, emnist_root, capsys, tmp_path):
    assert evaluate.main([str(tmp_path / "no.pt"), "--emnist-root", str(emnist_root)]) == 1
    assert evaluate.main([str(model_path), "--emnist-root", str(tmp_path)]) == 1
    assert all(line.startswith("evaluate: ") for line in capsys.readouterr().err.splitlines())


def test_coverage_counts_what_a_threshold_leaves():
    confidence = np.array([0.4, 0.6, 0.85, 0.96, 0.999])
    right = np.array([False, False, True, True, True])
    rows = {threshold: (share, accuracy) for threshold, share, accuracy in coverage(confidence, right)}
    assert rows[0.5] == (0.8, 0.75)
    assert rows[0.8] == (0.6, 1.0)
    assert rows[0.99] == (0.2, 1.0)


@pytest.mark.parametrize(("text", "expected"), [("q\n", "Q"), (" |7.", "7"), ("", ""), ("--", ""), ("é3", "3")])
def test_the_first_character_of_an_answer_counts(text, expected):
    assert readers.first_character(text) == expected


def test_this_project_is_one_of_the_readers_compared(model_path, emnist_root, monkeypatch):
    monkeypatch.setattr(readers, "STYLES", ("enlarged",))
    table = readers.compare(
        {"ours": readers.our_reader(model_path), "mute": lambda files: [""] * len(files)}, emnist_root, 30
    )
    row = next(line for line in table.splitlines() if line.startswith("| enlarged | 30 |"))
    ours, mute = (float(cell.strip(" %")) for cell in row.split("|")[3:6:2])
    assert ours >= 75
    assert mute == 0


@pytest.mark.parametrize(("program", "count"), [(evaluate, "-1"), (readers, "0")])
def test_a_number_of_pictures_that_cannot_be_is_refused(program, count, model_path, emnist_root, capsys):
    model = [str(model_path)] if program is evaluate else ["--model", str(model_path)]
    with pytest.raises(SystemExit) as caught:
        program.main([*model, "--emnist-root", str(emnist_root), "--pictures", count])
    assert caught.value.code == 2
    assert "--pictures must be" in capsys.readouterr().err


def test_wilsons_interval_by_hand():
    """Of n successes of n it ends at 1 and begins at n / (n + z^2), z = 1.96; it is symmetric; of nothing, nothing is
    known.
    """
    assert wilson(6, 6) == pytest.approx((6 / (6 + 1.959964**2), 1.0), abs=1e-6)
    assert wilson(3, 6) == pytest.approx((1 - wilson(3, 6)[1], 1 - wilson(3, 6)[0]))
    assert wilson(0, 0) == (0.0, 1.0)


def test_recall_comes_with_its_interval_and_n(emnist, recognizer):
    result = evaluate.evaluate(recognizer, emnist, 0)
    assert result["recall_interval"].keys() == result["recall"].keys() == set(emnist.classes)
    assert {n for _, _, n in result["recall_interval"].values()} == {6}
    assert all(low <= result["recall"][name] <= high for name, (low, high, _) in result["recall_interval"].items())
    lowest = min(result["recall"], key=result["recall"].get)
    after = table(result).split("n:\n")[1]
    assert after.startswith(f"{lowest} {100 * result['recall'][lowest]:5.1f} (")
