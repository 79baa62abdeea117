import json

import pytest
from PIL import Image

from training import evaluate
from training.evaluation.labelled import label_of, score_folder


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("7.png", "7"),
        ("7_x.png", "7"),
        ("a-1.jpg", "a"),
        ("7 (2).png", "7"),
        ("71.png", ""),
        ("IMG_7.png", ""),
        ("_7.png", ""),
        (".png", ""),
        ("Q/IMG_7.png", "Q"),
        ("Q/7_x.png", "Q"),
        ("new/7_x.png", "7"),
    ],
)
def test_the_names_tell_the_label(path, label):
    assert label_of(path) == label


def test_the_folder_itself_is_no_label():
    assert label_of("IMG.png") == ""


@pytest.fixture
def pictures(emnist, tmp_path):
    """The first image of each class: digits by name, letters by folder; and what cannot be scored."""
    folder = tmp_path / "pictures"
    for label in range(len(emnist.classes)):
        name = emnist.classes[label]
        image = Image.fromarray(emnist.images[(emnist.labels == label).nonzero()[0, 0]].numpy())
        path = folder / (f"{name}_x.png" if name.isdigit() else f"{name}/scan{label}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    Image.new("L", (40, 40), 255).save(folder / "3_blank.png")
    (folder / "4_damaged.JPG").write_bytes(b"no picture")
    (folder / "unnamed.png").write_bytes(b"")
    Image.new("L", (9, 9)).save(folder / "é.png")
    (folder / "notes.txt").write_text("not a picture")
    (folder / "5_folder.png").mkdir()
    return folder


def test_a_labelled_folder_is_scored(pictures, recognizer):
    score = score_folder(recognizer, pictures, "alnum")
    assert len(score.answers) == 47 + 2
    assert score.correct == sum(said == label for _, label, said in score.answers) >= 40
    assert {name: why.split(":")[0] for name, why in score.refused} == {
        "3_blank.png": "blank_image",
        "4_damaged.JPG": "unsupported_format",
    }
    assert [name for name, _ in score.unlabelled] == ["unnamed.png", "é.png"]
    assert ("3_blank.png", "3", "") in score.answers, "a refused picture counts as wrong"
    assert {label for _, label, _ in score.answers if label.islower()} == set(), "lower case counts as its capital"
    assert sum(n == "Q" for _, n, _ in score.answers) == 2
    by_case = score_folder(recognizer, pictures, "classes")
    assert {label for _, label, _ in by_case.answers} == set(recognizer.classes)
    assert score_folder(recognizer, pictures, "vin").unlabelled[0] == ("I/scan18.png", "'I' is not in the alphabet")


def test_the_command_prints_correct_of_total_and_draws_it(pictures, recognizer, model_path, tmp_path, capsys):
    score = score_folder(recognizer, pictures, "digits")
    sheets = tmp_path / "new" / "sheets"
    command = [str(model_path), "--folder", str(pictures), "--alphabet", "digits"]
    assert evaluate.main([*command, "--sheets", str(sheets)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{score.correct} / 12 correct: ")
    assert "3_blank.png: blank_image" in out
    assert "without a label that counts, left out" in out
    with Image.open(sheets / "accuracy.png") as image:
        assert min(image.size) > 200
    assert evaluate.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == 12


def test_a_folder_that_cannot_be_scored_is_one_line(model_path, tmp_path, capsys, emnist):
    assert evaluate.main([str(model_path), "--folder", str(tmp_path)]) == 1
    assert evaluate.main([str(model_path), "--folder", str(tmp_path / "absent")]) == 1
    Image.fromarray(emnist.images[0].numpy()).save(tmp_path / "IMG_1.png")
    assert evaluate.main([str(model_path), "--folder", str(tmp_path)]) == 1
    empty, absent, unlabelled = capsys.readouterr().err.splitlines()
    assert "is no folder that holds pictures" in empty
    assert "absent is no folder that holds pictures" in absent
    assert "name them 7_x.png" in unlabelled
