r"""Grades ex07_off_policy.py: which events move, on a grid of ratios and advantages."""

import math

import torch

from grading import Case, check

# Both sides of every corner: 1 - eps_low = 0.8, 1 + eps_high = 1.28, c = 3; 0.75 and 1.25 tell a swap.
RATIOS = torch.tensor([0.3, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.5, 5.0], dtype=torch.float64)
OLD = torch.full((18,), -6.0, dtype=torch.float64)
LOG_P = OLD + torch.cat([RATIOS, RATIOS]).log()
SIGNS = torch.cat([torch.ones(9), -torch.ones(9)]).double()


def test_ppo_clip_loss(solution):
    good = [-w if w < 1.28 else 0.0 for w in RATIOS.tolist()]  # A = 1: still once w > 1 + eps_high
    bad = [w if w > 0.8 else 0.0 for w in RATIOS.tolist()]  # A = -1: still once w < 1 - eps_low
    two = torch.tensor([math.log(0.4)] * 2, dtype=torch.float64)
    check(solution, "ppo_clip_loss", [
        Case((two, two - math.log(2), torch.tensor([1.0, -1.0]).double(), 0.2, 0.2), torch.tensor([-1.2, 2.0]),
             "the worked number"),
        Case((LOG_P, OLD, SIGNS, 0.2, 0.28), torch.tensor(good + bad), "gradient at each event: first A = 1, then "
             f"A = -1, w = {RATIOS.tolist()}", gradient=True),
    ])


def test_dual_clip_loss(solution):
    def weight(w, a, beta, low=0.2, high=0.28, c=3.0):
        a_hat = a - beta * math.log(w)
        still = w > 1 + high if a_hat >= 0 else w < 1 - low or w > c
        return 0.0 if still else -w * a_hat

    p = torch.tensor([0.4] * 3, dtype=torch.float64).log()
    cases = [Case((p, p - torch.tensor([2.0, 2.0, 4.0]).double().log(), torch.tensor([1.0, -1.0, -1.0]).double(), 0.0,
                   0.2, 0.28, 3.0), torch.tensor([-1.28, 2.0, 3.0]), "the worked numbers")]
    for scale, beta in ((1.0, 0.3), (0.1, 0.5)):  # with the second the sign of Ahat is often not that of A
        wanted = [weight(w, scale * a, beta) for a in (1, -1) for w in RATIOS.tolist()]
        cases.append(Case((LOG_P, OLD, scale * SIGNS, beta, 0.2, 0.28, 3.0), torch.tensor(wanted),
                          f"gradient at each event: first A = {scale}, then A = -{scale}, beta = {beta}, "
                          f"w = {RATIOS.tolist()}", gradient=True))
    check(solution, "dual_clip_loss", cases)


def test_gspo_loss(solution):
    old = torch.full((4, 3), -2.0, dtype=torch.float64)
    ratios = torch.tensor([[4.0, 1, 8], [2, 2, 2], [2, 2, 2], [0.5, 2, 1]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]]) == 1  # s = 2, 2, 2, 1
    advantages = torch.tensor([1.0, 1.0, -1.0, 0.5], dtype=torch.float64)
    alive = torch.tensor([[-1.0, -1, 0], [0, 0, 0], [2 / 3] * 3, [-1 / 6] * 3])
    check(solution, "gspo_loss", [
        Case((old + ratios.log(), old, advantages, mask, 0.9, 9.0), torch.tensor([-2.0, -2.0, 2.0, -0.5]),
             "a wide clip"),
        Case((old + ratios.log(), old, advantages, mask, 0.2, 0.5), torch.tensor([-1.5, -1.5, 2.0, -0.5]),
             "clipped at 1.5"),
        Case((old + ratios.log(), old, advantages * torch.tensor([1.0, 0, 1, 1]).double(), mask, 0.9, 9.0), alive,
             "gradient -s A / |o| at each token, a wide clip", gradient=True),
    ])
