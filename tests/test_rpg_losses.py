r"""rpg_losses.py: every gradient by enumeration, the weights of the paper event by event, the clip on a grid."""

import itertools
import math

import pytest
import torch

import rpg_losses
from enumeration import (
    divergence, gradient, objective, random_policy, random_rewards, relative_error, token_log_probs, token_objective,
)

F64 = torch.float64
KLS = ("fkl", "rkl", "ufkl", "urkl")
WIDE = dict(eps_low=1.0, eps_high=1e9, c=1e9)  # nothing is clipped
BETAS = (0.0, 0.3, 2.0)
OLD, FAR, REF, REWARDS = random_policy(1), random_policy(0), random_policy(2), random_rewards(3)
FREE = [0.3 * random_policy(seed).flatten()[:15] - 2.5 for seed in (4, 5, 6)]  # log-masses, sum neither 1 nor equal
NAMES = [f"{style}{kl}_loss" for style in ("", "reinforce_") for kl in KLS] + [
    f"{style}dual_clip_loss {kl}" for style in ("", "reinforce_") for kl in KLS]
CLIPS = ("dual_clip_loss", "reinforce_dual_clip_loss")


def kl_of(name):
    return next(kl for kl in ("ufkl", "urkl", "fkl", "rkl") if kl in name)


def call(name, *args, **kwargs):
    r"""A loss by its name; the clipped ones wide open."""
    function, _, kl = name.partition(" ")
    return getattr(rpg_losses, function)(*args, **kwargs, **(dict(kl=kl, **WIDE) if kl else {}))


def responses(logits):
    return token_log_probs(logits).sum(dim=1)  # [15]


def identity(x):
    return x


def expected_loss_gradient(name, theta, sampler, reference, beta, advantages=REWARDS, log_probs=responses):
    r"""Gradient of sum_y pi_old(y) loss(y); log_probs maps parameters to events [15] or [15, 3]."""
    old, ref = log_probs(sampler), None if reference is None else log_probs(reference)
    p_old = old.reshape(15, -1).sum(dim=1).exp()

    def expected(x):
        loss = call(name, log_probs(x), old, advantages, beta, ref_log_probs=ref)
        assert loss.shape == old.shape and loss.dtype == F64
        return (p_old * loss.reshape(15, -1).sum(dim=1)).sum()

    return gradient(expected, theta)


# The certificate


@pytest.mark.parametrize("reference", [None, REF], ids=["ref=old", "other ref"])
@pytest.mark.parametrize("theta", [OLD, FAR], ids=["theta=old", "theta far"])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_by_enumeration(name, theta, reference):
    for beta in BETAS:
        wanted = -gradient(lambda x: objective(responses(x), REWARDS, beta, kl_of(name),
                                               responses(OLD if reference is None else reference)), theta)
        for baseline in (0.0, 0.6):
            got = expected_loss_gradient(name, theta, OLD, reference, beta, REWARDS - baseline)
            assert relative_error(got, wanted) < 1e-10, (beta, baseline)


@pytest.mark.parametrize("reference", [None, FREE[2]], ids=["ref=old", "other ref"])
@pytest.mark.parametrize("name", NAMES)
def test_mass_terms_with_free_probabilities(name, reference):
    r"""No softmax: sum pi is free, so that E_old[w grad log pi] is not 0 and KL differs from UKL in its gradient."""
    for beta in BETAS:
        ref = FREE[1] if reference is None else reference
        wanted = -gradient(lambda x: objective(x, REWARDS, beta, kl_of(name), ref), FREE[0])
        got = expected_loss_gradient(name, FREE[0], FREE[1], reference, beta, log_probs=identity)
        assert relative_error(got, wanted) < 1e-10, beta


