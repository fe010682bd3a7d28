r"""pmd_variants.py: losses by hand; what each ascends and its optimum by enumeration; both readings of K2.5."""

import math

import pytest
import torch

import pmd_variants
from baselines import grpo_loss, reinforce_loss
from enumeration import TOKENS, gradient, random_policy, random_rewards, token_log_probs
from pmd_mean import pmd_loss, pmd_mean_advantages, pmd_mean_policy, pmd_part_advantages, pmd_part_policy
from pmd_variants import (
    a2po_loss, a2po_values, by_prefix, dro_loss, expected_losses, k25_policy, minimiser, openkimi_loss,
    opmd_loss, optima, partition_weights, pmd_k25_loss, pmd_k25_masked_loss, pmd_residual_loss, recognise,
    regression_policy, target_policy_loss,
)
from rewards import bounded_groups, mixed_groups

F64 = torch.float64
TAU, OLD, REF, REWARDS = 1.5, random_policy(1), random_policy(2), random_rewards(3)
NEAR, FAR = OLD + 0.05 * random_policy(0), random_policy(0)  # token ratios in 0.91 .. 1.09, and in 0.1 .. 17.7
P = token_log_probs(OLD).sum(dim=1).exp()  # [15]
A = REWARDS - (P * REWARDS).sum()  # [15]
OPTIMA = {name: probs for name, (_, probs) in optima(OLD, REF, REWARDS, TAU).items()}

# What minus the gradient is: on policy, off policy; the letters are explained in pmd_variants.recognise.
TABLE = {
    "k1.5, K2": ("J", "P - S"), "OpenKimi opmd": ("J/y", "P/y - S/y"), "OpenKimi weighted": ("Jc", "Pc - Sc"),
    "K2.5, formula": ("J / n", "(K - 2T) / n"), "K2.5, text": ("J / n", "(K - 2T) / n"),
    "DRO, kimi_k15": ("J", "P - T"), "prime-rl pmd_mean": ("J / tau", "(P - S) / tau"),
    "Trinity opmd": ("J / (n + n tau)", "P / (n + n tau)"), "A*-PO": ("2 tau (J - KL)", "2 tau (Pv - Sr)"),
    "target policy": ("F", "F"),
}


def t64(*values):
    return torch.tensor(values, dtype=F64)


def data(seed=0, dtype=F64):
    r"""log_probs, old, advantages, mask: four responses of 3, 1, 2 and 3 tokens, nan at the padding of log_probs."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    log_p, old = (-torch.rand(4, 3, generator=g, dtype=F64) - 0.1 for _ in range(2))
    return torch.where(mask, log_p, math.nan).to(dtype), old.to(dtype), t64(1.0, -1, 0.5, -0.5).to(dtype), mask


# What each ascends, and where it ends


@pytest.mark.parametrize("name", TABLE)
def test_what_a_step_ascends(name):
    on = gradient(expected_losses(NEAR, REF, REWARDS, TAU)[name], NEAR)
    assert recognise(on, NEAR, NEAR, REF, REWARDS, TAU) == TABLE[name][0]
    for theta in (NEAR, FAR):
        off = gradient(expected_losses(OLD, REF, REWARDS, TAU)[name], theta)
        clipped = theta is FAR and name.startswith("K2.5")
        assert recognise(off, theta, OLD, REF, REWARDS, TAU) == ("neither" if clipped else TABLE[name][1])


def test_recognise_by_hand_and_that_it_can_refuse():
    exact = gradient(lambda x: -(token_log_probs(x).sum(dim=1).exp() * REWARDS).sum(), FAR)
    assert recognise(exact, FAR, OLD, REF, REWARDS, TAU) == "J"
    assert recognise(-exact, FAR, OLD, REF, REWARDS, TAU) == "neither"  # the sign counts
    assert recognise(exact + 1e-6, FAR, OLD, REF, REWARDS, TAU) == "neither"
    s = gradient(lambda x: -(P * A * token_log_probs(x).sum(dim=1)).sum()
                 + TAU * (P * (token_log_probs(x) - token_log_probs(OLD)).sum(dim=1).square()).sum(), FAR)
    assert recognise(s, FAR, OLD, REF, REWARDS, TAU) == "P - 2S"  # one for one half


@pytest.mark.parametrize("name", [name for name in TABLE if name not in ("prime-rl pmd_mean", "Trinity opmd")])
def test_optimum_against_brute_force(name):
    r"""prime-rl's value means nothing: its stationary point is that of pmd_loss, by the table above."""
    losses = expected_losses(OLD, REF, REWARDS, TAU, eps_low=1.0, eps_high=9.0)  # K2.5 unclipped
    best = OPTIMA[name]
    assert best.sum().item() == pytest.approx(1, abs=1e-10)
    assert (minimiser(losses[name], OLD) - best).abs().max() < 1e-6
    assert (best - P).abs().max() > 0.01


