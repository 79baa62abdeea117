"""A checkpoint -> emnist.pt, one TorchScript file that is whole: uint8 pictures in, calibrated class probabilities out.

    python -m training.export CHECKPOINT OUT.pt

The export verifies itself before OUT.pt appears: a fresh process that has only torch loads it and must give the eager
network's answers on real images.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from handlers.recognizer import META_FILE
from training.checkpoint import CheckpointError, load_checkpoint, network_of
from training.models import count_multiply_adds, count_parameters
from training.settings import from_dict

log = logging.getLogger(__name__)

TOLERANCE = 1e-5  # between eager and exported probabilities
VERIFY_BATCHES = (1, 64)
VERIFY_TIMEOUT_S = 300

# Runs with `python -I` in an empty folder: no training code can be found there, and none may be needed.
_FRESH_PROCESS = """
import sys, numpy, torch
module = torch.jit.load(sys.argv[1])
images = torch.from_numpy(numpy.load(sys.argv[2]))
batches = [module(images[:n]).numpy() for n in map(int, sys.argv[4:])]
forbidden = {"training", "handlers", "torchvision"} & set(sys.modules)
assert not forbidden, forbidden
numpy.savez(sys.argv[3], *batches)
"""


class ExportError(Exception):
    """The exported file does not answer as the network does."""


class ExportedModel(nn.Module):
    """uint8 (B, S, S), light on black -> class probabilities float32 (B, C), divided by one temperature before
    softmax.
    """

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        # (B, 1, S, S)
        batch = (images.unsqueeze(1).to(torch.float32) / 255.0).contiguous(memory_format=torch.channels_last)
        logits = self.network(batch)
        return torch.softmax(logits / self.temperature, dim=1)


def export(checkpoint: dict[str, Any], out: Path) -> None:
    """Write the checkpoint's model to `out` once it has passed `verify`. Raises ExportError."""
    network = network_of(checkpoint)
    eager = ExportedModel(network, checkpoint["temperature"]).eval()
    size = from_dict(checkpoint["settings"]).model.input_size
    meta = {
        "classes": list(checkpoint["classes"]),
        "input_size": size,
        "temperature": checkpoint["temperature"],
        "parameters": count_parameters(network),
        "multiply_adds": count_multiply_adds(network, size),
        "settings": checkpoint["settings"],
        "run": checkpoint.get("run", {}),
        "data": checkpoint.get("data", {}),
        "metrics": checkpoint.get("metrics", {}),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    fused = fuse_batch_norm(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the faster layout on CPU and GPU
    scripted = torch.jit.script(ExportedModel(fused, checkpoint["temperature"]).eval())
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        unverified = Path(folder) / "emnist.pt"
        torch.jit.save(scripted, str(unverified), _extra_files={META_FILE: json.dumps(meta)})
        verify(unverified, eager, checkpoint["samples"])
        unverified.replace(out)
    log.info("exported %s: %.2f MB, %d classes", out, out.stat().st_size / 1e6, len(meta["classes"]))


def fuse_batch_norm(network: nn.Module) -> nn.Module:
    """A copy in which every batch norm that directly follows a convolution, by order of definition, is folded into
    it.
    """
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        children = list(parent.named_children())
        for (name, conv), (next_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, next_name, nn.Identity())
    return network


def verify(path: Path, eager: nn.Module, samples: Tensor) -> None:
    """Compare the file at `path`, in a fresh process, with `eager` on samples uint8 (N, S, S). Raises ExportError."""
    images = samples.repeat(-(-max(VERIFY_BATCHES) // len(samples)), 1, 1)[: max(VERIFY_BATCHES)]
    with tempfile.TemporaryDirectory() as folder:
        given, answered = Path(folder) / "images.npy", Path(folder) / "probabilities.npz"
        np.save(given, images.numpy())
        command = [
            sys.executable,
            "-I",
            "-c",
            _FRESH_PROCESS,
            str(path.resolve()),
            str(given),
            str(answered),
            *map(str, VERIFY_BATCHES),
        ]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=VERIFY_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            raise ExportError(f"the exported file does not run by itself: {done.stderr.strip().splitlines()[-1]}")
        with np.load(answered) as answers, torch.no_grad():
            for name, count in zip(answers.files, VERIFY_BATCHES, strict=True):
                difference = float(np.abs(answers[name] - eager(images[:count]).numpy()).max())
                if not difference <= TOLERANCE:  # also when it is not a number
                    raise ExportError(f"eager and exported answers differ by {difference:.2e} at batch size {count}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.export", description="Export a checkpoint to TorchScript and verify it."
    )
    parser.add_argument("checkpoint", type=Path, help="runs/NAME/best.pt or last.pt")
    parser.add_argument("out", type=Path, help="the TorchScript file to write")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        export(load_checkpoint(arguments.checkpoint), arguments.out)
    except (CheckpointError, ExportError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
