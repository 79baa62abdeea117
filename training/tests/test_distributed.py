"""Several processes on the CPU, by gloo: they learn as one does, agree on when to stop, and end when one of them is
killed.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from handlers.recognizer import Recognizer
from training import train
from training.augment import augment
from training.checkpoint import load_checkpoint
from training.data import load_splits
from training.distributed import AGREE_STEPS, Group
from training.run import Run
from training.settings import SettingsError, from_dict
from training.tests.trainer import STOP_STEP

ROOT = Path(__file__).resolve().parents[2]
TRAINER = [sys.executable, str(Path(__file__).parent / "trainer.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
TINY = (
    "data.train_split=balanced",
    "data.validation_fraction=0.1",
    "data.degraded_copies=0",
    "data.test_pictures=0",
    "model.stem=8",
)
TINY += ("model.widths=[8,16,16]", "schedule.batch_size=64", "compile=never", "precision=float32")
LONGEST_END_S = 15


@pytest.fixture(autouse=True)
def rendezvous(free_port, monkeypatch):
    """Where the processes of a run meet."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port))


def environment(**variables):
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables


def command(folder, emnist_root, *overrides):
    """Of training.train, into `folder`/run."""
    options = ("--name", "run", "--runs", str(folder), "--emnist-root", str(emnist_root), "--device", "cpu")
    return ["-m", "training.train", *options, *(f"--set={value}" for value in (*TINY, *overrides))]


