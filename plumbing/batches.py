r"""Which responses go through the model together. This changes memory and padding, not the gradient."""

import torch

from plumbing import parallel
from plumbing.model import autocast
from scoring import token_log_probs


def microbatches(rollout, rows, settings):
    r"""Cuts whole groups of rows into parts for one forward pass: a list of (rows of the part, rows per prompt).

    A part has at most micro_batch_size responses and tokens_per_microbatch tokens, padding included. Responses of
    similar length go together, so that little is padding. A group that does not fit is cut into pieces that do. With
    gradient checkpointing, which keeps no cache, each row reads its own prompt. Several processes share the groups.
    """
    G, lengths = settings.group_size, rollout.response_mask.sum(dim=1).cpu()  # [N]
    prompts = rollout.attention_mask.sum(dim=1).cpu() - lengths  # [N]
    groups = parallel.mine(rows.cpu().view(-1, G))  # [groups, G]
    if len(groups) == 0:
        return []
    groups = groups.gather(1, lengths[groups].argsort(dim=1))  # by length within a group, for the pieces

    def tokens(pieces):  # [k, size] -> of one padded forward pass
        return len(pieces) * (int(prompts[pieces].max()) + pieces.shape[1] * int(lengths[pieces].max()))

    largest = 1 if settings.gradient_checkpointing else G
    for size in (size for size in range(largest, 0, -1) if G % size == 0):
        pieces = groups.view(-1, size)
        if size == 1 or size <= settings.micro_batch_size and all(
                tokens(piece[None]) <= settings.tokens_per_microbatch for piece in pieces):
            break
    parts = []
    for piece in pieces[lengths[pieces].amax(dim=1).argsort()]:
        grown = torch.cat([parts[-1], piece[None]]) if parts else piece[None]  # [k, size]
        if parts and grown.numel() <= settings.micro_batch_size and tokens(grown) <= settings.tokens_per_microbatch:
            parts[-1] = grown
        else:
            parts.append(piece[None])
    return [(part.flatten().to(rollout.sequences.device), size) for part in parts]


@torch.no_grad()
def log_probs_of(model, rollout, settings):
    r"""log pi(y_t | x, y_<t) of a whole rollout under a model, without gradients: [N, T]."""
    log_probs = torch.zeros_like(rollout.log_probs)  # [N, T]
    for rows, per_prompt in microbatches(rollout, torch.arange(len(log_probs)), settings):
        part = rollout.select(rows)
        with autocast(settings):
            log_probs[rows, : part.response_mask.shape[1]] = token_log_probs(
                model, part, settings.temperature, per_prompt)
    return parallel.total(log_probs)
