r"""Grades ex03_policy_gradients.py. Advantages and means are numbers worked by hand."""

import math

import torch

from grading import Case, check

NAN = float("nan")


def test_reinforce_loss(solution):
    g = torch.Generator().manual_seed(0)
    log_probs = torch.rand(3, 3, generator=g, dtype=torch.float64) - 1.5
    advantages = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    half, fifth = torch.tensor([0.5], dtype=torch.float64), torch.tensor([math.log(0.2)], dtype=torch.float64)
    gradient = torch.tensor([[-1.0] * 3, [0.5] * 3, [-2.0] * 3], dtype=torch.float64)
    check(solution, "reinforce_loss", [
        Case((fifth, half), torch.tensor([0.8047189562]), "the worked number"),
        Case((log_probs[0], advantages), -advantages, "one event per response", gradient=True),
        Case((log_probs, advantages), gradient, "three tokens per response", gradient=True),
        Case((log_probs, advantages), [None], constants=(1,)),
    ])


def test_group_mean_advantages(solution):
    check(solution, "group_mean_advantages", [
        Case((torch.tensor([1.0, 0, 0, 0]), 4), torch.tensor([0.75, -0.25, -0.25, -0.25]), "the worked number"),
        Case((torch.tensor([1.0, 0, 1, 1, 0, 1]), 2), torch.tensor([0.5, -0.5, 0, 0, -0.5, 0.5]), "three groups of 2"),
        Case((torch.tensor([1.0, 1, 1, 0, 0, 0]), 3), torch.zeros(6), "no group has two kinds of rewards"),
    ], {"G/(G-1)": 4 / 3})


def test_leave_one_out_advantages(solution):
    check(solution, "leave_one_out_advantages", [
        Case((torch.tensor([1.0, 0, 0, 0]), 4), torch.tensor([1, -1 / 3, -1 / 3, -1 / 3]), "the worked number"),
        Case((torch.tensor([1.0, 0, 0.5, 1, 1, 1]), 3), torch.tensor([0.75, -0.75, 0, 0, 0, 0]), "two groups of 3"),
    ], {"(G-1)/G": 3 / 4})


def test_grpo_advantages(solution):
    third = 1 / math.sqrt(3)
    check(solution, "grpo_advantages", [
        Case((torch.tensor([1.0, 0, 0, 0]), 4), torch.tensor([1.5, -0.5, -0.5, -0.5]), "the worked number"),
        Case((torch.tensor([1.0, 1, 0, 0, 0, 1]), 3), torch.tensor([third, third, -2 * third, -third, -third,
                                                                    2 * third]), "two groups of 3"),
        Case((torch.tensor([0.5005, 0.5]), 2), torch.tensor([1.0, -1.0]) / math.sqrt(2),
             "a small spread is a spread: 0.5005 and 0.5", atol=1e-3),
        Case((torch.full((8,), 0.7), 8), torch.zeros(8), "eight rewards of 0.7"),
        Case((torch.tensor([0.7, 0.2]), 1), torch.zeros(2), "groups of one"),
    ], {"sqrt(G/(G-1)), the standard deviation with G": math.sqrt(4 / 3)})


LOSSES = torch.tensor([[1.0, 1, 9], [1, 2, 3]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [True, True, True]])
WITH_NAN = torch.tensor([[1.0, 1, NAN], [1, 2, 3]], dtype=torch.float64)


def test_token_mean(solution):
    check(solution, "token_mean", [
        Case((LOSSES, MASK), torch.tensor(1.6, dtype=torch.float64), "the worked number"),
        Case((LOSSES[:1], MASK[:1], 5), torch.tensor(0.4, dtype=torch.float64), "a microbatch: 2 of 5 tokens"),
        Case((LOSSES, MASK), 0.2 * MASK.double(), "a token's weight", gradient=True),
        Case((WITH_NAN, MASK), torch.tensor(1.6, dtype=torch.float64), "nan in the padding"),
    ])


def test_dr_grpo_mean(solution):
    check(solution, "dr_grpo_mean", [
        Case((LOSSES, MASK, 4), torch.tensor(1.0, dtype=torch.float64), "the worked number"),
        Case((LOSSES, MASK, 10), torch.tensor(0.4, dtype=torch.float64), "at most 10 tokens"),
        Case((LOSSES, MASK, 4), MASK.double() / 8, "a token's weight", gradient=True),
        Case((WITH_NAN, MASK, 4), torch.tensor(1.0, dtype=torch.float64), "nan in the padding"),
    ])
