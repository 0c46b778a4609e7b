import math

import numpy as np
import pytest

from check import DTYPES
from gpuconv import nn, random, train
from gpuconv.data import Dataset
from gpuconv.train.predictions import Predictions, predictions

NAMES = "bird", "cat", "dog", "emu"


def case(rng, n=40, k=4):
    """Logits and labels; small whole logits, so that there are ties."""
    return rng.integers(-3, 4, (n, k)).astype("float64"), rng.integers(0, k, n)


def photographs(n=21, classes=("a", "b", "c"), seed=0):
    rng = np.random.default_rng(seed)
    return Dataset(rng.integers(0, 256, (n, 4, 4, 1), dtype=np.uint8),
                   rng.integers(0, len(classes), n, dtype=np.int32), classes, "noise")


def network(dtype="float32", device="cpu", classes=3):
    random.seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5),
                         nn.Flatten(), nn.Linear(64, classes)).to(device, dtype)


# -- what is counted -------------------------------------------------------------------------


def test_counts_are_those_of_a_loop(rng):
    logits, labels = case(rng)
    found = Predictions(logits, labels, NAMES)
    confusion = [[0] * 4 for _ in range(4)]
    right, losses = 0, []
    for z, label in zip(logits.tolist(), labels.tolist(), strict=True):
        answer = z.index(max(z))
        confusion[label][answer] += 1
        right += answer == label
        losses.append(math.log(math.fsum(map(math.exp, z))) - z[label])
    assert found.confusion.tolist() == confusion
    assert found.accuracy == right / 40
    assert found.loss == pytest.approx(math.fsum(losses) / 40, rel=1e-12)
    for k, row in enumerate(found.per_class()):
        column = [confusion[a][k] for a in range(4)]
        assert row == (NAMES[k], sum(confusion[k]), confusion[k][k],
                       confusion[k][k] / sum(confusion[k]), confusion[k][k] / sum(column))


def test_probabilities_are_those_of_a_loop(rng):
    logits, labels = case(rng)
    found = Predictions(logits, labels, NAMES)
    want = [[math.exp(v) / math.fsum(map(math.exp, z)) for v in z] for z in logits.tolist()]
    assert found.probabilities.dtype == np.float32
    np.testing.assert_allclose(found.probabilities, want, rtol=1e-6)
    assert (found.confidence == found.probabilities.max(axis=1)).all()


def test_mistakes_come_in_order_of_confidence(rng):
    logits, labels = case(rng)
    found = Predictions(logits, labels, NAMES)
    wrong = [n for n in range(40) if found.answers[n] != labels[n]]
    assert found.mistakes().tolist() == sorted(
        wrong, key=lambda n: (-found.probabilities[n].max(), n))
    assert found.mistakes(3).tolist() == found.mistakes().tolist()[:3]
    assert len(found.mistakes(0)) == 0 and len(found.mistakes(1000)) == len(wrong)


def test_without_mistakes_there_are_none():
    found = Predictions(np.eye(3), np.arange(3), NAMES[:3])
    assert found.mistakes().tolist() == [] and found.accuracy == 1


def test_a_class_without_images_and_one_never_answered():
    found = Predictions(np.float32([[1, 0, 0], [1, 0, 0]]), np.array([0, 1]), ("a", "b", "c"))
    assert found.per_class() == [("a", 1, 1, 1.0, 0.5), ("b", 1, 0, 0.0, None),
                                 ("c", 0, 0, None, None)]


def test_the_loss_does_not_underflow():
    found = Predictions(np.float32([[0, 500]]), np.array([0]), ("a", "b"))
    assert found.probabilities.tolist() == [[0, 1]] and found.loss == 500


def test_answers_are_those_of_the_logits_even_where_probabilities_are_equal():
    logits = np.array([[0.0, 1e-12]])
    found = Predictions(logits, np.array([1]), ("a", "b"))
    assert found.probabilities[0, 0] == found.probabilities[0, 1] and found.accuracy == 1


def test_a_model_that_has_diverged_is_counted_all_the_same():
    found = Predictions(np.float32([[np.nan, 1], [np.inf, 0], [2, 0]]), np.array([1, 1, 1]),
                        ("a", "b"))
    assert found.confusion.tolist() == [[0, 0], [3, 0]] and math.isnan(found.loss)
    assert found.mistakes().tolist() == [2, 0, 1]


# -- of a model ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_on_either_device(xp, dtype):
    data, model = photographs(), network(dtype, "cpu" if xp is np else "cuda")
    settings = dict(mean=[0.4], std=[0.2])
    found = predictions(model, data, batch_size=8, **settings)
    want = train.evaluate(model, data, **settings)
    assert found.accuracy == want.accuracy and found.confusion.sum() == want.count
    assert found.loss == pytest.approx(want.loss, rel=2e-2 if "16" in dtype else 1e-5)
    x = ((data.images / 255 - 0.4) / 0.2).astype(dtype if "16" not in dtype else "float32")
    if "16" not in dtype:
        logits = network(dtype).predict(x)
        np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)
    assert found.classes == data.classes and (found.labels == data.labels).all()


def test_the_batches_make_no_difference():
    data, model = photographs(), network()
    one, two = (predictions(model, data, batch_size=size) for size in (5, 21))
    np.testing.assert_allclose(one.probabilities, two.probabilities, rtol=1e-6)
    assert (one.answers == two.answers).all()


def test_the_model_is_left_as_it_was():
    model = network()
    before = {name: a.copy() for name, a in model.state_dict().items()}
    predictions(model, photographs())
    assert all(m.training for m in model.modules())
    assert all((before[name] == a).all() for name, a in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_data_on_the_gpu(cp):
    data = photographs()
    found = predictions(network(device="cuda"), data.to("cuda"))
    assert isinstance(found.labels, np.ndarray)
    assert (found.confusion == predictions(network(), data).confusion).all()


# -- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("error, text, data, more", [
    (TypeError, "data is tuple, wanted a Dataset", (np.zeros((1, 4, 4, 1), "uint8"), [0]), {}),
    (ValueError, "predictions: no images", photographs()[:0], {}),
    (ValueError, "batch_size is 0, wanted at least 1", photographs(), dict(batch_size=0)),
    (ValueError, r"gives \(21, 3\), wanted \(N, 4\) for the classes bird, cat, dog, emu",
     photographs(classes=NAMES), {}),
], ids=["pair", "empty", "batch size", "classes"])
def test_refuses(error, text, data, more):
    with pytest.raises(error, match=text):
        predictions(network(), data, **more)


def test_refuses_labels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"labels 0\.\.2 are not all in 0\.\.1"):
        Predictions(np.zeros((3, 2)), np.arange(3), ("a", "b"))
    with pytest.raises(ValueError, match=r"labels \(2,\), logits \(3, 2\)"):
        Predictions(np.zeros((3, 2)), np.arange(2), ("a", "b"))
