r"""Grades ex08_whole_run.py: what a certificate says of right and wrong losses, runs, and gradients by enumeration."""

import itertools
import math

import torch

import bandit
from enumeration import gradient, random_policy, random_rewards
from grading import Case, check, fail

OLD, LOGITS = random_policy(1).flatten()[:9], random_policy(0).flatten()[:9]
R, REF = random_rewards(3)[:9], random_policy(2).flatten()[:9].log_softmax(dim=0)
BETA = 0.3


def softmax_gradient(f):
    r"""The gradient at LOGITS of sum_k pi_k f_k, whose f_k are constants."""
    p = LOGITS.softmax(dim=0)
    return p * (f - (p * f).sum())


def test_certificate(solution):
    p, w = LOGITS.softmax(dim=0), LOGITS.softmax(dim=0) / OLD.softmax(dim=0)
    l = p.log() - REF

    def reward(log_probs):  # J
        return (log_probs.exp() * R).sum()

    def regularised(log_probs):  # J with RKL
        return (log_probs.exp() * (R - BETA * (log_probs - REF))).sum()

    def right(log_probs, old_log_probs):
        return -(log_probs - old_log_probs).exp() * R

    def no_weight(log_probs, old_log_probs):
        return -log_probs * R

    def rkl(log_probs, old_log_probs):
        return (log_probs - old_log_probs).exp() * (-R + BETA * (log_probs - REF))

    def twice(log_probs, old_log_probs):
        return 2 * right(log_probs, old_log_probs)

    def thrice(log_probs, old_log_probs):
        return 3 * right(log_probs, old_log_probs)

    def turned(log_probs, old_log_probs):
        return -right(log_probs, old_log_probs)

    def first(log_probs, old_log_probs):
        return -2 * (log_probs - old_log_probs).exp() * torch.tensor([1.0, 0.0]).double()

    def first_reward(log_probs):
        return log_probs.exp()[0]

    true, with_kl = softmax_gradient(R), softmax_gradient(R - BETA * l)
    unweighted = softmax_gradient(R / w) - p * 0  # sum pi_old R grad log pi = sum pi (R / w) grad log pi
    zeros = torch.zeros(2, dtype=torch.float64)

    def error(g, wanted):
        return ((g - wanted).norm() / wanted.norm()).item()

    check(solution, "certificate", [
        Case((first, first_reward, zeros, zeros), 1.0, "the worked number"),
        Case((right, reward, LOGITS, OLD), 0.0, "a right loss", atol=1e-9),
        Case((rkl, regularised, LOGITS, OLD), 0.0, "a right loss with a KL", atol=1e-9),
        Case((twice, reward, LOGITS, OLD), 1.0, "twice the right loss"),
        Case((thrice, reward, LOGITS, OLD), 2.0, "three times the right loss"),
        Case((turned, reward, LOGITS, OLD), 2.0, "the right loss with the wrong sign"),
        Case((no_weight, reward, LOGITS, OLD), error(unweighted, true), "a loss without the importance weight"),
        Case((right, regularised, LOGITS, OLD), error(true, with_kl), "a loss without the KL"),
        Case((no_weight, reward, LOGITS, LOGITS), 0.0, "on policy the weight is 1", atol=1e-9),
    ])


def runs(solution, name):
    function = getattr(solution, name)
    try:
        return [bandit.run(function, seed) for seed in range(8)]
    except NotImplementedError:
        return None
    except Exception as error:
        message = f"{name}: it raised {type(error).__name__}: {error}."
    fail(message)


def first_gradient_error(loss):
    r"""Relative error of a loss's expected gradient at the first step, for the mean over a group of two, listed."""
    log_probs = torch.zeros(32, dtype=torch.float64).log_softmax(dim=0)
    pairs = torch.cartesian_prod(torch.arange(32), torch.arange(32))  # [1024, 2], all as likely

    def expected(x):
        current = x.log_softmax(dim=0)
        return torch.stack([loss(current[y], log_probs[y], bandit.REWARDS[y]).mean() for y in pairs]).mean()

    wanted = gradient(lambda x: -(x.softmax(dim=0) * bandit.REWARDS).sum(), log_probs)
    return ((gradient(expected, log_probs) - wanted).norm() / wanted.norm()).item()


