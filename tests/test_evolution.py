"""Evolution strategies: against algebra, the unrolled gradient, and individuals run by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    CrossEntropy,
    Delta,
    DirectFeedback,
    Episodes,
    Hebb,
    LayeredNetwork,
    Learner,
    MetaTraining,
    Oja,
    PlasticityRule,
    SquaredError,
    Unrolled,
)
from metaplastic.errors import ConfigurationError
from metaplastic.evaluation import evaluate
from metaplastic.inner_loop import draw
from metaplastic.metagradient import Evolution
from metaplastic.rules import Coefficient
from tests.helpers import (
    assert_close,
    classification,
    deviation,
    gradients,
    meta_gradient,
    mlp,
    normal,
    query_loss,
    regression,
    seeded,
    shake,
)


class Directions(Evolution):
    """All coordinate directions in turn, of length sqrt(d): the central-difference gradient."""

    def seeds(self, generator):
        return list(range(self.pairs))

    def noise(self, seed, parameters):
        flat = torch.zeros(self.pairs, dtype=torch.float64)
        flat[seed] = math.sqrt(self.pairs)
        parts = flat.split([p.numel() for p in parameters])
        return [part.reshape(p.shape).to(p) for part, p in zip(parts, parameters, strict=True)]


def dimension(learner: Learner) -> int:
    return sum(p.numel() for p in learner.parameters())


def flp() -> Learner:
    credit = DirectFeedback("error", bias=True, output="feedback")
    learner = Learner(mlp(3, 5, 2), credit, Oja(0.0), SquaredError())
    return shake(learner, 4, plasticity=0.1, mixing=0.2, feedback=0.3)


def oml() -> Learner:
    network = LayeredNetwork(mlp(4, 5, 3), trunk=nn.Sequential(nn.Linear(3, 4), nn.Tanh()))
    rule = Delta(0.1, learned=True)
    return shake(Learner(network, Backprop(), rule, CrossEntropy()), 2, initial=0.3)


def resampled() -> Learner:
    credit = DirectFeedback("error", weights="resampled")
    return shake(Learner(mlp(3, 5, 2), credit, Delta(0.1, learned=True), SquaredError()))


def convolutional() -> Learner:
    chain = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()
    )
    network = LayeredNetwork(chain.append(nn.Linear(8, 3)), input_shape=(1, 6, 6))
    return shake(Learner(network.double(), Backprop(), Delta(0.1)), 3, initial=0.3)


def sparse() -> Learner:
    """With a penalty on its coefficients."""
    plasticity = Coefficient(0.1, granularity="synapse", l1=0.3)
    rule = Hebb(plasticity, bounded=False)
    credit = DirectFeedback("error", output="feedback")
    return shake(Learner(mlp(3, 4, 2), credit, rule, SquaredError()), plasticity=0.02)


def linear() -> Learner:
    """Its loss is quadratic in its Parameters."""
    return Learner(mlp(3, 2), Backprop(), None, SquaredError()).double()


def shown(learner: Learner, episodes: int, seed: int = 0) -> Episodes:
    if isinstance(learner.objective, CrossEntropy):
        shape = getattr(learner.network, "input_shape", None) or 3
        return classification(episodes, 3, 2, shape, 3, seed=seed)
    return regression(episodes, 3, 2, 3, 2, seed=seed)


LEARNERS = {
    "flp": flp,
    "oml": oml,
    "resampled": resampled,
    "convolutional": convolutional,
    "sparse": sparse,
}


def evolved(learner: Learner, episodes: Episodes, method: Evolution, seed: int = 0):
    return meta_gradient(learner, episodes, method, seeded(seed))


# --- the estimator of plain functions ---


def test_b32_evolution_finds_a_quadratic_optimum():
    """Plain steps of 0.01: under ranks the estimate has a length of about 1 / sigma far away."""
    optimum, h = normal(20, seed=1), normal(20, seed=2)
    start, method, g = (h - optimum).norm(), Evolution(pairs=50, sigma=0.1), seeded()
    for _ in range(300):
        (gradient,) = method.estimate(
            lambda xs: (xs[0] - optimum).square().sum(1), [h], method.seeds(g), together=50
        )
        h = h - 0.01 * gradient
    assert float((h - optimum).norm() / start) < 0.01


@pytest.mark.parametrize("sigma", [1e-2, 0.1, 3.0])
def test_b33_antithetic_estimator_of_a_linear_function_is_exact(sigma):
    """(1/n) sum eps eps^T g, over two Parameters."""
    parameters = [normal(3, 4, seed=1), normal(5, seed=2)]
    slopes = [normal(3, 4, seed=3), normal(5, seed=4)]
    method = Evolution(pairs=7, sigma=sigma, shaping="none")
    seeds = method.seeds(seeded())

    def losses(xs: list[Tensor]) -> Tensor:
        parts = [(x * s).flatten(1).sum(1) for x, s in zip(xs, slopes, strict=True)]
        return torch.stack(parts).sum(0) + 3.0

    found = method.estimate(losses, parameters, seeds, together=3)
    wanted = torch.zeros(17, dtype=torch.float64)
    g = torch.cat([s.flatten() for s in slopes])
    for seed in seeds:
        eps = torch.cat([e.flatten() for e in method.noise(seed, parameters)])
        wanted += eps * (eps @ g) / 7
    assert [f.shape for f in found] == [p.shape for p in parameters]
    assert deviation(torch.cat([f.flatten() for f in found]), wanted) < 1e-10


def test_the_noise_is_normal_and_independent_between_parameters_and_pairs():
    method, like = Evolution(pairs=3), [torch.zeros(4000), torch.zeros(4000, 1)]
    drawn = [e.flatten() for seed in method.seeds(seeded()) for e in method.noise(seed, like)]
    covariance = torch.stack(drawn).cov()
    assert float((covariance - torch.eye(6)).abs().max()) < 0.1
    assert float(torch.stack(drawn).mean(1).abs().max()) < 0.07


def test_the_noise_is_that_of_double_precision_whatever_the_precision():
    single, double = ([torch.zeros(40, dtype=t)] for t in (torch.float32, torch.float64))
    method = Evolution()
    assert torch.equal(method.noise(3, single)[0], method.noise(3, double)[0].float())


def test_gaussian_noise_is_unbiased_for_a_quadratic_loss():
    """A pair's share is (g eps) eps_i, of variance g^2 + g_i^2: no coordinate is off by more than
    4.5 standard errors, and they are not all smaller than chance would have them.
    """
    learner, pairs = linear(), 4000
    episodes = shown(learner, 2)
    g = torch.cat([v.flatten() for v in meta_gradient(learner, episodes).values()])
    found = evolved(learner, episodes, Evolution(pairs=pairs, sigma=0.5, shaping="none"))
    error = torch.cat([v.flatten() for v in found.values()]) - g
    z = error / ((g.square().sum() + g.square()) / pairs).sqrt()
    assert len(z) == 8
    assert float(z.abs().max()) < 4.5
    assert 0.3 < float(z.square().mean().sqrt()) < 2.0


# --- against the unrolled gradient ---


@pytest.mark.parametrize("name", ["flp", "oml", "resampled"])
def test_the_expectation_is_the_unrolled_gradient_where_the_loss_is_smooth(name):
    """Along all coordinate directions, where the mean over directions is exact."""
    learner = LEARNERS[name]()
    episodes, size = shown(learner, 2), dimension(learner)
    method = Directions(pairs=size, sigma=2e-5 / math.sqrt(size), shaping="none")
    wanted = meta_gradient(learner, episodes, Unrolled(), seeded())
    assert_close(evolved(learner, episodes, method), wanted, 1e-7)


def test_what_is_drawn_stays_with_its_episode_when_one_is_left_out():
    learner = resampled()
    episodes, size = shown(learner, 3), dimension(learner)
    query = episodes.query_y.clone()
    query[0] = 1e9
    episodes = replace(episodes, query_y=query)
    found = []
    for method in (
        Directions(pairs=size, sigma=2e-5 / math.sqrt(size), shaping="none"),
        Unrolled(),
    ):
        learner.zero_grad()
        assert method.gradient(learner, episodes, generator=seeded()).kept == (1, 2)
        found.append(gradients(learner))
    assert_close(found[0], found[1], 1e-7)


@pytest.mark.parametrize("sigma", [1e-3, 0.3, 10.0])
def test_for_a_quadratic_loss_the_width_has_no_influence(sigma):
    learner = linear()
    episodes, size = shown(learner, 2), dimension(learner)
    method = Directions(pairs=size, sigma=sigma, shaping="none")
    found = evolved(learner, episodes, method)
    assert_close(found, meta_gradient(learner, episodes), 1e-10)


def test_the_penalty_on_coefficients_is_part_of_the_loss():
    learner = sparse()
    episodes, size = shown(learner, 2), dimension(learner)
    method = Directions(pairs=size, sigma=2e-5 / math.sqrt(size), shaping="none")
    found, wanted = evolved(learner, episodes, method), {}
    for name, parameter in learner.named_parameters():
        slopes = torch.zeros(parameter.numel(), dtype=torch.float64)
        for i in range(parameter.numel()):
            for sign in (1.0, -1.0):
                other = copy.deepcopy(learner)
                other.get_parameter(name).data.view(-1)[i] += sign * 1e-5
                loss = query_loss(other, episodes) + float(other.penalty().detach())
                slopes[i] += sign * loss / 2e-5
        wanted[name] = slopes.view(parameter.shape)
    assert_close(found, wanted, 1e-7)


# --- against individuals run one at a time ---


def by_hand(learner: Learner, episodes: Episodes, method: Evolution, seed: int = 0):
    """The whole estimate in Python: each individual a learner of its own."""
    g = seeded(seed)
    draw(learner, episodes, g)
    sides: list[list[float]] = [[], []]
    noise = []
    for s in method.seeds(g):
        eps = method.noise(s, list(learner.parameters()))
        noise.append(dict(zip(dict(learner.named_parameters()), eps, strict=True)))
        for side, sign in zip(sides, (1.0, -1.0), strict=True):
            other = copy.deepcopy(learner)
            for name, parameter in other.named_parameters():
                parameter.data += sign * method.sigma * noise[-1][name]
            found = evaluate(other, episodes, generator=seeded(seed))
            fine = not found.diverged and float(found.loss.max()) < method.limit
            total = float(found.loss.mean()) + float(other.penalty().detach()) if fine else math.inf
            side.append(total)
    if method.shaping == "ranks":
        values = sides[0] + sides[1]
        ranks = [sum(v < w for v in values) + (sum(v == w for v in values) - 1) / 2 for w in values]
        mean = sum(ranks) / len(ranks)
        spread = math.sqrt(sum((r - mean) ** 2 for r in ranks) / len(ranks))
        ranks = [(r - mean) / spread for r in ranks]
        sides = [ranks[: len(noise)], ranks[len(noise) :]]
    pairs = [k for k in range(len(noise)) if math.isfinite(sides[0][k] + sides[1][k])]
    factor = 1 / (2 * len(pairs) * method.sigma)
    return {
        name: factor * sum((sides[0][k] - sides[1][k]) * noise[k][name] for k in pairs)
        for name in noise[0]
    }, len(pairs)


@pytest.mark.parametrize("shaping", ["ranks", "none"])
@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("count", [1, 3])
def test_evolution_equals_individuals_run_by_hand(count, name, shaping):
    learner = LEARNERS[name]()
    episodes = shown(learner, count)
    method = Evolution(pairs=5, sigma=0.1, shaping=shaping)
    wanted, _ = by_hand(learner, episodes, method)
    assert_close(evolved(learner, episodes, method), wanted, 1e-11)


@pytest.mark.parametrize("shaping", ["ranks", "none"])
def test_diverged_individuals_are_the_worst_or_left_out(shaping):
    """With a limit that some of them pass, of those that differ in one episode only too."""
    learner = flp()
    episodes = shown(learner, 3)
    limit = 1.2 * float(evaluate(learner, episodes).loss.max())
    method = Evolution(pairs=8, sigma=0.2, shaping=shaping, limit=limit)
    wanted, pairs = by_hand(learner, episodes, method)
    assert pairs == 8 if shaping == "ranks" else 0 < pairs < 8
    assert_close(evolved(learner, episodes, method), wanted, 1e-11)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("room", [3, 7])
def test_all_at_once_equals_one_after_another(name, room, monkeypatch):
    """And what fits a cache, in parts of which the last is smaller."""
    learner = LEARNERS[name]()
    episodes = shown(learner, 3)
    weights = learner.network.weights()
    each = sum(p.nbytes for p in learner.parameters())
    each += 3 * sum(weights[n].nbytes for n in learner.plastic)
    monkeypatch.setattr("metaplastic.metagradient.evolution.CACHE_BYTES", room * each)
    methods = [Evolution(pairs=8, shaping="none", batching=b) for b in ("vmap", "loop", "auto")]
    assert methods[2]._together(learner, list(learner.parameters()), 3) == room
    together, alone, auto = (evolved(learner, episodes, m) for m in methods)
    assert_close(together, alone, 1e-12)
    assert_close(auto, alone, 1e-12)


# --- what changes nothing, and what it is added to ---


def test_b34_same_seed_same_generation():
    learner = flp()
    episodes = shown(learner, 2)
    one, same, other = (evolved(learner, episodes, Evolution(pairs=3), s) for s in (1, 1, 2))
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert all(not torch.equal(one[n], other[n]) for n in one)


def test_ranks_see_the_order_of_the_losses_alone():
    method, h = Evolution(pairs=9), [normal(4)]
    seeds = method.seeds(seeded())

    def estimate(shape) -> Tensor:
        return method.estimate(lambda xs: shape(xs[0].square().sum(1)), h, seeds, 9)[0]

    wanted = estimate(lambda loss: loss)
    assert float(wanted.norm()) > 0.1
    for shape in (torch.exp, torch.log, lambda loss: 1e6 * loss - 3.0):
        assert torch.equal(estimate(shape), wanted)
    worst = wanted.new_tensor(math.nan)
    found = estimate(lambda loss: torch.where(loss > loss.median(), worst, loss))
    assert bool(found.isfinite().all())


def test_equal_losses_share_their_rank():
    """By hand: losses 1 | 2 2 | inf have ranks 0, 1.5, 1.5, 3 and a standard deviation of
    sqrt(4.5 / 4).
    """
    method = Evolution(pairs=2, sigma=0.5)
    sides = iter([torch.tensor([1.0, 2.0]), torch.tensor([math.nan, 2.0])])
    found = method.estimate(lambda xs: next(sides), [torch.zeros(3).double()], [5, 6], 2)[0]
    eps = method.noise(5, [torch.zeros(3).double()])[0]
    wanted = (0.0 - 3.0) / math.sqrt(4.5 / 4) * eps / (2 * 2 * 0.5)
    assert deviation(found, wanted) < 1e-14
    same = method.estimate(lambda xs: torch.ones(2), [torch.zeros(3)], [5, 6], 2)[0]
    assert torch.equal(same, torch.zeros(3))


@pytest.mark.parametrize("shaping", ["ranks", "none"])
def test_when_no_individual_is_finite_every_gradient_is_zero(shaping):
    method = Evolution(pairs=2, shaping=shaping)
    found = method.estimate(lambda xs: xs[0][:, 0] * math.inf, [torch.ones(3)], [5, 6], 2)[0]
    assert torch.equal(found, torch.zeros(3))


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_inputs_and_parameters_stay_as_they_are(batching):
    learner = oml()
    episodes = shown(learner, 2)
    held = dict(learner.state_dict(keep_vars=True))
    seen = {f.name: getattr(episodes, f.name) for f in fields(episodes)}
    before = {n: t.clone() for n, t in (held | seen).items() if t is not None}
    versions = {n: t._version for n, t in held.items()}
    evolved(learner, episodes, Evolution(pairs=3, batching=batching))
    after = learner.state_dict(keep_vars=True)
    assert all(after[n] is t and t._version == versions[n] for n, t in held.items())
    assert all(torch.equal((held | seen)[n], t) for n, t in before.items())


def test_gradients_are_added_to_what_is_there():
    learner = flp()
    episodes, method = shown(learner, 2), Evolution(pairs=3)
    one, two = (evolved(learner, episodes, method, s) for s in (1, 2))
    learner.zero_grad()
    for s in (1, 2):
        method.gradient(learner, episodes, generator=seeded(s))
    assert_close(gradients(learner), {n: one[n] + two[n] for n in one}, 1e-14)


def test_the_outcome_is_that_of_the_learner_itself():
    for learner in (flp(), oml()):
        episodes = shown(learner, 3)
        found = Evolution(pairs=1).gradient(learner, episodes, generator=seeded())
        wanted = Unrolled().gradient(learner, episodes)
        assert found.kept == wanted.kept == (0, 1, 2)
        assert torch.allclose(found.loss, wanted.loss, rtol=1e-12)
        assert (found.accuracy is None) == (wanted.accuracy is None)
        if found.accuracy is not None:
            assert torch.equal(found.accuracy, wanted.accuracy)
        assert not found.loss.requires_grad


def wild() -> Learner:
    credit = DirectFeedback("error", output="feedback")
    rule = Oja(0.0, bounded=False)
    learner = Learner(mlp(3, 5, 2, activation=nn.ReLU), credit, rule, SquaredError())
    return shake(learner, 1, plasticity=0.01, mixing=0.1, feedback=0.3)


def spoiled(episodes: Episodes, *which: int) -> Episodes:
    x = episodes.support_x.clone()
    x[list(which), 1:] *= 1e60
    return replace(episodes, support_x=x)


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_an_episode_that_diverges_is_left_out_for_everyone(batching):
    learner, method = wild(), Evolution(pairs=4, batching=batching)
    whole = shown(learner, 3)
    wanted = evolved(learner, whole[[0, 2]], method)
    learner.zero_grad()
    g = seeded()
    outcome = method.gradient(learner, spoiled(whole, 1), generator=g)
    assert_close(gradients(learner), wanted, 1e-12)
    assert outcome.kept == (0, 2)
    assert outcome.diverged == Unrolled().gradient(learner, spoiled(whole, 1)).diverged
    assert outcome.diverged[0].group is not None
    learner.zero_grad()
    other = seeded()
    outcome = method.gradient(learner, spoiled(whole, 0, 1, 2), generator=other)
    assert (outcome.kept, outcome.accuracy, outcome.loss.shape) == ((), None, (0,))
    assert all(torch.equal(v, torch.zeros_like(v)) for v in gradients(learner).values())
    assert torch.equal(g.get_state(), other.get_state())


# --- what has no gradient ---


class SignDelta(PlasticityRule):
    """The delta rule on signs alone."""

    needs = frozenset({"teaching"})

    def __init__(self) -> None:
        super().__init__()
        self.rate = Coefficient(0.05, bound="exp", role="control")

    def update(self, weight, signals, traces, coefficients):
        change = signals.correlate(signals.error.sign(), signals.pre, "examples")
        return coefficients["rate"] * change, traces


def test_a_rule_on_signs_gets_a_gradient_of_its_feedback_weights():
    """Through which the unrolled gradient is exactly zero."""
    credit = DirectFeedback("error", output="feedback")
    learner = Learner(mlp(3, 5, 2), credit, SignDelta(), SquaredError()).double()
    episodes = shown(learner, 2)
    unrolled = meta_gradient(learner, episodes)
    found = evolved(learner, episodes, Evolution(pairs=20, shaping="none"))
    names = [n for n in found if "feedback" in n]
    assert len(names) == 2
    for name in names:
        assert torch.equal(unrolled[name], torch.zeros_like(unrolled[name]))
        assert float(found[name].abs().max()) > 0


def test_a_rule_on_signs_trains():
    credit = DirectFeedback("error", output="feedback")
    learner = Learner(mlp(3, 5, 2), credit, SignDelta(), SquaredError()).double()
    episodes = shown(learner, 4)
    training = MetaTraining(
        learner,
        lambda g: episodes,
        metagradient=Evolution(pairs=15, sigma=0.05),
        optimizer=torch.optim.Adam(learner.parameters(), 0.02),
    )
    losses = [r.loss for r in training.run(20) if r.loss is not None]
    assert len(losses) == 20
    assert losses[-1] < 0.8 * losses[0]


# --- options ---


@pytest.mark.parametrize(
    "options",
    [
        {"pairs": 0},
        {"sigma": 0.0},
        {"sigma": -1.0},
        {"sigma": math.nan},
        {"sigma": math.inf},
        {"shaping": "z"},
        {"batching": "all"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Evolution(**options)


def test_noise_needs_a_generator():
    learner = flp()
    with pytest.raises(ConfigurationError, match=r"pass generator=torch\.Generator\(\)"):
        Evolution().gradient(learner, shown(learner, 1))


def test_a_coefficient_that_groups_share_is_put_back() -> None:
    """One Parameter that stands in two places of the learner is perturbed in both, and is the same
    object afterwards."""
    learner = Learner(
        mlp(3, 4, 2), Backprop(), Delta(0.1, granularity="network", learned=True), SquaredError()
    )
    shown = regression(2, 3, 1, 3, 2)
    before = dict(learner.named_parameters())
    Evolution(pairs=3).gradient(learner, shown, generator=seeded())
    after = dict(learner.named_parameters())
    assert all(after[name] is p for name, p in before.items())
    Evolution(pairs=3, batching="loop").gradient(learner, shown, generator=seeded())
