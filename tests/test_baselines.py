r"""baselines.py: advantages by hand and by enumeration of whole groups, losses event by event, clips on a grid."""

import itertools
import math

import pytest
import torch

import baselines
import rpg_losses
from baselines import (
    grpo_advantages, grpo_loss, gspo_loss, reinforce_loss, reinforce_pp_advantages, rloo_advantages,
)
from enumeration import (
    MASK, divergence, gradient, objective, random_policy, random_rewards, relative_error, token_log_probs,
)
from pmd_mean import pmd_mean_advantages

F64 = torch.float64
THETA, OLD, REF, REWARDS = random_policy(0), random_policy(1), random_policy(2), random_rewards(3)
RIGHT = (REWARDS > 0.6).double()


def responses(logits):
    return token_log_probs(logits).sum(dim=1)  # [15]


def t64(*values):
    return torch.tensor(values, dtype=F64)


# Group baselines


def group_gradient(advantages, rewards, group_size):
    r"""Exact expected gradient of the mean of REINFORCE over all 15^G groups, on policy."""
    groups = torch.tensor(list(itertools.product(range(15), repeat=group_size)))  # [15^G, G]
    a = advantages(rewards[groups].flatten(), group_size).reshape(groups.shape)
    weight = responses(THETA)[groups].sum(dim=1).exp()  # [15^G]
    assert weight.sum().item() == pytest.approx(1)
    return gradient(lambda x: (weight * reinforce_loss(responses(x)[groups], a).mean(dim=1)).sum(), THETA)


def true_gradient(rewards):
    return -gradient(lambda x: (responses(x).exp() * rewards).sum(), THETA)


@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize("rewards", [REWARDS, RIGHT], ids=["any", "0 or 1"])
def test_expected_gradient_of_group_mean_and_leave_one_out(group_size, rewards):
    true = true_gradient(rewards)
    mean = group_gradient(pmd_mean_advantages, rewards, group_size)
    assert relative_error(mean, (group_size - 1) / group_size * true) < 1e-10
    assert relative_error(group_gradient(rloo_advantages, rewards, group_size), true) < 1e-10


@pytest.mark.parametrize("group_size", [2, 3])
def test_expected_gradient_of_standardised_advantages(group_size):
    r"""Rewards 0 or 1: E[A | right] - E[A | wrong] times the true gradient, the factor by the binomial formula."""
    p = (responses(THETA).exp() * RIGHT).sum().item()
    factor = 0.0
    for k in range(group_size):  # winners among the others
        chance = math.comb(group_size - 1, k) * p**k * (1 - p) ** (group_size - 1 - k)
        right = torch.tensor([1.0] * (k + 1) + [0.0] * (group_size - 1 - k), dtype=F64)
        wrong = torch.tensor([1.0] * k + [0.0] * (group_size - k), dtype=F64)
        factor += chance * (grpo_advantages(right, group_size)[0] - grpo_advantages(wrong, group_size)[-1]).item()
    if group_size == 2:
        assert factor == pytest.approx(math.sqrt(0.5))
    got = group_gradient(grpo_advantages, RIGHT, group_size)
    assert relative_error(got, factor * true_gradient(RIGHT)) < 1e-10
    # For other rewards there is no such factor: the direction changes too.
    got, true = group_gradient(grpo_advantages, REWARDS, group_size), true_gradient(REWARDS)
    assert torch.cosine_similarity(got.flatten(), true.flatten(), dim=0) < 0.999


def test_advantages_by_hand():
    rewards = t64(1, 0, 0, 0, 2, 4, 6, 8)
    torch.testing.assert_close(grpo_advantages(rewards, 4), torch.cat(
        [t64(1.5, -0.5, -0.5, -0.5), t64(-3, -1, 1, 3) / math.sqrt(20 / 3)]))
    torch.testing.assert_close(rloo_advantages(rewards, 4), t64(1, -1 / 3, -1 / 3, -1 / 3, -4, -4 / 3, 4 / 3, 4))
    r = torch.randn(12, dtype=F64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rloo_advantages(r, 4), pmd_mean_advantages(r, 4, leave_one_out=True))
    grouped = r.view(3, 4)
    standardised = (grouped - grouped.mean(dim=1, keepdim=True)) / grouped.std(dim=1, keepdim=True)
    torch.testing.assert_close(grpo_advantages(r, 4), standardised.flatten())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
