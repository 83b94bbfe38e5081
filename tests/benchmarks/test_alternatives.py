import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import alternatives, alternatives_cases, alternatives_modules
from benchmarks.alternatives_cases import FOLDS
from potara_jax.data.federation import pack
from potara_jax.merging import curves
from tests.jobs.tiny import DIGITS, options
from tests.merging.toy import CLIENT, LOCAL, SAMPLES, logits

RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(5, 3, 6))
GRADIENT, HESSIAN = RNG.normal(size=(5, 3)), ROOT @ ROOT.transpose(0, 2, 1)


def test_modules_without_variance_have_the_clients_weight():
    offsets, chosen = alternatives_modules.offsets(GRADIENT, HESSIAN, [0.0])
    assert chosen == (0, 0) and not offsets.any()


def test_offsets_are_the_posterior_means_of_all_modules_at_once():
    t, s = 0.4, 0.3
    clients, modules = GRADIENT.shape
    joint = np.zeros((clients * modules,) * 2)
    for c in range(clients):
        place = slice(c * modules, (c + 1) * modules)
        joint[place, place] = HESSIAN[c]
    common = np.kron(np.ones((clients, clients)), t**2 * np.eye(modules))
    prior = common + s**2 * np.eye(len(joint))
    expected = -np.linalg.solve(joint + np.linalg.inv(prior), GRADIENT.ravel())
    *_, b, k = alternatives_modules.integrated(GRADIENT, HESSIAN, s)
    *_, b, _ = alternatives_modules.integrated(b.sum(0), k.sum(0), t)
    mean = -(t**2) * b
    *_, b, _ = alternatives_modules.integrated(GRADIENT + HESSIAN @ mean, HESSIAN, s)
    np.testing.assert_allclose((mean - s**2 * b).ravel(), expected, atol=1e-10)


def test_noise_integrated_out_is_the_integral():
    g, h, s = GRADIENT[0, :1], HESSIAN[0, :1, :1], 0.7
    at = np.linspace(-9, 9, 20001)

    def log(shift):
        density = np.exp(-((at / s) ** 2) / 2) / (s * np.sqrt(2 * np.pi))
        x = at + shift
        integrand = density * np.exp(-(g[0] * x + h[0, 0] * x**2 / 2))
        return np.log(integrand.sum() * (at[1] - at[0]))

    value, slope, bend = alternatives_modules.integrated(g, h, s)
    shift = 0.3
    expected = value - slope[0] * shift - bend[0, 0] * shift**2 / 2
    assert log(shift) == pytest.approx(float(expected), abs=1e-6)


def test_a_simplex_without_the_third_adapter_is_the_segment():
    points = alternatives_cases.simplex()
    assert points.shape == (66, 3) and (points[:11, 2] == 0).all()
    losses = alternatives_cases.partial_losses(logits, points[:11])
    measured = jax.jit(losses)(CLIENT, LOCAL)
    segment = jax.jit(lambda client: curves.measure(logits, client, 11))(CLIENT)
    np.testing.assert_allclose(measured.T, segment.loss, rtol=1e-4)


def test_the_third_adapter_is_that_of_the_most_similar_client():
    shares = np.array([[1.0, 0, 0], [0, 1, 0], [0.8, 0.2, 0]])
    assert alternatives_cases.nearest(shares).tolist() == [2, 2, 0]


def test_a_narrow_prior_gives_its_centre_and_a_flat_likelihood_chooses_nothing():
    at = np.linspace(0, 1, 101)
    sharp = -((at - np.array([[0.2], [0.7]])) ** 2) * 1e6
    _, weight = alternatives_cases.normal(sharp, np.full((1, 2), 0.5))
    np.testing.assert_allclose(weight, [0.2, 0.7], atol=1e-3)
    evidence, _ = alternatives_cases.normal(np.zeros((2, 101)), np.full((1, 2), 0.5))
    assert evidence == pytest.approx(0, abs=1e-9)


def test_every_example_is_left_out_once():
    groups = [np.arange(9), np.arange(20, 25)]
    folds = [alternatives_cases.split(pack(groups), fold) for fold in range(FOLDS)]
    for client, group in enumerate(groups):
        rows = lambda x, c=client: np.asarray(x.index[c])[: int(x.count[c])].tolist()
        left_out = [x for _, out in folds for x in rows(out)]
        assert sorted(left_out) == group.tolist()
        for kept, out in folds:
            assert sorted(rows(kept) + rows(out)) == group.tolist()


def test_the_curves_of_parts_are_those_of_all_samples():
    part = lambda kept: CLIENT._replace(weight=CLIENT.weight * kept)
    first = jnp.arange(SAMPLES) < 4
    measure = jax.jit(jax.vmap(lambda c: curves.measure(logits, c, 5)))
    lead = lambda client: jax.tree.map(lambda x: x[None], client)
    halves = [measure(lead(part(kept))) for kept in (first, ~first)]
    whole, both = measure(lead(CLIENT)), alternatives_cases.together(halves)
    np.testing.assert_allclose(both.loss, whole.loss, rtol=1e-5)
    assert both.count.tolist() == whole.count.tolist()


@pytest.mark.slow
def test_a_tiny_run_prints_every_table(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(alternatives, "CACHE", tmp_path)
    tiny = DIGITS | {"federated.rounds": 2, "local.rounds": 2}
    assert alternatives.main(["digits", *options(tiny)]) == 0
    printed = capsys.readouterr().out
    for case in alternatives.CASES:
        assert f"| {case} | 0.5 | mean |" in printed
    assert alternatives.main(["nothing"]) == 2


def test_an_interval_is_that_of_t_over_seeds():
    records = [{"seed": s, "rows": {("a", "b"): float(s)}} for s in (1, 2, 3)]
    assert alternatives.interval(records, ("a", "b")) == "2.00 ± 2.48"
    assert alternatives.interval(records[:1], ("a", "b")) == "1.00"
