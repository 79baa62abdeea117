"""The load test measures a real service, and fails where it should."""

import csv
import os
import shutil
import subprocess
import sys

import pytest

LOCUSTFILE = "load_tests/locustfile.py"  # relative, for locust takes a comma in a path as the start of another


def locust(root, url, *arguments, users=4):
    command = [sys.executable, "-m", "locust", "--headless", "--only-summary", "-f", LOCUSTFILE, "--host", url]
    command += ["--users", str(users), "--run-time", "1s", *arguments]
    return subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def generous(tmp_path):
    path = tmp_path / "thresholds.yaml"
    path.write_text("".join(f"{shape}: {{p99: 20000, errors: 0, shed: 0}}\n" for shape in ("steady", "step", "spike")))
    return ("--thresholds", str(path))


@pytest.mark.parametrize("shape", ["steady", "step", "spike"])
def test_right_answers_within_the_thresholds_end_with_0(root, server, generous, tmp_path, shape):
    done = locust(
        root,
        server.url,
        "--shape",
        shape,
        *generous,
        "--html",
        str(tmp_path / "report.html"),
        "--csv",
        str(tmp_path / "report"),
    )
    assert done.returncode == 0, done.stderr
    assert f"{shape}, 4 users: requests " in done.stderr
    assert (tmp_path / "report.html").stat().st_size > 1000
    (answers, total) = csv.DictReader((tmp_path / "report_stats.csv").open(newline=""))
    assert int(answers["Request Count"]) == int(total["Request Count"]) > 10


def test_a_broken_threshold_and_a_wrong_character_end_with_1(root, server, tmp_path):
    (tmp_path / "strict.yaml").write_text("steady: {p50: 0, errors: 0}\n")
    (tmp_path / "pictures").mkdir()
    shutil.copy(root / "serving" / "samples" / "3_clean.png", tmp_path / "pictures" / "8_in_truth_a_3.png")
    done = locust(
        root, server.url, "--pictures", str(tmp_path / "pictures"), "--thresholds", str(tmp_path / "strict.yaml")
    )
    assert done.returncode == 1
    assert "threshold broken: p50" in done.stderr
    assert "threshold broken: errors 1 > 0" in done.stderr


def test_nobody_there_ends_with_1(root, free_port, generous):
    done = locust(root, f"http://127.0.0.1:{free_port}", *generous, users=1)
    assert done.returncode == 1
    assert "threshold broken: errors 1 > 0" in done.stderr
