import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from handlers.alphabets import BY_MERGE, VIN
from handlers.recognizer import Recognizer
from training import train as train_module
from training.batches import augment_strength, pick
from training.checkpoint import CheckpointError, load_checkpoint, new_state
from training.data import load_splits
from training.run import Run, fit_temperature
from training.settings import SettingsError, from_dict
from training.train import Interrupted, train, train_step

TINY = {
    "data": {"train_split": "balanced", "validation_fraction": 0.1, "degraded_copies": 1, "test_pictures": 2},
    "model": {"stem": 8, "widths": [8, 16, 16], "dropout": 0.2},
    "schedule": {"epochs": 2, "batch_size": 64},
    "report": {"scalars": 0, "figures": 0},
    "compile": "never",
    "precision": "float32",
}
NO_REPORT = [
    "--set=report.scalars=0",
    "--set=report.figures=0",
    "--set=data.test_pictures=0",
    "--set=data.degraded_copies=0",
]
OVERRIDES = [
    f"--set={section}.{name}={value}"
    for section in ("data", "model", "schedule")
    for name, value in TINY[section].items()
]
OVERRIDES.append("--set=compile=never")


@pytest.fixture
def tiny_run(emnist_root, tmp_path):
    settings = from_dict(json.loads(json.dumps(TINY)))
    return Run(settings, load_splits(settings.data, emnist_root), tmp_path, torch.device("cpu"))


def test_one_batch_can_be_learnt_by_heart(tiny_run):
    settings = from_dict(
        {"model": {"stem": 16, "widths": [16, 32, 32]}, "optimizer": {"name": "adamw", "lr": 5e-3}, "compile": "never"}
    )
    run = replace(tiny_run, settings=settings)
    state = new_state(settings, 47, torch.device("cpu"))
    torch.manual_seed(0)
    batch = run.splits.train.images[:64].unsqueeze(1).float() / 255
    labels = run.splits.train.labels[:64]
    targets = F.one_hot(labels, 47).float()
    for _ in range(60):
        _, logits = train_step(run, state, state.model, batch, targets)
    assert (logits.argmax(1) == labels).float().mean() == 1
    assert state.step == 60


def test_resume_gives_the_very_same_weights(tiny_run, tmp_path, monkeypatch):
    """Stopped in the middle of the first epoch, by the signal that Ctrl-C sends."""
    train(tiny_run)
    whole = load_checkpoint(tmp_path / "last.pt")

    stopped = replace(tiny_run, folder=tmp_path / "stopped")
    stopped.folder.mkdir()
    steps_done = []

    def step_then_interrupt(*arguments):
        result = train_step(*arguments)
        steps_done.append(1)
        if len(steps_done) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(train_module, "train_step", step_then_interrupt)
    with pytest.raises(Interrupted, match="after step 3 of"):
        train(stopped)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(stopped, resume=True)

    resumed = load_checkpoint(stopped.folder / "last.pt")
    assert len(steps_done) == tiny_run.steps
    for kind in ("weights",):
        assert whole[kind].keys() == resumed[kind].keys()
        assert all(torch.equal(whole[kind][name], resumed[kind][name]) for name in whole[kind])
    for name, value in whole["resume"]["model"].items():
        assert torch.equal(value, resumed["resume"]["model"][name])


