r"""pmd_mean.py against hand-worked numbers, brute-force minimisation and exact enumeration. No sampling anywhere."""
import ast
import itertools
import math
import re
from pathlib import Path

import pytest
import torch

import pmd_mean
from pmd_mean import pmd_loss, pmd_mean_advantages, pmd_mean_policy, pmd_part_advantages, pmd_part_policy

SOURCE = Path(pmd_mean.__file__).read_text()
FUNCTIONS = ["pmd_mean_advantages", "pmd_part_advantages", "pmd_loss", "pmd_mean_policy", "pmd_part_policy"]
F64 = torch.float64
# papers.md: p, tau, new success probability of PMD-mean and PMD-part, lam, to the digits printed there.
TABLE = [
    ("0.01", "0.1", "0.260", "0.9955", "0.2555"),
    ("0.1", "0.1", "0.746", "0.9996", "0.937"),
    ("0.3", "0.1", "0.968", "0.9999", "1.807"),
    ("0.1", "1.0", "0.220", "0.232", "0.050"),
    ("0.5", "1.0", "0.714", "0.731", "0.101"),
]


def t64(*values):
    return torch.tensor(values, dtype=F64)


def close(a, b, tol):
    assert a.shape == b.shape, (a.shape, b.shape)
    assert (a - b).abs().max().item() <= tol, (a, b)


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


def random_bandit(seed, k):
    g = torch.Generator().manual_seed(seed)
    old = (1.5 * torch.randn(k, generator=g, dtype=F64)).softmax(0)
    return old, torch.rand(k, generator=g, dtype=F64) * 2 - 0.5


def argmin(objective, start):
    """Brute force: the policy softmax(logits) with the smallest objective(probs, log_probs)."""
    logits = start.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], lr=1, max_iter=100, tolerance_grad=1e-9, tolerance_change=1e-14,
                                  history_size=20, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        log_probs = logits.log_softmax(0)
        loss = objective(log_probs.exp(), log_probs)
        loss.backward()
        return loss

    for _ in range(3):  # restarts forget a bad curvature estimate
        optimizer.step(closure)
    return logits.detach().softmax(0)


# Advantages


def test_mean_advantages_by_hand():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 2.0])
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25, 0.0, 0.0, -1.0, 1.0])
    close(pmd_mean_advantages(rewards, 4), expected, 0)
    close(pmd_mean_advantages(rewards, 4, leave_one_out=True), expected * 4 / 3, 1e-6)
    close(pmd_mean_advantages(t64(3, 5), 2, leave_one_out=True), t64(-2, 2), 0)


def test_groups_do_not_mix():
    rewards = t64(1, 0, 10, 20, 5, 5)
    for advantages in (pmd_mean_advantages, lambda r, group_size: pmd_part_advantages(r, group_size, 0.5)):
        alone = [advantages(rewards[i:i + 2], 2) for i in (0, 2, 4)]
        close(advantages(rewards, 2), torch.cat(alone), 0)


def log_mean_exp(rewards, tau):
    top = max(rewards)
    return top + tau * math.log(sum(math.exp((r - top) / tau) for r in rewards) / len(rewards))


@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_part_advantages_against_plain_python(tau, leave_one_out):
    rewards = [1.0, 0.0, 0.3, -2.0, 0.0, 0.0, 7.5, 0.25]
    expected = []
    for start in (0, 4):
        group = rewards[start:start + 4]
        for i, r in enumerate(group):
            expected.append(r - log_mean_exp(group[:i] + group[i + 1:] if leave_one_out else group, tau))
    close(pmd_part_advantages(t64(*rewards), 4, tau, leave_one_out), t64(*expected), 1e-12)


def test_part_advantages_in_the_docstring():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    close(pmd_part_advantages(rewards, 4, 1.0), torch.tensor([0.643, -0.357, -0.357, -0.357]), 5e-4)
    close(pmd_part_advantages(rewards, 4, 1.0, True), torch.tensor([1, -0.453, -0.453, -0.453]), 5e-4)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("winner", range(8))
def test_only_winner_of_eight_gets_exactly_one(winner, dtype):
    # Pitfall 24, and OpenKimi's clamp, which gives 0.184.
    rewards = torch.zeros(8, dtype=dtype)
    rewards[winner] = 1.0
    for tau in (1e-3, 0.01, 0.1, 1.0, 10.0):
        a = pmd_part_advantages(rewards, 8, tau, leave_one_out=True)
        assert a[winner].item() == 1.0
        loser = -log_mean_exp([1.0] + 6 * [0.0], tau)
        assert a[winner - 1].item() == pytest.approx(loser, rel=1e-6)