@contextlib.contextmanager
def started(count, arguments):
    """So many processes of one run, without torchrun, which would end them by itself."""
    with contextlib.ExitStack() as stack:
        processes = []
        for rank in range(count):
            variables = environment(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
            process = stack.enter_context(subprocess.Popen(arguments, env=variables, stderr=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def run_trainer(count, folder, *options):
    """Run trainer.py in so many processes; what each said."""
    folder.mkdir(exist_ok=True)
    with started(count, [*TRAINER, str(folder), *options]) as processes:
        said = [process.communicate(timeout=120)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * count, said
    return said


def curve(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines], [
        value for line in lines for value in (line["loss"], line["validation_loss"])
    ]


def wait_for_checkpoint(folder):
    deadline = time.monotonic() + 60
    while not (folder / "last.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    run_trainer(1, folder)
    return folder


def assert_learnt_as(alone, folder):
    """The same curve, and in the end the same weights."""
    steps, values = curve(folder)
    assert steps == curve(alone)[0]
    assert values == pytest.approx(curve(alone)[1], rel=1e-4)
    weights, expected = (load_checkpoint(run / "last.pt")["weights"] for run in (folder, alone))
    assert all(torch.allclose(weights[name], expected[name], atol=1e-4) for name in expected)


@pytest.mark.slow
def test_two_processes_learn_as_one(alone, tmp_path):
    run_trainer(2, tmp_path)
    assert_learnt_as(alone, tmp_path)


@pytest.mark.slow
def test_one_that_is_told_to_end_stops_all_at_the_same_step_and_one_goes_on_alone(alone, tmp_path):
    said = run_trainer(2, tmp_path, "--stop-rank", "1")
    stop = -(-STOP_STEP // AGREE_STEPS) * AGREE_STEPS
    assert all(f"stopped after step {stop} of" in text for text in said)
    assert load_checkpoint(tmp_path / "last.pt")["resume"]["step"] == stop
    (said,) = run_trainer(1, tmp_path, "--resume")
    assert f"going on after step {stop} of" in said
    assert_learnt_as(alone, tmp_path)


@pytest.mark.slow
def test_all_follow_the_validation_loss_that_the_first_has_found(tmp_path):
    """By it the rate is lowered on a plateau, and training stops early: a process that did otherwise would leave the
    others waiting.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    run_trainer(1, one, "--impatient")
    said = run_trainer(2, two, "--impatient")
    assert all("stopped early" in text for text in said)
    rates = [
        [json.loads(line)["lr"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (one, two)
    ]
    assert rates[0] == rates[1]
    assert 3 <= len(set(rates[0])) < len(rates[0]) < 60
    assert curve(two)[1] == pytest.approx(curve(one)[1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other_with_one_line(tmp_path, emnist_root, victim):
    endless = [sys.executable, *command(tmp_path, emnist_root, "schedule.epochs=100000")]
    with started(2, endless) as processes:
        wait_for_checkpoint(tmp_path / "run")
        processes[victim].send_signal(signal.SIGKILL)
        said = processes[1 - victim].communicate(timeout=LONGEST_END_S)[1]
        assert processes[1 - victim].returncode == 1
    assert "Traceback" not in said
    (line,) = re.findall(r"^train: .*", said, re.MULTILINE)
    assert line.startswith("train: another process ended")
    assert "--resume" in line


AGREEMENTS = """
import os, sys, torch
from training.distributed import AGREE_STEPS, PeerLost, join

try:
    with join(torch.device("cpu")) as group:
        for step in range(100):
            said = [group.agree(flag, AGREE_STEPS) for flag in (False, group.rank == step % 3, True)]
            assert said == [False, True, True], said
            assert group.mean(torch.tensor(float(group.rank))) == 1
            assert group.from_first([7.5, -1.0, 9.0][group.rank]) == 7.5
            group.wait()
        if len(sys.argv) > 1 and group.rank == int(sys.argv[1]):
            os._exit(3)
        group.wait()
        group.wait()
except PeerLost as lost:
    sys.exit(f"lost: {lost}")
"""


def test_three_processes_agree():
    with started(3, [sys.executable, "-c", AGREEMENTS]) as processes:
        said = [process.communicate(timeout=LONGEST_END_S * 4)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * 3, said


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_who_waits_for_an_agreement_learns_that_another_ended(victim):
    with started(3, [sys.executable, "-c", AGREEMENTS, str(victim)]) as processes:
        said = [process.communicate(timeout=LONGEST_END_S * 4)[1] for process in processes]
        assert [process.returncode for process in processes] == [3 if rank == victim else 1 for rank in range(3)], said
    assert all("lost: another process ended" in text for rank, text in enumerate(said) if rank != victim)


@pytest.mark.slow
def test_torchrun_trains_and_exports_once(tmp_path, emnist_root):
    """With batch norm, whose statistics are each process's own: alike, not the same."""
    said = subprocess.run(
        [*TORCHRUN, *command(tmp_path, emnist_root, "schedule.epochs=2")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert said.stdout.count("+- SE") == 1
    assert "2 processes, each on CPU" in said.stderr
    run, one = tmp_path / "run", tmp_path / "one"
    assert {path.name for path in run.iterdir()} >= {"last.pt", "best.pt", "metrics.jsonl", "emnist.pt", "README.md"}
    assert Recognizer(run / "emnist.pt").meta["run"]["step"] > 0
    one.mkdir()
    settings = from_dict(yaml.safe_load((run / "settings.yaml").read_text()))
    train.train(Run(settings, load_splits(settings.data, emnist_root), one, torch.device("cpu")))
    assert curve(run)[1] == pytest.approx(curve(one)[1], rel=0.03)


@pytest.mark.slow
def test_torchrun_passes_on_the_signal_and_the_run_is_saved(tmp_path, emnist_root):
    process = subprocess.Popen(
        [*TORCHRUN, *command(tmp_path, emnist_root, "schedule.epochs=100000")],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_checkpoint(tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=LONGEST_END_S)[1]
    steps = re.findall(r"train: stopped after step (\d+) of", said)  # one may stand behind the other's progress bar
    assert steps == [str(load_checkpoint(tmp_path / "run" / "last.pt")["resume"]["step"])] * 2


def test_the_parts_make_the_batch_and_vary_as_in_it(emnist):
    images = emnist.images[:60].unsqueeze(1).float() / 255
    settings = from_dict({"augment": {"stroke": 0.5, "blur": 0.5}}).augment
    torch.manual_seed(3)
    whole = augment(images, settings)
    varied = []
    for rank in range(3):
        torch.manual_seed(3)
        varied.append(augment(images, settings, part=Group(rank, 3).part(60)))
    assert torch.allclose(torch.cat(varied), whole, atol=1e-6)
    with pytest.raises(SettingsError, match="60 cannot be split over 7 processes"):
        Group(0, 7).part(60)


def test_a_half_set_environment_is_one_line(emnist_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert (
        train.main(["--emnist-root", str(emnist_root), "--runs", str(tmp_path), "--device", "cpu"]) == train.WRONG_USE
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert "torchrun" in line
