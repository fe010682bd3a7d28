r"""Scoring: the log-probs of sampled tokens under the policy that is trained, with gradients.

What it teaches. Every objective needs log pi_theta(y_t | x, y_<t) at the sampled tokens. So a rollout is read once
more, whole responses at a time, with gradients. Three things make that right and affordable:

- Positions count real tokens only. With left padding they must be passed to the model. If they are
  not, models with learned positions give wrong numbers and no error. Rotary models stay right: only distances count.
- A group shares its prompt, and responses differ in length. `pack` puts all real tokens of a minibatch in one row: each
  prompt once, no padding. Apart from attention, a layer treats each token alone. For attention `packed_attention` takes
  the sequences apart, and pads them. With 64 responses of the embedded task 3 tokens in 10 are padding otherwise.
- The vocabulary's matrix is the largest one of a small model. With 151,936 words the float32 logits of 16 responses of
  256 tokens take 2.5 GB, and as much again for each copy that backward keeps. So logits are computed at response tokens
  only. `VocabularyLogProbs` holds one block of columns at a time, and backward computes the block again.

Precision. Under autocast the decoder multiplies in bfloat16 or float16. The head, the softmax and all that follows are
float32, here as in the sampler. A model whose head does more than W h (a soft cap, a scale, a bias) keeps its own head,
with whole logits and that head's rounding, and padded rows. `train.py` says at its start what it found.

`python rollout.py` shows these log-probs beside the sampler's.
"""

import functools
from types import SimpleNamespace

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PLAIN_SCORES = 2**22  # of attention in a layer, which backward keeps: 16 MB
BLOCK_NUMBERS = 2**24  # of float32 that a block of logits may have: 64 MB


