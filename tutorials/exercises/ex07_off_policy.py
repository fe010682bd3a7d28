r"""Exercise 7: off policy. Tutorial 7; baselines.py, rpg_losses.py.

GRPO arXiv 2402.03300, GSPO 2507.18071, RPG 2505.17508 Sec. 3.3 and Alg. 1. w = pi_theta / pi_old is the importance
weight. Gradient flows into log_probs only. Grade with `pytest tutorials/exercises/test_ex07_off_policy.py`.
"""
import torch


def ppo_clip_loss(log_probs, old_log_probs, advantages, eps_low, eps_high):
    r"""PPO's clip, as GRPO and DAPO use it:  -min(w A, clip(w, 1 - eps_low, 1 + eps_high) A).

    log_probs, old_log_probs [N] in nats; advantages [N] -> loss [N].
    A > 0: still once w > 1 + eps_high. A < 0: still once w < 1 - eps_low, but not where w is large.

    Worked, eps 0.2 and 0.2: w = 2, A = 1: -1.2, still. w = 2, A = -1: 2, and its gradient is 2.
    Hint: minus a minimum is a maximum of minuses; write down the four corners (sign of A, w small or large) first.
    """
    raise NotImplementedError("missing: the clipped loss. Read tutorial 7, and `grpo_loss` in baselines.py")


def dual_clip_loss(log_probs, old_log_probs, advantages, beta, eps_low, eps_high, c):
    r"""RPG-Style Clip, differentiable, for URKL with the sampler as reference (RPG Sec. 3.3, Alg. 1).

        Ahat = A - beta log w, DETACHED
        Ahat >= 0:   max(-w Ahat, -clip(w, 1 - eps_low, 1 + eps_high) Ahat)
        Ahat <  0:   min(that, -c Ahat)

    log_probs, old_log_probs [N] in nats; advantages [N], beta in units of reward; c > 1 -> loss [N].
    Algorithm 1 as printed lets the gradient through Ahat too; the weight of an event is then off by beta w.

    Worked, beta 0, eps 0.2 and 0.28, c = 3: w = 2, A = 1: -1.28, still. w = 2, A = -1: 2. w = 4, A = -1: 3, still.
    Hint: the sign that decides is that of Ahat, not of A. torch.maximum, torch.minimum, torch.where.
    """
    raise NotImplementedError("missing: the dual clip on the regularised advantage. Read tutorial 7, and "
                              "`dual_clip_loss` in rpg_losses.py")


def gspo_loss(log_probs, old_log_probs, advantages, mask, eps_low, eps_high):
    r"""GSPO: PPO's clip on the sequence ratio s = exp((1/|o|) sum_t log w_t) (arXiv 2507.18071).

        -min(s A, clip(s, 1 - eps_low, 1 + eps_high) A)

    log_probs, old_log_probs [N, T] in nats, advantages [N], mask [N, T] bool -> loss [N]. |o| is the number of tokens
    of the response, without padding.

    Worked: token ratios 4 and 1: s = 2. With A = 1 and a wide clip the loss is -2.
    Hint: s is the geometric mean of the token ratios, not their product, and not their arithmetic mean.
    """
    raise NotImplementedError("missing: the clipped sequence ratio. Read tutorial 7, and `gspo_loss` in baselines.py")
