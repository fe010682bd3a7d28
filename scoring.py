r"""Scoring: the log-probs of sampled tokens under the policy that is trained, with gradients.

What it teaches. Every objective needs log pi_theta(y_t | x, y_<t) at the sampled tokens. So a rollout is read once
more, whole responses at a time, with gradients. Three things make that right and affordable:

- Positions count real tokens only. With left padding they must be given. Without them rotary models stay right, as only
  distances matter to them; models with learned positions are wrong without an error.
- A group shares its prompt. It is read once, with gradients, for all of the group's responses.
- The vocabulary's matrix is the largest one of a small model. With 151,936 words the float32 logits of 16 responses of
  256 tokens take 2.5 GB, and as much again for each copy that backward keeps. So logits are computed at response tokens
  only. `VocabularyLogProbs` holds one block of columns at a time, and backward computes the block again.

Precision. Under autocast the decoder multiplies in bfloat16 or float16. The head, the softmax and all that follows are
float32, here as in the sampler. A model whose head does more than W h (a soft cap, a scale, a bias) keeps its own head,
with whole logits and that head's rounding. `train.py` says at its start which of the two it found.

`python rollout.py` shows these log-probs beside the sampler's.
"""

import torch
from transformers.cache_utils import DynamicCache

BLOCK_NUMBERS = 2**24  # of float32 that a block of logits may have: 64 MB


def positions(attention_mask):
    r"""Position ids [N, L] that count real tokens: [0 0 1 1 1] -> [0 0 0 1 2]."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


@torch.no_grad()
def has_plain_head(model):
    r"""Are the logits W h and nothing else: no bias, no scale, no soft-capping? The model is tried once.

    What enters the head must be what the decoder returns, and what leaves it must be the logits. One forward pass
    tells. In it the head's output is replaced by numbers so large that a soft cap would change them.
    """
    if not hasattr(model, "plain_head"):
        head, entered, left = model.get_output_embeddings(), [], []

        def replace(module, inputs, output):
            entered.append(inputs[0])
            left.append(torch.linspace(-1e3, 1e3, output.numel(), device=output.device).view(output.shape))
            return left[0]

        ids = torch.arange(2, device=model.device)[None]  # [1, 2]
        hook = head.register_forward_hook(replace)
        try:
            with torch.autocast(model.device.type, enabled=False):
                hidden = model.get_decoder()(input_ids=ids, use_cache=False)[0]  # [1, 2, D]
                logits = model(input_ids=ids, use_cache=False).logits  # [1, 2, V]
        finally:
            hook.remove()
        rounding = max(1e-4, 2 * torch.finfo(head.weight.dtype).eps)
        model.plain_head = (type(head) is torch.nn.Linear and head.bias is None and hidden.shape == entered[0].shape
                            and (hidden - entered[0]).abs().max().item() <= rounding * hidden.abs().max().item()
                            and (logits - left[0]).abs().max().item() <= rounding * 1e3)
    return model.plain_head


def product(a, b):
    r"""The matrix product in float32, under autocast too: a logit of 16 to 32 in bfloat16 is a multiple of 0.125."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def head_logits(model, hidden):
    r"""The logits W h of a plain head: hidden [M, D] -> [M, V] float32."""
    return product(hidden, model.get_output_embeddings().weight.T)


