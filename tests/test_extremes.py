r"""Every loss in float32 against its definition in float64, over log-ratios that whole responses reach: -200 to 60.

Value and gradient must be finite, and within 1e-4 of the exact ones, wherever these fit into float32. In the grid theta
is x nats above the sampler and the reference d nats; l = x - d is never such that terms cancel by chance.
"""

import pytest
import torch

import kl_estimators
import rpg_losses
from baselines import gspo_loss, grpo_loss, reinforce_loss
from pmd_mean import pmd_loss

F64 = torch.float64
KLS = ("fkl", "rkl", "ufkl", "urkl")
OLD = -64.0  # so that theta and the reference stay below 0 nats
X = torch.cat([torch.arange(-200, 60, 0.5) + 0.25, torch.tensor([0.0])])
D = torch.cat([torch.arange(-200, 60, 5.0) + 0.125, torch.tensor([-0.5, 0.0])])
EPS_LOW, EPS_HIGH, C, TAU = 0.2, 0.28, 3.0, 0.1


def grid(own_reference):
    r"""log_probs, old_log_probs, ref_log_probs, advantages: float32, [points]."""
    d = D if own_reference else torch.zeros(1)
    x, d, a = (v.flatten() for v in torch.meshgrid(X, d, torch.tensor([-1.0, 0.0, 1.0]), indexing="ij"))
    return OLD + x, torch.full_like(x, OLD), OLD + d, a


def ppo(w, a, eps_low=EPS_LOW, eps_high=EPS_HIGH):
    r"""(value, gradient) of -min(w a, clip(w) a), by cases."""
    alive = torch.where(a > 0, w < 1 + eps_high, w > 1 - eps_low)
    bound = torch.where(a > 0, 1 + eps_high, 1 - eps_low)
    return torch.where(alive, -w * a, -bound * a), torch.where(alive, -w * a, 0.0)


def exact(name, log_p, old, ref, a, beta):
    r"""(value or None where it means nothing, gradient) from the definitions, in float64; e^260 fits there."""
    log_p, old, ref, a = (v.double() for v in (log_p, old, ref, a))
    w, q, l = (log_p - old).exp(), (ref - old).exp(), log_p - ref
    kl = next((kl for kl in ("ufkl", "urkl", "fkl", "rkl") if kl in name), None)
    if kl:
        weight = {"fkl": w * a + beta * q, "rkl": w * (a - beta * (l + 1)), "ufkl": w * a - beta * (w - q),
                  "urkl": w * (a - beta * l)}[kl]
        value = {"fkl": -w * a - beta * q * log_p, "rkl": w * (-a + beta * l),
                 "ufkl": -w * a + beta * (w - q * l - q), "urkl": -w * a + beta * (w * l - w)}[kl]
        if "dual_clip" in name:
            a_hat = {"fkl": a + beta * (-l).exp(), "rkl": a - beta * (l + 1), "ufkl": a - beta + beta * (-l).exp(),
                     "urkl": a - beta * l}[kl]
            alive = torch.where(a_hat >= 0, w < 1 + EPS_HIGH, (w > 1 - EPS_LOW) & (w < C))
            bound = torch.where(a_hat >= 0, 1 + EPS_HIGH, w.clamp(1 - EPS_LOW, C))
            value, weight = torch.where(alive, -weight, -bound * a_hat), torch.where(alive, weight, 0.0)
        if "reinforce" in name:
            value = torch.where(weight != 0, -weight * log_p, torch.nan)  # nan: a constant that means nothing
        return value, -weight
    k3 = torch.expm1(-l) + l
    if name == "grpo_loss":
        value, gradient = ppo(w, a)
        return value + beta * k3, gradient + beta * -torch.expm1(-l)
    if name == "gspo_loss":
        return ppo(w, a)
    if name == "reinforce_loss":
        return -a * log_p, -a
    if name == "pmd_loss":
        s = log_p - old
        return TAU / 2 * (a / TAU - s) ** 2, -(a - TAU * s)
    return {"k1": (l, torch.ones_like(l)), "k2": (l ** 2 / 2, l), "k3": (k3, -torch.expm1(-l)),
            "grpo_penalty": (k3, -torch.expm1(-l)), "corrected_grpo_penalty": (w * k3, w * l)}[name]


def loss(name, log_p, old, ref, a, beta):
    if name in ("pmd_loss", "gspo_loss"):  # of responses of one token
        x, y, mask = log_p[:, None], old[:, None], torch.ones(len(a), 1)
        return pmd_loss(x, y, a, mask, TAU) if name == "pmd_loss" else gspo_loss(x, y, a, mask, EPS_LOW, EPS_HIGH)
    if name == "grpo_loss":
        return grpo_loss(log_p, old, a, beta, ref, EPS_LOW, EPS_HIGH)
    if name == "reinforce_loss":
        return reinforce_loss(log_p, a)
    if name in ("k1", "k2", "k3", "grpo_penalty"):
        return getattr(kl_estimators, name)(log_p, ref)
    if name == "corrected_grpo_penalty":
        return kl_estimators.corrected_grpo_penalty(log_p, old, ref)
    function, _, kl = name.partition(" ")
    clip = dict(kl=kl, eps_low=EPS_LOW, eps_high=EPS_HIGH, c=C) if kl else {}
    return getattr(rpg_losses, function)(log_p, old, a, beta, ref_log_probs=ref, **clip)


def value_and_gradient(name, log_p, *others):
    log_p = log_p.clone().requires_grad_()
    losses = loss(name, log_p, *others)
    losses.sum().backward()
    return losses.detach(), log_p.grad


RPG = [f"{style}{kl}_loss" for style in ("", "reinforce_") for kl in KLS]
CLIPPED = [f"{style}dual_clip_loss {kl}" for style in ("", "reinforce_") for kl in KLS]
NAMES = [*RPG, *CLIPPED, "grpo_loss", "gspo_loss", "reinforce_loss", "pmd_loss", "k1", "k2", "k3", "grpo_penalty",
         "corrected_grpo_penalty"]


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("own_reference", [False, True], ids=["ref=old", "other ref"])
@pytest.mark.parametrize("name", NAMES)
def test_finite_and_exact_wherever_it_fits_into_float32(name, own_reference, beta):
    arguments = grid(own_reference)
    limits = torch.finfo(torch.float32)
    for what, got, wanted in zip(("value", "gradient"), value_and_gradient(name, *arguments, beta),
                                 exact(name, *arguments, beta)):
        assert got.dtype == torch.float32
        fits = wanted.isnan() | (wanted.abs() < limits.max)
        assert got[fits].isfinite().all(), what
        fits &= ~wanted.isnan()
        error = (got.double() - wanted).abs()[fits]
        worst = (error - 1e-4 * wanted[fits].abs() - limits.tiny).argmax()
        x, _, d, a = (v[fits][worst].item() for v in arguments)
        assert error[worst] <= 1e-4 * wanted[fits][worst].abs() + limits.tiny, \
            f"{what} at x = {x - OLD}, d = {d - OLD}, a = {a}: {got[fits][worst]}, not {wanted[fits][worst]}"
        assert fits.sum() > 0.1 * len(fits)