@pytest.mark.parametrize("value", [0.7, 0.1, -0.3, 0.0, 1.0, 1e-8, 12345.678])
def test_equal_rewards_give_exact_zeros(value, dtype):
    r"""Pitfall 7: eight rewards of 0.7, and every other constant, in groups of every size."""
    for group_size in (1, 2, 3, 7, 8, 16):
        rewards = torch.full((2 * group_size,), value, dtype=dtype)
        assert (grpo_advantages(rewards, group_size) == 0).all()
        if group_size > 1:
            assert (rloo_advantages(rewards, group_size) == 0).all()


def test_rewards_equal_to_rounding_and_tiny_differences():
    same = torch.tensor([0.7, torch.tensor(0.1) + torch.tensor(0.6), 0.7, 0.7])  # 0.1 + 0.6 is 0.70000005 in float32
    assert same.unique().numel() == 2 and (grpo_advantages(same, 4) == 0).all()
    tiny = 1e-30 * torch.tensor([1.0, 0, 0, 0])  # a real difference, whose square underflows
    torch.testing.assert_close(grpo_advantages(tiny, 4), torch.tensor([1.5, -0.5, -0.5, -0.5]))


def test_a_group_of_one():
    r"""Pitfall 8: its advantage is never its raw reward. Nothing to compare with: zero, or an error."""
    assert grpo_advantages(t64(1, 0, 5), 1).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="group_size at least 2"):
        rloo_advantages(t64(1, 0, 5), 1)


def test_groups_do_not_mix():
    rewards = t64(1, 0, 10, 20, 5, 5)
    for advantages in (grpo_advantages, rloo_advantages):
        parts = [advantages(part, 2) for part in rewards.split(2)]
        assert torch.equal(advantages(rewards, 2), torch.cat(parts)) and parts[2].tolist() == [0, 0]


def test_dtypes_of_advantages():
    for given, out in ((torch.float16, torch.float32), (torch.int64, torch.float32), (torch.float32, torch.float32),
                       (F64, F64)):
        rewards = torch.tensor([1, 0, 0, 1], dtype=given)
        assert grpo_advantages(rewards, 4).dtype == rloo_advantages(rewards, 4).dtype == out


# REINFORCE++


def test_reinforce_pp_by_hand():
    r"""Docstring: r = 1, k1 = (0.2, 0.1), beta = 0.5 gives (0.85, 0.95); a second response has r = 0 and one token."""
    old, ref = t64(-1.0, -1.0, -1.0, 9.0).view(2, 2), t64(-1.2, -1.1, -1.0, float("nan")).view(2, 2)
    mask = torch.tensor([[1, 1], [1, 0]])
    got = reinforce_pp_advantages(t64(1, 0), old, mask, beta=0.5, ref_log_probs=ref)
    raw = t64(0.85, 0.95, 0.0)
    expected = (raw - raw.mean()) / raw.std()
    torch.testing.assert_close(got, torch.stack([expected[:2], torch.cat([expected[2:], t64(0)])]))


def test_reinforce_pp_follows_the_regularised_objective():
    r"""Pitfall 10. On policy and up to the scale of the normalisation: E[R] - beta KL(pi || pi_ref), with its signs."""
    old, ref = token_log_probs(THETA), token_log_probs(REF)
    for beta in (0.0, 0.3, 2.0):
        a = reinforce_pp_advantages(REWARDS, old, MASK, beta, ref)
        p_old = old.sum(dim=1).exp()
        got = gradient(lambda x: (p_old * (MASK * reinforce_loss(token_log_probs(x), a)).sum(dim=1)).sum(), THETA)
        wanted = -gradient(lambda x: objective(responses(x), REWARDS, beta, "rkl", responses(REF)), THETA)
        scale = wanted.norm() / got.norm()
        assert relative_error(scale * got, wanted) < 1e-10


def test_reinforce_pp_normalises_over_the_batch():
    g = torch.Generator().manual_seed(0)
    old, ref = torch.randn(2, 6, 5, dtype=F64, generator=g)
    mask = torch.arange(5) < torch.tensor([2, 5, 1, 4, 3, 5])[:, None]
    a = reinforce_pp_advantages(torch.randn(6, generator=g), old, mask, 0.3, ref)
    assert (a[~mask] == 0).all()
    assert a[mask].mean().item() == pytest.approx(0, abs=1e-12) and a[mask].std().item() == pytest.approx(1)


