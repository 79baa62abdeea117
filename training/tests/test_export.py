import subprocess
import sys

import numpy as np
import pytest
import torch

from handlers.alphabets import BY_MERGE, DIGITS, VIN
from handlers.recognizer import Recognizer
from training import export as export_module
from training.checkpoint import CheckpointError, load_checkpoint, network_of, save_checkpoint
from training.export import ExportedModel, ExportError, export, fuse_batch_norm, verify
from training.settings import load_recipe


@pytest.mark.parametrize("classes", [DIGITS, VIN], ids=["10", "33"])
def test_eager_equals_exported_for_any_class_set(untrained, untrained_checkpoint, emnist, classes):
    checkpoint = untrained_checkpoint(classes)
    recognizer = Recognizer(untrained(classes))
    assert "".join(recognizer.classes) == classes
    eager = ExportedModel(network_of(checkpoint), checkpoint["temperature"]).eval()
    for count in (1, 64):
        images = emnist.images[:count]
        with torch.no_grad():
            assert np.abs(recognizer.probabilities(images.numpy()) - eager(images).numpy()).max() < 1e-5
    assert np.allclose(recognizer.probabilities(images.numpy()).sum(axis=1), 1, atol=1e-5)


NARROW = ["model.stem=8", "model.widths=[8, 8, 16, 16]"]


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("flagship", ["model.widths=[8, 8, 8]"]),
        ("system-c", NARROW),
        ("system-c", [*NARROW, "model.bottleneck=true"]),
        ("system-e", []),
    ],
    ids=["flagship", "34", "50", "plain"],
)
def test_batch_norms_are_folded(untrained_checkpoint, emnist, recipe, overrides):
    network = network_of(untrained_checkpoint(BY_MERGE, load_recipe(recipe, overrides)))
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    fused = fuse_batch_norm(network)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    images = emnist.images[:8].unsqueeze(1).float() / 255
    with torch.no_grad():
        assert torch.allclose(network(images), fused(images), rtol=1e-4, atol=1e-4)


def test_an_export_that_answers_otherwise_is_refused(untrained, untrained_checkpoint):
    path = untrained(DIGITS)
    checkpoint = untrained_checkpoint(DIGITS)
    other = ExportedModel(network_of(checkpoint), temperature=0.3).eval()
    with pytest.raises(ExportError, match="differ by"):
        verify(path, other, checkpoint["samples"])


def test_nothing_is_written_when_verification_fails(untrained_checkpoint, tmp_path, monkeypatch):
    def refuse(*_):
        raise ExportError("no")

    monkeypatch.setattr(export_module, "verify", refuse)
    with pytest.raises(ExportError):
        export(untrained_checkpoint(DIGITS), tmp_path / "emnist.pt")
    assert list(tmp_path.iterdir()) == []


def test_the_command(untrained_checkpoint, tmp_path):
    save_checkpoint(untrained_checkpoint(VIN), tmp_path / "best.pt")
    command = [sys.executable, "-m", "training.export", str(tmp_path / "best.pt"), str(tmp_path / "out" / "vin.pt")]
    subprocess.run(command, check=True, timeout=120)
    assert len(Recognizer(tmp_path / "out" / "vin.pt").classes) == 33


def test_files_that_are_no_checkpoints(tmp_path, capsys):
    junk = tmp_path / "junk.pt"
    junk.write_bytes(b"junk")
    bare = tmp_path / "bare.pt"
    torch.save({"settings": {}}, bare)
    for path in (junk, bare, tmp_path / "missing.pt"):
        with pytest.raises(CheckpointError, match=r"is not a checkpoint of training.train"):
            load_checkpoint(path)
        assert export_module.main([str(path), str(tmp_path / "out.pt")]) == 1
        assert capsys.readouterr().err.startswith("export: ")
