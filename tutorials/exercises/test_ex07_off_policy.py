r"""Grades ex07_off_policy.py: which events move, on a grid of ratios and advantages."""

import math

import torch

from grading import Case, check

NAN = float("nan")
LOW, HIGH, C = 0.2, 0.28, 3.0
# Both sides of every corner: 1 - eps_low = 0.8, 1 + eps_high = 1.28, c = 3; 0.75 and 1.25 tell a swap.
RATIOS = [0.3, 0.6, 0.75, 0.9, 1.1, 1.25, 1.5, 2.5, 3.5, 5.0]
SIZES = [1.0, 0.5, 2.0, 1.5, 0.75, 1.25, 0.25, 1.75, 0.6, 0.9]  # of the advantages, so that A is no sign
N = len(RATIOS)
OLD = torch.full((2 * N,), -6.0, dtype=torch.float64)
LOG_P = OLD + torch.tensor(RATIOS + RATIOS, dtype=torch.float64).log()
ADVANTAGES = torch.tensor(SIZES + [-x for x in SIZES], dtype=torch.float64)


def region(name, a, w, c=None):
    edges = [(1 - LOW, "w below 1 - eps_low"), (1 + HIGH, "w inside the clip")]
    edges += [(c, "w between 1 + eps_high and c"), (math.inf, "w above c")] if c else [(math.inf, "w above 1 + "
                                                                                                  "eps_high")]
    return f"{name} {'>' if a > 0 else '<'} 0 and {next(text for edge, text in edges if w < edge)}"


def everywhere(w, a, log_w, beta=0.0):
    r"""What the gradient of an event may be made of, where nothing is clipped."""
    terms = {"w A": -w * a, "A": -a, "a constant": torch.ones_like(w), "A/w": -a / w}
    return terms | ({"beta w log w": beta * w * log_w, "beta w": beta * w} if beta else {"w": w})


def test_ppo_clip_loss(solution):
    two = torch.tensor([math.log(0.4)] * 2, dtype=torch.float64)
    value, slope, events = [], [], []
    for a, w in zip(ADVANTAGES.tolist(), RATIOS + RATIOS):
        still = w > 1 + HIGH if a > 0 else w < 1 - LOW
        slope.append(0.0 if still else -w * a)
        value.append(-((1 + HIGH if a > 0 else 1 - LOW) if still else w) * a)
        events.append(region("A", a, w))
    wide = torch.tensor([-w * a for a, w in zip(ADVANTAGES.tolist(), RATIOS + RATIOS)], dtype=torch.float64)
    check(solution, "ppo_clip_loss", [
        Case((two, two - math.log(2), torch.tensor([1.0, -1.0]).double(), 0.2, 0.2), torch.tensor([-1.2, 2.0]),
             "the worked numbers", torch.tensor([0.0, 2.0])),
        Case((LOG_P, OLD, ADVANTAGES, 0.99, 99.0), wide, "at each event, a clip so wide that nothing is clipped", wide,
             terms=everywhere(LOG_P.exp() / OLD.exp(), ADVANTAGES, LOG_P - OLD)),
        Case((LOG_P, OLD, ADVANTAGES, LOW, HIGH), torch.tensor(value), f"w = {RATIOS}, first A > 0, then A < 0",
             torch.tensor(slope), events=events),
        Case((LOG_P, OLD, ADVANTAGES, LOW, HIGH), constants=(1, 2), extra=True),
    ])


def test_dual_clip_loss(solution):
    p = torch.tensor([0.4] * 3, dtype=torch.float64).log()
    cases = [Case((p, p - torch.tensor([2.0, 2.0, 4.0]).double().log(), torch.tensor([1.0, -1.0, -1.0]).double(), 0.0,
                   LOW, HIGH, C), torch.tensor([-1.28, 2.0, 3.0]), "the worked numbers", torch.tensor([0.0, 2.0, 0.0]))]
    log_w = LOG_P - OLD
    w = log_w.exp()
    wide = -w * (ADVANTAGES - 0.3 * log_w)
    cases.append(Case((LOG_P, OLD, ADVANTAGES, 0.3, 0.99, 99.0, 99.0), wide, "at each event, a clip so wide that "
                                                                             "nothing "
                      "is clipped", wide, terms=everywhere(w, ADVANTAGES, log_w, 0.3)))
    for scale, beta in ((1.0, 0.3), (0.2, 0.5)):  # with the second the sign of Ahat is often not that of A
        value, slope, events = [], [], []
        for a, x in zip((scale * ADVANTAGES).tolist(), RATIOS + RATIOS):
            a_hat = a - beta * math.log(x)
            edge = (1 + HIGH if x > 1 + HIGH else x) if a_hat >= 0 else 1 - LOW if x < 1 - LOW else min(x, C)
            value.append(-edge * a_hat)
            slope.append(-x * a_hat if edge == x else 0.0)
            events.append(region("Ahat", a_hat, x, C))
        cases.append(Case((LOG_P, OLD, scale * ADVANTAGES, beta, LOW, HIGH, C), torch.tensor(value),
                          f"beta = {beta}, w = {RATIOS}, first A > 0, then A < 0", torch.tensor(slope), events=events))
    check(solution, "dual_clip_loss", cases + [Case((LOG_P, OLD, ADVANTAGES, 0.3, LOW, HIGH, C), constants=(1, 2),
                                                    extra=True)])


