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
W, Q = (LOG_P - LOG_OLD).exp(), (LOG_REF - LOG_OLD).exp()
L = LOG_P - LOG_REF
WORKED = tuple(torch.tensor([x], dtype=torch.float64) for x in (math.log(0.4), math.log(0.2), 1.0)) + (0.1,)
OTHER = WORKED + (torch.tensor([math.log(0.1)], dtype=torch.float64),)  # w = 2, l = log 4, q = 1/2
HALF = tuple(torch.tensor([x], dtype=torch.float16) for x in (-0.5, -12.5, 1.0)) + (0.1,)


def exact(kl, ref):
    r"""Minus the gradient of J, over pi_old: what one event must contribute."""
    return -gradient(lambda x: objective(x, REWARDS, BETA, kl, ref), LOG_P) / LOG_OLD.exp()


def terms(sign):
    r"""What the weight of grad log pi_theta may be made of; as events of a loss with sign -1."""
    return {"w A": sign * W * REWARDS, "A": sign * REWARDS, "beta w l": -sign * BETA * W * L,
            "beta w": -sign * BETA * W,
            "beta q": -sign * BETA * Q, "beta l": -sign * BETA * L, "beta q l": -sign * BETA * Q * L, "beta":
            -sign * BETA * torch.ones_like(W), "beta w l^2": -sign * BETA * W * L * L}


def test_kl_weight(solution):
    w, l, q = (torch.tensor([x], dtype=torch.float64) for x in (2, math.log(4 / 3), 1.5))
    one = torch.ones(1, dtype=torch.float64)
    worked = dict(fkl=2.15, rkl=2 * (1 - 0.1 * (math.log(4 / 3) + 1)), ufkl=1.95, urkl=2 * (1 - 0.1 * math.log(4 / 3)))
    check(solution, "kl_weight", [
        *(Case((kl, one, 0.1, w, l, q), torch.tensor([x], dtype=torch.float64), f"the worked number of {kl}")
          for kl, x in worked.items()),
        *(Case((kl, REWARDS, BETA, W, L, Q), -exact(kl, LOG_REF), f"{kl}, against the exact gradient of J, event by "
               "event", terms=terms(1)) for kl in worked)])


def grade(solution, name, kl, worked, other, half):
    def value(ref):
        r"""Of the loss, event by event: w, q and the logarithms are plain numbers here."""
        if name.startswith("reinforce"):
            return exact(kl, ref) * LOG_P
        l, q = LOG_P - ref, (ref - LOG_OLD).exp()
        return -W * REWARDS + BETA * dict(rkl=W * l, ufkl=W - q * l - q, urkl=W * l - W)[kl]

    slope = {"rkl": lambda l, q: -2 * (1 - 0.1 * (l + 1)), "ufkl": lambda l, q: -2 + 0.1 * (2 - q),
             "urkl": lambda l, q: -2 * (1 - 0.1 * l)}[kl]
    made_of = terms(-1)
    if name.startswith("reinforce"):  # an undetached weight gives its own gradient, times log pi_theta
        made_of |= {f"{term} log pi": LOG_P * made_of[term] for term in ("w A", "beta w l", "beta w")}
        del made_of["beta q l"], made_of["beta q"], made_of["beta w l^2"]
    cases = [
        Case(args, torch.tensor([number], dtype=torch.float64), why, torch.tensor([slope(l, q)], dtype=torch.float64))
        for args, number, why, l, q in ((WORKED, worked, "the worked number", math.log(2), 1), (
            OTHER, other, "the worked number with pi_ref = 0.1", math.log(4), 0.5))]
    cases += [
        Case((LOG_P, LOG_OLD, REWARDS, BETA, LOG_REF), value(LOG_REF), f"against the exact gradient of E[R] - beta "
             f"{kl.upper()}, event by event, with another reference", exact(kl, LOG_REF), terms=made_of),
        Case((LOG_P, LOG_OLD, REWARDS, BETA), value(LOG_OLD), f"against the exact gradient of E[R] - beta "
             f"{kl.upper()}, event by event, the sampler as reference", exact(kl, LOG_OLD)),
        Case((LOG_P, LOG_OLD, REWARDS, BETA, LOG_REF), constants=(1, 2, 4), extra=True),
    ]
    if half is not None:
        cases.append(Case(HALF, torch.tensor([half]), "with float16 log-probs and a log-ratio of 12 exp overflows: "
                          "convert to float32 before you take it", atol=1e-2, extra=True))
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
