import ast
import io
import json
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from handlers.alphabets import BY_MERGE, DIGITS, LOWER, VIN
from handlers.pictures.framing import resize
from handlers.protocols.service import answer_rows
from handlers.recognizer import Recognizer
from serving import package as package_module
from serving.client.client import Client
from serving.local import running
from serving.package import package

# Stands in for TorchServe's worker: the unpacked archive is all that is on the path, and `ts` the installed one.
IN_A_CLEAN_PROCESS = """
import json, pathlib, sys
from types import SimpleNamespace
sys.path.insert(0, ".")
import emnist_handler
handler = emnist_handler.EmnistHandler()
manifest = json.loads(pathlib.Path("MAR-INF/MANIFEST.json").read_text())
statuses, headers = {}, {}
context = SimpleNamespace(
    system_properties={"model_dir": ".", "gpu_id": None, "batch_size": 2}, manifest=manifest,
    model_yaml_config={"deviceType": sys.argv[2]},
    get_all_request_header=lambda idx: {"Content-Type": "image/png"},
    set_response_status=lambda code, idx: statuses.update({idx: code}),
    set_response_header=lambda idx, key, value: headers.setdefault(idx, {}).update({key: value}))
handler.initialize(context)
rows = [{"body": pathlib.Path(sys.argv[1]).read_bytes()}, {"body": b"junk"}]
bodies = [json.loads(body) for body in handler.handle(rows, context)]
here = str(pathlib.Path.cwd())
roots = ("common", "handlers", "training", "serving", "torchvision")
ours = {n: m.__file__ for n, m in sys.modules.items() if n.split(".")[0] in roots}
assert all(f.startswith((here, "./")) or not f for f in ours.values()), ours
assert not any(n.split(".")[0] in ("training", "serving", "torchvision") for n in ours), ours
print(json.dumps([bodies, statuses, headers]))
"""


def unpacked(mar, folder):
    with zipfile.ZipFile(mar) as archive:
        archive.extractall(folder)
    return folder


def test_a_handler_that_sees_no_gpu_does_not_fall_back(mar, tmp_path):
    command = [sys.executable, "-E", "-c", IN_A_CLEAN_PROCESS, "no.png", "gpu"]
    done = subprocess.run(
        command, cwd=unpacked(mar, tmp_path), capture_output=True, text=True, timeout=120, check=False
    )
    assert (
        done.stderr.splitlines()[-1]
        == "RuntimeError: model-config.yaml asks for deviceType gpu, and no GPU is visible to this worker"
    )


