r"""Exercise 3: policy gradients. Tutorial 3; baselines.py, pmd_mean.py, aggregation.py.

RLOO arXiv 2402.14740, GRPO 2402.03300, Dr. GRPO 2503.20783, DAPO 2503.14476. Grade with
`pytest tutorials/exercises/test_ex03_policy_gradients.py`.
"""
import torch


def reinforce_loss(log_probs, advantages):
    r"""REINFORCE, per event: a loss whose gradient is -A grad log pi.

    log_probs [N] or [N, T] in nats; advantages [N], one per response -> loss with the shape of log_probs. Every token
    of a response has the response's advantage. No gradient flows into advantages.

    Worked: A = 0.5, pi = 0.2: -0.5 log 0.2 = 0.805.
    Hint: for [N, T], advantages must become [N, 1]. Beware of N = T, where [N] broadcasts along the wrong axis.
    """
    raise NotImplementedError("missing: the loss -A log pi. Read tutorial 3, and `reinforce_loss` in baselines.py")


def group_mean_advantages(rewards, group_size):
    r"""A_i = r_i - mean of the rewards of its group (the group mean: PMD-mean, Dr. GRPO, RPG).

    rewards [N], group after group: the first group_size belong to the first prompt -> [N] float.

    Worked: [1, 0, 0, 0], one group of 4: [0.75, -0.25, -0.25, -0.25].
    Hint: reshape(-1, group_size). A group of equal rewards gives zeros.
    """
    raise NotImplementedError("missing: r minus the mean of its group. Read tutorial 3, and `pmd_mean_advantages` in "
                              "pmd_mean.py")


def leave_one_out_advantages(rewards, group_size):
    r"""A_i = r_i - mean of the OTHER rewards of its group (RLOO, arXiv 2402.14740).

    rewards [N], group after group -> [N] float. With it the expected gradient is the true one; with the group mean it
    is (G-1)/G of it.

    Worked: [1, 0, 0, 0], one group of 4: [1, -1/3, -1/3, -1/3].
    Hint: the sum of the others is the sum minus one's own; how many others are there?
    """
    raise NotImplementedError("missing: r minus the mean of the others. Read tutorial 3, and `rloo_advantages` in "
                              "baselines.py")


def grpo_advantages(rewards, group_size):
    r"""A_i = (r_i - mean) / std over its group, std with G - 1 (GRPO, arXiv 2402.03300).

    rewards [N], group after group -> [N] float. Equal rewards give EXACT zeros, and so does a group of one.

    Worked: [1, 0, 0, 0], one group of 4: mean 1/4, std 1/2: [1.5, -0.5, -0.5, -0.5].
    Hint: in float32 the mean of eight 0.7 is not 0.7, and a tiny epsilon below magnifies the difference to an advantage
    of 0.8. Find the groups whose largest reward is their smallest, and put zeros there.
    """
    raise NotImplementedError("missing: standardised rewards, with exact zeros for equal ones. Read tutorial 3, and "
                              "`grpo_advantages` in baselines.py")


def token_mean(losses, mask, num_tokens=None):
    r"""Mean over response tokens: sum of the losses where the mask is set, over their number (DAPO, RPG: token-mean).

    losses [N, T], mask [N, T] bool -> scalar. num_tokens: response tokens of the WHOLE minibatch, where these rows are
    a microbatch of it; None: those given here. What stands outside the mask, nan too, reaches neither value nor
    gradient.

    Worked: losses [[1, 1, 9], [1, 2, 3]], mask [[1, 1, 0], [1, 1, 1]]: (1+1+1+2+3) / 5 = 1.6.
    Hint: torch.where, not a product: 0 * nan is nan.
    """
    raise NotImplementedError("missing: the sum over response tokens, over their number. Read tutorial 3, and "
                              "aggregation.py")


def dr_grpo_mean(losses, mask, max_new_tokens):
    r"""Dr. GRPO's aggregation (arXiv 2503.20783): a constant in place of every response's length.

        1 / (N * max_new_tokens)  *  sum over responses and their tokens of the loss

    losses [N, T], mask [N, T] bool, max_new_tokens: int -> scalar. A token weighs the same in every response.

    Worked: losses [[1, 1, 9], [1, 2, 3]], mask [[1, 1, 0], [1, 1, 1]], max_new_tokens 4: 8 / (2 * 4) = 1.
    Hint: the length of a response must not occur.
    """
    raise NotImplementedError("missing: the sum over tokens by N * max_new_tokens. Read tutorial 3, and aggregation.py")