def test_free_probabilities_tell_the_four_apart():
    r"""Each loss fails the certificate of the other three: the test above can fail."""
    for name in NAMES:
        got = expected_loss_gradient(name, FREE[0], FREE[1], None, 2.0, log_probs=identity)
        for kl in KLS:
            error = relative_error(got, -gradient(lambda x: objective(x, REWARDS, 2.0, kl, FREE[1]), FREE[0]))
            assert (error < 1e-10) == (kl == kl_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_token_ratios(name):
    r"""Tokens as events follow token_objective exactly; J of whole responses on policy only."""
    for beta in BETAS:
        for theta, reference in ((OLD, None), (FAR, None), (FAR, REF)):
            ref = OLD if reference is None else reference
            wanted = -gradient(lambda x: token_objective(x, OLD, REWARDS, beta, kl_of(name), ref), theta)
            got = expected_loss_gradient(name, theta, OLD, reference, beta, log_probs=token_log_probs)
            assert relative_error(got, wanted) < 1e-10
        exact = -gradient(lambda x: objective(responses(x), REWARDS, beta, kl_of(name), responses(OLD)), OLD)
        on_policy = expected_loss_gradient(name, OLD, OLD, None, beta, REWARDS - 0.6, token_log_probs)
        assert relative_error(on_policy, exact) < 1e-10


@pytest.mark.parametrize("kl, bias", [("fkl", 0.0642), ("rkl", 0.0651), ("ufkl", 0.0642), ("urkl", 0.0651)])
def test_size_of_the_token_bias(kl, bias):
    r"""Recorded: relative bias at step 0.1 towards FAR (0.01 nats), beta = 0.3; it is of first order in the step."""
    biases = []
    for step in (0.001, 0.01, 0.1):
        theta = OLD + step * (FAR - OLD)
        wanted = -gradient(lambda x: objective(responses(x), REWARDS, 0.3, kl, responses(OLD)), theta)
        got = expected_loss_gradient(f"{kl}_loss", theta, OLD, None, 0.3, log_probs=token_log_probs)
        biases.append(relative_error(got, wanted))
    assert biases[2] == pytest.approx(bias, abs=1e-4)
    assert biases[1] / biases[0] == pytest.approx(10, rel=0.05)


def test_divergences_of_the_certificate():
    r"""The exact side, by hand: pi = (1/2, 1/2), ref = (1/4, 1/4), mass 1/2."""
    pi, ref = torch.tensor([0.5, 0.5], dtype=F64).log(), torch.tensor([0.25, 0.25], dtype=F64).log()
    got = [divergence(kl, pi, ref).item() for kl in KLS]
    assert got == pytest.approx([-math.log(2) / 2, math.log(2), -math.log(2) / 2 + 0.5, math.log(2) - 0.5])


# Event by event


def events(seed, *shape):
    r"""log_probs, old, ref, advantages: log-ratios up to about 1, advantages of both signs."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(4, *shape, dtype=F64, generator=g)
    return -2 + 0.5 * x[0], -2 + 0.5 * x[1], -2 + 0.5 * x[2], x[3]


def weight(kl, log_p, old, ref, a, beta):
    r"""The weight of grad log pi in grad J, from the table of the paper, reference generalised."""
    w, q, l = (log_p - old).exp(), (ref - old).exp(), log_p - ref
    return {"fkl": w * a + beta * q, "rkl": w * (a - beta * (l + 1)), "ufkl": w * a - beta * (w - q),
            "urkl": w * (a - beta * l)}[kl]


@pytest.mark.parametrize("shape", [(6,), (4, 3), (4, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_weight_of_every_event(name, shape):
    r"""Props. E.1, E.3, 3.2, 3.6, Table 2, Prop. 4.1: both styles, tokens and responses, advantages [N] and [N, T]."""
    log_p, old, ref, a = events(0, *shape)
    for reference in (None, ref):
        for advantages in (a, a.reshape(shape[0], -1)[:, 0]):
            got = gradient(lambda x: call(name, x, old, advantages, 0.7, ref_log_probs=reference).sum(), log_p)
            per_event = advantages if advantages.shape == shape else advantages[:, None]
            wanted = -weight(kl_of(name), log_p, old, old if reference is None else reference, per_event, 0.7)
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def test_numbers_in_the_docstrings():
    log_p, old, a = (torch.tensor([math.log(x)], dtype=F64) for x in (0.4, 0.2, math.e))
    value = {"fkl": -1.908, "rkl": -1.861, "ufkl": -1.969, "urkl": -2.061}
    grad = {"fkl": 2.1, "rkl": 1.661, "ufkl": 1.9, "urkl": 1.861}
    reinforce = {"fkl": 1.924, "rkl": 1.522, "ufkl": 1.741, "urkl": 1.706}
    for kl in KLS:
        for name, number in ((f"{kl}_loss", value[kl]), (f"reinforce_{kl}_loss", reinforce[kl])):
            assert call(name, log_p, old, a, 0.1).item() == pytest.approx(number, abs=6e-4)
            got = gradient(lambda x: call(name, x, old, a, 0.1).sum(), log_p)
            assert -got.item() == pytest.approx(grad[kl], abs=6e-4)
            assert str(abs(number)) in getattr(rpg_losses, name).__doc__
    one = torch.ones(1, dtype=F64)
    for ratio, advantage, number in ((2, 1, -1.28), (2, -1, 2), (4, -1, 3)):
        x = torch.tensor([math.log(ratio)], dtype=F64)
        assert rpg_losses.dual_clip_loss(x, 0 * x, advantage * one, 0.0).item() == pytest.approx(number)
    half = (one / 2).log()
    for ratio, number, alive in ((1.1, 0.762, 1.1), (2, None, 0)):
        loss = lambda x: rpg_losses.reinforce_dual_clip_loss(x, half - math.log(ratio), one, 0.0)  # noqa: E731
        assert number is None or loss(half).item() == pytest.approx(number, abs=5e-4)
        assert -gradient(lambda x: loss(x).sum(), half).item() == pytest.approx(alive)


def test_differentiable_values():
    r"""Tables 1 and 4 at ref = sampler, and UKL's value: the URKL loss at A = 0 is beta (UKL - mass of old)."""
    log_p, old, _, a = events(1, 5)
    w = (log_p - old).exp()
    table = {"fkl": -w * a - 0.3 * log_p, "rkl": w * (-a + 0.3 * w.log()), "ufkl": -w * a + 0.3 * (w - w.log() - 1),
             "urkl": -w * a + 0.3 * (w * w.log() - w)}
    for kl in KLS:
        torch.testing.assert_close(call(f"{kl}_loss", log_p, old, a, 0.3), table[kl], rtol=1e-12, atol=1e-14)
    zero = torch.zeros(15, dtype=F64)
    for kl, constant in (("ufkl", 0.0), ("urkl", -FREE[1].exp().sum())):
        value = (FREE[1].exp() * call(f"{kl}_loss", FREE[0], FREE[1], zero, 1.0)).sum()
        torch.testing.assert_close(value, divergence(kl, FREE[0], FREE[1]) + constant, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_only_log_probs_get_a_gradient(name):
    r"""A caller who forgets no_grad is still right, even where all of them come from one tensor."""
    log_p, old, ref, a = (x.requires_grad_() for x in events(2, 3, 2))
    call(name, log_p, old, a[:, 0], 0.5, ref_log_probs=ref).sum().backward()
    assert log_p.grad.abs().min() > 0 and old.grad is ref.grad is a.grad is None
    same = log_p.detach().clone().requires_grad_()
    call(name, same, same, a[:, 0].detach(), 0.5).sum().backward()
    wanted = -weight(kl_of(name), *[log_p.detach()] * 3, a[:, :1].detach(), 0.5).expand(3, 2)
    torch.testing.assert_close(same.grad, wanted)


def test_no_reference_means_the_sampler():
    log_p, old, _, a = events(3, 4)
    for name in NAMES:
        assert torch.equal(call(name, log_p, old, a, 0.5), call(name, log_p, old, a, 0.5, ref_log_probs=old))


# The clip


def by_hand(kl, w, l, a, beta, eps_low, eps_high, c):
    r"""(weight of grad log pi, value of the differentiable loss) of one event, in plain Python, case by case."""
    a_hat = {"fkl": a + beta * math.exp(-l), "rkl": a - beta * (l + 1), "ufkl": a - beta * (1 - math.exp(-l)),
             "urkl": a - beta * l}[kl]
    if a_hat >= 0:
        return (w * a_hat, -w * a_hat) if w < 1 + eps_high else (0.0, -(1 + eps_high) * a_hat)
    if w > c:
        return 0.0, -c * a_hat
    return (w * a_hat, -w * a_hat) if w > 1 - eps_low else (0.0, -(1 - eps_low) * a_hat)


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("name", CLIPS)
def test_clip_regions_on_a_grid(name, kl):
    r"""Ratio times advantage, both signs, three settings, reference sampler and other: the weight is all or nothing."""
    ratios = torch.tensor([0.05, 0.3, 0.5, 0.75, 0.85, 0.95, 1, 1.1, 1.25, 1.35, 1.7, 2.5, 3.5, 8, 12, 40], dtype=F64)
    advantages = torch.tensor([-3, -1, -0.2, 0.2, 1, 3], dtype=F64)
    log_w, a = (x.flatten() for x in torch.meshgrid(ratios.log(), advantages, indexing="ij"))
    old = torch.full_like(a, -3.0)
    alive = set()
    for clip in (dict(), dict(eps_low=0.2, eps_high=0.28, c=10.0), dict(eps_low=0.6, eps_high=0.15, c=1.5)):
        for beta in (0.0, 0.3):
            for ref in (None, old + 0.4):
                settings = {**dict(eps_low=0.2, eps_high=0.28, c=3.0), **clip}
                cases = [by_hand(kl, math.exp(s), s - (0 if ref is None else 0.4), x, beta, **settings)
                         for s, x in zip(log_w.tolist(), a.tolist())]
                weights, values = torch.tensor(cases, dtype=F64).T

                def loss(x):
                    return getattr(rpg_losses, name)(x, old, a, beta, kl=kl, ref_log_probs=ref, **clip)

                got = gradient(lambda x: loss(x).sum(), old + log_w)
                torch.testing.assert_close(got, -weights, rtol=1e-11, atol=1e-12)
                if name == "dual_clip_loss":
                    torch.testing.assert_close(loss(old + log_w), values, rtol=1e-11, atol=1e-12)
                alive |= {(x > 0, bool(weight)) for x, weight in zip(a.tolist(), weights.tolist())}
    assert len(alive) == 4  # both signs were clipped and not clipped


@pytest.mark.parametrize("kl", KLS)
def test_clipped_expectation_by_enumeration(kl):
    r"""Both styles have one expected gradient, that of the alive responses; it is not the unclipped one."""
    old, log_p = responses(OLD), responses(FAR)
    weights = torch.tensor([by_hand(kl, math.exp(s), s, x, 0.3, 0.2, 0.28, 3.0)[0]
                            for s, x in zip((log_p - old).tolist(), (REWARDS - 0.6).tolist())], dtype=F64)
    wanted = gradient(lambda x: -(old.exp() * weights * responses(x)).sum(), FAR)
    for name in CLIPS:
        loss = getattr(rpg_losses, name)
        got = gradient(lambda x: (old.exp() * loss(responses(x), old, REWARDS - 0.6, 0.3, kl)).sum(), FAR)
        assert relative_error(got, wanted) < 1e-10
    assert relative_error(wanted, -gradient(lambda x: objective(responses(x), REWARDS, 0.3, kl, old), FAR)) > 0.01


def as_printed(log_probs, old, a, beta, kl, eps_low, eps_high, c):
    r"""Algorithm 1 with the gradient through the regularised advantage."""
    l = log_probs - old
    a_hat = {"fkl": a + beta * (-l).exp(), "rkl": a - beta * (l + 1), "ufkl": a + beta * ((-l).exp() - 1),
             "urkl": a - beta * l}[kl]
    clipped = torch.maximum(-l.exp() * a_hat, -l.exp().clamp(1 - eps_low, 1 + eps_high) * a_hat)
    return torch.where(a_hat >= 0, clipped, torch.minimum(clipped, -c * a_hat))


def test_algorithm_1_as_printed_has_another_gradient():
    old, log_p, a, beta, narrow = responses(OLD), responses(FAR), REWARDS - 0.6, 0.3, (0.2, 0.28, 3.0)
    w = (log_p - old).exp()
    for kl in KLS:
        def difference(log_probs, theta, p, clip):
            return [gradient(lambda x: (p * loss(log_probs(x), old, a, beta, kl, *clip)).sum(), theta)
                    for loss in (as_printed, rpg_losses.dual_clip_loss)]

        # One event: off by beta w; for the forward KLs the term beta q of the weight is missing instead.
        printed, ours = difference(identity, log_p, 1.0, WIDE.values())
        torch.testing.assert_close(printed - ours, beta * (w if kl in ("rkl", "urkl") else torch.ones_like(w)))
        # The expectation over a normalised policy: for the reverse KLs nothing, until events are clipped.
        wide, clipped = (relative_error(*difference(responses, FAR, old.exp(), clip))
                         for clip in (WIDE.values(), narrow))
        assert wide < 1e-10 if kl in ("rkl", "urkl") else wide > 0.5
        assert clipped > 0.3
        # Clipped events, which should be still, move.
        printed, ours = difference(identity, log_p, 1.0, narrow)
        still = ours == 0
        assert still.any() and (printed[still].abs() > 0.01).all()


def test_as_printed_the_forward_penalty_has_no_gradient():
    got = [gradient(lambda x: (responses(OLD).exp() * as_printed(responses(x), responses(OLD), REWARDS, beta, kl,
                                                                *WIDE.values())).sum(), FAR)
           for beta in (0.0, 2.0) for kl in ("fkl", "ufkl")]
    for other in got[1:]:
        assert relative_error(other, got[0]) < 1e-10


# Numbers: precision, overflow, safeguards


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_ratios(name):
    r"""Pitfall 23. e^12 overflows float16, and bfloat16 has 3 digits: the ratio is taken in float32."""
    for dtype in (torch.float16, torch.bfloat16):
        log_p, old = torch.tensor([-1.0, -2.0], dtype=dtype), torch.tensor([-13.0, -2.5], dtype=dtype)
        a = torch.tensor([-1.0, 1.0], dtype=dtype)
        got = call(name, log_p, old, a, 0.1, ref_log_probs=old)
        assert got.dtype == torch.float32 and got.isfinite().all()
        exact = call(name, log_p.double(), old.double(), a.double(), 0.1, ref_log_probs=old.double())
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=0)
    old = torch.tensor([-13.0], dtype=torch.float16)  # q = e^12 too
    got = call(name, old, old, torch.ones(1), 0.1, ref_log_probs=old + 12)
    assert got.dtype == torch.float32 and got.isfinite().all()


def test_float64_stays_float64():
    log_p, old, ref, a = events(4, 3)
    for name in NAMES:
        assert call(name, log_p, old, a, 0.1, ref_log_probs=ref).dtype == F64
        assert call(name, log_p.float(), old.float(), a.float(), 0.1).dtype == torch.float32
        low = call(name, log_p.float(), old.float(), a.float(), 0.1, ref_log_probs=ref.float()).double()
        assert 0 < (low - call(name, log_p, old, a, 0.1, ref_log_probs=ref)).abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("log_ratio", [-15.0, 0.0, 15.0])
def test_no_safeguard_kills_the_gradient(name, log_ratio):
    r"""Pitfall 22. Penalties and ratios are not clamped: at log-ratios of +-15 the weight is still the paper's."""
    old, ref, a = (torch.tensor([x], dtype=F64) for x in (-16.0, -16.5, -0.5))
    log_p = old + log_ratio
    got = gradient(lambda x: call(name, x, old, a, 0.5, ref_log_probs=ref).sum(), log_p)
    wanted = -weight(kl_of(name), log_p, old, ref, a, 0.5)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=0)
    assert got.abs() > 0


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("name", CLIPS)
def test_overflowing_ratios_are_clipped_without_nan(name, kl):
    for advantage in (-1.0, 0.0, 1.0):
        x = torch.tensor([0.0, -0.1], requires_grad=True)
        loss = getattr(rpg_losses, name)(x, torch.tensor([-200.0, -0.1]), torch.tensor([advantage, 1.0]), 0.001, kl=kl)
        loss.sum().backward()
        assert loss.isfinite().all() and x.grad[0] == 0 and x.grad[1] != 0


