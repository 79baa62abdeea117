import json

import numpy as np
import pytest
import torch

from handlers.alphabets import BY_MERGE
from handlers.recognizer import META_FILE, ModelError, Recognizer


def test_the_file_says_everything(recognizer):
    assert recognizer.classes == tuple(BY_MERGE)
    assert recognizer.input_size == 28
    assert len(recognizer.version) == 12
    assert recognizer.meta["data"]["fingerprint"]["train"]


def test_predictions_are_ranked_and_sum_to_one(recognizer, emnist):
    images = emnist.images.numpy()[:20]
    for prediction in recognizer.predict(images, alphabet="vin", top_k=33):
        confidences = [prediction.confidence, *(p for _, p in prediction.alternatives)]
        assert confidences == sorted(confidences, reverse=True)
        assert sum(confidences) == pytest.approx(1)
        assert len(prediction.alternatives) == 32


def test_lower_case_answers_upper_case(recognizer, emnist):
    is_lower = torch.tensor([c.islower() for c in emnist.classes])[emnist.labels]
    predictions = recognizer.predict(emnist.images[is_lower].numpy())
    assert all(p.character == p.character.upper() for p in predictions)
    truth = [emnist.classes[label].upper() for label in emnist.labels[is_lower].tolist()]
    right = sum(p.character == t for p, t in zip(predictions, truth, strict=True))
    assert right >= 0.85 * len(truth)


def test_an_answer_does_not_depend_on_its_neighbours(recognizer, emnist):
    images = emnist.images.numpy()[:40]
    together = recognizer.probabilities(images)
    alone = np.concatenate([recognizer.probabilities(image[None]) for image in images])
    assert np.abs(together - alone).max() < 1e-5


def test_files_that_are_no_models(tmp_path):
    missing = tmp_path / "missing.pt"
    junk = tmp_path / "junk.pt"
    junk.write_bytes(b"junk")
    bare = tmp_path / "bare.pt"  # TorchScript, but without the extra file
    torch.jit.save(torch.jit.script(torch.nn.Identity()), str(bare))
    for path in (missing, junk, bare):
        with pytest.raises(ModelError, match=r"is not a model made by `python -m training.export`"):
            Recognizer(path)


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        *((text, "holds no JSON object") for text in ("[]", "28", "null", '"classes"', "NaN")),
        ("{", "Expecting property name"),
        *(
            (json.dumps({"classes": classes, "input_size": 28}), "'classes'")
            for classes in (None, "AB", [], {"A": 0}, 2, [0, 1], ["A", ""], ["AB"])
        ),
        ('{"input_size": 28}', "'classes'"),
        ('{"classes": ["A", "B", "A"], "input_size": 28}', "names a character twice"),
        *(
            (json.dumps({"classes": ["A"], "input_size": size}), "'input_size'")
            for size in (None, 0, -28, True, 28.0, "28", [28])
        ),
        ('{"classes": ["A"]}', "'input_size'"),
    ],
)
def test_a_model_that_says_of_itself_what_cannot_be(tmp_path, meta, reason):
    path = tmp_path / "odd.pt"
    torch.jit.save(torch.jit.script(torch.nn.Identity()), str(path), _extra_files={META_FILE: meta})
    with pytest.raises(ModelError, match=rf"is not a model made by `python -m training.export`: .*{reason}"):
        Recognizer(path)
