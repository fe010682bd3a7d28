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
    properties = {
        "the probabilities do not sum to one": lambda pi, *_: abs(pi.sum() - 1) > 1e-6,
        "tau log(pi / pi_t) must be the reward but for a constant, and is not": lambda pi, old, r, tau:
        not (tau * (pi / old).log() - r).std() <= 1e-6}
    four = [0.4 * math.exp(0.25 / 0.5), 0.3 * math.exp(-1.0 / 0.5), 0.2 * math.exp(1.5 / 0.5), 0.1]
    check(solution, "pmd_part_policy", [
        Case((double(0.1, 0.9), double(1, 0), 1.0), double(0.1 * math.e, 0.9) / (0.1 * math.e + 0.9),
             "the worked number", properties=properties),
        Case((double(0.2, 0.3, 0.5), double(1, -1, 0), 2.0), double(0.2 * half, 0.3 / half, 0.5) / z,
             "three outcomes, tau = 2", properties=properties),
        Case((double(0.4, 0.3, 0.2, 0.1), double(0.25, -1, 1.5, 0), 0.5), double(*four) / sum(four),
             "four outcomes, tau = 0.5", properties=properties),
        Case((double(0.1, 0.9), double(1, 0), 1e-3), double(1, 0), "exp(r/tau) overflows at tau = 0.001; a softmax of "
             "logarithms does not", extra=True),
    ])


