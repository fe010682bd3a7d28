r"""importance.py: weights by hand, where they go, and by enumeration what they correct and what they cannot."""

import math

import pytest
import torch

import importance
from aggregation import aggregate
from enumeration import MASK, gradient, random_policy, random_rewards, relative_error, token_log_probs
from importance import moments, sequence_weights, token_weights, top_p_logits, weighted
from pmd_mean import pmd_loss

F64 = torch.float64
POLICY, OTHER, REWARDS = random_policy(1), random_policy(0), random_rewards(3)
OLD = token_log_probs(POLICY)  # [15, 3]
EXACT = -gradient(lambda x: (token_log_probs(x).sum(dim=1).exp() * REWARDS).sum(), POLICY)


def t64(*values):
    return torch.tensor(values, dtype=F64)


# Weights by hand


def test_numbers_in_the_docstrings():
    log_w, mask = t64([0.2, 1.5, 4.0]).log(), torch.ones(1, 3)
    assert token_weights(log_w, 0 * log_w, mask, 2.0)[0].tolist() == pytest.approx([0.2, 1.5, 2])
    assert token_weights(log_w, 0 * log_w, mask, 2.0, "mask")[0].tolist() == pytest.approx([0, 1.5, 0])
    log_w, mask = t64([2.0, 3.0]).log(), torch.ones(1, 2)
    assert sequence_weights(log_w, 0 * log_w, mask, math.inf).item() == pytest.approx(6)
    assert sequence_weights(log_w, 0 * log_w, mask, 5.0).item() == pytest.approx(5)
    assert sequence_weights(log_w, 0 * log_w, mask, 5.0, "mask").item() == 0
    assert sequence_weights(log_w, 0 * log_w, mask, 6.5, "mask").item() == pytest.approx(6)
    long = torch.full((1, 500), 0.01, dtype=F64)
    assert sequence_weights(long, 0 * long, torch.ones(1, 500), math.inf).item() == pytest.approx(148, abs=0.5)
    assert weighted(t64(1, 3), t64(2, 0)).tolist() == [2, 0]


@pytest.mark.parametrize("threshold", [1.0, 1.3, 5.0, math.inf])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_against_plain_python(mode, threshold):
    g = torch.Generator().manual_seed(0)
    old, mu = (-2 * torch.rand(6, 3, generator=g, dtype=F64) for _ in range(2))
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 1, 0]])

    def bound(w):
        return min(w, threshold) if mode == "truncate" else w if 1 / threshold <= w <= threshold else 0.0

    tokens = [[bound(math.exp(o - m)) if k else 1.0 for o, m, k in zip(*rows)]
              for rows in zip(old.tolist(), mu.tolist(), mask.tolist())]
    whole = [bound(math.exp(sum(o - m for o, m, k in zip(*rows) if k)))
             for rows in zip(old.tolist(), mu.tolist(), mask.tolist())]
    torch.testing.assert_close(token_weights(old, mu, mask, threshold, mode), t64(*tokens))
    torch.testing.assert_close(sequence_weights(old, mu, mask, threshold, mode), t64(*whole))
    if threshold == 1.3:
        assert any(w != 1 for w in whole) and (mode == "truncate" or 0.0 in whole)


@pytest.mark.parametrize("weights", [token_weights, sequence_weights])
def test_extremes_padding_and_precision(weights):
    r"""No nan from overflow, from what stands at padding, or from half precision; no gradient."""
    nan = math.nan
    for dtype in (torch.float32, F64):
        old = torch.tensor([[0.0, nan], [-2000.0, nan]], dtype=dtype, requires_grad=True)
        mu = torch.tensor([[-2000.0, 1.0], [0.0, nan]], dtype=dtype)
        mask = torch.tensor([[1, 0], [1, 0]])
        for mode, wanted in (("truncate", [2, 0]), ("mask", [0, 0])):
            got = weights(old, mu, mask, 2.0, mode)
            first = got if got.dim() == 1 else got[:, 0]
            assert torch.equal(first, torch.tensor(wanted, dtype=dtype)) and not got.requires_grad
            assert got.dim() == 1 or (got[:, 1] == 1).all()
    half = torch.tensor([[-1.0, -2.0]], dtype=torch.bfloat16)
    assert weights(half, half - 11, torch.ones(1, 2), math.inf).dtype == torch.float32
    x = torch.tensor([[88.0]])
    assert weights(x, 0 * x, torch.ones(1, 1), math.inf).item() == x.exp().item() < math.inf