def test_leave_one_out_far_below_the_left_out():
    # 1e4 nats between the winner and the others: a subtraction leaves nothing of them.
    a = pmd_part_advantages(t64(100, 0.02, 0.01, 0), 4, 0.01, leave_one_out=True)
    assert a[0].item() == pytest.approx(100 - log_mean_exp([0.02, 0.01, 0.0], 0.01), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_part_tends_to_mean_as_tau_grows(leave_one_out, dtype):
    rewards = torch.tensor([1.0, 0.0, 0.3, -2.0, 0.0, 1.0, 1.0, 0.25], dtype=dtype)
    mean = pmd_mean_advantages(rewards, 4, leave_one_out)
    assert (pmd_part_advantages(rewards, 4, 1.0, leave_one_out) - mean).abs().max() > 0.1
    close(pmd_part_advantages(rewards, 4, 1e6, leave_one_out), mean, 2e-6)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (F64, 1e-14)])
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("tau", [1e15, 1e16, 1e100, 1e308])
def test_part_is_mean_at_a_tau_beyond_rounding(tau, leave_one_out, dtype, tolerance):
    # The mean of exp(r/tau) rounds to 1 there; that of expm1(r/tau) keeps its digits.
    rewards = torch.tensor([1.0, 0.0, 0.3, -2.0, 0.0, 1.0, 1.0, 0.25], dtype=dtype)
    mean = pmd_mean_advantages(rewards, 4, leave_one_out)
    close(pmd_part_advantages(rewards, 4, tau, leave_one_out), mean, tolerance)


@pytest.mark.parametrize("tau", [1e-300, 1e-309, 5e-324])
def test_part_at_a_tau_that_leaves_the_best_only(tau):
    # tau log mean exp(r/tau) tends to the best reward, of the others where one's own is left out.
    rewards = t64(1, 0, 0.5, 0.5)
    close(pmd_part_advantages(rewards, 4, tau), t64(0, -1, -0.5, -0.5), 1e-12)
    close(pmd_part_advantages(rewards, 4, tau, leave_one_out=True), t64(0.5, -1, -0.5, -0.5), 1e-12)


def all_advantages(rewards, group_size):
    yield pmd_mean_advantages(rewards, group_size)
    for tau in (1e-3, 0.01, 1.0, 100.0):
        yield pmd_part_advantages(rewards, group_size, tau)
    if group_size > 1:
        yield pmd_mean_advantages(rewards, group_size, leave_one_out=True)
        for tau in (1e-3, 0.01, 1.0, 100.0):
            yield pmd_part_advantages(rewards, group_size, tau, leave_one_out=True)


@pytest.mark.parametrize("group_size", [1, 2, 3, 7, 8, 16, 61])
def test_equal_rewards_give_exact_zeros(group_size):
    # Pitfall 7: the mean of eight float32 0.7 is not 0.7. Pitfall 8: a group of one is not its raw reward.
    for value, dtype in itertools.product((0.7, 0.1, -1 / 3, 1e4, 0.0), (torch.float32, F64, torch.bfloat16)):
        for a in all_advantages(torch.full((3 * group_size,), value, dtype=dtype), group_size):
            assert torch.equal(a, torch.zeros_like(a))


def test_zero_variance_group_beside_another():
    for a in all_advantages(torch.tensor([0.7] * 8 + [0.7] * 7 + [0.2]), 8):
        assert torch.equal(a[:8], torch.zeros(8)) and (a[8:] != 0).any()


@pytest.mark.parametrize("dtype, out", [(torch.bfloat16, torch.float32), (torch.float16, torch.float32),
                                        (torch.float32, torch.float32), (F64, F64), (torch.bool, torch.float32),
                                        (torch.int64, torch.float32)])
def test_advantages_dtype(dtype, out):
    for a in all_advantages(torch.tensor([1, 0, 0, 1]).to(dtype), 4):
        assert a.dtype == out and a.shape == (4,) and a.isfinite().all() and a[0] > 0 > a[1]


def test_no_responses_no_advantages():
    for a in all_advantages(torch.zeros(0), 4):
        assert a.shape == (0,)


# The loss


def test_loss_by_hand():
    log_probs, old_log_probs = t64([-1.0, -0.5, -9.0], [-2.0, -1.0, -0.5]), t64([-1.1, -0.6, -3.0], [-1.0, -1.5, -1.0])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    # s = 0.1 + 0.1 = 0.2;   s = -1 + 0.5 + 0.5 = 0
    expected = t64(0.05 * (0.5 / 0.1 - 0.2) ** 2, 0.05 * (0.3 / 0.1) ** 2)
    assert expected[0].item() == pytest.approx(1.152)
    for m in (mask, mask.bool(), mask.float()):
        close(pmd_loss(log_probs, old_log_probs, t64(0.5, -0.3), m, 0.1), expected, 1e-12)
    # tau = 2: (2/2)(0.5/2 - 0.2)^2 = 0.0025
    close(pmd_loss(log_probs, old_log_probs, t64(0.5, -0.3), mask, 2.0), t64(0.0025, 0.0225), 1e-12)


