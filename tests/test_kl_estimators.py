r"""kl_estimators.py: values and gradients by enumeration, the table as a reader will use it, and precision."""

import pytest
import torch

import kl_estimators
import rpg_losses
from enumeration import divergence, gradient, random_policy, relative_error, token_log_probs
from kl_estimators import corrected_grpo_penalty, expected_gradient, grpo_penalty, k1, k2, k3, recognise

F64 = torch.float64
THETA, OLD, REF = random_policy(0), random_policy(1), random_policy(2)
FREE = [0.3 * random_policy(seed).flatten()[:15] - 2.5 for seed in (4, 5, 6)]  # log-masses

# R = KL(theta || ref), F = KL(ref || theta), O = KL(old || theta); the columns are kl_estimators.USES.
TABLE = {
    ("reverse", "k1"): ("0", "-O", "+R", "0", "+R", "neither", "+R"),
    ("reverse", "k2"): ("+R", "neither", "neither", "+R", "neither", "neither", "neither"),
    ("reverse", "k3"): ("+F", "neither", "+R", "+F", "+R -F", "neither", "+R -F"),
    ("forward", "k1"): ("0", "+O", "+F", "+F", "-R", "neither", "-R"),
    ("forward", "k2"): ("+R", "neither", "neither", "neither", "neither", "neither", "neither"),
    ("forward", "k3"): ("neither", "neither", "+F", "+F", "neither", "neither", "neither"),
}


def responses(logits):
    return token_log_probs(logits).sum(dim=1)  # [15]


def test_numbers_in_the_docstrings():
    p, q = torch.tensor(0.4, dtype=F64).log(), torch.tensor(0.2, dtype=F64).log()
    got = [k1(p, q), k1(q, p), k2(p, q), k3(p, q), grpo_penalty(p, q), corrected_grpo_penalty(p, q, q)]
    assert torch.stack(got).tolist() == pytest.approx([0.693, -0.693, 0.240, 0.193, 0.193, 0.386], abs=5e-4)


@pytest.mark.parametrize("p, q", [(THETA, REF), (REF, THETA), (THETA, OLD)])
def test_values_by_enumeration(p, q):
    p, q = responses(p), responses(q)
    kl = divergence("rkl", p, q).item()
    mean = {k: (p.exp() * k(p, q)).sum().item() for k in (k1, k2, k3)}
    assert mean[k1] == pytest.approx(kl, rel=1e-12) and mean[k3] == pytest.approx(kl, rel=1e-12)
    assert abs(mean[k2] / kl - 1) > 0.01  # biased
    assert (k2(p, q) >= 0).all() and (k3(p, q) >= 0).all() and (k1(p, q) < 0).any()


def test_k3_is_the_unnormalised_kl():
    r"""RPG Remark 3.5, with masses other than 1; k1 is not."""
    p, q = FREE[:2]
    assert (p.exp() * k3(p, q)).sum().item() == pytest.approx(divergence("urkl", p, q).item(), rel=1e-12)
    assert (p.exp() * k1(p, q)).sum().item() == pytest.approx(divergence("rkl", p, q).item(), rel=1e-12)


@pytest.mark.parametrize("direction, name", TABLE)
def test_gradient_of_every_use(direction, name):
    r"""Pitfalls 10 and 11 among them: k1 as a loss follows nothing, forward k1 in the reward rewards divergence."""
    got = []
    for use, on_policy in kl_estimators.USES:
        sampler = THETA if on_policy else OLD
        grad = expected_gradient(use, getattr(kl_estimators, name), direction, THETA, sampler, REF)
        got.append(recognise(grad, THETA, sampler, REF))
    assert tuple(got) == TABLE[direction, name]


def test_k1_of_the_sampler_in_the_reward():
    r"""REINFORCE++: k1 at pi_old. With the ratio, the gradient of E_theta[log(pi_old/pi_ref)], not the reverse KL's."""
    ref = responses(REF)

    def reverse(kind_of):
        return gradient(lambda x: divergence("rkl", responses(x), kind_of), THETA)

    for sampler, on_policy in ((THETA, True), (OLD, False)):
        old = responses(sampler)
        w, k = (responses(THETA) - old).exp(), k1(old, ref)
        got = gradient(lambda x: (old.exp() * w * k * responses(x)).sum(), THETA)
        exact = gradient(lambda x: (responses(x).exp() * (old - ref)).sum(), THETA)
        assert relative_error(got, exact) < 1e-10
        assert relative_error(got, reverse(ref) - reverse(old)) < 1e-10
        assert (relative_error(got, reverse(ref)) < 1e-10) == on_policy


