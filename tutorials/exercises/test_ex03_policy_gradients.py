r"""Grades ex03_policy_gradients.py. Advantages and means are numbers worked by hand or in plain Python."""

import math
from statistics import mean

import torch

from grading import Case, check

NAN = float("nan")
OUTSIDE = "what stands outside the mask, nan here, reaches the {}: 0 * nan is nan, so choose with torch.where"


def test_reinforce_loss(solution):
    g = torch.Generator().manual_seed(0)
    log_probs = torch.rand(3, 3, generator=g, dtype=torch.float64) - 1.5
    advantages = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    half, fifth = torch.tensor([0.5], dtype=torch.float64), torch.tensor([math.log(0.2)], dtype=torch.float64)
    cases = [Case((fifth, half), torch.tensor([0.8047189562]), "the worked number", -half)]
    six = torch.rand(6, 2, generator=g, dtype=torch.float64) - 1.5
    signs = torch.tensor([1.0, -0.5, 2.0, -1.5, 0.25, -2.0], dtype=torch.float64)
    cases.append(Case((six, signs), -signs[:, None] * six, "2 tokens of 6 responses", (-signs[:, None]).expand(
        6, 2).clone(), events=["A > 0" if a > 0 else "A < 0" for a in signs for _ in range(2)]))
    for why, x, a in (("one event per response", log_probs[0], advantages), ("3 tokens of 3 responses", log_probs,
                      advantages[:, None]), ("3 tokens of 2 responses", log_probs[:2], advantages[:2, None])):
        pi, across = x.exp(), advantages[:x.shape[-1]].expand_as(x)
        cases.append(Case((x, advantages[:len(x)]), -a * x, why, (-a).expand_as(x).clone(),
                          terms={} if x.dim() == 1 else
                          {"A": -a.expand_as(x), "A pi": -a * pi, "a constant": torch.ones_like(x), "pi": pi} | (
                              {"A of another response": -across} if len(x) == 3 else {})))
    check(solution, "reinforce_loss", cases + [Case((log_probs, advantages), constants=(1,), extra=True)])


REWARDS = [round(1.7 * math.sin(1.3 * i * i + 1), 2) for i in range(28)]  # seven groups of 4
GROUPS = [REWARDS[i:i + 4] for i in range(0, 28, 4)]


def each(f):
    r"""f of the response's group, response by response: [28]."""
    return torch.tensor([f(row) for row in GROUPS for _ in row], dtype=torch.float64)


ONE_BASELINE = {"what is taken from the rewards is not the same for all responses of a group": lambda value, r, G, *_:
                (r - value).reshape(-1, G).std(dim=1).max() > 1e-6}


def group_terms():
    r"""What an advantage may be made of, response by response."""
    columns = [mean(row[i] for row in GROUPS) for i in range(4)]
    return {"the reward": torch.tensor(REWARDS, dtype=torch.float64), "a constant": each(lambda row: 1.0),
            "the mean of its group": each(mean), "the median of its group (torch.median)": each(
                lambda row: sorted(row)[1]), "the largest of its group": each(max),
                "the lowest of its group": each(min),
            "the mean of its column in reshape(-1, G)": torch.tensor(columns * 7, dtype=torch.float64)}


def test_group_mean_advantages(solution):
    r = torch.tensor(REWARDS, dtype=torch.float64)
    wanted = r - each(mean)
    check(solution, "group_mean_advantages", [
        Case((torch.tensor([1.0, 0, 0, 0]), 4), torch.tensor([0.75, -0.25, -0.25, -0.25]), "the worked number", unit=4),
        Case((torch.tensor([1.0, 0, 1, 1, 0, 1]), 2), torch.tensor([0.5, -0.5, 0, 0, -0.5, 0.5]), "three groups of 2",
             unit=2),
        Case((torch.tensor([1.0, 1, 1, 0, 0, 0]), 3), torch.zeros(6), "no group has two kinds of rewards"),
        Case((r, 4), wanted, "seven groups of 4", unit=4, terms=group_terms(), properties=ONE_BASELINE),
    ])


def test_leave_one_out_advantages(solution):
    r = torch.tensor(REWARDS, dtype=torch.float64)
    wanted = torch.tensor([x - (sum(row) - x) / 3 for row in GROUPS for x in row], dtype=torch.float64)
    sentence = "the response's own reward is in its baseline: the gradient is off by the factor (G-1)/G"
    check(solution, "leave_one_out_advantages", [
        Case((torch.tensor([1.0, 0, 0, 0]), 4), torch.tensor([1, -1 / 3, -1 / 3, -1 / 3]), "the worked number",
             factors={sentence: 3 / 4}),
        Case((torch.tensor([1.0, 0, 0.5, 1, 1, 1]), 3), torch.tensor([0.75, -0.75, 0, 0, 0, 0]), "two groups of 3",
             unit=3,
             factors={sentence: 2 / 3}),
        Case((r, 4), wanted, "seven groups of 4", unit=4, terms=group_terms(), factors={sentence: 3 / 4}),
    ])