def test_loss_has_one_value_a_response_and_no_length_normalisation():
    loss = pmd_loss(torch.full((2, 50), -0.9), torch.full((2, 50), -1.0), torch.zeros(2), torch.ones(2, 50), 1.0)
    close(loss, torch.full((2,), 0.5 * 5.0 ** 2), 1e-4)


def test_loss_gradient():
    g = torch.Generator().manual_seed(0)
    old = torch.randn(5, 4, generator=g, dtype=F64)
    mask = torch.arange(4) < torch.tensor([[4], [2], [1], [3], [0]])
    a = torch.randn(5, generator=g, dtype=F64)
    for shift in (0.0, 0.7):  # s = 0: plain policy gradient, -A grad log pi; else -(A - tau s) grad log pi
        log_probs = (old + shift * torch.randn(5, 4, generator=g, dtype=F64)).requires_grad_()
        pmd_loss(log_probs, old, a, mask, 0.3).sum().backward()
        s = ((log_probs - old) * mask).sum(1).detach()
        assert shift or torch.equal(s, torch.zeros(5, dtype=F64))
        close(log_probs.grad, -((a - 0.3 * s)[:, None] * mask), 1e-12)


def test_old_log_probs_and_advantages_are_constants():
    log_probs, old = torch.full((2, 3), -1.0).requires_grad_(), torch.full((2, 3), -2.0).requires_grad_()
    a = torch.ones(2).requires_grad_()
    pmd_loss(log_probs, old, a, torch.ones(2, 3), 0.1).sum().backward()
    assert log_probs.grad is not None and old.grad is None and a.grad is None
    same = torch.full((2, 3), -1.0).requires_grad_()  # the same tensor on both sides still gets a gradient
    pmd_loss(same, same, torch.ones(2), torch.ones(2, 3), 0.1).sum().backward()
    close(same.grad, torch.full((2, 3), -1.0), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_garbage_at_masked_positions(dtype):
    inf, nan = float("inf"), float("nan")
    clean = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, 0.0, 0.0]], dtype=dtype)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    a, old = torch.tensor([1.0, -1.0]), clean * 1.5
    reference = clean.clone().requires_grad_()
    expected = pmd_loss(reference, old, a, mask, 0.1)
    expected.sum().backward()
    for new_junk, old_junk in itertools.product((inf, -inf, nan, 1e30), repeat=2):
        log_probs = clean.masked_fill(~mask, new_junk).requires_grad_()
        for m in (mask, mask.float()):
            log_probs.grad = None
            loss = pmd_loss(log_probs, old.masked_fill(~mask, old_junk), a, m, 0.1)
            loss.sum().backward()
            assert torch.equal(loss, expected) and torch.equal(log_probs.grad, reference.grad)


def test_empty_response():
    log_probs = torch.full((1, 3), -1.0).requires_grad_()
    loss = pmd_loss(log_probs, torch.zeros(1, 3), torch.tensor([0.5]), torch.zeros(1, 3), 0.1)
    loss.sum().backward()
    close(loss, torch.tensor([1.25]), 1e-6)  # s = 0
    assert torch.equal(log_probs.grad, torch.zeros(1, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype):
    n = 4096
    log_probs = torch.full((1, n), -0.0100, dtype=dtype).requires_grad_()
    old = torch.full((1, n), -0.0101, dtype=dtype)
    s = n * (log_probs[0, 0].item() - old[0, 0].item())
    loss = pmd_loss(log_probs, old, torch.tensor([0.123], dtype=dtype), torch.ones(1, n), 0.01)
    loss.sum().backward()
    a = torch.tensor(0.123, dtype=dtype).item()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.005 * (a / 0.01 - s) ** 2, rel=1e-4)
    assert log_probs.grad.dtype == dtype and log_probs.grad[0, 0].item() == pytest.approx(-(a - 0.01 * s), rel=1e-2)
    far = torch.tensor([[-3.0]], dtype=dtype)  # far - old needs more bits than either has
    expected = 0.5 * (a - (-3.0 - old[0, 0].item())) ** 2
    assert pmd_loss(far, old[:, :1], torch.tensor([a]), torch.ones(1, 1), 1.0).item() == pytest.approx(expected, 1e-6)
    mixed = pmd_loss(log_probs, old.float(), torch.tensor([a]), torch.ones(1, n), 0.01)
    assert mixed.dtype == torch.float32 and mixed.item() == pytest.approx(loss.item(), rel=1e-6)


