"""The whole system: a small net learns eight random images by heart, and does so again bit by bit.

Every part has a hand in it: layers, tape, loss, the flat optimiser, on NumPy and through the CUDA.
"""

import numpy as np

from check import host
from gpuconv import nn, random
from gpuconv.ops.loss.softmax_cross_entropy import softmax_cross_entropy
from gpuconv.optim import SGD, OneCycle

STEPS, CLASSES = 40, 4


def learn(xp):
    """(losses, {name: array} at the end) of a run that starts from seed 0."""
    random.seed(0)
    rng = np.random.default_rng(0)
    images = xp.asarray(rng.standard_normal((8, 8, 8, 3)).astype("float32"))
    labels = xp.asarray(rng.integers(0, CLASSES, 8))
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 4 * 8, CLASSES))
    if xp is not np:
        net.to("cuda")
    sgd, schedule, losses = SGD(net.parameters(), lr=0.2, momentum=0.9), OneCycle(), []
    for step in range(STEPS):
        sgd.factor = schedule(step, STEPS)
        sgd.zero_grad()
        loss = softmax_cross_entropy(net(images), labels)
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    assert (host(net.predict(images)).argmax(1) == host(labels)).mean() > 0.7
    return losses, {name: host(a) for name, a in net.state_dict().items()}


def test_overfits_eight_images_and_twice_gives_the_same_bits(xp):
    losses, state = learn(xp)
    assert 1 < losses[0] < 3 and losses[-1] < 1e-3
    again, same = learn(xp)
    assert again == losses
    for name, array in state.items():
        np.testing.assert_array_equal(same[name], array)
