r"""Grades ex05_pmd_mean.py: numbers worked by hand, and the exact optimum to ten digits."""

import math

import torch

from grading import Case, check

NAN = float("nan")


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_pmd_part_policy(solution):
    half = math.exp(0.5)
    z = 0.2 * half + 0.3 / half + 0.5
    check(solution, "pmd_part_policy", [
        Case((double(0.1, 0.9), double(1, 0), 1.0), double(0.1 * math.e, 0.9) / (0.1 * math.e + 0.9),
             "the worked number"),
        Case((double(0.2, 0.3, 0.5), double(1, -1, 0), 2.0), double(0.2 * half, 0.3 / half, 0.5) / z, "tau = 2"),
        Case((double(0.1, 0.9), double(1, 0), 1e-3), double(1, 0), "tau = 0.001"),
    ])


def test_pmd_part_advantages(solution):
    log_mean = math.log((math.e + 3) / 4)
    two = 2 * math.log((math.exp(0.25) + 1) / 2)
    check(solution, "pmd_part_advantages", [
        Case((double(1, 0, 0, 0), 4, 1.0), double(1, 0, 0, 0) - log_mean, "the worked number"),
        Case((double(0.5, 0, 1, 1), 2, 2.0), double(0.5 - two, -two, 0, 0), "two groups of 2, tau = 2"),
        Case((double(1, 0), 2, 1e-3), double(1e-3 * math.log(2), -1 + 1e-3 * math.log(2)), "tau = 0.001"),
    ])


def test_pmd_loss(solution):
    log_probs = double(-1.0, -0.5, -2.0, -0.7, -1.1, -0.4).reshape(2, 3)
    old = double(-1.3, -0.4, -2.5, -0.6, -1.5, -0.9).reshape(2, 3)
    mask = torch.tensor([[True, True, False], [True, True, True]])  # s = 0.2 and 0.8
    broken = log_probs.clone()
    broken[0, 2] = NAN
    advantages = double(0.5, -0.25)
    loss = double(0.05 * 4.8**2, 0.05 * (-2.5 - 0.8)**2)
    weights = torch.where(mask, -(advantages - 0.1 * double(0.2, 0.8))[:, None], 0.0)
    check(solution, "pmd_loss", [
        Case((log_probs, old, advantages, mask, 0.1), loss, "the worked number"),
        Case((log_probs, old, advantages, mask, 0.1), weights, "the gradient is -(A - tau s) at each token",
             gradient=True),
        Case((broken, old, advantages, mask, 0.1), loss, "nan in the padding"),
        Case((log_probs, old, advantages, mask, 0.1), [None, None], constants=(1, 2)),
    ], {"tau": 0.1, "2 tau": 0.2, "1/tau": 10.0})


def test_pmd_mean_policy(solution):
    def exact(success, lam):
        return double(success, 1 - success), torch.tensor(lam, dtype=torch.float64)

    check(solution, "pmd_mean_policy", [
        Case((double(0.1, 0.9), double(1, 0), 0.1), exact(0.7458881224, 0.9372175741), "the worked number"),
        Case((double(0.5, 0.5), double(1, 0), 1.0), exact(0.7137589863, 0.1009183422), "p = 0.5, tau = 1"),
        Case((double(0.01, 0.99), double(1, 0), 0.1), exact(0.2599566178, 0.2555068760), "p = 0.01, tau = 0.1"),
    ])
