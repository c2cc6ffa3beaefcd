"""Higher's inner-loop context, run by local plasticity: the meta-gradient of Unrolled."""

from __future__ import annotations

import higher
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaplastic import Backprop, CrossEntropy, Delta, DirectFeedback, Learner, Oja, Unrolled
from metaplastic.adapters.higher import PlasticOptimizer
from metaplastic.credit.alignment import KolenPollack, WeightMirror
from metaplastic.errors import ConfigurationError
from tests.adapters.higher_loop import (
    FLP,
    METHODS,
    TOLERANCE,
    Eligibility,
    body_of,
    cnn,
    episode,
    inner_loop,
    learner_for,
    query,
    shaken,
    stream,
)
from tests.helpers import assert_close, classification, gradients, meta_gradient, mlp, seeded


def squared(output: Tensor, y: Tensor) -> Tensor:
    """The loss whose error is y - output in each example, as a mean over the examples."""
    return 0.5 * (output - y).square().sum(-1).mean()


def values(learner: Learner) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in learner.state_dict().items()}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("regress", [False, True], ids=["classes", "numbers"])
@pytest.mark.parametrize("method", METHODS)
def test_the_meta_gradient_is_that_of_unrolled(method, regress, batch):
    learner, episodes = learner_for(method, regress), episode(regress, batch)
    wanted = meta_gradient(learner, episodes, Unrolled())
    before = values(learner)
    learner.zero_grad()
    fmodel, _ = inner_loop(learner, episodes, squared if regress else F.cross_entropy)
    query(fmodel, episodes, regress).backward()
    assert_close(gradients(learner), wanted, TOLERANCE)
    after = learner.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("method", METHODS)
def test_the_users_own_module_may_be_the_model(method):
    learner, episodes = learner_for(method), episode()
    wanted = meta_gradient(learner, episodes)
    learner.zero_grad()
    body = body_of(learner)
    fmodel, _ = inner_loop(learner, episodes, model=body)
    assert isinstance(fmodel, nn.Sequential)
    assert len(fmodel.fast_params) == len(list(body.parameters()))
    query(fmodel, episodes).backward()
    assert_close(gradients(learner), wanted, TOLERANCE)


@pytest.mark.parametrize("copy", [False, True])
def test_trunk_norm_and_convolution_are_meta_trained_too(copy):
    learner = shaken(Learner(cnn(), DirectFeedback(), {"*": Delta(0.05, learned=True)}))
    episodes = classification(1, 5, 2, (1, 4, 4), 3)
    wanted = meta_gradient(learner, episodes)
    learner.zero_grad()
    fmodel, _ = inner_loop(learner, episodes, copy=copy)
    start = fmodel.init_fast_params
    query(fmodel, episodes).backward(inputs=list(start) if copy else None)
    if copy:
        assert all(p.grad is None for p in learner.parameters())
        found = {n: p.grad for (n, _), p in zip(learner.named_parameters(), start, strict=True)}
    else:
        found = gradients(learner)
    assert_close(found, wanted, TOLERANCE)


@pytest.mark.parametrize(
    ("credit", "rule"),
    [
        (KolenPollack("learned"), {"*": Delta(0.1, learned=True, decay=0.01)}),
        (DirectFeedback(), Eligibility()),
    ],
    ids=["plastic feedback", "trace"],
)
def test_what_a_step_keeps_goes_on_to_the_next(credit, rule):
    learner, episodes = shaken(Learner(mlp(4, 6, 3), credit, rule)), episode()
    wanted = meta_gradient(learner, episodes)
    for model in (learner, body_of(learner)):
        learner.zero_grad()
        fmodel, _ = inner_loop(learner, episodes, model=model)
        query(fmodel, episodes).backward()
        assert_close(gradients(learner), wanted, TOLERANCE)


def test_plastic_feedback_is_among_the_fast_weights():
    learner = shaken(Learner(mlp(4, 6, 3), KolenPollack("learned"), Delta(0.1)))
    fmodel, _ = inner_loop(learner, episode())
    at = [name for name, _ in learner.named_parameters()].index("credit.layer1_feedback")
    moved, start = fmodel.fast_params[at], fmodel.init_fast_params[at]
    forward = [name for name, _ in learner.named_parameters()].index("network.body.2.weight")
    change = fmodel.fast_params[forward] - fmodel.init_fast_params[forward]
    torch.testing.assert_close(moved - start, change)
    assert float(change.detach().abs().max()) > 0.01


class Sized(DirectFeedback):
    """A credit whose state has a row for each example."""

    def start(self, network, weights, batch):
        return {"rows": torch.zeros(batch, 1)}

    def present(self, network, state, presentation, learn):
        assert len(state["credit"]["rows"]) == len(presentation.x)
        return super().present(network, state, presentation, learn)