def test_reinforce_pp_zeros():
    r"""Pitfall 7 over the batch, an empty batch, and no reference: no KL."""
    old, mask = torch.full((8, 3), -1.0), torch.ones(8, 3)
    assert (reinforce_pp_advantages(torch.full((8,), 0.7), old, mask, 0.1) == 0).all()
    assert (reinforce_pp_advantages(torch.full((8,), 0.7), old, mask, 0.1, old - 0) == 0).all()
    assert (reinforce_pp_advantages(torch.ones(2), old[:2], torch.zeros(2, 3)) == 0).all()
    r = torch.rand(8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(reinforce_pp_advantages(r, old, mask, 5.0), reinforce_pp_advantages(r, old, mask, 0.0))


@pytest.mark.parametrize("dtype, rounding", [(torch.float32, 5e-6), (F64, 1e-14)])
@pytest.mark.parametrize("beta", [1e-3, 0.1, 2.0])
def test_reinforce_pp_does_not_normalise_rounding(dtype, rounding, beta):
    r"""Pitfall 28. Policy = reference, log-probs from two passes: with the embedded model they differ by 5e-6 nats."""
    g = torch.Generator().manual_seed(0)
    old = (-torch.rand(16, 60, generator=g, dtype=F64)).to(dtype)
    noise = torch.randn(16, 60, generator=g, dtype=F64)
    mask = torch.arange(60) < torch.randint(1, 61, (16, 1), generator=g)
    again = old + (noise.clamp(-1, 1) * rounding).to(dtype)
    for reward in (0.0, 0.7, 1.0):
        rewards = torch.full((16,), reward)
        assert (reinforce_pp_advantages(rewards, old, mask, beta, again) == 0).all()
        # A KL of 0.1 nats is none of rounding, nor are rewards that differ.
        assert reinforce_pp_advantages(rewards, old, mask, beta, old + 0.1 * noise.to(dtype))[mask].std() > 0.9
        rewards[3] += 0.5
        assert reinforce_pp_advantages(rewards, old, mask, beta, again)[mask].std() > 0.9


# Losses


def events(seed, *shape):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(4, *shape, dtype=F64, generator=g)
    return -2 + 0.3 * x[0], -2 + 0.3 * x[1], -2 + 0.3 * x[2], x[3]


@pytest.mark.parametrize("tokens", [False, True])
def test_policy_gradient_on_policy(tokens):
    r"""Without clipping and KL, all of them have the gradient of E[R] on policy, with or without a baseline."""
    true = true_gradient(REWARDS)
    log_probs = token_log_probs if tokens else responses
    old, p_old = log_probs(THETA), responses(THETA).exp()
    for baseline in (0.0, 0.6):
        a = REWARDS - baseline
        for loss in (lambda x: reinforce_loss(x, a), lambda x: grpo_loss(x, old, a)):
            got = gradient(lambda x: (p_old * loss(log_probs(x)).reshape(15, -1).sum(dim=1)).sum(), THETA)
            assert relative_error(got, true) < 1e-10


def test_off_policy_the_ratio_is_right_and_reinforce_is_not():
    true, old = true_gradient(REWARDS), responses(OLD)
    wide = dict(eps_low=1.0, eps_high=1e9)
    got = gradient(lambda x: (old.exp() * grpo_loss(responses(x), old, REWARDS, **wide)).sum(), THETA)
    assert relative_error(got, true) < 1e-10
    got = gradient(lambda x: (old.exp() * reinforce_loss(responses(x), REWARDS)).sum(), THETA)
    assert relative_error(got, true) > 0.1


def test_grpo_penalty_gradient():
    r"""Pitfalls 10, 11 and RPG Sec. 2.2: on policy k3 pulls along the forward KL, towards the reference."""
    old, ref = responses(THETA), responses(REF)
    for beta in (0.3, 2.0):
        got = gradient(lambda x: (old.exp() * grpo_loss(responses(x), old, REWARDS, beta, ref)).sum(), THETA)
        wanted = -gradient(lambda x: objective(responses(x), REWARDS, beta, "fkl", ref), THETA)
        assert relative_error(got, wanted) < 1e-10
        got = gradient(lambda x: (old.exp() * grpo_loss(responses(x), old, 0 * REWARDS, beta, ref)).sum(), THETA)
        step = THETA - 1e-3 * got
        assert divergence("fkl", responses(step), ref) < divergence("fkl", responses(THETA), ref)
    no_reference = grpo_loss(responses(OLD), old, REWARDS, 0.5)
    assert torch.equal(no_reference, grpo_loss(responses(OLD), old, REWARDS, 0.5, old))


@pytest.mark.parametrize("eps_low, eps_high", [(0.2, 0.2), (0.2, 0.28), (0.5, 4.0)])
def test_clip_regions_on_a_grid(eps_low, eps_high):
    r"""Pitfall 9, narrow and wide clip, both signs: the weight is w A where alive and 0 where clipped."""
    ratios, advantages = t64(0.05, 0.45, 0.55, 0.75, 0.85, 1, 1.15, 1.25, 1.35, 3, 6, 40), t64(-3, -1, -0.1, 0.1, 1, 3)
    log_w, a = (x.flatten() for x in torch.meshgrid(ratios.log(), advantages, indexing="ij"))
    alive = torch.tensor([w < 1 + eps_high if x > 0 else w > 1 - eps_low for w, x in
                          itertools.product(ratios.tolist(), advantages.tolist())])
    value = torch.tensor([-x * (min(w, 1 + eps_high) if x > 0 else max(w, 1 - eps_low)) for w, x in
                          itertools.product(ratios.tolist(), advantages.tolist())], dtype=F64)
    wanted = torch.where(alive, -log_w.exp() * a, 0.0)
    old = torch.full_like(a, -3.0)
    mask = torch.ones(len(a), 2)

    def grpo(x):
        return grpo_loss(x, old, a, eps_low=eps_low, eps_high=eps_high)

    def gspo(x):  # two tokens, whose log-ratios have the mean log_w
        x = torch.stack([x + 0.7, x - 0.7], dim=1)
        return gspo_loss(x, torch.stack([old, old], dim=1), a, mask, eps_low, eps_high)

    for loss in (grpo, gspo):
        torch.testing.assert_close(gradient(lambda x: loss(x).sum(), old + log_w), wanted, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(loss(old + log_w), value, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["grpo_loss", "gspo_loss"])
def test_a_good_event_far_beyond_the_clip(name):
    r"""Pitfall 27: e^89 is infinite in float32, the clipped loss is not, and its gradient is 0 and not 0 times inf."""
    for gap, advantage in itertools.product((87.0, 89.0, 1e3, 1e5), (0.0, 1.0, 1e6)):
        log_p, old, a = torch.tensor([[gap - 2]], requires_grad=True), torch.tensor([[-2.0]]), torch.tensor([advantage])
        loss = grpo_loss(log_p, old, a) if name == "grpo_loss" else gspo_loss(log_p, old, a, torch.ones(1, 1))
        loss.sum().backward()
        eps_high = 0.2 if name == "grpo_loss" else 4e-4
        assert loss.item() == pytest.approx(-(1 + eps_high) * advantage) and log_p.grad == 0


@pytest.mark.parametrize("gap", [89.0, 1e3, 1e5])
def test_grpo_without_a_kl_survives_a_token_that_was_lost(gap):
    r"""beta = 0 and log pi_theta far below the reference: k3 is infinite, and 0 times that is nan."""
    for advantage in (-1.0, 0.0, 1.0):
        log_p, old = torch.tensor([-2.0 - gap], requires_grad=True), torch.tensor([-2.0])
        loss = grpo_loss(log_p, old, torch.tensor([advantage]))
        loss.backward()
        assert loss.item() == pytest.approx(0.8 if advantage < 0 else 0) and log_p.grad.abs() < 1e-38


def test_gspo_gradient_and_mask():
    r"""Where alive -s A (1/|o|) grad log pi(y): by enumeration, with nan in the padding."""
    old = torch.where(MASK, token_log_probs(OLD), float("nan"))
    lengths = MASK.sum(dim=1)
    s = ((responses(THETA) - responses(OLD)) / lengths).exp()
    wide = dict(eps_low=1.0, eps_high=1e9)
    p_old = responses(OLD).exp()
    got = gradient(lambda x: (p_old * gspo_loss(token_log_probs(x), old, REWARDS, MASK, **wide)).sum(), THETA)
    wanted = gradient(lambda x: -(p_old * s * REWARDS / lengths * responses(x)).sum(), THETA)
    assert relative_error(got, wanted) < 1e-10
    x = torch.where(MASK, token_log_probs(THETA), float("inf")).requires_grad_()
    gspo_loss(x, old, REWARDS, MASK, **wide).sum().backward()
    assert x.grad.isfinite().all() and (x.grad[~MASK] == 0).all()
    empty = gspo_loss(torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1), torch.zeros(1, 2))
    assert empty.item() == -1.0  # s = 1


def test_gspo_by_hand():
    log_w = t64(2, 0.5, 4, 1).log().view(2, 2)
    got = gspo_loss(log_w, 0 * log_w, t64(1, 1), torch.ones(2, 2), eps_low=1, eps_high=9)
    assert got.tolist() == pytest.approx([-1, -2])


def test_numbers_in_the_docstrings():
    one = torch.ones(1, dtype=F64)
    assert reinforce_loss((0.2 * one).log(), 0.5 * one).item() == pytest.approx(0.805, abs=5e-4)
    zero = 0 * one
    for ratio, advantage, value in ((2, 1, -1.2), (2, -1, 2)):
        assert grpo_loss((ratio * one).log(), zero, advantage * one).item() == pytest.approx(value)
    x = (0.4 * one).log()
    assert grpo_loss(x, x, zero, 1.0, (0.2 * one).log()).item() == pytest.approx(0.193, abs=5e-4)


def test_only_log_probs_get_a_gradient_and_advantages_broadcast():
    log_p, old, ref, a = (x.requires_grad_() for x in events(0, 3, 3))
    a_n = a[:, 0]
    for loss in (lambda a: grpo_loss(log_p, old, a, 0.5, ref), lambda a: reinforce_loss(log_p, a)):
        log_p.grad = None
        loss(a_n).sum().backward()
        assert log_p.grad.abs().min() > 0 and old.grad is ref.grad is a.grad is None
        assert torch.equal(loss(a_n), loss(a_n[:, None].expand(3, 3)))  # by row, not by column
    gspo_loss(log_p, old, a_n, torch.ones(3, 3)).sum().backward()
    assert old.grad is None and a.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    r"""Pitfall 23: e^12 overflows float16."""
    log_p, old = torch.full((1, 2), -1.0, dtype=dtype), torch.full((1, 2), -13.0, dtype=dtype)
    a, mask = -torch.ones(1), torch.ones(1, 2)
    got = [grpo_loss(log_p, old, a, 0.1, log_p + 12), gspo_loss(log_p, old, a, mask), reinforce_loss(log_p, a),
           reinforce_pp_advantages(a, old, mask, 0.1, log_p)]
    for loss in got:
        assert loss.dtype == torch.float32 and loss.isfinite().all()
    assert got[1].item() == pytest.approx(math.exp(12), rel=1e-5)
    assert grpo_loss(log_p.double(), old.double(), a.double()).dtype == F64


def test_grpo_and_rpg_agree_where_both_are_reinforce():
    log_p, old, _, a = events(1, 4, 2)
    wide = dict(eps_low=1.0, eps_high=1e9)
    torch.testing.assert_close(grpo_loss(log_p, old, a, **wide), rpg_losses.urkl_loss(log_p, old, a, 0.0))


@pytest.mark.parametrize("call, message", [
    (lambda x: grpo_advantages(x, 4), "multiple of group_size"),
    (lambda x: grpo_advantages(x, 0), "multiple of group_size"),
    (lambda x: grpo_advantages(x[None], 3), "multiple of group_size"),
    (lambda x: rloo_advantages(x, 4), "multiple of group_size"),
    (lambda x: reinforce_loss(x.expand(3, 3), x[:2]), "advantages must be"),
    (lambda x: grpo_loss(x.expand(3, 3), x, x), "must share a shape"),
    (lambda x: grpo_loss(x, x, x[:1]), "must share a shape"),
    (lambda x: grpo_loss(x, x, x, 0.1, x[:1]), "must share a shape"),
    (lambda x: gspo_loss(x, x, x, x), r"must be \[N, T\]"),
    (lambda x: gspo_loss(x[:, None], x[:, None], x[:2], x[:, None]), r"must be \[N, T\]"),
    (lambda x: reinforce_pp_advantages(x[:2], x[:, None], x[:, None]), r"must be \[N, T\]"),
    (lambda x: reinforce_pp_advantages(x, x, x), r"must be \[N, T\]"),
    (lambda x: reinforce_pp_advantages(x, x[:, None], x), r"must be \[N, T\]"),
    *[(call, "rewards must be finite") for value in (float("inf"), -float("inf"), float("nan")) for call in (
        lambda x, value=value: grpo_advantages(torch.tensor([value, 0.0, 0.0, 0.0]), 4),
        lambda x, value=value: rloo_advantages(torch.tensor([1.0, value]), 2),
        lambda x, value=value: reinforce_pp_advantages(value * x, x[:, None], x[:, None]),
    )],
])
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(torch.ones(3))
    assert "\n" not in str(error.value)


def test_demonstration(capsys):
    baselines.main()
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("0.7 0.7")).split()
    assert row[8:] == ["0.000"] * 6
    factors = [line.split() for line in out.splitlines() if line[:3].strip().isdigit() and len(line.split()) == 6]
    assert len(factors) == 12
    for group_size, p, mean, loo, std, _ in factors:
        assert float(mean) == pytest.approx(1 - 1 / int(group_size), abs=1e-4) and float(loo) == 1
        assert group_size != "2" or float(std) == pytest.approx(math.sqrt(0.5), abs=1e-4)