def test_grpo_advantages(solution):
    third = 1 / math.sqrt(3)

    def biased(G):
        return {"the standard deviation divides by G and not by G - 1: off by the factor sqrt(G/(G-1))":
                math.sqrt(G / (G - 1))}

    def std(row):
        return math.sqrt(sum((x - mean(row)) ** 2 for x in row) / 3)

    r = torch.tensor(REWARDS, dtype=torch.float64)
    deviation = r - each(mean)
    wanted = deviation / each(std)
    terms = {"(r - mean) / std": wanted, "r - mean": deviation, "(r - mean) / std^2": deviation / each(std) ** 2,
             "(r - mean) / (max - min)": deviation / each(lambda row: max(row) - min(row)), "r / std": r / each(std),
             "r / mean": r / each(mean), "1 / std": 1 / each(std), "a constant": each(lambda row: 1.0)}
    check(solution, "grpo_advantages", [
        Case((torch.tensor([1.0, 0, 0, 0]), 4), torch.tensor([1.5, -0.5, -0.5, -0.5]), "the worked number", unit=4,
             factors=biased(4)),
        Case((torch.tensor([1.0, 1, 0, 0, 0, 1]), 3), torch.tensor([third, third, -2 * third, -third, -third,
                                                                    2 * third]), "two groups of 3", unit=3,
                                                                    factors=biased(3)),
        Case((r, 4), wanted, "seven groups of 4", unit=4, terms=terms, factors=biased(4)),
        Case((torch.tensor([0.5005, 0.5]), 2), torch.tensor([1.0, -1.0]) / math.sqrt(2),
             "0.5005 and 0.5 are a spread like any other (perhaps an epsilon in the denominator)", atol=1e-3,
             extra=True),
        Case((torch.tensor([1.0, 1.0, 0.0, 0.0]), 2), torch.zeros(4), "equal rewards must give 0, and 0 / 0 is nan",
             extra=True),
        Case((torch.full((8,), 0.7), 8), torch.zeros(8), "eight rewards of 0.7 must give exactly 0. The rounding of "
             "their mean gives a spread, so that std == 0 does not find such a group", extra=True),
        Case((torch.tensor([0.7, 0.2]), 1), torch.zeros(2), "in a group of one there is nothing to compare with: 0",
             extra=True),
    ])


LOSSES = torch.tensor([[1.0, 1, 9], [1, 2, 3]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [True, True, True]])
WITH_NAN = torch.tensor([[1.0, 1, NAN], [1, 2, 3]], dtype=torch.float64)
EIGHT = torch.arange(7) < torch.tensor([[1], [2], [4], [0], [3], [5], [6], [7]])  # [8, 7]; one response has no token
EIGHT_LOSSES = torch.arange(56, dtype=torch.float64).reshape(8, 7) / 16 - 1


def weights(mask):
    r"""What a token's weight may be made of."""
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    return {"1 for each token of a response": mask.double(), "1/|o|": mask / lengths, "1 for each place of padding":
            (~mask).double()}


def scale(right, **others):
    return {f"it is divided by {name.replace('_', ' ')}": right / x for name, x in others.items()}


def test_token_mean(solution):
    def factors(tokens, n, width, given):
        return scale(tokens, the_number_of_responses=n, all_N_T_places_padding_too=n * width, nothing=1,
                     the_tokens_given_and_not_num_tokens=given)

    one = torch.tensor
    total = EIGHT_LOSSES[EIGHT].sum()
    check(solution, "token_mean", [
        Case((LOSSES, MASK), one(1.6).double(), "the worked number", 0.2 * MASK.double(), factors=factors(5, 2, 3,
            0.1)),
        Case((LOSSES[:1], MASK[:1], 5), one(0.4).double(), "a microbatch: 2 of 5 tokens", 0.2 * MASK[:1].double(),
             factors=factors(5, 1, 3, 2)),
        Case((LOSSES, MASK, 10), one(0.8).double(), "a microbatch: 5 of 10 tokens", 0.1 * MASK.double(),
             factors=factors(10, 2, 3, 5)),
        Case((EIGHT_LOSSES, EIGHT), total / 28, "eight responses", EIGHT / 28.0, terms=weights(EIGHT),
             factors=factors(28, 8, 7, 0.1)),
        Case((EIGHT_LOSSES, EIGHT, 80), total / 80, "a microbatch: 28 of 80 tokens", EIGHT / 80.0,
             factors=factors(80, 8, 7, 28), terms=weights(EIGHT)),
        Case((WITH_NAN, MASK), one(1.6).double(), OUTSIDE.format("value"), extra=True),
        Case((WITH_NAN, MASK), why=OUTSIDE.format("gradient"), gradient=0.2 * MASK.double(), extra=True),
    ])


def test_dr_grpo_mean(solution):
    def factors(n, most, tokens, longest):
        return scale(n * most, the_number_of_tokens=tokens, max_new_tokens_only_N_is_missing=most, nothing=1,
                     N_only_max_new_tokens_is_missing=n, N_times_the_longest_response_that_is_here=n * longest)

    one, total = torch.tensor, EIGHT_LOSSES[EIGHT].sum()
    check(solution, "dr_grpo_mean", [
        Case((LOSSES, MASK, 4), one(1.0).double(), "the worked number", MASK / 8.0, factors=factors(2, 4, 5, 3)),
        Case((LOSSES, MASK, 10), one(0.4).double(), "at most 10 tokens", MASK / 20.0, factors=factors(2, 10, 5, 3)),
        Case((EIGHT_LOSSES, EIGHT, 9), total / 72, "eight responses", EIGHT / 72.0, factors=factors(8, 9, 28, 7),
             terms=weights(EIGHT)),
        Case((WITH_NAN, MASK, 4), one(1.0).double(), OUTSIDE.format("value"), extra=True),
        Case((WITH_NAN, MASK, 4), why=OUTSIDE.format("gradient"), gradient=MASK / 8.0, extra=True),
    ])
