r"""Which responses go through the model together. This changes memory and padding, not the gradient."""

import functools
import math
import sys

import torch
from tqdm import tqdm

from plumbing import parallel
from plumbing.model import autocast
from plumbing.settings import Settings
from scoring import can_pack, token_log_probs


def microbatches(model, rollout, rows, settings):
    r"""Cuts whole groups of `rows` [n] into parts for one forward pass: a list of (rows of the part, rows per prompt).

    A part has at most micro_batch_size responses ("auto": any number) and tokens_per_microbatch tokens, padding
    included (attention pads). Responses of similar length go together, so that little is. A group that does not fit is
    cut into pieces that do. A model whose rows cannot be packed reads a prompt for each response. Several processes
    share the groups.
    """
    shares_prompts = can_pack(model)
    G, lengths = settings.group_size, rollout.response_mask.sum(dim=1).cpu()  # [N]
    most = math.inf if settings.micro_batch_size == "auto" else settings.micro_batch_size
    prompts = rollout.attention_mask.sum(dim=1).cpu() - lengths  # [N]
    groups = parallel.mine(rows.cpu().view(-1, G))  # [groups, G]
    if len(groups) == 0:
        return []
    groups = groups.gather(1, lengths[groups].argsort(dim=1))  # by length within a group, for the pieces

    def tokens(pieces):  # [k, size] -> of one padded forward pass
        read = len(pieces) if shares_prompts else pieces.numel()  # so many prompts
        return read * int(prompts[pieces].max()) + pieces.numel() * int(lengths[pieces].max())

    for size in (size for size in range(G, 0, -1) if G % size == 0):
        pieces = groups.view(-1, size)
        if size == 1 or size <= most and all(
                tokens(piece[None]) <= settings.tokens_per_microbatch for piece in pieces):
            break
    parts = []
    for piece in pieces[lengths[pieces].amax(dim=1).argsort()]:
        grown = torch.cat([parts[-1], piece[None]]) if parts else piece[None]  # [k, size]
        if parts and grown.numel() <= most and tokens(grown) <= settings.tokens_per_microbatch:
            parts[-1] = grown
        else:
            parts.append(piece[None])
    return [(part.flatten().to(rollout.sequences.device), size) for part in parts]


def halving(function):
    r"""Calls function(model, ..., settings, ...) again with half of tokens_per_microbatch when memory was not enough.

    Only with --micro-batch-size auto. The smaller number stays. What a failed call added to the gradients is dropped.
    Each of several processes does this for itself, as its microbatches are its own.
    """

    @functools.wraps(function)
    def attempts(model, *arguments):
        settings = next(argument for argument in arguments if isinstance(argument, Settings))
        before = settings.tokens_per_microbatch
        while True:
            try:
                result = function(model, *arguments)
                break
            except torch.OutOfMemoryError:
                if settings.micro_batch_size != "auto":
                    raise
            # Not in the `except` above: there the error still holds the tensors of the failed call.
            if settings.tokens_per_microbatch == 1:
                print("train.py: out of memory with one response in a forward pass: give --gradient-checkpointing or a "
                      "smaller --max-new-tokens", file=sys.stderr)
                sys.exit(2)
            settings.tokens_per_microbatch //= 2
            model.zero_grad(set_to_none=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if settings.tokens_per_microbatch < before:
            tqdm.write(f"train.py: out of memory; from now on at most {settings.tokens_per_microbatch} tokens per "
                       "forward pass, with the same gradient", file=sys.stderr)
        return result

    return attempts


@torch.no_grad()
@halving
def log_probs_of(model, rollout, settings):
    r"""log pi(y_t | x, y_<t) of a whole rollout under a model, without gradients: [N, T]."""
    log_probs = torch.zeros_like(rollout.log_probs)  # [N, T]
    for rows, per_prompt in microbatches(model, rollout, torch.arange(len(log_probs)), settings):
        part = rollout.select(rows)
        with autocast(settings):
            log_probs[rows, : part.response_mask.shape[1]] = token_log_probs(
                model, part, settings.temperature, per_prompt)
    return parallel.total(log_probs)
