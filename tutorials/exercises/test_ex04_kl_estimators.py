r"""Grades ex04_kl_estimators.py: values worked by hand and in plain Python, gradients by enumeration."""

import math

import torch

from enumeration import gradient, random_policy
from grading import Case, check

P, Q = torch.tensor([0.4, 0.2, 0.3], dtype=torch.float64), torch.tensor([0.2, 0.4, 0.3], dtype=torch.float64)
LOG2 = math.log(2)
LOG_P, LOG_OLD, LOG_REF = (0.5 * random_policy(seed).flatten()[:15] - 2.5 for seed in (4, 5, 6))
D = LOG_P - LOG_REF


def powers(d):
    r"""What the gradient of an estimator at log p may be made of."""
    return {"1": torch.ones_like(d), "log(p/q)": d, "log(p/q)^2": d.square(), "q/p": (-d).exp(),
            "(q/p)^2": (-2 * d).exp(), "p/q": d.exp(), "the sign of log(p/q)": d.sign()}


def test_k2(solution):
    check(solution, "k2", [
        Case((P.log(), Q.log()), torch.tensor([LOG2**2 / 2, LOG2**2 / 2, 0.0]), "the worked number",
             torch.tensor([LOG2, -LOG2, 0.0])),
        Case((LOG_P, LOG_REF), D * D / 2, "15 events", D.clone(), terms=powers(D)),
        Case((LOG_P.reshape(3, 5), LOG_REF.reshape(3, 5)), (D * D / 2).reshape(3, 5), "a shape [3, 5]"),
    ])


def test_k3(solution):
    small = torch.tensor([1e-3, -2e-3])  # float32: exp(x) - 1 - x keeps no digit
    wanted = torch.tensor([math.expm1(-x) + x for x in small.double().tolist()])
    value = torch.tensor([math.exp(-x) - 1 + x for x in D.tolist()], dtype=torch.float64)
    check(solution, "k3", [
        Case((P.log(), Q.log()), torch.tensor([0.5 - 1 + LOG2, 2 - 1 - LOG2, 0.0]), "the worked number",
             torch.tensor([0.5, -1.0, 0.0])),
        Case((LOG_P, LOG_REF), value, "15 events", 1 - LOG_REF.exp() / LOG_P.exp(), terms=powers(D)),
        Case((LOG_P.reshape(3, 5), LOG_REF.reshape(3, 5)), value.reshape(3, 5), "a shape [3, 5]"),
        Case((small, torch.zeros(2)), wanted, "for small log-ratios x, in float32, exp(x) - 1 loses all its digits: "
             "torch.expm1(x)", atol=3e-9, extra=True),
    ])


def test_divergence(solution):
    p, ref = [0.4, 0.2, 0.7, 0.3, 0.6, 0.1, 0.25, 0.5], [0.2, 0.2, 0.1, 0.5, 0.3, 0.4, 0.05, 0.35]
    log_p, log_ref = (torch.tensor(x, dtype=torch.float64).log() for x in (p, ref))
    forward = sum(r * math.log(r / a) for a, r in zip(p, ref))
    reverse = sum(a * math.log(a / r) for a, r in zip(p, ref))
    mass = sum(p) - sum(ref)
    a, b, l = log_p.exp(), log_ref.exp(), log_p - log_ref
    terms = {"p": a, "ref": b, "p log(p/ref)": a * l, "ref log(p/ref)": b * l, "1": torch.ones(8).double()}
    slopes = {"fkl": -b, "ufkl": a - b, "rkl": a * (l + 1), "urkl": a * l}
    two = torch.tensor([0.4, 0.2], dtype=torch.float64).log(), torch.tensor([0.2, 0.2], dtype=torch.float64).log()
    check(solution, "divergence", [
        Case(("rkl", *two), torch.tensor(0.4 * LOG2).double(), "the worked number, rkl"),
        Case(("urkl", *two), torch.tensor(0.4 * LOG2 - 0.2).double(), "the worked number, urkl"),
        *(Case((kl, log_p, log_ref), torch.tensor(wanted, dtype=torch.float64),
               f"the gradient of {kl} at log p, from 8 "
               "probabilities whose sum is not 1", slopes[kl], at=1, terms=terms)
          for kl, wanted in (("fkl", forward), ("rkl", reverse), ("ufkl", forward + mass), ("urkl", reverse - mass)))])


def test_corrected_grpo_penalty(solution):
    # E_old[penalty] must have the gradient of UKL(pi_theta || pi_ref); free probabilities, so event by event.
    exact = gradient(lambda x: (x.exp() * (x - LOG_REF) + LOG_REF.exp() - x.exp()).sum(), LOG_P) / LOG_OLD.exp()
    w, l, q = (LOG_P - LOG_OLD).exp(), LOG_P - LOG_REF, (LOG_REF - LOG_OLD).exp()
    terms = {"w l": w * l, "w": w, "q": q, "l": l, "1": torch.ones_like(l), "pi_ref/pi_theta": (-l).exp(), "w l^2":
             w * l * l}
    worked = (torch.tensor([x], dtype=torch.float64).log() for x in (0.4, 0.1, 0.2))
    check(solution, "corrected_grpo_penalty", [
        Case(tuple(worked), torch.tensor([4 * (0.5 - 1 + LOG2)]), "the worked number", torch.tensor([4 * LOG2])),
        Case((LOG_P, LOG_OLD, LOG_REF), torch.stack([w[i] * (math.exp(-x) - 1 + x) for i, x in enumerate(l.tolist())]),
             "against the gradient of UKL(pi_theta || pi_ref), event by event", exact, terms=terms),
        Case((LOG_P.reshape(3, 5), LOG_OLD.reshape(3, 5), LOG_REF.reshape(3, 5)), why="a shape [3, 5]",
             gradient=exact.reshape(3, 5)),
        Case((LOG_P, LOG_OLD, LOG_REF), constants=(1, 2), extra=True),
    ])