def test_a_look_at_the_queries_is_no_presentation():
    learner, episodes = shaken(Learner(mlp(4, 6, 5, 3), Sized(), FLP)), episode()
    wanted = query(inner_loop(learner, episodes)[0], episodes)
    optimizer = PlasticOptimizer(learner)
    with higher.innerloop_ctx(learner, optimizer) as (fmodel, diffopt):
        for x, y in stream(episodes):
            fmodel(episodes.query_x[0])
            loss = F.cross_entropy(fmodel(x), y)
            with torch.no_grad():
                fmodel(episodes.query_x[0])
            diffopt.step(loss)
    torch.testing.assert_close(query(fmodel, episodes), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("signal", ["error", "target"])
def test_a_target_may_be_shown_beside_the_loss(signal):
    rule = {"role:bias": None, "position:last": Oja(0.05, mix=1.0), "*": Oja(0.05)}
    learner = shaken(Learner(mlp(4, 6, 3), DirectFeedback(signal), rule))
    episodes = episode()
    wanted = meta_gradient(learner, episodes)
    learner.zero_grad()
    fmodel, _ = inner_loop(learner, episodes, shown_target=True)
    query(fmodel, episodes).backward()
    assert_close(gradients(learner), wanted, TOLERANCE)


def test_higher_documented_loop_runs_and_the_query_loss_falls():
    """As in higher's README: an outer optimiser over the model, one inner loop for each task."""
    g = seeded()
    learner = Learner(mlp(8, 16, 3, activation=nn.ReLU).float(), *METHODS["FLP"])
    inner = PlasticOptimizer(learner)
    outer = torch.optim.Adam(learner.parameters(), 1e-2)
    criterion, history = nn.CrossEntropyLoss(), []
    for _ in range(60):
        outer.zero_grad()
        for _ in range(2):
            centres = torch.randn(3, 8, generator=g)
            y = torch.arange(3).repeat(3)
            xs = centres[y] + 0.3 * torch.randn(9, 8, generator=g)
            xq = centres[y] + 0.3 * torch.randn(9, 8, generator=g)
            with higher.innerloop_ctx(learner, inner, copy_initial_weights=False) as context:
                fnet, diffopt = context
                for x, label in zip(xs, y, strict=True):
                    diffopt.step(criterion(fnet(x[None]), label[None]))
                loss = criterion(fnet(xq), y)
                loss.backward()
                history.append(float(loss.detach()))
        outer.step()
    assert sum(history[-20:]) < 0.6 * sum(history[:20])


def test_gradients_of_two_episodes_add_up():
    learner = learner_for("FLP")
    first, second = episode(seed=0), episode(seed=50)
    one, other = meta_gradient(learner, first), meta_gradient(learner, second)
    learner.zero_grad()
    for episodes in (first, second):
        query(inner_loop(learner, episodes)[0], episodes).backward()
    assert_close(gradients(learner), {n: one[n] + other[n] for n in one}, TOLERANCE)


def test_resampled_weights_are_drawn_once_in_every_episode():
    learner = shaken(
        Learner(mlp(4, 6, 3), DirectFeedback(weights="resampled"), FLP, initial="resampled")
    )
    episodes = episode()
    wanted = meta_gradient(learner, episodes, generator=seeded(5))
    learner.zero_grad()
    generator = seeded(5)
    fmodel, _ = inner_loop(learner, episodes, generator=generator)
    loss = query(fmodel, episodes)
    loss.backward()
    assert_close(gradients(learner), wanted, TOLERANCE)
    other, _ = inner_loop(learner, episodes, generator=generator)
    assert not torch.equal(query(other, episodes), loss)


def test_noise_is_drawn_from_the_generator_and_asked_for():
    rule = {"role:feedback": Delta(0.1, decay=0.1, derivative=False), "*": Delta(0.1)}
    learner = shaken(Learner(mlp(4, 6, 3), WeightMirror("learned"), rule))
    episodes = episode(presentations=1, batch=2)
    # One presentation: its noise is the episode's, in the generator's order.
    wanted = meta_gradient(learner, episodes, generator=seeded(3))
    learner.zero_grad()
    fmodel, _ = inner_loop(learner, episodes, generator=seeded(3))
    query(fmodel, episodes).backward()
    assert_close(gradients(learner), wanted, TOLERANCE)
    with pytest.raises(ConfigurationError, match="draws noise"):
        inner_loop(learner, episodes)


def test_objective_scale_batch_reads_the_loss_as_it_is():
    episodes = episode()
    learner = shaken(
        Learner(mlp(4, 6, 3), Backprop(), Delta(0.1, reduction="sum"), CrossEntropy("batch"))
    )
    wanted = meta_gradient(learner, episodes)
    learner.zero_grad()
    fmodel, _ = inner_loop(learner, episodes)
    query(fmodel, episodes).backward()
    assert_close(gradients(learner), wanted, TOLERANCE)
