r"""Exercise 7: off policy. Tutorial 7.

GRPO arXiv 2402.03300, GSPO 2507.18071, RPG 2505.17508 Sec. 3.3 and Alg. 1. w = pi_theta / pi_old is the importance
weight. An event is still where its loss has no gradient. Gradient flows into log_probs only. Grade with
`pytest tutorials/exercises/test_ex07_off_policy.py`.
"""
import torch


def ppo_clip_loss(log_probs, old_log_probs, advantages, eps_low, eps_high):
    r"""PPO's clip, as GRPO and DAPO use it: -w A, but still where the step has gone far enough in the direction of A.

    log_probs, old_log_probs [N] in nats; advantages [N] -> loss [N], continuous in w.
    A > 0: still once w > 1 + eps_high. A < 0: still once w < 1 - eps_low, but not where w is large.

    Worked, eps 0.2 and 0.2: w = 2, A = 1: -1.2, still. w = 2, A = -1: 2, and its gradient is 2.
    Level: medium.
    """
    raise NotImplementedError


def dual_clip_loss(log_probs, old_log_probs, advantages, beta, eps_low, eps_high, c):
    r"""RPG-Style Clip, differentiable, for URKL with the sampler as reference (RPG Sec. 3.3, Alg. 1).

    PPO's clip with Ahat = A - beta log w in place of A, and a second clip at c. Its gradient, where it moves, is that
    of urkl_loss with the sampler as reference: -w Ahat. What does that ask of Ahat? (Algorithm 1 as printed misses it.)

        Ahat >= 0:   still once w > 1 + eps_high
        Ahat <  0:   still once w < 1 - eps_low, and again once w > c

    log_probs, old_log_probs [N] in nats; advantages [N], beta in units of reward; c > 1 -> loss [N], continuous in w at
    fixed Ahat.

    Worked, beta 0, eps 0.2 and 0.28, c = 3: w = 2, A = 1: -1.28, still. w = 2, A = -1: 2. w = 4, A = -1: 3, still.
    Level: hard.
    """
    raise NotImplementedError


def gspo_loss(log_probs, old_log_probs, advantages, mask, eps_low, eps_high):
    r"""GSPO: PPO's clip on the sequence ratio s, the geometric mean of the token ratios (arXiv 2507.18071).

    log_probs, old_log_probs [N, T] in nats, advantages [N], mask [N, T] bool -> loss [N]. What stands outside the mask,
    nan too, reaches neither value nor gradient.

    Worked: token ratios 4 and 1: s = 2. With A = 1 and a wide clip the loss is -2.
    Level: medium.
    """
    raise NotImplementedError
