"""What continuous integration runs passes wherever the clone lies, beside whatever else the machine does."""

import contextlib
import os
import subprocess
import sys

import pytest

CLONE = (
    "ein Ordner mit Leerzeichen, Umlaut ä und einem sehr langen Namen/und noch einer darin, damit der Pfad 120"
    " Zeichen hat"
)
LIMIT_S = 3600


@pytest.fixture
def busy():
    """Every core has something else to do."""
    with contextlib.ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("command", [[".ci/run"], ["make", "demo"]], ids=["ci", "demo"])
def test_a_clone_passes_anywhere(root, tmp_path, command):
    clone = tmp_path / CLONE
    clone.parent.mkdir()
    subprocess.run(["git", "clone", "--quiet", root, clone], check=True, timeout=60)
    assert len(str(clone)) >= 120
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    print("\n".join(done.stdout.splitlines()[-3:]))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
