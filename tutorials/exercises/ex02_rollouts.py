r"""Exercise 2: rollouts. Tutorial 2.

Padding, positions, masks and log-probs: where most silent bugs of real trainers live. Grade with
`pytest tutorials/exercises/test_ex02_rollouts.py`.
"""
import torch


def pad_left(rows, pad):
    r"""Prompts of different lengths as one rectangle, padded on the left.

    rows: B lists of token ids, none empty; pad: a token id -> (input_ids [B, P] long, attention_mask [B, P] long).
    attention_mask is 1 at real tokens, 0 at padding. P is the longest row. The pad token may stand inside a prompt.

    Worked: rows [[5, 6, 7], [8]], pad 0 gives ids [[5, 6, 7], [0, 0, 8]] and mask [[1, 1, 1], [0, 0, 1]].
    Level: easy.
    """
    raise NotImplementedError


def positions(attention_mask):
    r"""Position ids that count real tokens only.

    attention_mask [N, L], 1 at real tokens -> [N, L] long. The first real token has position 0, like all
    padding before it.

    Worked: [[0, 0, 1, 1, 1]] gives [[0, 0, 0, 1, 2]].
    Level: easy.
    """
    raise NotImplementedError


def response_mask(tokens, eos_ids):
    r"""Which sampled tokens belong to the response: all up to AND INCLUDING the first eos.

    tokens [N, T] long, eos_ids: list of token ids, each of which ends a response -> [N, T] bool. What stands behind the
    first eos is garbage. A row without an eos was cut off: all its tokens count.

    Worked: tokens [[4, 9, 4, 9]] with eos_ids [9] gives [[1, 1, 0, 0]] (as bool).
    Level: medium.
    """
    raise NotImplementedError


def response_log_probs(logits, sequences, mask, temperature):
    r"""log pi(y_t | x, y_<t) of the response tokens, under the policy that was sampled: softmax(logits / temperature).

    logits [N, P+T, V] of the whole sequences [N, P+T] (prompt, then response); mask [N, T] bool; temperature > 0
    -> [N, T], 0 outside the mask.
    The logits at a position are the distribution of the NEXT token: that of y_t stands one position before y_t.

    Worked: V = 2, logits that are 0 at every position, temperature 1: log(1/2) = -0.693 at every response token.
    Level: medium.
    """
    raise NotImplementedError


def inverse_cdf(log_probs, uniform):
    r"""Draws token v with probability p_v, given a uniform number: the first v whose cumulative probability exceeds it.

    log_probs [N, V] in nats, uniform [N] in [0, 1) -> [N] long. A token of probability 0 is never drawn.

    Worked: p = (0.2, 0.5, 0.3), cumulative (0.2, 0.7, 1.0): u = 0.1 draws 0, u = 0.2 draws 1, u = 0.95 draws 2.
    Level: medium.
    """
    raise NotImplementedError