def test_the_command_trains_evaluates_and_exports(finished, emnist_root, monkeypatch, capsys):
    folder = finished.folder
    assert {p.name for p in folder.iterdir()} == {
        "settings.yaml",
        "data.json",
        "metrics.jsonl",
        "last.pt",
        "best.pt",
        "emnist.pt",
        "README.md",
        "contact-sheet.png",
        "errors.png",
        "run.json",
        "validation.npz",
        "test.npz",
        "tensorboard",
        "report",
        "report.html",
    }
    assert "0 removed: again in validation or test" in finished.stderr
    assert "alnum" in finished.stdout
    assert "emnist: 517 train, 47 validation, 282 test images of 0123" in finished.stderr
    data = json.loads((folder / "data.json").read_text())
    assert data["by_class"]["test"] == dict.fromkeys(BY_MERGE, 6)
    recognizer = Recognizer(folder / "emnist.pt")
    assert set(recognizer.meta["metrics"]) == {"validation", "test"}
    assert recognizer.meta["data"]["images"]["test"] == 282
    assert len([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]) == 2
    assert f"version {recognizer.version}" in (folder / "README.md").read_text()
    started = (folder / "settings.yaml").stat().st_mtime
    assert max(path.stat().st_mtime for path in emnist_root.rglob("*")) < started, (
        "nothing is written where the data is"
    )

    monkeypatch.chdir(folder.parents[1])
    assert train_module.main(["--name", "small", "--emnist-root", str(emnist_root)]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_ctrl_c_saves_and_resume_goes_on(tmp_path, emnist_root, program, monkeypatch, capsys):
    environment = os.environ | {"PYTHONPATH": str(train_module.Path(train_module.__file__).parents[1])}
    command = [sys.executable, "-m", "training.train", "--name", "long", "--emnist-root", str(emnist_root), *OVERRIDES]
    command += ["--set=schedule.epochs=100000", *NO_REPORT]
    process = program(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "runs" / "long" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume goes on from there" in stderr
    assert "Traceback" not in stderr
    assert load_checkpoint(tmp_path / "runs" / "long" / "last.pt")["resume"]["step"] > 0

    monkeypatch.chdir(tmp_path)
    assert train_module.main(["--name", "long", "--emnist-root", str(emnist_root), "--resume", "--set=seed=3"]) == 2
    assert "leave out --set" in capsys.readouterr().err


def test_go_on_starts_goes_on_and_refuses_another_run(tmp_path, emnist_root, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    command = ["--name", "job", "--emnist-root", str(emnist_root), "--go-on", *OVERRIDES, *NO_REPORT]
    evicted = []

    def step_then_end(*arguments):
        if len(evicted) == 0 and arguments[1].step == 10:
            evicted.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(*arguments)

    monkeypatch.setattr(train_module, "train_step", step_then_end)
    finished = []  # what it does is asserted of the command's run above
    monkeypatch.setattr(train_module, "finish", lambda run: finished.append(run.folder))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert train_module.main(command) == 130
        assert "going on" not in caplog.text
        assert train_module.main([*command, "--set=optimizer.lr=0.3"]) == 2
        assert "other settings (optimizer.lr: 0.15, now 0.3)" in capsys.readouterr().err
        assert train_module.main(command) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "going on after step 11 of 16" in caplog.text
    first = (tmp_path / "runs" / "job" / "metrics.jsonl").read_text()
    assert len(first.splitlines()) == 2
    assert train_module.main(command) == 0, "a pod that ended after its training: what is left is done again"
    assert finished == [Path("runs/job")] * 2
    assert (tmp_path / "runs" / "job" / "metrics.jsonl").read_text() == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "flagshp"], "did you mean 'flagship'"),
        (["--set", "optimizer.rl=1"], "did you mean 'optimizer.lr'"),
        (["--emnist-root", "nowhere"], "EMNIST_ROOT must be the folder"),
        (["--resume", "--name", "nothing"], "is not a checkpoint"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert train_module.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_the_temperature_undoes_overconfidence():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 10, generator=generator)
    labels = torch.distributions.Categorical(logits=logits).sample()
    assert fit_temperature(logits * 2, labels) == pytest.approx(2, abs=0.1)
    assert F.cross_entropy(logits, labels) <= F.cross_entropy(logits * 2, labels)


def test_a_run_can_start_from_another_ones_weights(tiny_run, tmp_path):
    train(tiny_run)
    first = load_checkpoint(tmp_path / "last.pt")
    tuned = replace(
        tiny_run.settings, start=str(tmp_path / "last.pt"), optimizer=replace(tiny_run.settings.optimizer, lr=1e-12)
    )
    run = replace(tiny_run, settings=tuned, folder=tmp_path / "tuned")
    run.folder.mkdir()
    train(run)
    weights = load_checkpoint(run.folder / "last.pt")["weights"]
    assert all(
        torch.allclose(weights[name], value, atol=1e-4) for name, value in first["weights"].items() if "weight" in name
    )

    other = replace(tuned, model=replace(tuned.model, widths=(8, 16, 24)))
    with pytest.raises(CheckpointError, match="another network"):
        train(replace(run, settings=other))


def test_soft_labels_mix_the_teachers_and_the_label(tiny_run, untrained):
    teacher = untrained(BY_MERGE)
    settings = replace(
        tiny_run.settings,
        distill=replace(tiny_run.settings.distill, teachers=(str(teacher), str(teacher)), weight=0.75),
    )
    run = replace(tiny_run, settings=settings)
    soft = run.soft_labels().float()
    labels = run.splits.train.labels
    assert torch.allclose(soft.sum(1), torch.ones(len(labels)), atol=0.02)
    taught = torch.from_numpy(Recognizer(teacher).probabilities(run.splits.train.images.numpy()))
    expected = 0.75 * taught + 0.25 * F.one_hot(labels, 47)
    assert torch.allclose(soft, expected, atol=2e-3)

    vin = replace(settings, distill=replace(settings.distill, teachers=(str(untrained(VIN)),)))
    with pytest.raises(SettingsError, match=r"distill\.teachers: .* knows"):
        replace(run, settings=vin).soft_labels()


def test_a_share_of_the_batch_is_degraded(emnist):
    images = emnist.images[:200]
    copies = torch.stack([torch.full_like(images, 7), torch.full_like(images, 9)])
    torch.manual_seed(0)
    picked = pick(images, copies, torch.arange(200), 0.5)
    kinds = [int((picked == value).all(dim=(1, 2)).sum()) for value in (7, 9)]
    assert min(kinds) > 30
    assert max(kinds) < 70
    same = (picked == images).all(dim=2).all(dim=1)
    assert int(same.sum()) == 200 - sum(kinds)
    assert torch.equal(pick(images, copies[:0], torch.arange(200), 0.5), images)


def test_augmentation_fades_out_at_the_end():
    schedule = from_dict({"schedule": {"fade": 0.2}}).schedule
    strengths = [augment_strength(schedule, step, 100) for step in (0, 79, 90, 99)]
    assert strengths == pytest.approx([1, 1, 0.5, 0.05])
