r"""Exercise 4: KL estimators. Tutorial 4; kl_estimators.py, enumeration.py; RPG (arXiv 2505.17508), Sec. 2.2.

Value and gradient of an estimator need not belong to the same divergence. The graders look at both. Grade with
`pytest tutorials/exercises/test_ex04_kl_estimators.py`.
"""
import torch


def k2(log_p, log_q):
    r"""k2 = (log p - log q)^2 / 2 at samples of p: biased, never negative.

    log_p, log_q: any one shape, in nats -> the same shape, in nats.
    As a loss at samples of p = pi_theta its expected gradient is that of KL(pi_theta || q).

    Worked: p = 0.4, q = 0.2: (log 2)^2 / 2 = 0.240.
    Hint: its gradient at log_p is log p - log q: differentiate, and check the factor.
    """
    raise NotImplementedError("missing: half the squared log-ratio. Read tutorial 4, and `k2` in kl_estimators.py")


def k3(log_p, log_q):
    r"""k3 = q/p - 1 - log(q/p) at samples of p: unbiased for KL(p || q), never negative.

    log_p, log_q: any one shape, in nats -> the same shape, in nats.

    Worked: p = 0.4, q = 0.2: 0.5 - 1 + log 2 = 0.193.
    Hint: with x = log q - log p it is e^x - 1 - x. For tiny x that loses all its digits: torch.expm1.
    """
    raise NotImplementedError("missing: q/p - 1 - log(q/p). Read tutorial 4, and `k3` in kl_estimators.py")


def divergence(kl, log_p, log_ref):
    r"""Four divergences by definition, from all the probabilities; masses need not be 1.

        fkl   KL(ref || p) = sum ref log(ref / p)        ufkl   fkl + sum (p - ref)
        rkl   KL(p || ref) = sum p log(p / ref)          urkl   rkl + sum (ref - p)

    kl: one of these four names; log_p, log_ref [K] in nats -> scalar, in nats (RPG Def. 3.1 and 3.4).

    Worked: p = (0.4, 0.2), ref = (0.2, 0.2): rkl 0.4 log 2 = 0.277, urkl 0.277 - 0.2 = 0.077.
    Hint: forward means that the reference is in front, and is what the expectation is under.
    """
    raise NotImplementedError("missing: the four sums. Read tutorial 4, and `divergence` in enumeration.py")


def corrected_grpo_penalty(log_probs, old_log_probs, ref_log_probs):
    r"""GRPO's KL penalty with the importance weight it lacks: w k3(pi_ref/pi_theta) (RPG Sec. 2.2).

        w = pi_theta / pi_old,     k3(y) = y - 1 - log y

    log_probs, old_log_probs, ref_log_probs [N] or [N, T], in nats -> the same shape. Samples are of pi_old. Gradient
    flows into log_probs only. Its expectation and its gradient are those of UKL(pi_theta || pi_ref).

    Worked: pi_theta 0.4, pi_old 0.1, pi_ref 0.2: 4 (0.5 - 1 + log 2) = 0.773.
    Hint: the gradient must flow through w too. With w detached it would be the forward KL's.
    """
    raise NotImplementedError("missing: w times k3. Read tutorial 4, and `corrected_grpo_penalty` in kl_estimators.py")
