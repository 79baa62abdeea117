"""What a run was started from, in run.json: code, packages, device and data, one entry for each time it was started or
resumed.
"""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.files import replaced
from training.data import DataError

PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "pillow")  # what a run's figures may depend on
GIT_TIMEOUT_S = 20
RUN_FILE = "run.json"


def versions() -> dict[str, str]:
    """Of Python and of those of PACKAGES that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that is checked out around `folder`, and whether tracked files differ from it; None without git or
    repository.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def record_start(folder: Path, device: str, data: dict[str, Any]) -> None:
    """Add this start to the run.json of the run in `folder`; `device` and `data` are what the run says of itself."""
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "platform": platform.platform(),
        "versions": versions(),
        "git": git_state(Path(__file__).parent),
        "data": data,
    }
    path = folder / RUN_FILE
    entries = {"starts": [*starts(folder), start]}
    with replaced(path) as stream:
        stream.write((json.dumps(entries, indent=2) + "\n").encode())


def starts(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run's run.json, the newest last; none where there is no such file. Raises DataError for a
    damaged one.
    """
    path = folder / RUN_FILE
    if not path.exists():
        return []
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text())["starts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it") from error
    return found