def test_float64_stays_float64():
    eps = 1e-12
    loss = pmd_loss(t64([-1 + eps]), t64([-1.0]), t64(1.0), torch.ones(1, 1), 1.0)
    assert loss.dtype == F64 and (0.5 - loss).item() == pytest.approx(eps, rel=1e-3)


# The loss as a training objective: exact expectations over every response of a small autoregressive policy


def all_responses():
    """Vocabulary {0, 1, 2}, 2 ends the response, at most 2 tokens: tokens [7, 2] and mask [7, 2]."""
    rows = [(2, 0)] + [(first, second) for first in (0, 1) for second in (0, 1, 2)]
    mask = torch.tensor([[1, 0]] + [[1, 1]] * 6, dtype=torch.bool)
    return torch.tensor(rows), mask


def token_log_probs(theta, tokens):
    """theta [4, 3]: logits of the first token, then of the second after each first. -> [7, 2]"""
    table = theta.log_softmax(1)
    return torch.stack([table[0, tokens[:, 0]], table[1 + tokens[:, 0], tokens[:, 1]]], dim=1)


@pytest.fixture
def small_policy():
    g = torch.Generator().manual_seed(3)
    tokens, mask = all_responses()
    old_theta = torch.randn(4, 3, generator=g, dtype=F64)
    rewards = torch.rand(7, generator=g, dtype=F64)
    far = old_theta + torch.randn(4, 3, generator=g, dtype=F64)
    return tokens, mask, old_theta, far, rewards


def test_on_policy_gradient_is_the_policy_gradient(small_policy):
    tokens, mask, old_theta, _, rewards = small_policy
    theta = old_theta.clone().requires_grad_()
    log_probs = token_log_probs(theta, tokens)
    probs = (log_probs * mask).sum(1).exp()
    assert probs.sum().item() == pytest.approx(1, abs=1e-14)
    (true,) = torch.autograd.grad(-(probs * rewards).sum(), theta, retain_graph=True)
    expected = (probs.detach() * pmd_loss(log_probs, log_probs, rewards - (probs * rewards).sum(), mask, 0.1)).sum()
    assert relative_error(torch.autograd.grad(expected, theta)[0], true) < 1e-10


@pytest.mark.parametrize("tau", [0.01, 0.3, 2.0])
def test_off_policy_gradient_is_that_of_the_exact_regression(small_policy, tau):
    tokens, mask, old_theta, far, rewards = small_policy
    old_log_probs = token_log_probs(old_theta, tokens)
    old = (old_log_probs * mask).sum(1).exp()
    theta = far.clone().requires_grad_()
    baseline = (old * rewards).sum()
    # The whole-response probabilities as products, and the formula of papers.md over 2 tau.
    table = theta.softmax(1)
    pi = torch.where(mask[:, 1], table[0, tokens[:, 0]] * table[1 + tokens[:, 0], tokens[:, 1]], table[0, tokens[:, 0]])
    objective = (old * (rewards - baseline - tau * torch.log(pi / old)) ** 2).sum() / (2 * tau)
    (true,) = torch.autograd.grad(objective, theta)
    loss = (old * pmd_loss(token_log_probs(theta, tokens), old_log_probs, rewards - baseline, mask, tau)).sum()
    assert loss.item() == pytest.approx(objective.item(), rel=1e-12)
    assert relative_error(torch.autograd.grad(loss, theta)[0], true) < 1e-10


def test_the_loss_is_least_at_the_exact_policy(small_policy):
    # pmd_loss and pmd_mean_policy belong together: the exact policy is stationary for the loss, as a sequence model.
    tokens, mask, old_theta, _, rewards = small_policy
    old_log_probs = token_log_probs(old_theta, tokens)
    old = (old_log_probs * mask).sum(1).exp()
    pi, _ = pmd_mean_policy(old, rewards, 0.1)
    first = torch.stack([pi[1:4].sum(), pi[4:7].sum(), pi[0]])
    theta = torch.stack([first, pi[1:4] / pi[1:4].sum(), pi[4:7] / pi[4:7].sum(), torch.full((3,), 1 / 3, dtype=F64)])
    theta = theta.log().requires_grad_()
    loss = pmd_loss(token_log_probs(theta, tokens), old_log_probs, rewards - (old * rewards).sum(), mask, 0.1)
    (gradient,) = torch.autograd.grad((old * loss).sum(), theta)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("leave_one_out, factor", [(False, 2 / 3), (True, 1.0)])