def empty(name):
    from course import EXERCISES

    fail(f"{name}: empty. {EXERCISES[name].read}.")


def test_collapsing_loss(solution):
    ends = runs(solution, "collapsing_loss") or empty("collapsing_loss")
    error = first_gradient_error(solution.collapsing_loss)
    if error > 1e-6:
        fail("collapsing_loss: no honest mistake: at the first step of a round its expected gradient is not that of "
             f"-E[R]; relative error {error:.3g}.")
    collapsed, mean = sum(entropy < 0.1 for _, entropy in ends), sum(reward for reward, _ in ends) / 8
    if collapsed < 6 or mean >= 0.9:
        fail(f"collapsing_loss: it does not collapse enough: the entropy ends below 0.1 in {collapsed} of 8 runs (6 "
             f"are asked for), and E[R] is {mean:.3f} on average (below 0.9).")


def test_mended_loss(solution):
    ends = runs(solution, "mended_loss") or empty("mended_loss")
    lowest, mean = min(reward for reward, _ in ends), sum(reward for reward, _ in ends) / 8
    if mean <= 0.95 or lowest < 0.8:
        fail(f"mended_loss: E[R] ends at {mean:.3f} on average (above 0.95 is asked for), and at {lowest:.3f} in the "
             "worst of 8 runs (0.8).")


def test_new_advantages(solution):
    pi, r = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64), torch.tensor([1.0, 0.0, 0.4], dtype=torch.float64)
    true = pi * (r - (pi * r).sum())

    def expected_gradient(r, group_size):  # over all groups, one at a time and all in one batch
        groups = torch.tensor(list(itertools.product(range(3), repeat=group_size)))  # [3^G, G]
        a = solution.new_advantages(r[groups].flatten(), group_size)
        if not isinstance(a, torch.Tensor) or a.shape != (groups.numel(),):
            return a
        scores = torch.eye(3, dtype=torch.float64) - pi
        return (pi[groups].prod(dim=1)[:, None, None] * a.reshape(groups.shape)[..., None] * scores[groups]).mean(
            dim=1).sum(dim=0)

    equal = torch.full((6,), 0.5, dtype=torch.float64)

    class Wrapped:
        new_advantages = staticmethod(lambda r, group_size: expected_gradient(r, group_size) if len(r) == 3
                                      else solution.new_advantages(r, group_size))

    def mean_inside(G):
        return {"the response's own reward is in its baseline: the gradient is (G-1)/G of the true one": (G - 1) / G}

    check(Wrapped, "new_advantages", [
        *(Case((r, G), true, f"the expected gradient of groups of {G}", factors=mean_inside(G)) for G in (2, 3, 4)),
        Case((equal, 3), torch.zeros(6).double(), "equal rewards must give 0", extra=True)])


def test_new_loss(solution):
    log_p, log_old = (0.5 * random_policy(seed).flatten()[:15] - 2.5 for seed in (4, 5))
    rewards, tau, lam = random_rewards(3), 0.4, 0.7

    def objective(x):
        rho = (x - log_old).exp()
        return (x.exp() * (rewards - tau * (x - log_old))).sum() - tau * lam / 2 * (log_old.exp() * (rho - 1)**2).sum()

    w, log_w = (log_p - log_old).exp(), log_p - log_old
    terms = {"w A": -w * rewards, "A": -rewards, "tau w log w": tau * w * log_w, "tau w": tau * w, "tau lam w^2":
             tau * lam * w * w, "tau log w": tau * log_w, "tau": tau * torch.ones_like(w), "w^3": w**3}
    one = torch.tensor([1.0], dtype=torch.float64)
    check(solution, "new_loss", [
        Case((torch.log(0.4 * one), torch.log(0.2 * one), one, 0.1, 1.0), why="the worked number",
             gradient=-2 * (1 - 0.1 * (math.log(2) + 1) - 0.1) * one),
        Case((log_p, log_old, rewards, tau, lam), why="against the exact gradient of J, event by event",
             gradient=-gradient(objective, log_p) / log_old.exp(), terms=terms),
        Case((log_p, log_old, rewards, tau, lam), constants=(1, 2), extra=True),
    ])
