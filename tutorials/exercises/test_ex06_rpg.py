r"""Grades ex06_rpg.py: the gradient of every event against the exact objective, whose gradient autograd takes.

The 15 probabilities are free (no distribution), so that mass terms count: for a normalised policy the gradient of a
constant mass is zero, and a forgotten term would not show.
"""

import math

import torch

from enumeration import gradient, objective, random_policy, random_rewards
from grading import Case, check

LOG_P, LOG_OLD, LOG_REF = (0.3 * random_policy(seed).flatten()[:15] - 2.5 for seed in (4, 5, 6))
LOG_OLD[0] = LOG_P[0] - 12.0  # one event far off: w = e^12
REWARDS, BETA = random_rewards(3), 0.3
WORKED = tuple(torch.tensor([x], dtype=torch.float64) for x in (math.log(0.4), math.log(0.2), 1.0)) + (0.1,)
HALF = tuple(torch.tensor([x], dtype=torch.float16) for x in (-0.5, -12.5, 1.0)) + (0.1,)


OTHER = WORKED + (torch.tensor([math.log(0.1)], dtype=torch.float64),)  # w = 2, l = log 4, q = 1/2


def grade(solution, name, kl, worked, other, half):
    def exact(ref):  # minus the gradient of J, over pi_old: what one event must contribute
        return -gradient(lambda x: objective(x, REWARDS, BETA, kl, ref), LOG_P) / LOG_OLD.exp()

    def terms(ref):  # of the weight of grad log pi_theta, as events of the loss
        w, l, q = (LOG_P - LOG_OLD).exp(), LOG_P - ref, (ref - LOG_OLD).exp()
        named = {"w A": -w * REWARDS, "beta w l": BETA * w * l, "beta w": BETA * w, "beta q": BETA * q}
        return named if ref is LOG_REF else {}  # with the sampler as reference q is 1

    cases = [
        Case(WORKED, torch.tensor([worked], dtype=torch.float64), "the worked number"),
        Case(OTHER, torch.tensor([other], dtype=torch.float64), "the worked number with pi_ref = 0.1"),
        Case((LOG_P, LOG_OLD, REWARDS, BETA), exact(LOG_OLD), f"against the exact gradient of E[R] - beta "
             f"{kl.upper()}, event by event, the sampler as reference", gradient=True),
        Case((LOG_P, LOG_OLD, REWARDS, BETA, LOG_REF), exact(LOG_REF), f"against the exact gradient of E[R] - beta "
             f"{kl.upper()}, event by event, with another reference", gradient=True,
             terms=terms(LOG_REF)),
        Case((LOG_P, LOG_OLD, REWARDS, BETA, LOG_REF), [None, None, None], constants=(1, 2, 4)),
    ]
    if half is not None:
        cases.append(Case(HALF, torch.tensor([half]), "float16 log-probs with a log-ratio of 12", atol=1e-2))
    check(solution, name, cases)


def test_rkl_loss(solution):
    grade(solution, "rkl_loss", "rkl", 2 * (-1 + 0.1 * math.log(2)), 2 * (-1 + 0.1 * math.log(4)),
          math.exp(12) * 0.2)


def test_ufkl_loss(solution):
    grade(solution, "ufkl_loss", "ufkl", -2 + 0.1 * (2 - math.log(2) - 1),
          -2 + 0.1 * (2 - 0.5 * math.log(4) - 0.5), -0.9 * math.exp(12) - 1.3)


def test_urkl_loss(solution):
    grade(solution, "urkl_loss", "urkl", -2 + 0.1 * (2 * math.log(2) - 2), -2 + 0.1 * (2 * math.log(4) - 2),
          math.exp(12) * 0.1)


def test_reinforce_urkl_loss(solution):
    grade(solution, "reinforce_urkl_loss", "urkl", -2 * (1 - 0.1 * math.log(2)) * math.log(0.4),
          -2 * (1 - 0.1 * math.log(4)) * math.log(0.4), None)