def test_pmd_part_advantages(solution):
    log_mean = math.log((math.e + 3) / 4)
    two = 2 * math.log((math.exp(0.25) + 1) / 2)
    r = [round(1.7 * math.sin(1.3 * i * i + 1), 2) for i in range(40)]  # ten groups of 4
    groups, tau = [r[i:i + 4] for i in range(0, 40, 4)], 0.5

    def each(f):
        return double(*(f(row) for row in groups for _ in row))

    z = each(lambda row: tau * math.log(sum(math.exp(x / tau) for x in row) / 4))
    terms = {
        "r": double(*r), "tau log mean exp(r/tau)": z, "a constant": torch.ones(40).double(),
        "the group's mean reward": each(lambda row: sum(row) / 4), "the group's best reward": each(max),
        "log mean exp(r)": each(lambda row: math.log(sum(math.exp(x) for x in row) / 4)),
        "mean exp(r/tau)": each(lambda row: sum(math.exp(x / tau) for x in row) / 4)}
    one = {"what is taken from the rewards is not the same for all responses of a group":
           lambda value, r, G, tau: (r - value).reshape(-1, G).std(dim=1).max() > 1e-6}
    by_tau = "it is divided by tau: A is in units of reward"
    check(solution, "pmd_part_advantages", [
        Case((double(1, 0, 0, 0), 4, 1.0), double(1, 0, 0, 0) - log_mean, "the worked number", factors={by_tau: 1.0}),
        Case((double(0.5, 0, 1, 1), 2, 2.0), double(0.5 - two, -two, 0, 0), "two groups of 2, tau = 2",
             factors={by_tau: 0.5}),
        Case((double(*r), 4, tau), double(*r) - z, "ten groups of 4, tau = 0.5", unit=4, factors={by_tau: 2.0},
             terms=terms, properties=one),
        Case((double(1, 0), 2, 1e-3), double(1e-3 * math.log(2), -1 + 1e-3 * math.log(2)),
             "exp(r/tau) overflows at tau = 0.001; logsumexp does not", extra=True),
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

    def scale(tau):
        return {"tau/2 is the factor of (A - tau s)^2; 1/(2 tau) is right: off by the factor tau^2": tau**2,
                "the factor 1/2 is missing: the gradient is twice what it should be": 2.0,
                "the factor 1/(2 tau) is missing (the k1.5 form): off by the factor 2 tau": 2 * tau,
                "1/2 is the factor of (A - tau s)^2; 1/(2 tau) is right: off by the factor tau": tau,
                "it is divided by tau once too often: off by the factor 1/tau": 1 / tau}

    g = torch.Generator().manual_seed(3)
    p4, o4 = (torch.rand(16, 4, generator=g, dtype=torch.float64) - 1.5 for _ in range(2))
    m4, tau = torch.arange(4) < torch.tensor([[1], [2], [3], [4]]).repeat(4, 1), 0.5
    a4 = torch.rand(16, generator=g, dtype=torch.float64) - 0.4
    log_w = [[(p4[i, t] - o4[i, t]).item() if m4[i, t] else 0.0 for t in range(4)] for i in range(16)]
    s, n = double(*map(sum, log_w))[:, None], m4.sum(1, keepdim=True)

    def tokens(x):
        return torch.where(m4, x.expand(16, 4) if x.dim() else x, 0.0)

    a = a4[:, None]
    terms = {"A": tokens(-a), "tau s": tokens(tau * s), "A/|o|": tokens(-a / n), "tau s/|o|": tokens(tau * s / n),
             "the token's own tau log w": tokens(tau * double(*sum(log_w, [])).reshape(16, 4)),
             "a constant": tokens(double(1.0)),
             "the padding": (~m4).double()}
    check(solution, "pmd_loss", [
        Case((log_probs, old, advantages, mask, 0.1), loss, "the worked number", weights, factors=scale(0.1)),
        Case((p4, o4, a4, m4, tau), (a4 - tau * s[:, 0]) ** 2 / (2 * tau), "the gradient at each token of 16 responses",
             tokens(-(a - tau * s)), terms=terms, factors=scale(tau)),
        Case((broken, old, advantages, mask, 0.1), loss, "what stands outside the mask, nan here, reaches the value: "
             "0 * nan is nan, so choose with torch.where", extra=True),
        Case((broken, old, advantages, mask, 0.1), why="what stands outside the mask, nan here, reaches the gradient: "
             "choose before you subtract, with torch.where", gradient=weights, extra=True),
        Case((log_probs, old, advantages, mask, 0.1), constants=(1, 2), extra=True),
    ])


def test_pmd_mean_policy(solution):
    def exact(probs, lam):
        return double(*probs), torch.tensor(lam, dtype=torch.float64)

    # Three outcomes, backwards: choose rho; A/tau = log rho + lam rho has mean 0 where lam = KL(pi_t || pi).
    old, rho = [0.2, 0.3, 0.5], [2.5, 1.0, 0.4]
    lam = -sum(p * math.log(x) for p, x in zip(old, rho))
    r = [0.3 * (math.log(x) + lam * x) + 0.125 for x in rho]  # tau = 0.3; a constant in r changes nothing
    def misfit(value, old, r, tau):  # of log rho + lam rho - A / tau
        rho = value[0] / old
        return rho.log() + value[1] * rho - (r - (old * r).sum()) / tau

    properties = {
        "an outcome has no probability above 0":
            lambda value, *_: (value[0] <= 0).any() or not value[0].isfinite().all(),
        "the probabilities and lam do not solve the equation of each rho, and what is left over differs from outcome "
        "to outcome":
            lambda value, old, r, tau: misfit(value, old, r, tau).std() > 1e-4,
        "the equation of each rho is solved but for a constant, the same for all outcomes: it belongs to another mean "
        "of the rewards than E_{pi_t}[r], or to another lam":
            lambda value, old, r, tau: misfit(value, old, r, tau).abs().max() > 1e-4,
        "the equation of each rho is solved, but the probabilities do not sum to one: lam is not the right one":
            lambda value, *_: abs(value[0].sum() - 1) > 1e-4}
    check(solution, "pmd_mean_policy", [
        Case((double(0.1, 0.9), double(1, 0), 0.1), exact((0.7458881224, 0.2541118776), 0.9372175741),
             "the worked number", atol=1e-5, properties=properties),
        Case((double(0.5, 0.5), double(1, 0), 1.0), exact((0.7137589863, 0.2862410137), 0.1009183422),
             "p = 0.5, tau = 1", atol=1e-5, properties=properties),
        Case((double(0.01, 0.99), double(1, 0), 0.1), exact((0.2599566178, 0.7400433822), 0.2555068760),
             "p = 0.01, tau = 0.1", atol=1e-5, properties=properties),
        Case((double(*old), double(*r), 0.3), exact([p * x for p, x in zip(old, rho)], lam),
             "three outcomes, none of them right or wrong", atol=1e-5, properties=properties),
    ])
