"""A stock learn2learn training script, with the MAML line replaced by a Learner."""

from __future__ import annotations

import random

import learn2learn as l2l
import numpy as np
import pytest
import torch
from learn2learn.data.transforms import FusedNWaysKShots, LoadData, RemapLabels
from torch import nn
from torch.utils.data import TensorDataset

from metaplastic import (
    Backprop,
    CrossEntropy,
    Delta,
    DirectFeedback,
    LayeredNetwork,
    Learner,
    Oja,
    SquaredError,
)
from tasks.glyphs import CLASSES, draw_character

WAYS, SHOTS = 5, 5


def glyph_taskset() -> l2l.data.Taskset:
    """learn2learn's own MetaDataset, transforms and Taskset over the training glyphs."""
    seeds = CLASSES["train"][:60]
    images = torch.cat([draw_character(seed, 28) for seed in seeds]).float() / 255
    labels = torch.arange(len(seeds)).repeat_interleave(len(images) // len(seeds))
    dataset = l2l.data.MetaDataset(TensorDataset(images, labels))
    transforms = [
        FusedNWaysKShots(dataset, n=WAYS, k=2 * SHOTS),
        LoadData(dataset),
        RemapLabels(dataset),
    ]
    return l2l.data.Taskset(dataset, task_transforms=transforms, num_tasks=-1)


def network() -> LayeredNetwork:
    trunk = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.LayerNorm(256),
    )
    chain = nn.Sequential(nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, WAYS))
    return LayeredNetwork(chain, trunk=trunk, input_shape=(1, 28, 28))


def fast_adapt(batch, learner, loss, adaptation_steps):
    """The function of learn2learn's MAML example, unchanged but for the device."""
    data, labels = batch
    adaptation_indices = np.zeros(data.size(0), dtype=bool)
    adaptation_indices[np.arange(SHOTS * WAYS) * 2] = True
    evaluation_indices = torch.from_numpy(~adaptation_indices)
    adaptation_indices = torch.from_numpy(adaptation_indices)
    adaptation_data, adaptation_labels = data[adaptation_indices], labels[adaptation_indices]
    evaluation_data, evaluation_labels = data[evaluation_indices], labels[evaluation_indices]
    for _ in range(adaptation_steps):
        adaptation_error = loss(learner(adaptation_data), adaptation_labels)
        learner.adapt(adaptation_error)
    predictions = learner(evaluation_data)
    return loss(predictions, evaluation_labels)


@pytest.mark.parametrize(("rule", "seed"), [("oja", 0), ("oja", 1), ("delta", 0)])
def test_stock_training_script(rule: str, seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    tasks = glyph_taskset()
    rules = {
        "oja": {"role:bias": None, "position:last": Oja(0.05, mix=1.0), "*": Oja(0.001)},
        "delta": Delta(0.05, learned=True),
    }
    maml = Learner(network(), DirectFeedback(scale=0.5), rules[rule], CrossEntropy())
    opt = torch.optim.Adam(maml.parameters(), 3e-3)
    loss = nn.CrossEntropyLoss(reduction="mean")
    history = []
    for _ in range(200):
        opt.zero_grad()
        for _ in range(2):
            learner = maml.clone()
            evaluation_error = fast_adapt(tasks.sample(), learner, loss, 2)
            evaluation_error.backward()
            history.append(evaluation_error.item())
        for p in maml.parameters():
            assert isinstance(p.grad, torch.Tensor)
            assert bool(p.grad.isfinite().all())
            p.grad.data.mul_(1.0 / 2)
        opt.step()
    assert sum(history[-40:]) < 0.8 * sum(history[:40])


def test_same_meta_gradient_as_learn2learn_maml() -> None:
    """Backprop x Delta in every group is MAML: the outer gradients agree with learn2learn's own."""
    torch.manual_seed(0)

    def model() -> nn.Sequential:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    x, y = torch.randn(7, 6, dtype=torch.float64), torch.randint(0, 3, (7,))
    xq, yq = torch.randn(5, 6, dtype=torch.float64), torch.randint(0, 3, (5,))
    theirs_model, ours_model = model(), model()
    theirs = l2l.algorithms.MAML(theirs_model, lr=0.3)
    ours = Learner(ours_model, Backprop(), {"*": Delta(0.3)}, CrossEntropy()).double()
    loss = nn.CrossEntropyLoss()
    for algorithm in (theirs, ours):
        learner = algorithm.clone()
        for _ in range(3):
            learner.adapt(loss(learner(x), y))
        loss(learner(xq), yq).backward()
    for p, q in zip(theirs_model.parameters(), ours_model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-14)


def test_a_clone_is_a_learner_with_the_originals_parameters() -> None:
    learner = Learner(
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)),
        DirectFeedback(),
        Oja(0.1),
        SquaredError(),
    )
    clone = learner.clone(first_order=False, allow_unused=True, allow_nograd=False)
    assert type(clone) is Learner
    assert clone.module is learner.module
    ours, theirs = dict(learner.named_parameters()), dict(clone.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)
    assert learner.state_dict().keys() == clone.state_dict().keys()
    # Lightning's wrapper assigns to .module; the assignment goes through.
    setattr(clone, "module", nn.Identity())  # noqa: B010 - as the wrapper does, unseen by types