def test_group_baseline_over_all_27_groups(leave_one_out, factor):
    # Expected gradient with the group mean: (G-1)/G of the true one. Leave-one-out: exactly the true one.
    logits, rewards, g = t64(0.3, -0.8, 0.5).requires_grad_(), t64(1.0, 0.2, -0.4), 3
    log_probs = logits.log_softmax(0)
    (true,) = torch.autograd.grad(-(log_probs.exp() * rewards).sum(), logits, retain_graph=True)
    expected = 0
    for group in itertools.product(range(3), repeat=g):
        picked = log_probs[list(group)][:, None]  # [G, 1]
        advantages = pmd_mean_advantages(rewards[list(group)], g, leave_one_out)
        loss = pmd_loss(picked, picked, advantages, torch.ones(g, 1), 0.1).mean()
        expected = expected + picked.detach().sum().exp() * loss
    assert relative_error(torch.autograd.grad(expected, logits)[0], factor * true) < 1e-10


# The exact policies


@pytest.mark.parametrize("p, tau, mean, part, lam", TABLE)
def test_table_of_papers_md(p, tau, mean, part, lam):
    values = pmd_mean.one_step(float(p), float(tau))
    for value, printed in zip(values, (mean, part, lam)):
        digits = len(printed.split(".")[1])
        # "0.9999" for 0.99989 and 0.9999 alike: at most half a unit of the last printed digit away.
        assert abs(value - float(printed)) <= 0.5 * 10 ** -digits + 1e-12, (value, printed)


@pytest.mark.parametrize("k", [2, 3, 4, 6])
@pytest.mark.parametrize("tau", [0.1, 0.3, 1.0, 10.0])
def test_mean_policy_against_brute_force(k, tau):
    old, rewards = random_bandit(10 * k, k)
    a = rewards - (old * rewards).sum()
    probs, lam = pmd_mean_policy(old, rewards, tau)

    def regression(_, log_probs):
        return (old * (a - tau * (log_probs - old.log())) ** 2).sum() / (2 * tau)

    close(argmin(regression, torch.full((k,), 1 / k, dtype=F64)), probs, 1e-6)
    # pmd_loss itself, a response of one token for each outcome, agrees that no policy nearby is better
    best = (old * pmd_loss(probs.log()[:, None], old.log()[:, None], a, torch.ones(k, 1), tau)).sum()
    assert best.item() == pytest.approx(regression(None, probs.log()).item(), rel=1e-12)

    def minus_regularised_reward(pi, log_probs):  # with lam held
        kl = (pi * (log_probs - old.log())).sum()
        chi2 = (old * (pi / old - 1) ** 2).sum()
        return -(pi * rewards).sum() + tau * kl + tau * lam / 2 * chi2

    close(argmin(minus_regularised_reward, torch.full((k,), 1 / k, dtype=F64)), probs, 1e-6)


@pytest.mark.parametrize("k", [2, 3, 6])
@pytest.mark.parametrize("tau", [0.3, 1.0, 10.0])
def test_part_policy_against_closed_form_and_brute_force(k, tau):
    old, rewards = random_bandit(7 * k, k)
    probs = pmd_part_policy(old, rewards, tau)
    tilted = old * torch.exp(rewards / tau)
    close(probs, tilted / tilted.sum(), 1e-14)

    def minus_regularised_reward(pi, log_probs):
        return -(pi * rewards).sum() + tau * (pi * (log_probs - old.log())).sum()

    close(argmin(minus_regularised_reward, torch.full((k,), 1 / k, dtype=F64)), probs, 1e-6)
    # r - tau log Z = tau log(pi*/pi_t): the regression with the true partition function is fitted exactly
    a = rewards - tau * (old * (rewards / tau).exp()).sum().log()
    assert pmd_loss(probs.log()[:, None], old.log()[:, None], a, torch.ones(k, 1), tau).max() < 1e-24


def check_identity(old, rewards, tau):
    old, rewards = old.double(), rewards.double()
    probs, lam = pmd_mean_policy(old, rewards, tau)
    assert probs.dtype == lam.dtype == F64 and lam.dim() == 0 and lam >= 0
    assert (probs >= 0).all() and probs.isfinite().all() and abs(probs.sum().item() - 1) < 1e-12
    seen = probs > 1e-300
    rho = probs[seen] / old[seen]
    a = (rewards - (old * rewards).sum())[seen] / tau
    close(rho.log() + lam * rho, a, 1e-9 + 1e-14 * a.abs().max().item())
    if seen.equal(old > 0):
        kl = (old[seen] * (old[seen] / probs[seen]).log()).sum()
        assert lam.item() == pytest.approx(kl.item(), rel=1e-9, abs=1e-13)
    return probs, lam


@pytest.mark.parametrize("tau", [1e6, 10.0, 1.0, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4])
def test_identity_and_lam_over_tau(tau):
    for seed in range(4):
        old, rewards = random_bandit(seed, 2 + seed)
        check_identity(old, rewards, tau)
        check_identity(old, (rewards > 0.5).double(), tau)
        check_identity(old, 50 * rewards - 1000, tau)


