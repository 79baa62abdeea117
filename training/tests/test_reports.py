import base64
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from training.checkpoint import load_checkpoint, new_state
from training.data import DataError
from training.evaluation.metrics import wilson
from training.evaluation.predictions import Answers
from training.models import count_multiply_adds, count_parameters, make_model
from training.reports import provenance, report, summary
from training.reports.tensorboard import Reporter
from training.settings import load_recipe
from training.train import train


def made_answers():
    """Two of three images of "a" and both of "b" are read right; "c" has no image."""
    probabilities = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])
    return Answers(probabilities, np.array([0, 0, 0, 1, 1]), ("a", "b", "c"), "fingerprint")


def test_answers_are_scored_by_hand(tmp_path):
    answers = made_answers()
    assert answers.confusion().tolist() == [[2, 1, 0], [0, 2, 0], [0, 0, 0]]
    rows = answers.per_class()
    assert rows.keys() == {"a", "b"}
    assert (rows["a"]["n"], rows["a"]["precision"], rows["a"]["recall"]) == (3, 1, pytest.approx(2 / 3, abs=1e-5))
    assert (rows["b"]["precision"], rows["b"]["recall"], rows["b"]["f1"]) == (
        pytest.approx(2 / 3, abs=1e-5),
        1,
        pytest.approx(0.8),
    )
    assert answers.f1() == {"macro": pytest.approx(0.8), "weighted": pytest.approx(0.8)}
    answers.save(tmp_path / "test.npz")
    kept = Answers.load(tmp_path / "test.npz")
    assert (kept.classes, kept.fingerprint) == (answers.classes, "fingerprint")
    assert np.allclose(kept.probabilities, answers.probabilities)
    assert [path.name for path in tmp_path.iterdir()] == ["test.npz"]