def test_optima_of_the_same_tau_differ():
    best = OPTIMA
    assert best["Trinity opmd"] is None
    same = [{"k1.5, K2", "prime-rl pmd_mean"}, {"K2.5, formula", "K2.5, text"}]
    for a in best:
        for b in best:
            if a < b and "Trinity opmd" not in (a, b):
                assert ((best[a] - best[b]).abs().max() < 1e-3) == ({a, b} in same), (a, b)
    torch.testing.assert_close(best["k1.5, K2"], pmd_mean_policy(P, REWARDS, TAU)[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(best["target policy"], pmd_part_policy(P, REWARDS, TAU), rtol=1e-12, atol=0)


def test_trinity_has_no_minimum():
    loss = expected_losses(OLD, REF, REWARDS, TAU)["Trinity opmd"]
    down = -gradient(loss, OLD)
    values = [loss(OLD + k / down.norm() * down).item() for k in (0, 100, 1000, 10_000)]
    assert values[0] > values[1] and (values[3] - values[1]) / (values[2] - values[1]) == pytest.approx(11, rel=0.01)


def test_lam_of_a_prefix():
    r"""Averaging l + lam e^l = u over pi_old: lam = E_old[u] + KL(pi_old || pi). Worse prefixes have it below 0."""
    lams, rewards = [], (TOKENS[:, 0] != 2).double()  # every response that starts with 2 is wrong

    def solve(p, a):
        probs, lam = regression_policy(p, a / TAU)
        kl = (p * (p / probs).log()).sum().item()
        assert lam == pytest.approx((p * a).sum().item() / TAU + kl, abs=1e-9)
        lams.append(lam)
        return probs

    by_prefix(OLD, rewards - (P * rewards).sum(), solve)
    assert max(lams[1], lams[3], lams[4]) > 0.1 and max(lams[2], lams[5], lams[6]) < -0.1
    assert regression_policy(P, A / TAU)[1] == pytest.approx(pmd_mean_policy(P, REWARDS, TAU)[1].item(), rel=1e-9)


def test_k25_policy_refuses_the_other_branch():
    p, q = t64(0.01, 0.99), t64(1.0, 0.0)
    with pytest.raises(ValueError, match="tau = 0.5 is too small"):
        k25_policy(p, q, 0.5)
    assert k25_policy(p, q, 2.0).sum().item() == pytest.approx(1, abs=1e-9)


# Formulas


def test_numbers_in_the_docstrings():
    old, mask, a = t64([-1, -1]), torch.ones(1, 2), t64(0.5)
    assert openkimi_loss(old + 0.1, old, a, mask, 0.1).item() == pytest.approx(0.576)
    assert pmd_residual_loss(t64([-0.5, -0.5]), t64([-0.6, -0.6]), a, mask, 0.1).item() == pytest.approx(4.8)
    one, w = t64(1.0), t64([1.2, 2.0]).log()
    assert pmd_k25_loss(w, 0 * w, one, 0.1).tolist()[0] == pytest.approx([-1.197, -1.232], abs=5e-4)
    assert pmd_k25_masked_loss(w, 0 * w, one, 0.1).tolist()[0] == pytest.approx([-1.197, -1.315], abs=5e-4)
    assert dro_loss(t64(0.2).log(), t64(0.1).log(), a, 0.1).item() == pytest.approx(0.829, abs=5e-4)
    assert opmd_loss(t64(0.2).log(), a, 1.0).item() == pytest.approx(0.402, abs=5e-4)
    winner = t64(1, 0, 0, 0)
    assert partition_weights(winner, 4, 1.0).tolist() == pytest.approx([1.901, 0.700, 0.700, 0.700], abs=5e-4)
    assert partition_weights(winner, 4, 0.01).tolist() == pytest.approx([4, 0, 0, 0], abs=1e-12)
    assert a2po_values(winner, 4, 0.5).item() == pytest.approx(0.477, abs=5e-4)
    got = a2po_loss(old + 0.1, old, t64(1.0), t64(0.5), mask, 0.1)
    assert got.item() == pytest.approx(0.2304)
    two = t64([-1.0], [-1.0])
    got = target_policy_loss(two, two, t64(math.log(3), 0.0), torch.ones(2, 1), 2, 1.0)
    assert got.tolist() == pytest.approx([0.520, 0.173], abs=5e-4)
    assert bounded_groups(torch.tensor([1, 1, -1, 1]), 2, -1, 1).tolist() == [False, False, True, True]


def test_relations_to_pmd_loss():
    log_p, old, a, mask = data()
    wanted = pmd_loss(log_p, old, a, mask, 0.3)
    torch.testing.assert_close(openkimi_loss(log_p, old, a, mask, 0.3) * mask.sum(dim=1), wanted)
    c = t64(2.0, 0.0, 1.0, 0.5)
    torch.testing.assert_close(openkimi_loss(log_p, old, a, mask, 0.3, c) * mask.sum(dim=1), c * wanted)
    torch.testing.assert_close(a2po_loss(log_p, old, a + 0.4, 0 * a + 0.4, mask, 0.3), 0.6 * wanted)
    grad, residual = (gradient(lambda x: loss(x, old, a, mask, 0.3).sum(), log_p) for loss in (pmd_loss,
                                                                                             pmd_residual_loss))
    torch.testing.assert_close(0.3 * residual, grad)


def test_dro_is_the_regression_token_by_token():
    r"""The same gradient as pmd_loss for one token; for more, the sum of squares and not the square of the sum."""
    log_p, old, a, _ = data()
    log_p = log_p.nan_to_num(-0.5)
    for tokens, same in ((1, True), (3, False)):
        args = log_p[:, :tokens], old[:, :tokens]
        got = gradient(lambda x: dro_loss(x, args[1], a, 0.3).sum(), args[0])
        wanted = gradient(lambda x: pmd_loss(x, args[1], a, torch.ones(4, tokens), 0.3).sum(), args[0])
        assert torch.allclose(got, wanted) == same
    kimi_k15 = reinforce_loss(log_p, a) + 0.3 / 2 * (log_p - old).square()  # prime-rl's words
    torch.testing.assert_close(dro_loss(log_p, old, a, 0.3), kimi_k15)


def test_target_policy_gradient():
    r"""p - q at the summed log-probs of a group's responses, q ~ p_old e^{A/tau}; 0 once p is q."""
    log_p, old, a, mask = data()
    s, s_old = (torch.where(mask, x, 0.0).sum(dim=1).reshape(2, 2) for x in (log_p, old))
    p, q = s.softmax(dim=1), (s_old.exp() * (a.reshape(2, 2) / 0.3).exp())
    wanted = (p - q / q.sum(dim=1, keepdim=True)).reshape(4, 1) * mask
    got = gradient(lambda x: target_policy_loss(x, old, a, mask, 2, 0.3).sum(), log_p)
    torch.testing.assert_close(got, wanted)
    there = torch.zeros_like(old).index_put((torch.arange(4), torch.zeros(4, dtype=torch.long)),
                                            s_old.reshape(4) + a / 0.3)
    got = gradient(lambda x: target_policy_loss(x, old, a, mask, 2, 0.3).sum(), there)
    torch.testing.assert_close(got, torch.zeros_like(got), rtol=0, atol=1e-14)


def test_a2po_values_are_those_of_pmd_part():
    rewards = t64(1, 0, 0.3, -2, 0.7, 0.7, 0.7, 0.7)
    for beta in (1e-3, 0.5, 100.0):
        wanted = (rewards - pmd_part_advantages(rewards, 4, beta)).reshape(2, 4)
        torch.testing.assert_close(a2po_values(rewards, 4, beta), wanted.mean(dim=1))
    assert a2po_values(torch.full((8,), 0.7), 8, 1e-3).item() == torch.tensor(0.7).item()


# K2.5


def k25_weight(w, a, tau, eps_low, eps_high, masked):
    r"""Minus the gradient by log pi of one token, in plain Python; bounds on w, or on log w where masked."""
    l = math.log(w)
    if masked:
        return w * a - 2 * tau * l if -eps_low <= l <= eps_high else 0.0
    return (w * a if 1 - eps_low <= w <= 1 + eps_high else 0.0) - 2 * tau * l


@pytest.mark.parametrize("eps", [{}, dict(eps_low=0.2, eps_high=0.28), dict(eps_low=0.6, eps_high=0.1),
                                 dict(eps_low=1.0, eps_high=4.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_k25_regions_on_a_grid(masked, eps):
    ratios = t64(0.01, 0.3, 0.5, 0.79, 0.81, 0.83, 0.95, 1, 1.05, 1.2, 1.27, 1.3, 1.33, 2, 4.9, 40)
    w, a = (x.flatten() for x in torch.meshgrid(ratios, t64(-2, -0.5, 0, 1), indexing="ij"))
    loss = pmd_k25_masked_loss if masked else pmd_k25_loss
    got = -gradient(lambda x: loss(x, 0 * w - 3, a, 0.1, **eps).sum(), w.log() - 3)
    settings = {**dict(eps_low=0.2, eps_high=0.28), **eps}
    wanted = t64(*[k25_weight(*pair, 0.1, masked=masked, **settings) for pair in zip(w.tolist(), a.tolist())])
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)


def test_the_two_readings_of_k25():
    r"""Same inside both; at w = 1.3 only the log-ratio is inside; outside, only the formula pulls back."""
    w = t64(1.1, 1.3, 0.81, 2.0)
    for a in (1.0, -1.0):
        formula, text = (-gradient(lambda x: loss(x, 0 * x, 0 * w + a, 0.1).sum(), w.log())
                         for loss in (pmd_k25_loss, pmd_k25_masked_loss))
        assert formula[0] == text[0] and text[1] == pytest.approx(1.3 * a - 0.2 * math.log(1.3))
        assert formula[1].item() == pytest.approx(-0.2 * math.log(1.3))  # w A is gone, and for A < 0 too: not PPO
        assert formula[2].item() == pytest.approx(0.81 * a - 0.2 * math.log(0.81)) and text[2] == 0
        assert formula[3].item() == pytest.approx(-0.2 * math.log(2)) and text[3] == 0
    ppo = gradient(lambda x: grpo_loss(x, 0 * x, 0 * w - 1).sum(), w.log())
    assert (ppo[[1, 3]] > 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("loss", [pmd_k25_loss, pmd_k25_masked_loss])
def test_k25_where_ratios_overflow(loss, dtype):
    r"""Pitfall 27. e^200 is inf in float32: value and gradient are finite all the same, and exact."""
    l = torch.tensor([200.0, -200.0, 1000.0, 0.1], dtype=dtype)
    for a in (1.0, -1.0, 0.0):
        x = l.clone().requires_grad_()
        value = loss(x, torch.zeros_like(l), torch.full_like(l, a), 0.1)
        value.sum().backward()
        assert value.isfinite().all() and value.dtype == dtype
        pull = 0.2 * l if loss is pmd_k25_loss else torch.zeros_like(l)
        torch.testing.assert_close(x.grad[:3], pull[:3])
        assert x.grad[3].item() == pytest.approx(0.02 - a * math.exp(0.1), rel=1e-5)


def test_k25_up_to_the_largest_float():
    r"""Bounds wide open: e^88 fits into float32, so its value and gradient must be there."""
    x = torch.tensor([88.0], requires_grad=True)
    for loss in (pmd_k25_loss, pmd_k25_masked_loss):
        eps_high = 3e38 if loss is pmd_k25_loss else 88.5
        value = loss(x, torch.zeros(1), torch.ones(1), 0.0, eps_low=1.0, eps_high=eps_high)
        torch.testing.assert_close(torch.autograd.grad(value.sum(), x)[0], -torch.tensor([88.0]).exp())


def test_k25_bounds_that_cannot_be():
    x = torch.zeros(2)
    for eps in (dict(eps_low=-0.1), dict(eps_low=1.1), dict(eps_high=-0.1)):
        with pytest.raises(ValueError, match="^eps_low must be between 0 and 1 and eps_high at least 0"):
            pmd_k25_loss(x, x, x, 0.1, **eps)
    for eps in (dict(eps_low=-0.1), dict(eps_high=-0.1)):
        with pytest.raises(ValueError, match="^eps_low and eps_high must be at least 0"):
            pmd_k25_masked_loss(x, x, x, 0.1, **eps)


# What tau means


def test_rewards_of_plus_and_minus_one():
    r"""Advantages double; with twice the tau each loss is a multiple of what it was. Trinity's is another one."""
    log_p, old, _, mask = data()
    log_p = log_p.nan_to_num(-0.5)
    rewards = t64(1, 0, 1, 1)
    a, doubled = (pmd_mean_advantages(r, 4) for r in (rewards, 2 * rewards - 1))
    torch.testing.assert_close(doubled, 2 * a)
    for factor, loss in (
        (2, lambda a, tau: pmd_loss(log_p, old, a, mask, tau)),
        (2, lambda a, tau: openkimi_loss(log_p, old, a, mask, tau)),
        (2, lambda a, tau: pmd_k25_loss(log_p, old, a, tau)),
        (2, lambda a, tau: pmd_k25_masked_loss(log_p, old, a, tau)),
        (2, lambda a, tau: dro_loss(log_p, old, a, tau)),
        (4, lambda a, tau: a2po_loss(log_p, old, a, 0 * a, mask, tau)),
        (1, lambda a, tau: pmd_residual_loss(log_p, old, a, mask, tau)),
        (1, lambda a, tau: target_policy_loss(log_p, old, a, mask, 4, tau)),
    ):
        torch.testing.assert_close(loss(doubled, 0.2), factor * loss(a, 0.1))
        assert not torch.allclose(loss(doubled, 0.1), factor * loss(a, 0.1), rtol=1e-3)  # the same tau is another loss
    ratio = opmd_loss(log_p, doubled, 0.2) / opmd_loss(log_p, a, 0.1)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2 * 1.1 / 1.2))
    torch.testing.assert_close(partition_weights(2 * rewards - 1, 4, 0.2), partition_weights(rewards, 4, 0.1))
    r, p = t64(1, 0, 0), t64(0.2, 0.3, 0.5)
    for policy in (lambda r, tau: pmd_mean_policy(p, r, tau)[0], lambda r, tau: pmd_part_policy(p, r, tau)):
        torch.testing.assert_close(policy(2 * r - 1, 2.0), policy(r, 1.0))
        assert policy(2 * r - 1, 1.0)[0] > policy(r, 1.0)[0] + 0.05  # half as strong a regularisation


# Weights and bounds


def test_partition_weights_make_responses_of_pi_star():
    p, r = t64(0.2, 0.3, 0.5), t64(1.0, 0.0, 0.5)
    group = torch.tensor([1.0] * 2 + [0.0] * 3 + [0.5] * 5, dtype=F64)  # in the proportions of p
    c = partition_weights(group, 10, 0.4)
    torch.testing.assert_close(c[[0, 2, 5]], pmd_part_policy(p, r, 0.4) / p)


@pytest.mark.parametrize("group_size", [1, 3, 8])
def test_partition_weights_of_equal_rewards(group_size):
    assert (partition_weights(torch.full((2 * group_size,), 0.7), group_size, 1e-3) == 1).all()
    assert partition_weights(torch.tensor([1e4, -1e4]), 2, 1e-3).tolist() == [2, 0]


def test_bounded_groups():
    correct = torch.tensor([0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1])
    kept = [False] * 4 + [True] * 4 + [False] * 4
    assert bounded_groups(correct, 4, 0, 1).tolist() == kept == mixed_groups(correct, 4).tolist()
    assert bounded_groups(2 * correct - 1, 4, -1, 1).tolist() == kept
    assert bounded_groups(correct, 4, -1, 1).tolist() == [True] * 8 + [False] * 4  # bounds for +-1, rewards 0 and 1
    assert bounded_groups(correct, 4, 0.25, 2).tolist() == [False] * 8 + [True] * 4  # both bounds are excluded
    assert bounded_groups(correct, 4, -math.inf, math.inf).all()


def test_bounded_groups_of_equal_rewards():
    r"""Pitfall 7: the float32 mean of eight 0.7 is not 0.7, and must not slip through a bound of 0.7."""
    for n in (3, 7, 8, 16):
        for value in (0.7, 0.1, -0.3):
            r = torch.full((n,), value)
            assert not bounded_groups(r, n, value, 2).any() and not bounded_groups(r, n, -2, value).any()


# Numbers, padding, shapes


def calls(log_p, old, a, mask):
    r"""{name: loss} of every loss on the same data."""
    return {
        "openkimi": lambda x=log_p, o=old, a=a: openkimi_loss(x, o, a, mask, 0.3),
        "residual": lambda x=log_p, o=old, a=a: pmd_residual_loss(x, o, a, mask, 0.3),
        "a2po": lambda x=log_p, o=old, a=a: a2po_loss(x, o, a, 0 * a, mask, 0.3),
        "target": lambda x=log_p, o=old, a=a: target_policy_loss(x, o, a, mask, 2, 0.3),
        "k25": lambda x=log_p, o=old, a=a: pmd_k25_loss(x, o, a, 0.3),
        "k25 masked": lambda x=log_p, o=old, a=a: pmd_k25_masked_loss(x, o, a, 0.3),
        "dro": lambda x=log_p, o=old, a=a: dro_loss(x, o, a, 0.3),
        "opmd": lambda x=log_p, o=old, a=a: opmd_loss(x, a, 0.3),
    }


WHOLE, TOKEN = ("openkimi", "residual", "a2po", "target"), ("k25", "k25 masked", "dro", "opmd")


@pytest.mark.parametrize("name", WHOLE)
def test_padding_reaches_neither_value_nor_gradient(name):
    log_p, old, a, mask = data()
    x = log_p.clone().requires_grad_()
    loss = calls(x, old, a, mask)[name]()
    loss.sum().backward()
    assert loss.shape == (4,) and loss.isfinite().all()
    assert (x.grad[~mask] == 0).all() and x.grad[mask].isfinite().all() and (x.grad[mask] != 0).all()
    clean = calls(log_p.nan_to_num(-0.7), old, a, mask)[name]()
    assert torch.equal(loss.detach(), clean)


@pytest.mark.parametrize("name", TOKEN)
def test_advantages_per_response_or_token(name):
    log_p, old, a, mask = data()
    log_p = log_p.nan_to_num(-0.7)
    both = calls(log_p, old, a, mask)[name]
    assert both().shape == (4, 3)
    assert torch.equal(both(), both(a=a[:, None].expand(4, 3)))
    assert torch.equal(both()[:, 0], both(x=log_p[:, 0], o=old[:, 0]))  # an event may be a whole response


@pytest.mark.parametrize("name", WHOLE + TOKEN)
def test_only_log_probs_get_a_gradient(name):
    r"""Also where the caller forgot no_grad and both come from one tensor."""
    log_p, old, a, mask = data()
    x, old, a = (y.nan_to_num(-0.7).requires_grad_() for y in (log_p, old, a))
    calls(x, old, a, mask)[name]().sum().backward()
    assert x.grad.abs().sum() > 0 and old.grad is None and a.grad is None
    same = x.detach().clone().requires_grad_()
    calls(same, same, a.detach(), mask)[name]().sum().backward()
    constant = calls(same, same.detach(), a.detach(), mask)[name]
    torch.testing.assert_close(same.grad, torch.autograd.grad(constant().sum(), same)[0])


@pytest.mark.parametrize("name", WHOLE + TOKEN)
def test_precision(name):
    log_p, old, a, mask = data()
    log_p = log_p.nan_to_num(-0.7)
    exact = calls(log_p, old, a, mask)[name]()
    assert exact.dtype == F64
    single = calls(log_p.float(), old.float(), a.float(), mask)[name]()
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-6)
    half = [y.bfloat16() for y in (log_p, old, a)]
    got, wanted = calls(*half, mask)[name](), calls(*[y.double() for y in half], mask)[name]()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WHOLE + TOKEN)
def test_shapes_that_would_broadcast_in_silence(name):
    x, a, mask = torch.zeros(4, 4), torch.zeros(4), torch.ones(4, 4)
    bad = [dict(a=torch.zeros(1)), dict(a=torch.zeros(4, 1)), dict(x=x[0], a=x)]
    bad += [dict(o=x[:1]), dict(o=x[0])] if name != "opmd" else []
    for case in bad:
        with pytest.raises(ValueError, match="must") as error:
            calls(x, x, a, mask)[name](**case)
        assert "\n" not in str(error.value)


def test_bad_values():
    log_p, old, a, mask = data()
    for tau in (0.0, -1.0, math.inf, math.nan):
        for call in (lambda: openkimi_loss(log_p, old, a, mask, tau), lambda: partition_weights(a, 2, tau),
                     lambda: pmd_residual_loss(log_p, old, a, mask, tau), lambda: a2po_values(a, 2, tau),
                     lambda: target_policy_loss(log_p, old, a, mask, 2, tau)):
            with pytest.raises(ValueError, match="must be positive and finite"):
                call()
    with pytest.raises(ValueError, match="tau must be larger than -1"):
        opmd_loss(old, a, -1.0)
    with pytest.raises(ValueError, match="weights"):
        openkimi_loss(log_p, old, a, mask, 0.1, torch.ones(4, 1))
    for call in (lambda: bounded_groups(a, 3, 0, 1), lambda: bounded_groups(a, 0, 0, 1),
                 lambda: bounded_groups(a[:, None], 2, 0, 1), lambda: partition_weights(a, 3, 0.1),
                 lambda: a2po_values(a, 3, 0.1), lambda: target_policy_loss(log_p, old, a, mask, 3, 0.1)):
        with pytest.raises(ValueError, match="group_size"):
            call()


def test_demonstration(capsys):
    pmd_variants.main()
    lines = capsys.readouterr().out.splitlines()
    steps, where = (next(i for i, line in enumerate(lines) if line.startswith("loss") and head in line)
                    for head in ("on policy", "E[r]"))
    for name, (on, off) in TABLE.items():
        row = next(line for line in lines[steps:] if line.startswith(name))
        assert row[37:55].strip() == on and row[55:].strip() == off
        row = next(line for line in lines[where:] if line.startswith(name))
        if name not in ("prime-rl pmd_mean", "Trinity opmd"):
            assert float(row.split()[-1]) < 1e-6
    weights = [line for line in lines if line.startswith("A=")]
    assert len(weights) == 8 and weights[1].split()[-1] == "-0.139" and weights[2].split()[-1] == "0.000"
