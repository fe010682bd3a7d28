r"""Grades ex02_rollouts.py. Masks and positions are written out by hand; log-probs are summed in plain Python."""

import math

import torch

from grading import Case, check

NAN = float("nan")


def test_pad_left(solution):
    check(solution, "pad_left", [
        Case(([[5, 6, 7], [8]], 0), (torch.tensor([[5, 6, 7], [0, 0, 8]]), torch.tensor([[1, 1, 1], [0, 0, 1]])),
             "the worked case"),
        Case(([[5, 6], [9, 8, 9]], 9), (torch.tensor([[9, 5, 6], [9, 8, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]])),
             "a prompt holds the pad token"),
    ])


def test_positions(solution):
    check(solution, "positions", [
        Case((torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),), torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])),
        Case((torch.tensor([[0, 1, 1]]),), torch.tensor([[0, 0, 1]])),
    ])


def test_response_mask(solution):
    tokens = torch.tensor([[4, 9, 9, 6], [4, 5, 6, 4], [9, 9, 9, 9], [4, 5, 7, 9]])
    check(solution, "response_mask", [
        Case((tokens, [9]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]) == 1),
        Case((tokens, [9, 7]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]) == 1),
    ])


def test_response_log_probs(solution):
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 5, 4, generator=g)
    sequences = torch.randint(4, (2, 5), generator=g)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]) == 1
    cases = [Case((torch.zeros(1, 3, 2), torch.tensor([[0, 1, 1]]), torch.tensor([[True, True]]), 1.0),
                  torch.full((1, 2), -math.log(2)), "equal logits, two tokens")]
    for temperature in (1.0, 1.5):
        wanted = torch.zeros(2, 3)
        for i in range(2):
            for t in range(3):
                if mask[i, t]:
                    z = [x / temperature for x in logits[i, 1 + t].tolist()]  # the position before y_t, P = 2
                    wanted[i, t] = z[int(sequences[i, 2 + t])] - math.log(sum(math.exp(x) for x in z))
        cases.append(Case((logits, sequences, mask, temperature), wanted, f"temperature {temperature}", atol=1e-5))
    check(solution, "response_log_probs", cases)


def test_inverse_cdf(solution):
    p = torch.tensor([[0.2, 0.5, 0.3]] * 3 + [[0.0, 0.25, 0.75]] * 2)
    check(solution, "inverse_cdf", [
        Case((p.log(), torch.tensor([0.1, 0.5, 0.95, 0.0, 0.5], dtype=torch.float64)), torch.tensor([0, 1, 2, 1, 2])),
    ])