def positions(attention_mask):
    r"""Position ids [N, L] that count real tokens: [0 0 1 1 1] -> [0 0 0 1 2]."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def without_dropout(function):
    r"""Decorates function(model, ...): the model is in evaluation mode inside, and afterwards in the mode it had."""
    @functools.wraps(function)
    def call(model, *arguments, **options):
        was_training = model.training
        model.eval()
        try:
            return function(model, *arguments, **options)
        finally:
            model.train(was_training)

    return call


def has_plain_head(model):
    r"""Are the logits W h and nothing else: no bias, no scale, no soft-capping? The model is tried once."""
    if not hasattr(model, "plain_head"):
        model.plain_head = try_head(model)
    return model.plain_head


@torch.no_grad()
@without_dropout
def try_head(model):
    r"""What enters the head must be what the decoder returns, and what leaves it must be the logits.

    One forward pass tells. In it the head's output is replaced by numbers so large that a soft cap would change them.
    """
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
    return (type(head) is torch.nn.Linear and head.bias is None and hidden.shape == entered[0].shape
            and (hidden - entered[0]).abs().max().item() <= rounding * hidden.abs().max().item()
            and (logits - left[0]).abs().max().item() <= rounding * 1e3)


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


def pack(rollout, group_size=1):
    r"""The real tokens of a rollout in one row, each prompt once: (inputs of the decoder, before [M]).

    y_t's distribution is computed at the token before it: at `before` in the row, for each of the M response tokens.
    A response's last token is left out, as nothing follows it. Two prompts x and q, G = 2:

        pad x_1 x_2 | y_1 y_2
        pad x_1 x_2 | z_1 z_2 z_3    the row:   x_1 x_2 | q_1 q_2 q_3 | y_1 | z_1 z_2 | w_1
        q_1 q_2 q_3 | u_1            before:    of y_1 y_2: x_2 y_1;  of u_1: q_3;  of w_1 w_2: q_3 w_1
        q_1 q_2 q_3 | w_1 w_2
    """
    N, T = rollout.response_mask.shape
    P = rollout.sequences.shape[1] - T
    ids, place = rollout.sequences, positions(rollout.attention_mask)  # [N, P+T]
    prompt = rollout.attention_mask[::group_size, :P].bool()  # [B, P]
    response = rollout.response_mask[:, 1:]  # [N, T-1] where y_t is read: where another one follows

    def row(x):  # [N, P+T] -> [1, L]
        return torch.cat([x[::group_size, :P][prompt], x[:, P:-1][response]])[None]

    def slots(mask, first):  # the place in the row of each token; 0 at padding
        numbers = torch.arange(first, first + mask.sum(), device=mask.device)
        return torch.zeros_like(mask, dtype=torch.long).masked_scatter(mask, numbers)

    def places(mask):  # where the tokens are in the padded block, row after row
        return mask.flatten().nonzero().squeeze(1)

    prompt_slots = slots(prompt, 0)  # [B, P]
    response_slots = slots(response, prompt.sum())  # [N, T-1]
    of_each = prompt_slots.repeat_interleave(group_size, dim=0)  # [N, P]
    # Prompts attend to themselves. Padding stands on the right here, so what is causal never sees it.
    to_the_left = torch.arange(P, device=ids.device) < prompt.sum(dim=1, keepdim=True)  # [B, P]
    own = slots(to_the_left, 0)  # [B, P]
    blocks = [(own, own, places(to_the_left), None)]
    if T > 1:
        # Responses attend to their prompt and to themselves up to y_t.
        seen = rollout.attention_mask[:, None, :P].bool().expand(N, T - 1, P)  # [N, T-1, P]
        causal = torch.ones(T - 1, T - 1, dtype=torch.bool, device=ids.device).tril().expand(N, T - 1, T - 1)
        keys = torch.cat([of_each, response_slots], dim=1)  # [N, P+T-1]
        blocks.append((response_slots, keys, places(response), torch.cat([seen, causal], dim=2)[:, None]))
    before = torch.cat([of_each[:, -1:], response_slots], dim=1)[rollout.response_mask]  # [M]
    # transformers takes a mask of four dimensions as it is. Without one it would build one of L x L.
    unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
    return dict(input_ids=row(ids), position_ids=row(place), attention_mask=unused, blocks=blocks), before


def packed_attention(module, query, key, value, attention_mask, blocks=None, **options):
    r"""An attention function for transformers: its own for padded sequences, and for a packed row where it has blocks.

    query [1, H, L, d], key and value [1, h, L, d] -> [1, L, H, d]. Each block is a batch of padded sequences:
    (slots of the queries [n, t], slots of the keys [n, s], places of the real queries among n * t, what they see
    [n, 1, t, s] or None for causal).
    """
    if blocks is None:
        return attention(module, query, key, value, attention_mask, **options)
    if options.get("sliding_window") is not None:
        raise NotImplementedError("blocks with a sliding window")

    def padded(x, slots):  # [1, heads, L, d] -> [n, heads, t, d]
        rows = x[0].transpose(0, 1).flatten(1).index_select(0, slots.flatten())  # [n * t, heads * d]
        return rows.view(*slots.shape, x.shape[1], x.shape[3]).transpose(1, 2)

    outputs = []
    for queries, keys, real, seen in blocks:
        output, _ = attention(  # [n, t, H, d]
            module, padded(query, queries), padded(key, keys), padded(value, keys), seen, **options)
        outputs.append(output.flatten(0, 1).index_select(0, real))
    return torch.cat(outputs)[None], None


def attention(module, query, key, value, seen, **options):
    r"""transformers' attention: query [n, H, t, d], key and value [n, h, s, d] -> [n, t, H, d].

    seen: bool [n, 1, t, s]; None for causal. Small ones are written out for a CPU in float32, softmax(Q K^T) V: with
    two threads that is faster than torch's fused attention, which takes as long with two as with one.
    """
    (n, H, t, d), (h, s) = query.shape, key.shape[1:3]
    in_float32 = query.device.type == "cpu" and key.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    more = options.get("dropout") or any(options.get(name) is not None for name in ("softcap", "position_bias"))
    if not in_float32 or more or n * H * t * s > PLAIN_SCORES or seen is None and t > 1:
        return sdpa_attention_forward(module, query, key, value, seen, **options)
    queries = (options["scaling"] * query).reshape(n, h, H // h * t, d)  # H / h heads share a key and a value
    scores = (queries @ key.transpose(2, 3)).view(n, h, H // h, t, s)
    if seen is not None:
        # Finite, as padding on the left sees nothing and must not become nan.
        lowest = torch.finfo(scores.dtype).min
        scores = scores + torch.zeros_like(seen, dtype=scores.dtype).masked_fill(~seen, lowest)[:, :, None]
    weights = scores.softmax(dim=-1).view(n, h, H // h * t, s)
    return (weights @ value).view(n, H, t, -1).transpose(1, 2), None


AttentionInterface.register("packed", packed_attention)
AttentionMaskInterface.register("packed", sdpa_mask)


def can_pack(model):
    r"""Does a packed row give what padded rows give? The model is tried once; `packed_attention` is then its own.

    Not with a head that is not plain, a sliding window, or an attention that was chosen, before or after the trial.
    """
    if not hasattr(model, "packs"):
        model.packs = has_plain_head(model) and try_packing(model)
    return model.packs and model.config.get_text_config()._attn_implementation == "packed"


@torch.no_grad()
@without_dropout
def try_packing(model):
    r"""Packed and padded states of two short responses must agree. Gives the model `packed_attention` where they do."""
    config, agree = model.config.get_text_config(), False
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    # "packed": another model with this configuration was tried before.
    if config._attn_implementation not in ("sdpa", "packed") or layers != {"full_attention"}:
        return False
    model.set_attn_implementation("packed")
    ids = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 1, 0]], device=model.device) % config.vocab_size
    mask = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 1, 0]], device=model.device)
    rollout = SimpleNamespace(sequences=ids, attention_mask=mask, response_mask=mask[:, 3:].bool())
    try:
        with torch.autocast(model.device.type, enabled=False):
            packed, padded = packed_states(model, rollout, 2), padded_states(model, rollout)  # [3, D]
        # Rounding adds up over layers: TF32, 16-bit weights.
        rounding = max(1e-3, 20 * torch.finfo(padded.dtype).eps)
        agree = (packed - padded).abs().max().item() <= rounding * padded.abs().max().item()
    except Exception:  # models that do not know the argument raise many kinds
        pass
    if not agree:
        model.set_attn_implementation("sdpa")
    return agree


def packed_states(model, rollout, group_size=1):
    r"""What the decoder returns at the token before each of the M response tokens: [M, D]."""
    inputs, before = pack(rollout, group_size)
    return model.get_decoder()(use_cache=False, **inputs).last_hidden_state[0][before]


def padded_states(model, rollout):
    r"""The same from padded rows, each with its own prompt: [M, D]."""
    ids, mask, T = rollout.sequences, rollout.attention_mask, rollout.response_mask.shape[1]
    return model.get_decoder()(
        input_ids=ids[:, :-1], attention_mask=mask[:, :-1], position_ids=positions(mask[:, :-1]),
        use_cache=False).last_hidden_state[:, -T:][rollout.response_mask]


def token_log_probs(model, rollout, temperature=1.0, group_size=1):
    r"""log pi_theta(y_t | x, y_<t) of a rollout's response tokens, with gradients: [N, T] float32.

    0 outside the response mask. Logits are computed at response tokens only, see `VocabularyLogProbs`.
    group_size: so many consecutive rows share their prompt, which is read once for all of them. With 1 each row reads
    its own. The numbers are the same to rounding. (A model that cannot be packed always reads a prompt for each row.)
    """
    ids, mask, T = rollout.sequences, rollout.attention_mask, rollout.response_mask.shape[1]
    targets = ids[:, -T:][rollout.response_mask]  # [M], M response tokens
    if not has_plain_head(model):
        # What the model does after its head (soft-capping, a scale) is part of its policy.
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False,
                       logits_to_keep=T + 1).logits[:, :-1][rollout.response_mask].float() / temperature  # [M, V]
    else:
        weight = model.get_output_embeddings().weight  # [V, D]
        hidden = packed_states(model, rollout, group_size) if can_pack(model) else padded_states(model, rollout)
        hidden = hidden / temperature  # [M, D]: smaller than the logits, which are linear in it
        if len(hidden) * len(weight) > BLOCK_NUMBERS:
            log_probs = VocabularyLogProbs.apply(hidden, weight, targets)  # [M]
            return torch.zeros_like(rollout.log_probs).masked_scatter(rollout.response_mask, log_probs)  # [N, T]
        logits = head_logits(model, hidden)  # [M, V]
    log_probs = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")  # [M]
    return torch.zeros_like(rollout.log_probs).masked_scatter(rollout.response_mask, log_probs)  # [N, T]
