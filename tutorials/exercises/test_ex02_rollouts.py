r"""Grades ex02_rollouts.py. Masks and positions are written out by hand; log-probs are summed in plain Python."""

import math
import types

import torch

from grading import Case, check


def test_pad_left(solution):
    check(solution, "pad_left", [
        Case(([[5, 6, 7], [8]], 0), (torch.tensor([[5, 6, 7], [0, 0, 8]]), torch.tensor([[1, 1, 1], [0, 0, 1]])),
             "the worked case"),
        Case(([[5, 6], [9, 8, 9, 4]], 9), (torch.tensor([[9, 9, 5, 6], [9, 8, 9, 4]]),
                                           torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])), "a prompt holds the pad token"),
        Case(([[5], [6], [7]], 3), (torch.tensor([[5], [6], [7]]), torch.tensor([[1], [1], [1]])), "no padding"),
    ])


def test_positions(solution):
    def positions(attention_mask):  # what stands at padding behind real tokens is nobody's business
        got = solution.positions(attention_mask)
        free = (attention_mask == 0) & (attention_mask.cumsum(1) > 0)
        return got.masked_fill(free, 0) if isinstance(got, torch.Tensor) and got.shape == free.shape else got

    down = {"the positions of a row go down somewhere: they must count up, from left to right":
            lambda value, *_: (value.diff(dim=1) < 0).any()}
    check(types.SimpleNamespace(positions=positions), "positions", [
        Case((torch.tensor([[0, 0, 1, 1, 1]]),), torch.tensor([[0, 0, 0, 1, 2]]), "the worked case", properties=down),
        Case((torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]),),
             torch.tensor([[0, 0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]]), "three rows", properties=down,
             unit=1, events=["there is padding", *["a real token stands behind padding"] * 4, *["there is no padding "
                                                                                                "in the row"] * 5,
                     *["there is padding"] * 4, "a real token stands behind padding"]),
        Case((torch.tensor([[0, 1, 1, 1, 0, 0]]),), torch.tensor([[0, 0, 1, 2, 0, 0]]), "padding behind the real "
             "tokens changes their positions: count the real tokens before each", extra=True),
    ])


def test_response_mask(solution):
    tokens = torch.tensor([[4, 9, 9, 6], [4, 5, 6, 4], [9, 9, 9, 9], [4, 5, 7, 9], [9, 4, 7, 4]])
    check(solution, "response_mask", [
        Case((torch.tensor([[4, 9, 4, 9]]), [9]), torch.tensor([[1, 1, 0, 0]]) == 1, "the worked case"),
        Case((tokens, [9]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]) == 1,
             "one eos", unit=1, events=[*map({"a": "a token stands before the first eos", "e": "the first eos stands",
                                              "b":
                                      "a token stands behind the first eos", "n": "a row has no eos"}.get,
                                     "aebbnnnnebbbaaaeebbb")]),
        Case((tokens, [9, 7]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0],
                                             [1, 0, 0, 0]]) == 1, "two kinds of eos"),
    ])


def test_response_log_probs(solution):
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 6, 4, generator=g)
    sequences = torch.randint(4, (2, 6), generator=g)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]) == 1
    cases = [Case((torch.zeros(1, 4, 2), torch.tensor([[0, 1, 1, 0]]), torch.tensor([[True, True]]), 1.0),
                  torch.full((1, 2), -math.log(2)), "the worked number")]
    properties = {"some of these are above 0: they are no log-probs": lambda value, *_: (value > 1e-6).any(),
                  "it is not 0 outside the mask: a sum over the row would count the padding":
                  lambda value, *args: (value[~args[2]] != 0).any()}
    for temperature in (1.0, 1.5, 0.5):
        wanted = torch.zeros(2, 3)
        for i in range(2):
            for t in range(3):
                if mask[i, t]:
                    z = [x / temperature for x in logits[i, 2 + t].tolist()]  # the position before y_t, P = 3
                    wanted[i, t] = z[int(sequences[i, 3 + t])] - math.log(sum(math.exp(x) for x in z))
        cases.append(Case((logits, sequences, mask, temperature), wanted, f"temperature {temperature}", atol=1e-5,
                          unit=1, properties=properties))
    check(solution, "response_log_probs", cases)


def test_inverse_cdf(solution):
    p = torch.tensor([[0.2, 0.5, 0.3]] * 3 + [[0.0, 0.25, 0.75], [0.5, 0.0, 0.5], [0.25, 0.75, 0.0]])
    uniform = torch.tensor([0.1, 0.5, 0.95, 0.125, 0.75, 0.99], dtype=torch.float64)
    edges = torch.tensor([[0.25, 0.5, 0.25], [0.0, 0.25, 0.75], [0.5, 0.0, 0.5]])
    check(solution, "inverse_cdf", [
        Case((p[:3].log(), uniform[:3]), torch.tensor([0, 1, 2]), "the worked number"),
        Case((p.log(), uniform), torch.tensor([0, 1, 2, 1, 2, 1]), "some tokens have probability 0", unit=1),
        Case((edges.log(), torch.tensor([0.25, 0.0, 0.5], dtype=torch.float64)), torch.tensor([1, 1, 2]),
             "u is exactly a cumulative probability, or 0: the token whose cumulative probability EXCEEDS u is drawn",
             extra=True),
    ])
