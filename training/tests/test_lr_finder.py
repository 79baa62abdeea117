import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from training import lr_finder
from training.data import DataError
from training.lr_finder import Sweep, sweep

RATES = np.geomspace(1e-5, 10, 200)
SETS = [
    "model.stem=16",
    "model.widths=[16, 32, 64]",
    "data.train_split=balanced",
    "data.degraded_copies=0",
    "data.validation_fraction=0.1",
]
SETS += ["schedule.batch_size=64", "compile=never", "precision=float32"]
COMMAND = [argument for text in SETS for argument in ("--set", text)]


def test_the_suggestion_is_where_the_loss_falls_most_steeply():
    """A logistic fall around 0.03 and a rise from 1 on, with noise."""
    log = np.log10(RATES)
    noise = np.random.default_rng(0).normal(0, 0.05, len(log))
    losses = 4 - 3 / (1 + np.exp(-4 * (log - math.log10(0.03)))) + np.exp(6 * (log - 0.7)) + noise
    assert Sweep(RATES.tolist(), losses.tolist()).suggestion() == pytest.approx(0.03, rel=0.5)


def test_a_fall_after_the_least_loss_is_not_suggested():
    losses = np.concatenate([np.linspace(4, 1, 100), np.linspace(9, 2, 100)])
    assert Sweep(RATES.tolist(), losses.tolist()).suggestion() <= RATES[99]


def test_a_loss_that_never_falls_suggests_nothing():
    with pytest.raises(DataError, match="does not fall"):
        Sweep(RATES.tolist(), np.linspace(1, 4, 200).tolist()).suggestion()
    with pytest.raises(DataError, match="does not fall"):
        Sweep(RATES.tolist(), np.random.default_rng(0).normal(4, 0.1, 200).tolist()).suggestion()


def test_a_sweep_is_exponential_and_a_function_of_the_seed(small_run):
    run = small_run("sweep", {})
    found = sweep(run, 1e-4, 1.0, 25)
    assert np.allclose(np.diff(np.log(found.rates)), math.log(1e4) / 24)
    assert found.losses[0] == pytest.approx(math.log(47), abs=0.4)
    assert found == sweep(run, 1e-4, 1.0, 25)
    other = replace(run, settings=replace(run.settings, seed=1))
    assert found.losses != sweep(other, 1e-4, 1.0, 25).losses
    assert list(run.folder.iterdir()) == []


def test_a_sweep_ends_when_the_loss_diverges(small_run):
    found = sweep(small_run("sweep", {}), 1e-3, 1e6, 60)
    assert 20 <= len(found.rates) < 60
    assert all(map(math.isfinite, found.losses))


def test_the_command_plots_and_suggests(emnist_root, tmp_path, capsys):
    plot = tmp_path / "plots" / "lr.png"
    assert lr_finder.main([*COMMAND, "--emnist-root", str(emnist_root), "--steps", "60", "--plot", str(plot)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert 1e-3 < float(first.split(":")[0].removeprefix("optimizer.lr=")) < 5
    with Image.open(plot) as image:
        assert min(image.size) > 300


def test_wrong_use_is_one_line(emnist_root, tmp_path, capsys):
    assert lr_finder.main(["--emnist-root", str(tmp_path)]) == 1
    assert lr_finder.main([*COMMAND, "--emnist-root", str(emnist_root), "--set", "schedule.batch_size=10000"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert all(line.startswith("lr_finder: ") for line in errors)
    for arguments in (["--low", "2", "--high", "1"], ["--steps", "3"]):
        with pytest.raises(SystemExit):
            lr_finder.main([*arguments, "--emnist-root", str(emnist_root)])
