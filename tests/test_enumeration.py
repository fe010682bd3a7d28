r"""enumeration.py: the exact side of every certificate, checked against plain Python."""

import itertools
import math

import pytest
import torch

import enumeration
from enumeration import (
    MASK, PREFIXES, RESPONSES, divergence, gradient, objective, random_policy, random_rewards, relative_error,
    token_log_probs, token_objective,
)

THETA, OLD, REF, REWARDS = random_policy(0), random_policy(1), random_policy(2), random_rewards(3)


def test_all_responses_and_nothing_else():
    r"""Every way to draw up to three tokens of which 0 is the last; probabilities are products and sum to 1."""
    stopped = {draw[: draw.index(0) + 1] if 0 in draw else draw for draw in itertools.product((0, 1, 2), repeat=3)}
    assert len(RESPONSES) == 15 and set(RESPONSES) == stopped
    log_probs = token_log_probs(THETA)
    assert log_probs.sum(dim=1).exp().sum().item() == pytest.approx(1, abs=1e-14)
    assert (log_probs[~MASK] == 0).all()
    table = THETA.softmax(dim=-1).tolist()
    for response, row in zip(RESPONSES, log_probs.sum(dim=1).tolist()):
        p = math.prod(table[PREFIXES.index(response[:t])][token] for t, token in enumerate(response))
        assert math.exp(row) == pytest.approx(p, rel=1e-12)


def test_divergences_and_objective_by_hand():
    r"""pi = (1/2, 1/2), ref = (1/4, 1/4): mass 1/2, so that the unnormalised divergences differ."""
    pi, ref = torch.tensor([0.5, 0.5]).double().log(), torch.tensor([0.25, 0.25]).double().log()
    got = {kl: divergence(kl, pi, ref).item() for kl in ("fkl", "rkl", "ufkl", "urkl")}
    assert got == pytest.approx({"fkl": -math.log(2) / 2, "rkl": math.log(2), "ufkl": 0.5 - math.log(2) / 2,
                                 "urkl": math.log(2) - 0.5})
    assert objective(pi, torch.tensor([1.0, 3.0]), 2.0, "rkl", ref).item() == pytest.approx(2 - 2 * math.log(2))
    with pytest.raises(ValueError, match="unknown kl 'kl': use fkl, rkl, ufkl or urkl"):
        divergence("kl", pi, ref)


def test_token_objective_by_walking_the_tree():
    r"""pi_old walks to a prefix, pi picks one token there, pi_old walks on: expected reward, summed over prefixes."""
    old, theta = OLD.softmax(dim=-1).tolist(), THETA.softmax(dim=-1).tolist()

    def value(prefix):  # E_old[R | prefix]
        if prefix in RESPONSES:
            return REWARDS[RESPONSES.index(prefix)].item()
        return sum(old[PREFIXES.index(prefix)][v] * value(prefix + (v,)) for v in range(3))

    total = 0.0
    for s, prefix in enumerate(PREFIXES):
        visited = math.prod(old[PREFIXES.index(prefix[:t])][token] for t, token in enumerate(prefix))
        kl = sum(theta[s][v] * math.log(theta[s][v] / REF.softmax(dim=-1)[s, v].item()) for v in range(3))
        total += visited * (sum(theta[s][v] * value(prefix + (v,)) for v in range(3)) - 0.3 * kl)
    assert token_objective(THETA, OLD, REWARDS, 0.3, "rkl", REF).item() == pytest.approx(total, rel=1e-12)


def test_gradient_against_finite_differences():
    def j(x):
        return objective(token_log_probs(x).sum(dim=1), REWARDS, 0.3, "rkl", token_log_probs(REF).sum(dim=1))

    h, numeric = 1e-6, torch.zeros(7, 3, dtype=torch.float64)
    for s in range(7):
        for v in range(3):
            step = torch.zeros_like(numeric)
            step[s, v] = h
            numeric[s, v] = (j(THETA + step) - j(THETA - step)) / (2 * h)
    assert relative_error(gradient(j, THETA), numeric) < 1e-7


def test_demonstration(capsys):
    r"""Enumeration tells the wrong loss from the right one; so few samples do not."""
    enumeration.main()
    *_, samples, last = [line.split()[-2:] for line in capsys.readouterr().out.splitlines()]
    assert float(last[0]) < 1e-10 < 0.1 < float(last[1]) and float(samples[0]) > 1e-3