@pytest.mark.parametrize("tau", [10.0, 0.1, 1e-3, 1e-4])
@pytest.mark.parametrize("p", [1e-300, 1e-12, 1e-6, 0.5, 1 - 1e-6, 1 - 1e-12])
def test_extreme_success_probabilities(p, tau):
    probs, lam = check_identity(t64(p, 1 - p), t64(1, 0), tau)
    assert probs[0] >= p * (1 - 1e-12)


@pytest.mark.parametrize("tau", [1e-3, 1e-4])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_lam_where_the_losers_vanish(p, tau):
    # The winner takes all, rho = 1/p, and the identity leaves lam = p (A/tau + log p). [derived]
    probs, lam = pmd_mean_policy(t64(p, 1 - p), t64(1, 0), tau)
    assert probs[0].item() == pytest.approx(1, abs=1e-12)
    assert lam.item() == pytest.approx(p * ((1 - p) / tau + math.log(p)), rel=1e-12)


@pytest.mark.parametrize("tau", [1e6, 10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4])
def test_part_policy_over_tau(tau):
    for seed in range(12):
        old, rewards = random_bandit(seed, 2 + seed % 7)
        probs = pmd_part_policy(old, rewards, tau)
        assert probs.dtype == F64 and abs(probs.sum().item() - 1) < 1e-12
        best = rewards.argmax()
        odds = (probs / probs[best]).log() - (old / old[best]).log()
        expected = (rewards - rewards[best]) / tau
        seen = expected > -600
        close(odds[seen], expected[seen], 1e-9)
        assert (probs[~seen] < 1e-200).all()


@pytest.mark.parametrize("policy", [lambda *a: pmd_mean_policy(*a)[0], pmd_part_policy])
@pytest.mark.parametrize("tau", [10.0, 0.1, 1e-3])
def test_zeros_stay_zero_and_do_not_matter(policy, tau):
    old, rewards = t64(0.2, 0, 0.5, 0.3, 0), t64(0.1, 99, 0.3, 0.2, -99)
    probs = policy(old, rewards, tau)
    assert probs[1] == 0 and probs[4] == 0
    close(probs[[0, 2, 3]], policy(t64(0.2, 0.5, 0.3), t64(0.1, 0.3, 0.2), tau), 1e-14)
    for junk in (float("nan"), float("inf")):
        close(policy(old, t64(0.1, junk, 0.3, 0.2, junk), tau), probs, 0)


@pytest.mark.parametrize("tau", [1e6, 10.0, 0.1, 1e-3, 1e-4])
def test_nothing_to_choose_between(tau):
    for old, rewards in ((t64(1.0), t64(0.7)), (t64(0.1, 0.2, 0.7), t64(0.7, 0.7, 0.7)), (t64(0, 1), t64(5, 0.3)),
                         (t64(0.5, 0, 0.5), t64(0.1, 9, 0.1))):
        probs, lam = pmd_mean_policy(old, rewards, tau)
        assert lam.item() == 0 and float(lam) == 0
        close(probs, old, 1e-15)
        close(pmd_part_policy(old, rewards, tau), old, 1e-15)


@pytest.mark.parametrize("tau", [1e-305, 1e-309, 5e-324])
def test_the_smallest_tau_has_a_right_answer_or_an_error(tau):
    for old, rewards in ((t64(0.1, 0.9), t64(1, 0)), (t64(0.2, 0.3, 0.5), t64(0, 1e5, 1e5))):
        close(pmd_part_policy(old, rewards, tau), pmd_part_policy(old, rewards, 1e-6), 1e-15)  # the best share it all
        if tau == 1e-305 and rewards.max() == 1:
            probs, lam = pmd_mean_policy(old, rewards, tau)
            close(probs, t64(1, 0), 1e-12)
            assert lam.item() == pytest.approx(0.1 * 0.9 / tau, rel=1e-12)  # p A / tau, see above
        else:
            with pytest.raises(ValueError, match="tau is too small for these rewards"):
                pmd_mean_policy(old, rewards, tau)
    probs, lam = pmd_mean_policy(t64(0.1, 0.9), t64(0.7, 0.7), tau)  # nothing to choose between
    assert lam == 0 and probs.tolist() == [0.1, 0.9]


def test_nearly_equal_rewards():
    probs, lam = pmd_mean_policy(t64(0.5, 0.5), t64(1.0, 1.0 + 1e-12), 1.0)
    close(probs, t64(0.5, 0.5), 1e-12)
    assert 0 <= lam.item() < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reduced_precision_input(dtype):
    old, rewards = torch.tensor([0.125, 0.25, 0.625]), torch.tensor([1.0, 0.5, 0.0])  # exact in either
    for a, b in zip(check_identity(old.to(dtype), rewards.to(dtype), 0.05), pmd_mean_policy(old, rewards, 0.05)):
        close(a, b, 0)
    assert pmd_part_policy(old.to(dtype), rewards.to(dtype), 0.05).dtype == F64
    rough = torch.tensor([0.1, 0.2, 0.7], dtype=dtype)  # does not sum to 1 exactly
    exact = rough.double() / rough.double().sum()
    assert abs(rough.double().sum().item() - 1) > 1e-9
    for a, b in zip(pmd_mean_policy(rough, torch.tensor([True, False, False]), 0.1),
                    pmd_mean_policy(exact, t64(1, 0, 0), 0.1)):
        close(a, b, 1e-14)


