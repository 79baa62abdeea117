import json
import os
import signal

import pytest
import torch
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR, ReduceLROnPlateau

from training import train as train_module
from training.checkpoint import load_checkpoint, new_state
from training.data import load_splits
from training.run import Run
from training.schedules import learning_rate, stops
from training.settings import SettingsError, from_dict
from training.train import Interrupted, train, train_step


def schedule_of(**fields):
    return from_dict({"schedule": fields}).schedule


def rates_of_torch(make, steps):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.4)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_learning_rate_rises_and_falls():
    schedule = from_dict({"schedule": {"warmup": 0.2}}).schedule
    rates = [learning_rate(schedule, 1.0, step, 100) for step in range(100)]
    assert max(rates) == rates[19] == 1.0
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.3), (57, 0.25), (40, 0.0), (10, 0.95)])
def test_one_cycle_is_torchs(steps, warmup):
    schedule = schedule_of(name="one-cycle", warmup=warmup)
    expected = rates_of_torch(
        lambda o: OneCycleLR(o, max_lr=0.4, total_steps=steps, pct_start=warmup, cycle_momentum=False), steps
    )
    assert [learning_rate(schedule, 0.4, step, steps) for step in range(steps)] == pytest.approx(expected, rel=1e-9)


def test_steps_are_torchs():
    schedule = schedule_of(name="step", epochs=10, milestones=[3, 7.5], factors=[0.1, 0.01])
    expected = rates_of_torch(lambda o: MultiStepLR(o, [30, 75], gamma=0.1), 100)
    assert [learning_rate(schedule, 0.4, step, 100) for step in range(100)] == pytest.approx(expected)


def test_a_plateau_is_torchs():
    losses = [1.0, 0.9, 0.89999, 0.9, 0.91, 0.8, 0.81, 0.82, 0.83, 0.84, 0.85, 0.86, 0.87, 0.88]
    schedule = schedule_of(name="plateau", plateau_factor=0.2, plateau_patience=2, plateau_lr=0.02)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.4)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.2, patience=2, min_lr=0.02)
    for epoch, loss in enumerate(losses):
        assert learning_rate(schedule, 0.4, epoch, 100, losses[:epoch]) == optimizer.param_groups[0]["lr"]
        scheduler.step(loss)
    assert learning_rate(schedule, 0.4, 0, 1, losses) == 0.02


def test_constant_is_constant():
    assert {learning_rate(schedule_of(name="constant"), 0.4, step, 9) for step in range(9)} == {0.4}


@pytest.mark.parametrize(
    ("losses", "stop"),
    [
        ([], False),
        ([1.0], False),
        ([1.0, 2.0], False),
        ([1.0, 2.0, 1.0], True),
        ([1.0, 2.0, 0.9], False),
        ([3.0, 1.0, 2.0, 2.0], True),
    ],
)
def test_stopping_early(losses, stop):
    assert stops(schedule_of(patience=2), losses) is stop
    assert not stops(schedule_of(patience=0), losses)


@pytest.mark.parametrize(
    "fields", [{"milestones": [3]}, {"milestones": [3, 2], "factors": [0.1, 0.1]}, {"factors": [0.1]}]
)
def test_milestones_that_do_not_fit(fields):
    with pytest.raises(SettingsError, match=r"^'schedule': milestones must rise, and"):
        schedule_of(**fields)


@pytest.fixture
def run_of(emnist_root, tmp_path):
    """A function that makes a run of a tiny network with this schedule, of 3 steps an epoch."""

    def make(folder, **schedule):
        tree = {
            "data": {"train_split": "balanced", "validation_fraction": 0.1},
            "model": {"stem": 4, "widths": [4, 8], "dropout": 0.2},
            "schedule": {"batch_size": 160, "epochs": 5, **schedule},
            "compile": "never",
            "precision": "float32",
            "report": {"scalars": 0, "figures": 0},
        }
        settings = from_dict(json.loads(json.dumps(tree)))
        (tmp_path / folder).mkdir()
        return Run(settings, load_splits(settings.data, emnist_root), tmp_path / folder, torch.device("cpu"))

    return make


def test_a_resumed_plateau_gives_the_very_same_weights(run_of, monkeypatch):
    """Stopped in the fourth epoch, when the rate has been halved twice: after the second and the third."""
    schedule = {"name": "plateau", "plateau_patience": 0, "plateau_factor": 0.5}
    monkeypatch.setattr(train_module, "record", raising_losses(train_module.record))
    whole, stopped = run_of("whole", **schedule), run_of("stopped", **schedule)
    train(whole)
    rates = []

    def step_then_interrupt(run, state, *arguments):
        rates.append(state.optimizer.param_groups[0]["lr"])
        result = train_step(run, state, *arguments)
        if len(rates) == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(train_module, "train_step", step_then_interrupt)
    with pytest.raises(Interrupted, match="after step 10 of 15"):
        train(stopped)
    train(stopped, resume=True)
    assert rates == pytest.approx([0.15] * 6 + [0.075] * 3 + [0.0375] * 3 + [0.01875] * 3)
    ends = [load_checkpoint(run.folder / "last.pt")["resume"]["model"] for run in (whole, stopped)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def raising_losses(record):
    """`record`, after which the validation loss of the epoch is its number: it only rises."""

    def and_raise(run, state, *arguments):
        record(run, state, *arguments)
        state.history[-1]["validation_loss"] = float(len(state.history))

    return and_raise


def test_a_run_stops_early_and_stays_stopped(run_of, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(train_module, "record", raising_losses(train_module.record))
    run = run_of("early", patience=2)
    train(run)
    assert "stopped early: no lower validation loss in 2 epochs" in caplog.text
    assert load_checkpoint(run.folder / "last.pt")["resume"]["step"] == 9
    train(run, resume=True)
    assert load_checkpoint(run.folder / "last.pt")["resume"]["step"] == 9


def test_without_an_average_the_weights_are_the_current_ones(run_of):
    run = run_of("current", epochs=2, ema=0)
    train(run)
    kept = load_checkpoint(run.folder / "last.pt")
    assert all(torch.equal(value, kept["weights"][name]) for name, value in kept["resume"]["model"].items())


@pytest.mark.parametrize(
    ("fields", "kind", "nesterov"),
    [
        ({"name": "sgd"}, torch.optim.SGD, True),
        ({"name": "sgd", "nesterov": False}, torch.optim.SGD, False),
        ({"name": "sgd", "momentum": 0}, torch.optim.SGD, False),
        ({"name": "adam"}, torch.optim.Adam, None),
        ({"name": "adamw"}, torch.optim.AdamW, None),
    ],
)
def test_optimizers(fields, kind, nesterov):
    optimizer = new_state(
        from_dict({"model": {"stem": 2, "widths": [2]}, "optimizer": fields}), 3, torch.device("cpu")
    ).optimizer
    assert type(optimizer) is kind
    assert optimizer.defaults.get("nesterov") is nesterov
