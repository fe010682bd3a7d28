r"""Exercise 3: policy gradients. Tutorial 3.

RLOO arXiv 2402.14740, GRPO 2402.03300, Dr. GRPO 2503.20783, DAPO 2503.14476. Grade with
`pytest tutorials/exercises/test_ex03_policy_gradients.py`.
"""
import torch


def reinforce_loss(log_probs, advantages):
    r"""REINFORCE, per event: a loss whose gradient is -A grad log pi.

    log_probs [N] or [N, T] in nats; advantages [N], one per response -> loss with the shape of log_probs. Every token
    of a response has the response's advantage. No gradient flows into advantages.

    Worked: A = 0.5, pi = 0.2: -0.5 log 0.2 = 0.805.
    Level: easy.
    """
    raise NotImplementedError


def group_mean_advantages(rewards, group_size):
    r"""A_i = r_i - mean of the rewards of its group (the group mean: PMD-mean, Dr. GRPO, RPG).

    rewards [N], group after group: the first group_size belong to the first prompt -> [N] float.

    Worked: [1, 0, 0, 0], one group of 4: [0.75, -0.25, -0.25, -0.25].
    Level: easy.
    """
    raise NotImplementedError


def leave_one_out_advantages(rewards, group_size):
    r"""A_i = r_i - b_i with the baseline b_i of RLOO: made of the group, free of r_i, and the same for any order.

    rewards [N], group after group -> [N] float. As b_i does not depend on response i, the expected gradient is the true
    one; with the group mean it is (G-1)/G of it (arXiv 2402.14740).

    Worked: [1, 0, 0, 0], one group of 4: [1, -1/3, -1/3, -1/3].
    Level: medium.
    """
    raise NotImplementedError


def grpo_advantages(rewards, group_size):
    r"""A_i = (r_i - mean) / std over its group, std with G - 1 (GRPO, arXiv 2402.03300).

    rewards [N], group after group -> [N] float. Where the rewards of a group are equal, and in a group of one, exactly
    0: no nan, and no advantages of 0.8 out of the rounding of a mean. No epsilon.

    Worked: [1, 0, 0, 0], one group of 4: mean 1/4, std 1/2, so [1.5, -0.5, -0.5, -0.5].
    Level: medium.
    """
    raise NotImplementedError


def token_mean(losses, mask, num_tokens=None):
    r"""Mean over response tokens: sum of the losses where the mask is set, over their number (DAPO, RPG: token-mean).

    losses [N, T], mask [N, T] bool -> scalar. num_tokens: response tokens of the WHOLE minibatch, where these rows are
    a microbatch of it; None: those given here. What stands outside the mask, nan too, reaches neither value nor
    gradient.

    Worked: losses [[1, 1, 9], [1, 2, 3]], mask [[1, 1, 0], [1, 1, 1]]: (1+1+1+2+3) / 5 = 1.6.
    Level: easy.
    """
    raise NotImplementedError


def dr_grpo_mean(losses, mask, max_new_tokens):
    r"""Dr. GRPO's aggregation (arXiv 2503.20783): a token weighs the same in every response, whatever is in the batch.

    losses [N, T], mask [N, T] bool, max_new_tokens: int -> scalar. The mean over the N responses of their summed
    losses, each over the longest response that could have been sampled. What stands outside the mask, nan too, reaches
    neither value nor gradient.

    Worked: losses [[1, 1, 9], [1, 2, 3]], mask [[1, 1, 0], [1, 1, 1]], max_new_tokens 4: 8 / (2 * 4) = 1.
    Level: medium.
    """
    raise NotImplementedError