def test_gspo_loss(solution):
    ratios = torch.tensor([[4.0, 1, 8, 3], [2, 2, 2, 2], [2, 2, 2, 9], [0.5, 2, 1, 1], [0.1, 0.2, 5, 7], [1, 0.5, 0.2,
                                                                                                          1],
                           [2, 0.6, 1, 1], [1.5, 1.2, 1.3, 1.4], [3, 0.3, 2, 0.7], [0.4, 0.9, 1.7, 6], [1.1, 5, 0.8, 1],
                           [0.6, 0.7, 0.3, 2], [7, 0.9, 1, 1], [0.2, 0.4, 3, 1.9]], dtype=torch.float64)
    lengths = [2, 4, 3, 3, 2, 4, 2, 1, 4, 3, 2, 4, 1, 3]
    old = -2.0 - torch.arange(56, dtype=torch.float64).reshape(14, 4) / 20
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    advantages = torch.tensor([1.0, 0.5, -1.0, 2.0, 0.75, -0.5, 1.5, 0.25, 0.6, -0.8, 1.2, -1.5, 0.35, -0.65],
                              dtype=torch.float64)
    s = [math.prod(row[:n]) ** (1 / n) for row, n in zip(ratios.tolist(), lengths)]

    def wanted(low, high):
        value, slope, events = [], [], []
        for i, (x, a, n) in enumerate(zip(s, advantages.tolist(), lengths)):
            edge = min(x, 1 + high) if a > 0 else max(x, 1 - low)
            value.append(-edge * a)
            slope.append([-x * a / n if edge == x and t < n else 0.0 for t in range(4)])
            where = "below the clip" if x < 1 - low else "above the clip" if x > 1 + high else "inside the clip"
            events.append(f"A {'>' if a > 0 else '<'} 0 and s {where}")
        return torch.tensor(value), torch.tensor(slope), [event for event in events for _ in range(4)]

    log_p, n, a = old + ratios.log(), torch.tensor(lengths)[:, None], advantages[:, None]
    big_s = torch.tensor(s, dtype=torch.float64)[:, None]

    def tokens(x):
        return torch.where(mask, x.expand(14, 4), 0.0)

    product = big_s**n
    terms = {"s A/|o|": tokens(-big_s * a / n), "s A": tokens(-big_s * a), "the product of the ratios times A":
             tokens(-product * a), "the token's own w A": tokens(-ratios * a), "the token's own w A/|o|":
             tokens(-ratios * a / n), "A/|o|": tokens(-a / n), "A": tokens(-a), "the padding": (~mask).double()}
    pair = torch.tensor([[0.4, 0.1]], dtype=torch.float64).log()
    value, slope, _ = wanted(0.95, 9.0)
    clipped, clipped_slope, events = wanted(0.3, 0.5)
    broken = log_p.masked_fill(~mask, NAN)
    why = "what stands outside the mask, nan here, reaches the {}: 0 * nan is nan, so choose with torch.where"
    check(solution, "gspo_loss", [
        Case((pair, pair - torch.tensor([4.0, 1.0]).double().log(), torch.ones(1).double(), torch.ones(1, 2) > 0, 0.9,
              9.0), torch.tensor([-2.0]), "the worked number", torch.tensor([[-1.0, -1.0]])),
        Case((log_p, old, advantages, mask, 0.95, 9.0), value, "at each token, a clip so wide that nothing is clipped",
             slope, terms=terms),
        Case((log_p, old, advantages, mask, 0.3, 0.5), clipped,
             f"s = {[round(x, 3) for x in s]}, clipped at 0.7 and 1.5",
             clipped_slope, events=events),
        Case((broken, old, advantages, mask, 0.3, 0.5), clipped, why.format("value"), extra=True),
        Case((broken, old, advantages, mask, 0.3, 0.5), why=why.format("gradient"), gradient=clipped_slope, extra=True),
        Case((log_p, old, advantages, mask, 0.3, 0.5), constants=(1, 2), extra=True),
    ])