@pytest.mark.parametrize("weights", [token_weights, sequence_weights])
def test_bad_input(weights):
    x = torch.zeros(3, 3)
    for args in ((x, x[:1], x), (x, x, x[0]), (x[0], x[0], x[0])):
        with pytest.raises(ValueError, match="must all be"):
            weights(*args, 2.0)
    for threshold, mode in ((0.5, "truncate"), (math.nan, "mask"), (2.0, "clip")):
        with pytest.raises(ValueError, match="threshold must be at least 1 and mode truncate or mask"):
            weights(x, x, x, threshold, mode)


def test_weighted_shapes_and_dropped_losses():
    losses, w = torch.arange(9.0).reshape(3, 3), torch.tensor([1.0, 0.0, 2.0])
    assert torch.equal(weighted(losses, w), losses * w[:, None])  # not losses * w, which would pair tokens with it
    assert torch.equal(weighted(losses, losses), losses * losses)
    for bad in (w[None], w[:, None], w[:1]):
        with pytest.raises(ValueError, match="weights must be"):
            weighted(losses, bad)
    with pytest.raises(ValueError, match="weights must be"):
        weighted(w, losses)
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    w = torch.tensor([3.0, 0.0], requires_grad=True)
    total = weighted(torch.stack([x[0], x[1] * math.inf]), w).sum()
    grad, none = torch.autograd.grad(total, (x, w), allow_unused=True)
    assert total.item() == 3 and grad[0] == 3 and none is None


def test_before_averaging_not_after():
    r"""Pitfall 37. OpenKimi multiplies the loss that is already a mean: a common factor, and nothing is corrected."""
    g = torch.Generator().manual_seed(1)
    log_p, old, mu = (-torch.rand(4, 3, generator=g, dtype=F64) for _ in range(3))
    a, mask = t64(1, -1, 0.5, -0.5), torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    w = sequence_weights(old, mu, mask, 5.0)
    assert w.max() / w.min() > 2

    def gradients(loss):
        return gradient(lambda x: loss(pmd_loss(x, old, a, mask, 0.3)), log_p)

    plain = gradients(lambda losses: aggregate(losses, mask, "seq-mean-token-sum"))
    right = gradients(lambda losses: aggregate(weighted(losses, w), mask, "seq-mean-token-sum"))
    wrong = gradients(lambda losses: aggregate(losses, mask, "seq-mean-token-sum") * w.mean())
    torch.testing.assert_close(right, plain * w[:, None])
    torch.testing.assert_close(wrong, plain * w.mean())
    assert relative_error(wrong, right) > 0.2


# By enumeration


def policy_gradient(sampler, weigh, baseline=None):
    r"""The expected gradient of w (-A log pi) over responses of mu, at pi = pi_old."""
    mu = token_log_probs(sampler)
    p = mu.sum(dim=1).exp()
    a = REWARDS - ((p * REWARDS).sum() if baseline is None else baseline)
    w = weigh(OLD, torch.where(mu.isfinite(), mu, OLD))
    return moments(lambda x: weighted(-a[:, None] * token_log_probs(x), w).sum(dim=1), POLICY, sampler)


def whole(old, mu, threshold=math.inf, mode="truncate"):
    return sequence_weights(old, mu, MASK, threshold, mode)


def by_token(old, mu, threshold=math.inf, mode="truncate"):
    return token_weights(old, mu, MASK, threshold, mode)


def ones(old, mu):
    return torch.ones(15, dtype=F64)


def test_sequence_weights_are_exact_where_the_sampler_covers_the_policy():
    sampler = POLICY + OTHER
    errors = {name: relative_error(policy_gradient(sampler, weigh)[0], EXACT)
              for name, weigh in (("none", ones), ("token", by_token), ("sequence", whole))}
    assert errors["sequence"] < 1e-12 < 0.1 < errors["token"] < errors["none"]


def test_the_expected_loss_too():
    r"""E_mu[w loss] = E_old[loss], for PMD's square off policy."""
    mu, x, a = token_log_probs(POLICY + OTHER), POLICY + 0.3 * random_policy(2), REWARDS - 0.4
    w = sequence_weights(OLD, mu, MASK, math.inf)

    def expected(p, w):
        return gradient(lambda x: (p.sum(dim=1).exp()
                                   * weighted(pmd_loss(token_log_probs(x), OLD, a, MASK, 0.5), w)).sum(), x)

    assert relative_error(expected(mu, w), expected(OLD, 0 * w + 1)) < 1e-12
    assert relative_error(expected(mu, 0 * w + 1), expected(OLD, 0 * w + 1)) > 0.1