def test_the_archive_works_in_a_clean_process(mar, tmp_path, emnist, recognizer):
    unpacked(mar, tmp_path)
    image = emnist.images[3].numpy()
    picture = tmp_path / "picture.png"
    Image.fromarray(255 - image).save(picture)
    command = [sys.executable, "-E", "-c", IN_A_CLEAN_PROCESS, str(picture), "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (good, bad), statuses, headers = json.loads(done.stdout.splitlines()[-1])
    expected = recognizer.predict(image[None])[0]
    assert good["character"] == expected.character
    assert good["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    assert bad["error"]["code"] == "unsupported_format"
    assert statuses == {"0": 200, "1": 415}
    assert headers["1"]["X-Model-Version"] == recognizer.version


def needed_by(module, root, found=frozenset()):
    """The files of handlers/ that a module imports, directly or not, and its own; `module` may be a package, or a name
    in a module.
    """
    path = module.replace(".", "/")
    path = f"{path}/__init__.py" if (root / path).is_dir() else f"{path}.py"
    if path in found or not (root / path).is_file():
        return found
    found = needed_by(module.rpartition(".")[0], root, found | {path})
    for node in ast.walk(ast.parse((root / path).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "handlers":
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                found = needed_by(name, root, found)
    return found


def test_the_archive_holds_what_the_handler_imports_and_no_more(mar, recognizer, root):
    with zipfile.ZipFile(mar) as archive:
        names = set(archive.namelist())
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
    modules = needed_by("handlers.emnist_handler", root) - {"handlers/emnist_handler.py"}
    assert len(modules) > 10
    assert names == modules | {"emnist_handler.py", "emnist.pt", "model-config.yaml", "MAR-INF/MANIFEST.json"}
    assert manifest["model"]["modelVersion"] == recognizer.version


@pytest.mark.usefixtures("one_worker")
@pytest.mark.slow
def test_another_class_set_packages_and_serves(untrained, tmp_path, emnist):
    """Under a name of its own, which the edge then takes for the one that there is. The slow tests serve every
    recipe's.
    """
    classes = DIGITS
    model = untrained(classes)
    mar = tmp_path / f"other{len(classes)}.mar"
    package(model, mar)
    picture = tmp_path / "picture.png"
    Image.fromarray(emnist.images[0].numpy()).save(picture)
    with running(mar) as server, Client(server.url, model=mar.stem) as client:
        answer = client.predict(picture.read_bytes(), alphabet="classes", top_k=len(classes))
    said = {one.character: one.confidence for one in (answer, *answer.alternatives)}
    assert set(said) == set(classes)
    probabilities = Recognizer(model).probabilities(emnist.images[:1].numpy())[0]
    assert np.allclose([said[c] for c in classes], probabilities, atol=1e-4)


SYSTEMS = {"system-a": BY_MERGE, "system-b": DIGITS, "system-c": VIN, "system-d": LOWER, "system-e": BY_MERGE}


@pytest.mark.parametrize(("recipe", "classes"), SYSTEMS.items())
def test_every_recipes_export_packages_and_answers(untrained_recipe, tmp_path, emnist, recipe, classes):
    """The model out of the archive, through the handler's own reading of requests; the largest one narrower, to save
    time.
    """
    mar = tmp_path / f"{recipe}.mar"
    version = package(
        untrained_recipe(recipe, *(["model.widths=[8, 16, 32, 64]"] if recipe == "system-c" else [])), mar
    )
    with zipfile.ZipFile(mar) as archive:
        packed = Recognizer(archive.extract("emnist.pt", tmp_path))
    assert (packed.version, "".join(packed.classes)) == (version, classes)
    image = emnist.images[3].numpy()
    rows = [{"body": encode(image), "alphabet": b"classes", "top_k": str(len(classes)).encode()}, {"body": b"junk"}]
    answered, refused = answer_rows(packed, rows)
    assert (answered.status, refused.status) == (200, 415)
    expected = packed.probabilities(np.stack([resize(image, packed.input_size)]))[0]
    assert said_in(json.loads(answered.body)) == pytest.approx(dict(zip(classes, expected, strict=True)), abs=1e-4)


def said_in(body):
    return {row["character"]: row["confidence"] for row in (body, *body["alternatives"])}


def encode(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "classes"), SYSTEMS.items())
def test_every_recipes_export_serves(untrained_recipe, tmp_path, emnist, recipe, classes):
    mar = tmp_path / f"{recipe}.mar"
    model = untrained_recipe(recipe)
    package(model, mar)
    image = emnist.images[0].numpy()
    with running(mar) as server, Client(server.url, model=mar.stem) as client:
        answer = client.predict(encode(image), alphabet="classes", top_k=len(classes))
    recognizer = Recognizer(model)
    expected = recognizer.probabilities(np.stack([resize(image, recognizer.input_size)]))[0]
    said = {one.character: one.confidence for one in (answer, *answer.alternatives)}
    assert said == pytest.approx(dict(zip(classes, expected, strict=True)), abs=1e-4)


def test_packaging_touches_no_other_temporary_file(model_path, tmp_path, monkeypatch):
    """The archiver by itself would empty a folder of the model's name there, which may be another packaging's, or a
    user's.
    """
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "emnist").mkdir()
    (tmp_path / "emnist" / "kept").touch()
    package(model_path, tmp_path / "out" / "emnist.mar")
    assert {path.name for path in tmp_path.iterdir()} == {"emnist", "out"}
    assert (tmp_path / "emnist" / "kept").exists()


def test_what_is_no_model_is_refused(tmp_path, capsys):
    (tmp_path / "junk.pt").write_bytes(b"junk")
    assert package_module.main(["--model", str(tmp_path / "junk.pt"), "--output", str(tmp_path / "x.mar")]) == 1
    assert capsys.readouterr().err.startswith("package: ")
    assert not (tmp_path / "x.mar").exists()