@pytest.mark.parametrize("name", [f"{kl}_loss" for kl in KLS])
def test_a_ratio_that_overflows_makes_the_loss_infinite(name):
    r"""As the header says: with the sign of the exact loss, never nan where there is an advantage."""
    log_p, old = torch.tensor([-2.0, -2.0]), torch.tensor([-102.0, -102.0])
    for a, beta in itertools.product((torch.tensor([1.0, -1.0]), torch.tensor([30.0, -30.0])), (0.0, 0.1)):
        exact = call(name, log_p.double(), old.double(), a.double(), beta)
        assert (exact.abs() > 1e40).all()
        assert torch.equal(call(name, log_p, old, a, beta), exact.sign().float() * torch.inf)


def test_padding_of_zeros_and_empty_batches():
    for name in NAMES:
        log_p = torch.zeros(2, 3, requires_grad=True)
        loss = call(name, log_p, torch.zeros(2, 3), torch.zeros(2), 0.1)
        loss.sum().backward()
        assert loss.isfinite().all() and log_p.grad.isfinite().all()
        assert call(name, torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0), 0.1).shape == (0, 3)


# Bad input


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_would_broadcast_in_silence(name):
    good = torch.zeros(3, 3)
    for log_probs, old, a, ref in (
        (good, good[:1], good, None), (good, good[0], good, None), (good, good, good[:1], None),
        (good, good, torch.zeros(3, 1), None), (good, good, torch.zeros(2), None), (good, good, good, good[0]),
        (good[0], good[0], good, None),
    ):
        with pytest.raises(ValueError, match="must share a shape") as error:
            call(name, log_probs, old, a, 0.1, ref_log_probs=ref)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", CLIPS)
def test_unknown_kl_and_c(name):
    loss, x = getattr(rpg_losses, name), torch.zeros(2)
    with pytest.raises(ValueError, match="^unknown kl 'kl': use fkl, rkl, ufkl or urkl$"):
        loss(x, x, x, 0.1, kl="kl")
    with pytest.raises(ValueError, match="^c must be larger than 1, got 1.0$"):
        loss(x, x, x, 0.1, c=1.0)


def test_demonstration(capsys):
    rpg_losses.main()
    lines = capsys.readouterr().out.splitlines()
    first = [line for line in lines[: lines.index("", 8)] if "|" in line and "_loss" in line]
    assert len(first) == 16
    for line in first:
        cells = [float(cell) for cell in line.replace("|", " ").split()[-8:]]
        assert len(cells) == 8 and max(cells) < 1e-10
