import numpy as np
import pytest

from handlers.alphabets import ALPHABETS, BY_CLASS, BY_MERGE, LOWER, VIN, UnknownAlphabet, make_fold


def test_class_sets_have_emnists_sizes():
    assert (len(BY_MERGE), len(BY_CLASS), len(VIN)) == (47, 62, 33)
    assert not set(VIN) & set("IOQ")


def test_folding_is_a_sum():
    probabilities = np.zeros(47)
    probabilities[BY_MERGE.index("A")], probabilities[BY_MERGE.index("a")], probabilities[BY_MERGE.index("4")] = (
        0.3,
        0.25,
        0.45,
    )
    fold = make_fold(BY_MERGE, "alnum")
    folded = dict(zip(fold.characters, fold(probabilities), strict=True))
    assert folded["A"] == pytest.approx(0.55)
    assert folded["4"] == pytest.approx(0.45)


def test_an_alphabet_is_a_mask_and_a_renormalisation():
    probabilities = np.full(47, 0.0)
    probabilities[BY_MERGE.index("O")], probabilities[BY_MERGE.index("0")], probabilities[BY_MERGE.index("D")] = (
        0.6,
        0.3,
        0.1,
    )
    fold = make_fold(BY_MERGE, "vin")
    folded = dict(zip(fold.characters, fold(probabilities), strict=True))
    assert set(folded) == set(VIN)
    assert folded["0"] == pytest.approx(0.75)
    assert folded["D"] == pytest.approx(0.25)


@pytest.mark.parametrize("alphabet", [*ALPHABETS, "classes"])
def test_a_batch_folds_to_probabilities(alphabet):
    probabilities = np.random.default_rng(0).dirichlet(np.full(62, 0.1), size=50).astype(np.float32)
    folded = make_fold(BY_CLASS, alphabet)(probabilities)
    assert np.allclose(folded.sum(axis=1), 1)
    assert (folded >= 0).all()


def test_classes_are_the_models_own():
    fold = make_fold(BY_MERGE, "classes")
    assert "".join(fold.characters) == BY_MERGE
    assert np.allclose(fold(np.eye(47)), np.eye(47))


def test_characters_that_the_model_does_not_know_are_left_out():
    assert "".join(make_fold(LOWER, "vin").characters) == "ABCDEFGHJKLMNPRSTUVWXYZ"


def test_an_alphabet_without_probability_stays_finite():
    only_letters = np.zeros(47)
    only_letters[BY_MERGE.index("X")] = 1
    assert np.allclose(make_fold(BY_MERGE, "digits")(only_letters), 0.1)


def test_unknown_alphabets_are_refused():
    with pytest.raises(UnknownAlphabet, match="choose one of alnum, digits"):
        make_fold(BY_MERGE, "greek")
    with pytest.raises(UnknownAlphabet, match="knows no character of 'digits'"):
        make_fold(LOWER, "digits")