def test_mean_and_part_agree_as_tau_grows_and_mean_is_careful():
    old, rewards = random_bandit(5, 5)
    gaps = []
    for tau in (0.1, 1.0, 10.0, 100.0):
        gaps.append((pmd_mean_policy(old, rewards, tau)[0] - pmd_part_policy(old, rewards, tau)).abs().max().item())
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0.02 and gaps[-1] < 1e-5
    for p in (0.01, 0.1, 0.5, 0.9):
        mean, part, _ = pmd_mean.one_step(p, 0.1)
        assert p < mean < part


def test_policies_carry_no_gradient():
    old, rewards = t64(0.3, 0.7).requires_grad_(), t64(1, 0).requires_grad_()
    assert not pmd_mean_policy(old, rewards, 0.1)[0].requires_grad
    assert not pmd_part_policy(old, rewards, 0.1).requires_grad


# Errors, pasting, docstrings, the demonstration

ONES = torch.ones(2, 3)
BAD = [
    (lambda: pmd_mean_advantages(torch.ones(2, 2), 2), "rewards must be 1-D"),
    (lambda: pmd_part_advantages(torch.ones(2, 2), 2, 0.1), "rewards must be 1-D"),
    (lambda: pmd_mean_advantages(torch.tensor(1.0), 1), "rewards must be 1-D"),
    (lambda: pmd_mean_advantages(torch.ones(7), 2), "divide the 7 rewards, got 2"),
    (lambda: pmd_part_advantages(torch.ones(7), 2, 0.1), "divide the 7 rewards, got 2"),
    (lambda: pmd_mean_advantages(torch.ones(4), 0), "at least 1"),
    (lambda: pmd_part_advantages(torch.ones(4), -2, 0.1), "at least 1"),
    (lambda: pmd_mean_advantages(torch.ones(4), 8), "divide the 4 rewards, got 8"),
    (lambda: pmd_mean_advantages(torch.ones(4), 1, leave_one_out=True), "group_size >= 2"),
    (lambda: pmd_part_advantages(torch.ones(4), 1, 0.1, leave_one_out=True), "group_size >= 2"),
    (lambda: pmd_loss(ONES, ONES, torch.ones(2, 1), ONES, 0.1), r"advantages must be \[N\] = \[2\]"),
    (lambda: pmd_loss(ONES, ONES, torch.ones(3), ONES, 0.1), r"advantages must be \[N\] = \[2\]"),
    (lambda: pmd_loss(ONES, ONES[:1], torch.ones(2), ONES, 0.1), r"must all be \[N, T\]"),
    (lambda: pmd_loss(ONES, ONES, torch.ones(2), ONES[:, :1], 0.1), r"must all be \[N, T\]"),
    (lambda: pmd_loss(ONES[0], ONES[0], torch.ones(3), ONES[0], 0.1), r"must all be \[N, T\]"),
] + [(call, "rewards must be 1-D, .* finite") for value in (float("inf"), -float("inf"), float("nan")) for call in (
    lambda value=value: pmd_mean_advantages(torch.tensor([value, 0.0]), 2),
    lambda value=value: pmd_mean_advantages(torch.tensor([value, 0.0]), 2, leave_one_out=True),
    lambda value=value: pmd_part_advantages(torch.tensor([value, 0.0]), 2, 0.1),
)] + [case for tau in (0, -1.0, float("nan"), float("inf")) for case in (
    (lambda tau=tau: pmd_part_advantages(torch.ones(4), 2, tau), f"tau must be positive and finite, got {tau}"),
    (lambda tau=tau: pmd_loss(ONES, ONES, torch.ones(2), ONES, tau), f"tau must be positive and finite, got {tau}"),
    (lambda tau=tau: pmd_mean_policy(t64(0.5, 0.5), t64(1, 0), tau), f"tau must be positive and finite, got {tau}"),
    (lambda tau=tau: pmd_part_policy(t64(0.5, 0.5), t64(1, 0), tau), f"tau must be positive and finite, got {tau}"),
)] + [case for policy in (pmd_mean_policy, pmd_part_policy) for case in (
    (lambda policy=policy: policy(t64(0.5, 0.5), t64(1, 0, 0), 0.1), r"must both be \[K\]"),
    (lambda policy=policy: policy(t64([0.5, 0.5]), t64([1, 0]), 0.1), r"must both be \[K\]"),
    (lambda policy=policy: policy(t64(0.5, 0.4), t64(1, 0), 0.1), "sum to 1"),
    (lambda policy=policy: policy(t64(1.5, -0.5), t64(1, 0), 0.1), "non-negative"),
    (lambda policy=policy: policy(t64(float("nan"), 1), t64(1, 0), 0.1), "non-negative"),
    (lambda policy=policy: policy(t64(), t64(), 0.1), "sum to 1"),
    (lambda policy=policy: policy(t64(0.5, 0.5), t64(float("nan"), 0), 0.1), "rewards must be finite"),
    (lambda policy=policy: policy(t64(0.5, 0.5), t64(-float("inf"), 0), 0.1), "rewards must be finite"),
)]


