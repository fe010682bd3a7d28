r"""Aggregation: how the losses of many events become the one number whose gradient is taken.

An event is a token, with losses [N, T], or a whole response, with losses [N]. Every mode is one coefficient per
response. The modes differ in nothing else:

    loss = sum_i c_i L_i,     L_i = sum_t mask_it losses_it  for tokens,     L_i = losses_i  for responses

    mode                        c_i                          what counts the same                      as used by
    token-mean                  1 / (all response tokens)    every token: long responses count more    DAPO, RPG
    seq-mean-token-mean         1 / (responses * |o_i|)      every response: its tokens share          GRPO
    seq-mean-token-sum          1 / responses                every response: the plain expectation     PMD
    seq-mean-token-sum-norm     1 / (responses * longest)    the same, times a constant                Dr. GRPO

The names are verl's. longest is `max_new_tokens`, a number that the sampled lengths do not change.

The third mode, seq-mean-token-sum, is the expectation over responses that both papers write. The policy gradient of
the tokens, summed over a response, is that of the response. A loss per response needs this mode: L_i already is the
whole response. Dividing it by |o_i| would make a long wrong answer cheaper than a short one.

The counts are of the WHOLE minibatch. A mean of microbatch means is another number wherever microbatches hold
different numbers of tokens. So each microbatch is divided by the count of the whole minibatch, and the parts are added,
not averaged. Several processes do the same with the counts of all of them. (DistributedDataParallel averages gradients
over its processes: multiply the loss by their number.)

`python aggregation.py` prints the coefficients for responses of different lengths, and the microbatch mistake.
"""
import torch

MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")


def aggregate(losses, response_mask, mode, num_responses=None, num_tokens=None, max_new_tokens=None):
    r"""sum_i c_i L_i, a scalar; see the table at the top of the file for c_i.

    losses          [N, T] per token, or [N] per response
    response_mask   [N, T] bool or number, non-zero where a token of the response stands
    mode            token-mean, seq-mean-token-mean, seq-mean-token-sum or seq-mean-token-sum-norm
    num_responses   responses in the whole minibatch, over all microbatches and processes; default: those given here
    num_tokens      its response tokens (token-mean); default: those given here
    max_new_tokens  the longest response that could have been sampled; only seq-mean-token-sum-norm needs it

    losses [[1, 1, 0], [1, 2, 3]] for responses of 2 and 3 tokens: token-mean 8/5 = 1.6, seq-mean-token-mean
    (1 + 2) / 2 = 1.5, seq-mean-token-sum (2 + 6) / 2 = 4, the last with max_new_tokens=4 gives 1.

    float32, or float64 for float64 losses. What stands at masked positions (inf, nan) reaches neither the value nor
    the gradient at `losses`. A response without tokens adds 0 to the sum and 1 to the number of responses.
    Behind `losses`, 0 times an infinite derivative is nan. So a loss with exp in it needs finite log-probs at padding
    too (`rollout.py` puts 0 there).
    Raises ValueError for an unknown mode, shapes that do not match, or a missing max_new_tokens.
    """
    if response_mask.dim() != 2 or losses.shape not in (response_mask.shape, response_mask.shape[:1]):
        raise ValueError("losses must be [N, T] or [N] for a response_mask [N, T], got "
                         f"{tuple(losses.shape)} and {tuple(response_mask.shape)}")
    mask = response_mask.bool()  # [N, T]
    lengths = mask.sum(dim=1)  # [N], |o_i|
    num_responses = len(mask) if num_responses is None else num_responses
    num_tokens = mask.sum() if num_tokens is None else num_tokens
    losses = losses.to(torch.promote_types(losses.dtype, torch.float32))
    # where, not a product: 0 * nan is nan.
    if losses.dim() == 2:
        per_response = torch.where(mask, losses, 0.0).sum(dim=1)  # [N]
    else:
        per_response = torch.where(lengths > 0, losses, 0.0)  # [N]
    # max and clamp: 0 divided by 0 shall be 0.
    if mode == "token-mean":
        return per_response.sum() / max(num_tokens, 1)
    if mode == "seq-mean-token-mean":
        return (per_response / lengths.clamp(min=1)).sum() / max(num_responses, 1)
    if mode == "seq-mean-token-sum":
        return per_response.sum() / max(num_responses, 1)
    if mode == "seq-mean-token-sum-norm":
        if max_new_tokens is None or max_new_tokens < 1:
            raise ValueError("seq-mean-token-sum-norm divides by a constant: give max_new_tokens >= 1")
        return per_response.sum() / (max(num_responses, 1) * max_new_tokens)
    raise ValueError(f"unknown mode {mode!r}: use token-mean, seq-mean-token-mean, seq-mean-token-sum or "
                     "seq-mean-token-sum-norm")


def main():
    lengths = torch.tensor([2, 4, 8, 10])
    mask = torch.arange(10) < lengths[:, None]  # [N, T]
    print(f"Weight of one token, by the length of its response; responses of {lengths.tolist()} tokens, at most 10.\n")
    print(f"{'mode':24s}" + "".join(f"{f'|o| = {length}':>11s}" for length in lengths.tolist()))
    for mode in MODES:
        losses = torch.zeros(mask.shape, requires_grad=True)
        aggregate(losses, mask, mode, max_new_tokens=10).backward()
        print(f"{mode:24s}" + "".join(f"{weight:11.4f}" for weight in losses.grad[:, 0].tolist()))

    losses = torch.where(mask, lengths[:, None].float(), 0.0)  # longer responses, larger loss per token
    halves = [slice(0, 1), slice(1, 4)]
    print("\nTwo microbatches, the first response and the other three; the loss of a token is its response's length.\n")
    print(f"{'mode':24s}{'whole batch':>14s}{'added parts':>14s}{'mean of means':>16s}")
    for mode in MODES:
        whole = aggregate(losses, mask, mode, max_new_tokens=10)
        parts = sum(aggregate(losses[h], mask[h], mode, 4, mask.sum(), 10) for h in halves)
        wrong = sum(aggregate(losses[h], mask[h], mode, max_new_tokens=10) for h in halves) / 2
        print(f"{mode:24s}{whole:14.4f}{parts:14.4f}{wrong:16.4f}")


if __name__ == "__main__":
    main()
