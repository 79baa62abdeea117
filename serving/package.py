"""emnist.pt and handlers/ -> emnist.mar, the archive that TorchServe loads.

python -m serving.package [--model serving/models/emnist.pt] [--output build/emnist.mar] [--device cpu]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from handlers.recognizer import ModelError, Recognizer
from serving.service.processes import DEFAULT_MAR

HERE = Path(__file__).resolve().parent
HANDLERS = HERE.parent / "handlers"
ENTRY = HANDLERS / "emnist_handler.py"
DEFAULT_MODEL = HERE / "models" / "emnist.pt"
ARCHIVER_TIMEOUT_S = 120
DEVICES = ("cpu", "gpu")


def package(model: Path, output: Path, device: str = "cpu") -> str:
    """Write the archive to `output`, whose stem is the model's name on the server, for workers on `device`. Returns the
    model's version.

    Raises ModelError if `model` is no exported model, RuntimeError if the archiver fails.
    """
    version = Recognizer(model).version
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        # Keeps its name in the archive, so imports read the same there and here.
        stage = Path(folder) / "extra" / "handlers"
        shutil.copytree(HANDLERS, stage, ignore=shutil.ignore_patterns(ENTRY.name, "tests", "__pycache__"))
        config = Path(folder) / "model-config.yaml"
        config.write_text(
            (HERE / "service" / config.name).read_text().replace("deviceType: cpu", f"deviceType: {device}")
        )
        command = [
            sys.executable,
            "-m",
            "model_archiver.model_packaging",
            "--model-name",
            output.stem,
            "--version",
            version,
        ]
        command += ["--serialized-file", str(model), "--handler", str(ENTRY), "--extra-files", str(stage.parent)]
        command += ["--config-file", str(config), "--export-path", folder]
        # The archiver empties the folder of the model's name among the temporary files: give it temporary files of its
        # own.
        environment = os.environ | {"TMPDIR": folder}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=ARCHIVER_TIMEOUT_S, check=False
        )
        made = Path(folder) / f"{output.stem}.mar"
        if done.returncode != 0 or not made.is_file():
            raise RuntimeError(f"torch-model-archiver failed: {(done.stderr or done.stdout).strip()}")
        shutil.move(made, output)
    return version


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m serving.package", description="Package an exported model for TorchServe."
    )
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--output", type=Path, default=DEFAULT_MAR)
    parser.add_argument(
        "--device", choices=DEVICES, default="cpu", help="what the workers run on; default: %(default)s"
    )
    arguments = parser.parse_args(argv)
    try:
        version = package(arguments.model, arguments.output, arguments.device)
    except (ModelError, RuntimeError, OSError) as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.output}: model version {version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
