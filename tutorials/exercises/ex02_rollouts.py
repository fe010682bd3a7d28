r"""Exercise 2: rollouts. Tutorial 2; rollout.py.

Padding, positions, masks and log-probs: where most silent bugs of real trainers live. Grade with
`pytest tutorials/exercises/test_ex02_rollouts.py`.
"""
import torch


def pad_left(rows, pad):
    r"""Prompts of different lengths as one rectangle, padded on the left.

    rows: B lists of token ids, none empty; pad: a token id -> (input_ids [B, P] long, attention_mask [B, P] long).
    attention_mask is 1 at real tokens, 0 at padding. P is the longest row.

    Worked: rows [[5, 6, 7], [8]], pad 0 gives ids [[5, 6, 7], [0, 0, 8]] and mask [[1, 1, 1], [0, 0, 1]].
    Hint: build the mask from lengths. The pad token may also stand inside a prompt.
    """
    raise NotImplementedError("missing: ids and mask, padded on the left. Read tutorial 2, and `pad_left` in "
                              "rollout.py")


def positions(attention_mask):
    r"""Position ids that count real tokens only.

    attention_mask [N, L], 1 at real tokens -> [N, L] long. The first real token has position 0, like all
    padding before it.

    Worked: [[0, 0, 1, 1, 1]] gives [[0, 0, 0, 1, 2]].
    Hint: cumsum, minus one; -1 is no position.
    """
    raise NotImplementedError("missing: the running count of real tokens. Read tutorial 2, and the layout at the top "
                              "of rollout.py")


def response_mask(tokens, eos_ids):
    r"""Which sampled tokens belong to the response: all up to AND INCLUDING the first eos.

    tokens [N, T] long, eos_ids: list of token ids, each of which ends a response -> [N, T] bool. What stands behind the
    first eos is garbage. A row without an eos was cut off: all its tokens count.

    Worked: tokens [[4, 9, 4, 9]] with eos_ids [9] gives [[1, 1, 0, 0]] (as bool).
    Hint: torch.isin; count the eos tokens strictly before each position: cumsum minus the token itself.
    """
    raise NotImplementedError("missing: True up to the first eos, the eos included. Read tutorial 2, and the layout at "
                              "the top of rollout.py")


def response_log_probs(logits, sequences, mask, temperature):
    r"""log pi(y_t | x, y_<t) of the response tokens, under the policy that was sampled: softmax(logits / temperature).

    logits [N, P+T, V] of the whole sequences [N, P+T] (prompt, then response); mask [N, T] bool; temperature > 0
    -> [N, T], 0 outside the mask.
    The logits at a position are the distribution of the NEXT token: that of y_t stands one position before y_t.

    Worked: V = 2, logits that are 0 at every position, temperature 1: log(1/2) = -0.693 at every response token.
    Hint: width = mask.shape[1]; logits[:, -width - 1:-1]; log_softmax(-1), then gather.
    """
    raise NotImplementedError("missing: the log-prob of each response token. Read tutorial 2, and `token_log_probs` in "
                              "rollout.py")


def inverse_cdf(log_probs, uniform):
    r"""Draws token v with probability p_v, given a uniform number: the first v whose cumulative probability exceeds it.

    log_probs [N, V] in nats, uniform [N] in [0, 1) -> [N] long.

    Worked: p = (0.2, 0.5, 0.3), cumulative (0.2, 0.7, 1.0): u = 0.1 draws 0, u = 0.2 draws 1, u = 0.95 draws 2.
    Hint: exp, cumsum, then count the entries that are <= u. A token of probability 0 is never drawn, not even at u = 0.
    """
    raise NotImplementedError("missing: the draw. Read tutorial 2, and `inverse_cdf` in rollout.py")
