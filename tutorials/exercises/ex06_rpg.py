r"""Exercise 6: RPG. Tutorial 6; arXiv 2505.17508, Props. 3.2, 3.6, E.1, E.3, 4.1.

Objective J = E_{pi_theta}[R] - beta D, estimated from y ~ pi_old. D is one of

    fkl   KL(pi_ref || pi_theta)        ufkl   UKL(pi_ref || pi_theta)        KL(a || b) = sum a log(a / b)
    rkl   KL(pi_theta || pi_ref)        urkl   UKL(pi_theta || pi_ref)        UKL(a || b) = KL(a || b) + sum (b - a)

Derive, do not look up: write J as a sum over y of pi_old(y) times something, and differentiate at log pi_theta(y). The
probabilities are free numbers here (no softmax), so that the mass terms count. In every function

    w = pi_theta / pi_old,     l = log(pi_theta / pi_ref),     q = pi_ref / pi_old

log_probs, old_log_probs, ref_log_probs [N] in nats, one per response; advantages [N] (for R) and beta in units of
reward -> loss [N], which is minimised: E_{pi_old}[loss] is -J, but for terms that do not depend on theta.
ref_log_probs None: the reference is the sampler, q = 1 and l = log w. Gradient flows into log_probs only. Inputs may be
float16: take ratios in float32 at least, and bound nothing with clamp, which kills the gradient.

The graders compare the gradient of every event with that of the exact objective, by enumeration. Grade with
`pytest tutorials/exercises/test_ex06_rpg.py`.
"""
import torch


def kl_weight(kl, advantages, beta, w, l, q):
    r"""The weight of grad log pi_theta in grad J at a sample of pi_old: grad J = E_old[weight * grad log pi_theta].

    kl: "fkl", "rkl", "ufkl" or "urkl"; advantages, w, l, q [N] -> [N].

    Worked: w = 2, q = 1.5, l = log(4/3) = 0.288, A = 1, beta = 0.1: fkl 2.15, ufkl 1.95, and two for you to find.
    Level: medium.
    """
    raise NotImplementedError


def rkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""The differentiable loss for D = KL(pi_theta || pi_ref) (Prop. E.3).

    Worked: pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: -1.861.
    Level: medium.
    """
    raise NotImplementedError


def ufkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""The differentiable loss for D = UKL(pi_ref || pi_theta), with all its terms (Prop. 3.2).

    Worked: pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: -2 + 0.1 (2 - log 2 - 1) = -1.969.
    Level: medium.
    """
    raise NotImplementedError


def urkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""The differentiable loss for D = UKL(pi_theta || pi_ref), without the term that theta leaves alone (Prop. 3.6).

    Worked: pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: -2.061.
    Level: medium.
    """
    raise NotImplementedError


def reinforce_urkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""The gradient of urkl_loss in REINFORCE style: minus a constant weight times log pi_theta (Prop. 4.1).

    Only the gradient is that of urkl_loss. The value means nothing, but is fixed by the form.
    Worked: pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: 1.706.
    Level: hard.
    """
    raise NotImplementedError
