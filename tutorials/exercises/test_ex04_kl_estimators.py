r"""Grades ex04_kl_estimators.py: values worked by hand and in plain Python, gradients by enumeration."""

import math

import torch

from enumeration import gradient, random_policy
from grading import Case, check

P, Q = torch.tensor([0.4, 0.2, 0.3], dtype=torch.float64), torch.tensor([0.2, 0.4, 0.3], dtype=torch.float64)
LOG2 = math.log(2)


def test_k2(solution):
    check(solution, "k2", [
        Case((P.log(), Q.log()), torch.tensor([LOG2**2 / 2, LOG2**2 / 2, 0.0]), "the worked number"),
        Case((P.log(), Q.log()), torch.tensor([LOG2, -LOG2, 0.0]), "its gradient is log p - log q", gradient=True),
    ])


def test_k3(solution):
    small = torch.tensor([1e-3, -2e-3])  # float32: exp(x) - 1 - x keeps no digit
    wanted = torch.tensor([math.expm1(-x) + x for x in small.double().tolist()])
    check(solution, "k3", [
        Case((P.log(), Q.log()), torch.tensor([0.5 - 1 + LOG2, 2 - 1 - LOG2, 0.0]), "the worked number"),
        Case((P.log(), Q.log()), torch.tensor([0.5, -1.0, 0.0]), "its gradient is 1 - q/p", gradient=True),
        Case((small, torch.zeros(2)), wanted, "tiny log-ratios", atol=3e-9),
    ])


def test_divergence(solution):
    p, ref = [0.4, 0.2, 0.7], [0.2, 0.2, 0.1]  # masses 1.3 and 0.5
    log_p, log_ref = (torch.tensor(x, dtype=torch.float64).log() for x in (p, ref))
    forward = sum(r * math.log(r / a) for a, r in zip(p, ref))
    reverse = sum(a * math.log(a / r) for a, r in zip(p, ref))
    check(solution, "divergence", [
        Case((kl, log_p, log_ref), torch.tensor(wanted, dtype=torch.float64), f"kl {kl}") for kl, wanted in
        (("fkl", forward), ("rkl", reverse), ("ufkl", forward + 0.8), ("urkl", reverse - 0.8))])


def test_corrected_grpo_penalty(solution):
    log_p, log_old, log_ref = (0.3 * random_policy(seed).flatten()[:15] - 2.5 for seed in (4, 5, 6))
    # E_old[penalty] must have the gradient of UKL(pi_theta || pi_ref); free probabilities, so event by event.
    exact = gradient(lambda x: (x.exp() * (x - log_ref) + log_ref.exp() - x.exp()).sum(), log_p) / log_old.exp()
    worked = (torch.tensor([x], dtype=torch.float64).log() for x in (0.4, 0.1, 0.2))
    check(solution, "corrected_grpo_penalty", [
        Case(tuple(worked), torch.tensor([4 * (0.5 - 1 + LOG2)]), "the worked number"),
        Case((log_p, log_old, log_ref), exact, "against the gradient of UKL(pi_theta || pi_ref), event by event",
             gradient=True),
        Case((log_p, log_old, log_ref), [None, None], constants=(1, 2)),
    ])