def test_bounds_trade_bias_for_noise():
    sampler = POLICY + OTHER
    bias, noise = {}, {}
    for name, bound in (("all", (math.inf,)), ("8", (8.0,)), ("2", (2.0,)), ("masked", (2.0, "mask"))):
        mean, noise[name] = policy_gradient(sampler, lambda old, mu: whole(old, mu, *bound))
        bias[name] = relative_error(mean, EXACT)
    assert bias["all"] < 1e-12 < bias["8"] < bias["2"] < bias["masked"]
    assert noise["all"] > noise["8"] > noise["2"]


def test_moments_by_sampling_formula():
    mean, noise = policy_gradient(POLICY, ones)
    assert relative_error(mean, EXACT) < 1e-12
    a, p = REWARDS - (OLD.sum(dim=1).exp() * REWARDS).sum(), OLD.sum(dim=1).exp()
    scores = torch.stack([gradient(lambda x: token_log_probs(x)[i].sum(), POLICY) for i in range(15)])
    second = (p * a.square() * scores.square().sum(dim=(1, 2))).sum() - EXACT.square().sum()
    assert noise == pytest.approx(second.sqrt().item(), rel=1e-10)


# Top-p


def test_top_p_by_hand():
    logits = t64([0.5, 0.3, 0.2], [0.2, 0.5, 0.3]).log()
    for top_p, kept in ((1.0, (0.5, 0.3, 0.2)), (0.81, (0.5, 0.3, 0.2)), (0.7, (0.625, 0.375, 0)), (0.45, (1, 0, 0))):
        got = top_p_logits(logits, top_p).softmax(dim=-1)
        torch.testing.assert_close(got[0], t64(*kept))
        torch.testing.assert_close(got[1], t64(kept[2], kept[0], kept[1]))


@pytest.mark.parametrize("top_p", [0.95, 0.8, 0.7, 0.5])
def test_what_weights_correct_in_top_p_and_what_not(top_p):
    sampler = top_p_logits(POLICY, top_p)
    mu = token_log_probs(sampler)
    inside = mu.sum(dim=1) > -math.inf
    assert 0 < (~inside).sum() < 15
    w = sequence_weights(OLD, mu, MASK, math.inf)
    assert (w[inside] <= 1 + 1e-12).all()
    for baseline in (0.0, 0.7):
        got = policy_gradient(sampler, whole, baseline)[0]
        part = -gradient(lambda x: (inside * token_log_probs(x).sum(dim=1).exp() * (REWARDS - baseline)).sum(), POLICY)
        assert relative_error(got, part) < 1e-10
        assert relative_error(got, EXACT) > 0.04  # what mu cannot sample stays missing
    none, other = (policy_gradient(sampler, whole, baseline)[0] for baseline in (0.0, 0.7))
    assert relative_error(none, other) > 0.01  # a baseline is no longer harmless


def test_top_p_without_weights():
    r"""grad E_mu[r] + E_mu[A sum_t grad log Z_t], nucleus fixed; log-probs of mu itself have only the first."""
    sampler = top_p_logits(POLICY, 0.7)
    kept = sampler > -math.inf  # [7, 3]
    p = token_log_probs(sampler).sum(dim=1).exp()
    a = REWARDS - (p * REWARDS).sum()

    def truncated(x):  # log-probs of mu with this nucleus; 0 where it cannot sample
        log_mu = token_log_probs(x.masked_fill(~kept, -math.inf))
        return torch.where((p > 0)[:, None], log_mu, 0.0).sum(dim=1)

    own = gradient(lambda x: (torch.where(p > 0, truncated(x).exp(), 0.0) * REWARDS).sum(), POLICY)
    log_z = gradient(lambda x: (p * a * (token_log_probs(x).sum(dim=1) - truncated(x))).sum(), POLICY)
    got = -policy_gradient(sampler, ones)[0]
    assert relative_error(got, own + log_z) < 1e-10
    assert log_z.norm() > 0.1 * own.norm()
    assert relative_error(gradient(lambda x: (p * a * truncated(x)).sum(), POLICY), own) < 1e-10


def test_demonstration(capsys):
    importance.main()
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:26].strip(): [float(x) for x in line[26:].split()] for line in lines
            if line.startswith(("no weights", "token", "sequence"))}
    assert len(rows) == 7
    assert rows["sequence"][::2] == [0, 0, 0, 0] and rows["no weights"][0] == 0 < rows["no weights"][2]
    table = [line.split() for line in lines[-6:]]
    assert [row[0] for row in table] == ["1", "0.95", "0.9", "0.8", "0.7", "0.5"]
    assert table[0][2:5] == ["0.000"] * 3 and all(float(row[4]) > 0.05 for row in table[1:])
    assert all(float(row[5]) < 1e-10 for row in table)