def test_damaged_answers_are_refused(tmp_path):
    (tmp_path / "test.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match="does not hold a model's answers"):
        Answers.load(tmp_path / "test.npz")


def test_the_roc_is_one_vs_rest(emnist, recognizer):
    answers = Answers(recognizer.probabilities(emnist.images.numpy()), emnist.labels.numpy(), emnist.classes, "")
    roc = answers.roc()
    for index, name in enumerate(emnist.classes):
        assert roc.areas[name] == roc_auc_score(answers.labels == index, answers.probabilities[:, index])
        assert np.trapezoid(roc.curves[name], roc.rates) == pytest.approx(roc.areas[name], abs=0.005)
    assert roc.mean == pytest.approx(
        roc_auc_score(answers.labels, answers.probabilities.astype(np.float64), multi_class="ovr"), abs=0.01
    )
    assert 0 < roc.deviation < 0.05


def test_wilsons_interval():
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I: 81 of 263, 0 of 20, 1 of
    29.
    """
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(0, 0) == (0, 1)


def test_reporting_changes_no_weight(small_run):
    kept = {}
    for name, section in {"silent": {"scalars": 0, "figures": 0}, "talking": {"scalars": 1, "figures": 1}}.items():
        run = small_run(name, section)
        train(run)
        kept[name] = load_checkpoint(run.folder / "last.pt")["resume"]
        assert (run.folder / "tensorboard").exists() == (name == "talking")
    for part in ("model", "average"):
        assert all(torch.equal(value, kept["talking"][part][key]) for key, value in kept["silent"][part].items())


def test_tensorboard_shows_the_run(finished_run):
    shown = EventAccumulator(str(finished_run / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()
    tags = shown.Tags()
    assert tags["graph"]
    assert set(tags["images"]) == {"samples", "confusion", "classes", "roc"}
    assert {"run/text_summary", "settings/text_summary", "data/text_summary"} <= set(tags["tensors"])
    steps = {name: [event.step for event in shown.Scalars(name)] for name in tags["scalars"]}
    every = steps.pop("train/loss")
    assert every == list(range(1, len(every) + 1))
    assert {"train/accuracy", "train/learning_rate", "train/images_per_s"} <= steps.keys()
    lines = report.history_of(finished_run)
    for name in ("loss", "accuracy", "f1_weighted", "f1_macro"):
        values = [event.value for event in shown.Scalars(f"validation/{name}")]
        assert values == pytest.approx([line[f"validation_{name}"] for line in lines])
    assert [event.step for event in shown.Images("samples")] == [1, every[-1]], "full augmentation first, and the end"
    assert {"validation/auc_mean", "validation/auc_deviation"} <= steps.keys()


def test_what_a_stopped_run_noted_after_its_checkpoint_is_superseded(small_run):
    run = small_run("resumed", {"scalars": 1, "figures": 0, "graph": False})
    state = new_state(run.settings, 47, run.device)
    for first, last, loss in ((1, 10, 1.0), (7, 12, 2.0)):
        state.step = first - 1
        reporter = Reporter(run, state)
        for state.step in range(first, last + 1):
            reporter.step(
                state, torch.zeros(4, 1, 28, 28), torch.zeros(4).long(), torch.tensor(loss), torch.zeros(4, 47)
            )
        reporter.close()
        time.sleep(1.1)  # TensorBoard reads the files in the order of the seconds in their names
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [
        (step, 1.0 if step < 7 else 2.0) for step in range(1, 13)
    ]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "tags close in order"

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_nothing_beside_itself(finished_run):
    text = (finished_run / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 7, "curves, confusion, classes, ROC, samples, errors, every style"
    for image in images:
        assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
        assert len(image["alt"]) > 20
    rest = re.sub(r'src="data:[^"]*"', "", text)
    assert not re.search(r"https?:|src=|url\(|@import", rest)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text

    shown = " ".join(page.text)
    test = Answers.load(finished_run / "test.npz")
    assert f"{100 * test.right.mean():.2f} %" in shown
    checkpoint = load_checkpoint(finished_run / "best.pt")
    assert round(100 * test.right.mean(), 3) == round(
        100 * checkpoint["metrics"]["test"]["alphabets"]["classes"]["accuracy"], 3
    )
    for true, said, count in checkpoint["metrics"]["test"]["confusions"]:
        assert f"<td>{true}</td><td>{said}</td><td>{count}</td>" in text
    for fact in (
        "batch_size: 64",
        torch.__version__,
        checkpoint["data"]["fingerprint"]["test"],
        "Worst pairs",
        "stages.2.conv2",
    ):
        assert fact in shown


def test_the_report_can_be_drawn_again_and_of_an_unfinished_run(finished_run, tmp_path, capsys):
    folder = tmp_path / "unfinished"
    shutil.copytree(finished_run, folder)
    for name in ("test.npz", "errors.png", "contact-sheet.png", "report.html", "emnist.pt", "run.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "report")
    assert report.main([str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert "accuracy, validation part" in (folder / "report.html").read_text()
    assert {path.name for path in (folder / "report").iterdir()} == {
        "curves.png",
        "confusion.png",
        "classes.png",
        "roc.png",
    }
    (folder / "validation.npz").unlink()
    assert report.main([str(folder)]) == 0
    assert "Curves" in (folder / "report.html").read_text()


def test_a_folder_without_a_run_is_one_line(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 1
    (tmp_path / "metrics.jsonl").write_text("")
    assert report.main([str(tmp_path)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("reports: ")
    assert "it is empty" in second


def test_run_json_tells_the_code_and_the_data(finished_run, tmp_path):
    (start,) = provenance.starts(finished_run)
    assert start["versions"]["torch"] == torch.__version__
    assert start["data"] == load_checkpoint(finished_run / "best.pt")["data"]
    provenance.record_start(tmp_path, "a device", {})
    provenance.record_start(tmp_path, "another", {})
    assert [entry["device"] for entry in provenance.starts(tmp_path)] == ["a device", "another"]
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        provenance.starts(tmp_path)


def test_git_may_be_absent_or_the_folder_no_repository(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            check=True,
            capture_output=True,
        )

    assert provenance.git_state(tmp_path) is None
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    state = provenance.git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert provenance.git_state(tmp_path)["dirty"] is True
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(tmp_path) is None


def test_the_summary_adds_up_and_leaves_the_network_alone():
    model = make_model(load_recipe("flagship").model, 47)
    model.stages.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = summary.layers(model, 28)
    assert modes == [module.training for module in model.modules()]
    assert sum(row.parameters for row in rows) == count_parameters(model)
    assert sum(row.multiply_adds for row in rows) == count_multiply_adds(model, 28)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    by_name = {row.name: row for row in rows}
    assert by_name["stem.0"].shape == (32, 28, 28)
    assert by_name["head.3"] == summary.Layer("head.3", "Linear", (47,), 224 * 47 + 47, 224 * 47)


def test_a_layer_that_is_used_twice_has_its_parameters_once():
    layer = nn.Conv2d(1, 1, 3, padding=1)
    rows = summary.layers(nn.Sequential(layer, layer), size=8)
    assert [row.parameters for row in rows] == [10, 0]
    assert [row.multiply_adds for row in rows] == [64 * 9, 64 * 9]


def test_the_summary_counts_a_named_type_of_classes(capsys):
    assert summary.main(["--set", "data.classes=low_letters"]) == 0
    assert " 26 " in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("head.3"))


def test_the_summary_command(capsys):
    assert summary.main(["--set", "model.stem=16", "--classes", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"stem\.0 +Conv2d +16 x 28 x 28 +144 +112,896", lines[1])
    assert lines[-1].startswith("total")
    assert summary.main(["--recipe", "flagshp"]) == 1
    assert "did you mean 'flagship'" in capsys.readouterr().err


def test_the_history_is_json_lines(finished_run):
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert all(
        {"step", "loss", "validation_f1_weighted", "validation_f1_macro", "lr", "images_per_s"} <= line.keys()
        for line in lines
    )
    first, last = (line["lr"] for line in lines)
    assert 0 < last < first