@pytest.mark.parametrize("call, message", BAD)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def function_source(name):
    (node,) = [n for n in ast.parse(SOURCE).body if isinstance(n, ast.FunctionDef) and n.name == name]
    return ast.get_source_segment(SOURCE, node)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_runs_when_pasted_alone(name):
    namespace = {}
    exec("import torch\n" + function_source(name), namespace)
    alone, here = namespace[name], getattr(pmd_mean, name)
    arguments = {
        "pmd_mean_advantages": [(t64(1, 0, 0, 3), 2), (t64(1, 0, 0, 3), 2, True)],
        "pmd_part_advantages": [(t64(1, 0, 0, 3), 2, 0.1), (t64(1, 0, 0, 3), 2, 0.1, True)],
        "pmd_loss": [(t64([-1.0, -2.0]), t64([-1.5, -2.5]), t64(0.5), torch.ones(1, 2), 0.1)],
        "pmd_mean_policy": [(t64(0.1, 0.2, 0.7), t64(1, 0.5, 0), 0.1)],
        "pmd_part_policy": [(t64(0.1, 0.2, 0.7), t64(1, 0.5, 0), 0.1)],
    }[name]
    for case in arguments:
        pasted, imported = alone(*case), here(*case)
        for a, b in zip(pasted, imported):
            assert torch.equal(a, b)
    for bad in (torch.ones(2, 2), torch.ones(3)):  # the error paths, too, need nothing of the file
        with pytest.raises(ValueError):
            alone(*[bad if i == 0 else argument for i, argument in enumerate(arguments[0])])


def test_docstrings_are_raw_and_clean():
    # Pitfall 25: \b and \t in a docstring that is not raw are control characters.
    tree = ast.parse(SOURCE)
    for node in [tree] + [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and ast.get_docstring(n)]:
        literal = ast.get_source_segment(SOURCE, node.body[0])
        assert literal.startswith('r"""'), literal[:60]
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", ast.get_docstring(node, clean=False))
    assert all(ast.get_docstring(n) for n in tree.body if isinstance(n, ast.FunctionDef) and n.name != "main")


def test_only_torch_at_the_top():
    imports = [ast.unparse(n) for n in ast.parse(SOURCE).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert imports == ["import torch"]


def test_baseline_errors_by_enumeration():
    p, tau, g = 0.3, 0.2, 3
    mean_square = part_square = 0.0
    log_z = tau * math.log(p * math.exp(1 / tau) + 1 - p)
    for outcome in itertools.product((1.0, 0.0), repeat=g):
        weight = math.prod(p if r else 1 - p for r in outcome)
        mean_square += weight * (sum(outcome) / g - p) ** 2
        part_square += weight * (log_mean_exp(outcome, tau) - log_z) ** 2
    assert pmd_mean.baseline_errors(p, tau, g) == pytest.approx((mean_square ** 0.5, part_square ** 0.5), rel=1e-12)


def test_demonstration(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "runs" / "pmd_mean.png"
    picture.parent.mkdir()
    picture.write_bytes(b"an older picture, marked pmd_mean.py")  # its own it may replace
    pmd_mean.main([])
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    for p, tau, mean, part, lam in TABLE:
        (row,) = [r for r in rows if len(r) == 5 and r[:2] == [f"{float(tau):g}", p]]
        for printed, known in zip(row[2:], (mean, part, lam)):
            assert abs(float(printed) - float(known)) <= 0.5 * 10 ** -len(known.split(".")[1]) + 5e-5

    foreign = tmp_path / "holiday.png"
    foreign.write_bytes(b"\x89PNG not ours")
    for out in (foreign, tmp_path):
        with pytest.raises(SystemExit) as stop:
            pmd_mean.main(["--out", str(out)])
        assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
    assert foreign.read_bytes() == b"\x89PNG not ours"
    assert b"pmd_mean.py" in picture.read_bytes()[:1000]