class VocabularyLogProbs(torch.autograd.Function):
    r"""log softmax(h W^T) at one token per row: hidden [M, D], weight [V, D], targets [M] -> [M] float32.

    The V columns are taken a block at a time, forward and again in backward. Memory: M * block float32 numbers.

        log p_y = z_y - logsumexp_v z_v,   z = h W^T
        d log p_y / d z_v = 1[v = y] - p_v

    Cost: this product takes a third more floating-point operations than with the logits kept.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        ctx.size = max(256, BLOCK_NUMBERS // len(hidden))
        total = torch.full((len(hidden),), -torch.inf, device=hidden.device)  # [M] logsumexp so far
        chosen = torch.zeros(len(hidden), device=hidden.device)  # [M] z_y
        for first in range(0, len(weight), ctx.size):
            z = product(hidden, weight[first : first + ctx.size].T)  # [M, block]
            total = torch.logaddexp(total, z.logsumexp(dim=1))
            inside = (targets >= first) & (targets < first + ctx.size)  # [M]
            index = (targets - first).clamp(0, z.shape[1] - 1)[:, None]  # [M, 1]
            chosen = torch.where(inside, z.gather(1, index).squeeze(1), chosen)
        ctx.save_for_backward(hidden, weight, targets, total)
        return chosen - total

    @staticmethod
    def backward(ctx, grad):  # [M]
        hidden, weight, targets, total = ctx.saved_tensors
        grad_hidden = torch.zeros(hidden.shape, device=hidden.device)  # [M, D] float32: a sum of many blocks
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None  # [V, D]
        for first in range(0, len(weight), ctx.size):
            columns = weight[first : first + ctx.size]  # [block, D]
            z = product(hidden, columns.T)  # [M, block]
            grad_z = z.sub_(total[:, None]).exp_().mul_(-grad[:, None])  # [M, block]
            inside = ((targets >= first) & (targets < first + ctx.size)).nonzero().squeeze(1)
            grad_z[inside, targets[inside] - first] += grad[inside]
            grad_hidden += product(grad_z, columns)
            if grad_weight is not None:
                grad_weight[first : first + ctx.size] = product(grad_z.T, hidden)
        return grad_hidden.to(hidden.dtype), grad_weight, None


def token_log_probs(model, rollout, temperature=1.0, group_size=1):
    r"""log pi_theta(y_t | x, y_<t) of a rollout's response tokens, with gradients: [N, T] float32.

    0 outside the response mask. Logits are computed at response tokens only, see `VocabularyLogProbs`.
    group_size: so many consecutive rows share their prompt, which is read once for all of them. With 1 each row reads
    its own. The numbers are the same to rounding. (A model with gradient checkpointing keeps no cache, so each row
    always reads its own prompt.)
    """
    N, T = rollout.response_mask.shape
    P = rollout.sequences.shape[1] - T
    ids, mask, decoder = rollout.sequences, rollout.attention_mask, model.get_decoder()
    targets = ids[:, P:][rollout.response_mask]  # [M], M response tokens
    if not has_plain_head(model):
        # What the model does after its head (soft-capping, a scale) is part of its policy.
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False,
                       logits_to_keep=T + 1).logits[:, :-1][rollout.response_mask].float() / temperature  # [M, V]
    else:
        # The distribution of y_t is computed at the position before y_t.
        if group_size == 1 or model.is_activation_checkpointing:  # the simplest case: every row with its own prompt
            hidden = decoder(
                input_ids=ids[:, :-1], attention_mask=mask[:, :-1], position_ids=positions(mask[:, :-1]),
                use_cache=False,
            ).last_hidden_state[:, P - 1 :]  # [N, T, D]
        else:
            cache = DynamicCache()
            hidden = decoder(
                input_ids=ids[::group_size, :P], attention_mask=mask[::group_size, :P],
                position_ids=positions(mask[::group_size, :P]), past_key_values=cache, use_cache=True,
            ).last_hidden_state[:, -1:].repeat_interleave(group_size, dim=0)  # [N, 1, D]
            if T > 1:
                cache.batch_repeat_interleave(group_size)
                rest = decoder(
                    input_ids=ids[:, P:-1], attention_mask=mask[:, :-1], position_ids=positions(mask[:, :-1])[:, P:],
                    past_key_values=cache, use_cache=True,
                ).last_hidden_state  # [N, T-1, D]
                hidden = torch.cat([hidden, rest], dim=1)  # [N, T, D]
        weight = model.get_output_embeddings().weight  # [V, D]
        hidden = hidden[rollout.response_mask] / temperature  # [M, D]: smaller than the logits, which are linear in it
        if len(hidden) * len(weight) > BLOCK_NUMBERS:
            log_probs = VocabularyLogProbs.apply(hidden, weight, targets)  # [M]
            return torch.zeros_like(rollout.log_probs).masked_scatter(rollout.response_mask, log_probs)  # [N, T]
        logits = head_logits(model, hidden)  # [M, V]
    log_probs = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")  # [M]
    return torch.zeros_like(rollout.log_probs).masked_scatter(rollout.response_mask, log_probs)  # [N, T]
