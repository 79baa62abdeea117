import re

import pytest

from benchmarks import training_steps

TINY = [
    "--set=data.train_split=balanced",
    "--set=data.validation_fraction=0.1",
    "--set=data.degraded_copies=0",
    "--set=model.stem=8",
]
TINY += [
    "--set=model.widths=[8,16]",
    "--set=schedule.batch_size=64",
    "--set=compile=never",
    "--set=precision=float32",
    "--device=cpu",
]


def test_the_loop_is_timed_beside_its_bare_passes(emnist_root, capsys):
    """More steps than the run would have."""
    assert (
        training_steps.main(
            ["--emnist-root", str(emnist_root), *TINY, "--set=schedule.epochs=1", "--steps=3", "--rounds=4"]
        )
        == 0
    )
    printed = capsys.readouterr().out
    rows = {
        row[:30].strip(): [float(value.replace(",", "")) for value in row[30:].split()]
        for row in printed.splitlines()[4:]
    }
    alone, loop = rows["forward and backward alone"], rows["the training loop"]
    for median, least, most, *_ in rows.values():
        assert 0 < least <= median <= most
    assert alone[4] == 1
    assert loop[4] > 0
    assert alone[3] == pytest.approx(64e3 / alone[0], rel=0.02)
    assert re.search(r"medians of 4 rounds of 3 steps", printed)


def test_wrong_use_is_one_line(emnist_root, capsys):
    assert (
        training_steps.main(
            ["--emnist-root", str(emnist_root), "--set=data.train_split=balanced", "--set=schedule.batch_size=5000"]
        )
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench: ")
    assert "lower schedule.batch_size" in line