def test_grpo_penalty_as_written():
    r"""On policy the forward KL's gradient though the value is the reverse KL's; off policy neither's."""
    ref = responses(REF)
    exact = {kl: gradient(lambda x: divergence(kl, responses(x), ref), THETA) for kl in ("fkl", "rkl")}
    for sampler, forward in ((THETA, True), (OLD, False)):
        got = gradient(lambda x: (responses(sampler).exp() * grpo_penalty(responses(x), ref)).sum(), THETA)
        assert (relative_error(got, exact["fkl"]) < 1e-10) == forward
        assert relative_error(got, exact["rkl"]) > 0.1
    value = (responses(THETA).exp() * grpo_penalty(responses(THETA), ref)).sum()
    assert value.item() == pytest.approx(divergence("rkl", responses(THETA), ref).item(), rel=1e-12)


@pytest.mark.parametrize("sampler", [THETA, OLD])
def test_corrected_grpo_penalty(sampler):
    old, ref = responses(sampler), responses(REF)

    def expected(x):
        return (old.exp() * corrected_grpo_penalty(responses(x), old, ref)).sum()

    def exact(x):
        return divergence("rkl", responses(x), ref)

    assert expected(THETA).item() == pytest.approx(exact(THETA).item(), rel=1e-12)
    assert relative_error(gradient(expected, THETA), gradient(exact, THETA)) < 1e-10


def test_corrected_penalty_with_free_probabilities_and_as_rpg():
    r"""Value and gradient of UKL(theta || ref); event by event RPG's URKL loss plus pi_ref/pi_old."""
    x, old, ref = FREE

    def expected(x):
        return (old.exp() * corrected_grpo_penalty(x, old, ref)).sum()

    assert expected(x).item() == pytest.approx(divergence("urkl", x, ref).item(), rel=1e-12)
    assert relative_error(gradient(expected, x), gradient(lambda x: divergence("urkl", x, ref), x)) < 1e-10
    urkl = rpg_losses.urkl_loss(x, old, torch.zeros(15), 1.0, ref_log_probs=ref)
    torch.testing.assert_close(corrected_grpo_penalty(x, old, ref), urkl + (ref - old).exp())


def test_references_are_constants():
    x, old, ref = (y.clone().requires_grad_() for y in FREE)
    (grpo_penalty(x, ref) + corrected_grpo_penalty(x, old, ref)).sum().backward()
    assert old.grad is None and ref.grad is None and x.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    r"""Pitfall 23: e^12 overflows float16."""
    p, q = torch.tensor([-13.0, -1.0], dtype=dtype), torch.tensor([-1.0, -13.0], dtype=dtype)
    for got in (k1(p, q), k2(p, q), k3(p, q), grpo_penalty(p, q), corrected_grpo_penalty(p, q, q)):
        assert got.dtype == torch.float32 and got.isfinite().all()
    assert k3(p.double(), q.double()).dtype == F64


def test_k3_keeps_its_digits_near_zero():
    r"""e^x - 1 - x in float32 is all rounding at x = 1e-4; the first step of training lives there."""
    d = torch.tensor([1e-3, -1e-4, 3e-5])
    p, q = torch.zeros(3), -d
    for got in (k3(p, q), grpo_penalty(p, q), corrected_grpo_penalty(p, p, q)):
        torch.testing.assert_close(got, d.square() / 2, rtol=5e-3, atol=0)


def test_shapes_that_would_broadcast_in_silence():
    a, b = torch.zeros(3, 3), torch.zeros(3)
    for call in (lambda: k1(a, b), lambda: k2(a, b), lambda: k3(b, a), lambda: grpo_penalty(a, b),
                 lambda: corrected_grpo_penalty(a, b, a), lambda: corrected_grpo_penalty(a, a, b)):
        with pytest.raises(ValueError, match="must have one shape") as error:
            call()
        assert "\n" not in str(error.value)


def test_demonstration(tmp_path, capsys):
    out = tmp_path / "new" / "plot.png"
    for _ in range(2):  # its own picture may be drawn again
        kl_estimators.main(["--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    for (direction, name), cells in TABLE.items():
        row = next(line for line in lines[9:] if line.startswith(f"{direction} {name}"))
        assert row.split(maxsplit=2)[2].split() == " ".join(cells).split()
    assert out.read_bytes().startswith(b"\x89PNG")
    foreign = tmp_path / "mine.png"
    foreign.write_text("not a plot of this demo")
    with pytest.raises(SystemExit) as error:
        kl_estimators.main(["--out", str(foreign)])
    assert "was not made by this demo" in capsys.readouterr().err
    assert error.value.code == 2 and foreign.read_text() == "not a plot of this demo"
