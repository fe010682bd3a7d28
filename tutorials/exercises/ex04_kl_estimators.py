r"""Exercise 4: KL estimators. Tutorial 4; RPG (arXiv 2505.17508), Sec. 2.2.

Value and gradient of an estimator need not belong to the same divergence. The graders look at both. Grade with
`pytest tutorials/exercises/test_ex04_kl_estimators.py`.
"""
import torch


def k2(log_p, log_q):
    r"""k2: a biased estimate of KL(p || q) at samples of p, whose gradient at log p is log p - log q; 0 where p = q.

    log_p, log_q: any one shape, in nats -> the same shape, in nats.
    As a loss at samples of p = pi_theta its expected gradient is that of KL(pi_theta || q).

    Worked: p = 0.4, q = 0.2: (log 2)^2 / 2 = 0.240.
    Level: easy.
    """
    raise NotImplementedError


def k3(log_p, log_q):
    r"""k3 = q/p - 1 - log(q/p) at samples of p: unbiased for KL(p || q), never negative.

    log_p, log_q: any one shape, in nats -> the same shape, in nats. It keeps its digits where p is close to q, in
    float32 too: there the value is about x^2 / 2, x the log-ratio.

    Worked: p = 0.4, q = 0.2: 0.5 - 1 + log 2 = 0.193.
    Level: medium.
    """
    raise NotImplementedError


def divergence(kl, log_p, log_ref):
    r"""Four divergences by definition, from all the probabilities; masses need not be 1.

        fkl   KL(ref || p)        ufkl   UKL(ref || p)        KL(a || b) = sum a log(a / b)
        rkl   KL(p || ref)        urkl   UKL(p || ref)        UKL(a || b) = KL(a || b) + sum (b - a)

    kl: one of these four names; log_p, log_ref [K] in nats -> scalar, in nats (RPG Def. 3.1 and 3.4).

    Worked: p = (0.4, 0.2), ref = (0.2, 0.2): rkl 0.4 log 2 = 0.277, urkl 0.277 - 0.2 = 0.077.
    Level: medium.
    """
    raise NotImplementedError


def corrected_grpo_penalty(log_probs, old_log_probs, ref_log_probs):
    r"""GRPO's KL penalty, k3(pi_ref/pi_theta) with k3(y) = y - 1 - log y, made right for samples of pi_old.

    log_probs, old_log_probs, ref_log_probs [N] or [N, T], in nats -> the same shape. Its expectation under pi_old, and
    the gradient of that, are those of UKL(pi_theta || pi_ref) (RPG Sec. 2.2). Gradient flows into log_probs only.

    Worked: pi_theta 0.4, pi_old 0.1, pi_ref 0.2: 0.773; k3 alone is 0.193.
    Level: hard.
    """
    raise NotImplementedError
