"""Systems beside the flagship: what is compared, when it stops, and that nothing is run twice."""

import json

import pytest

from benchmarks import reproduce
from training.settings import load_recipe


def points(*pairs):
    return [
        {"minutes": minutes, "validation": accuracy, "test": accuracy - 0.01, "epoch": minutes}
        for minutes, accuracy in pairs
    ]


def test_the_flagship_gets_the_systems_own_data():
    own, rival = (reproduce.settings_of("system-c", flagship) for flagship in (False, True))
    kept = (
        "source",
        "train_split",
        "test_split",
        "classes",
        "validation_fraction",
        "validation_limit",
        "validation_seed",
        "limit",
    )
    assert all(getattr(own.data, name) == getattr(rival.data, name) for name in kept)
    assert rival.model == load_recipe("flagship").model
    assert rival.data.degraded_copies == own.data.degraded_copies == 0


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (points((1, 0.5), (6, 0.80), (9, 0.9)), False),
        (points((1, 0.5), (6, 0.90), (9, 0.9005)), True),
        (points((9, 0.9)), False),
    ],
)
def test_a_plateau_is_a_last_third_without_gain(curve, expected):
    assert reproduce.plateaued(curve) is expected


def test_what_is_reported_is_chosen_by_validation():
    curve = [{"minutes": 1.0, "validation": 0.9, "test": 0.7}, {"minutes": 2.0, "validation": 0.8, "test": 0.95}]
    assert reproduce.reached(curve)["test"] == 0.7
    assert reproduce.minutes_to(curve, 0.94) == 2.0
    assert reproduce.minutes_to(curve, 0.96) is None


def test_the_command_trains_both_once_and_draws_them(tmp_path, emnist_root, monkeypatch, capsys):
    def shrunken(recipe, overrides=()):
        return load_recipe(recipe, [*overrides, "schedule.batch_size=32", "compile=never", "precision=float32"])

    monkeypatch.setattr(reproduce, "load_recipe", shrunken)
    monkeypatch.setattr(reproduce, "TIMED_STEPS", 1)
    arguments = [
        "--emnist-root",
        str(emnist_root),
        "--minutes",
        "0.02",
        "--recipes",
        "system-e",
        "--folder",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    assert reproduce.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[2].startswith("| `system-e` | 47, ")
    own, rival = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("system-e", "system-e-flagship")
    )
    assert own["fingerprint"] == rival["fingerprint"]
    assert own["ended"] in {"unfinished", "plateaued"}
    assert own["curve"][-1]["minutes"] < 1
    assert rival["ended"] == "finished"
    assert rival["curve"][-1]["minutes"] < own["curve"][-1]["minutes"]
    assert (tmp_path / "races.png").stat().st_size > 10_000
    monkeypatch.setattr(reproduce, "train_one", None)
    assert reproduce.main(arguments) == 0
    assert capsys.readouterr().out == printed
