r"""Rollouts: sampling a group of responses per prompt, one token at a time, with the log-probs that training needs.

What it teaches. A language model is a policy pi(y|x) = prod_t pi(y_t | x, y_<t). Sampling needs only the distribution
of the next token. Earlier tokens enter it through their keys and values in attention, which never change once computed.
Keeping those (the KV cache) makes each new token a forward pass over ONE position instead of the whole sequence. A
response of T tokens after a prompt of P then takes about P + T positions in all, instead of T * (P + T/2).

    prefill   [x_1 ... x_P]  -> keys and values of the prompt, and the distribution of y_1
    decode    [y_1]          -> append its key and value, get the distribution of y_2
              [y_2]          -> ...

A group shares its prompt. So a prompt is read once, and its cache is repeated `group_size` times. The trainer does the
same with gradients (scoring.py). Responses that have ended leave the batch. The cache is written in place; the usual
one grows by torch.cat, which copies all keys and values at every token.

Layout. Prompts are padded on the left, so that every row's response starts in the same column:

    sequences        pad pad x_1 x_2 x_3 | y_1 y_2 eos pad        [N, P+T]
    attention_mask    0   0   1   1   1  |  1   1   1   0         [N, P+T]
    response_mask                           1   1   1   0         [N, T]   every sampled token, the eos included

Position ids count real tokens only, see scoring.py.

The policy that is trained is the one that was sampled from: temperature included, no top-k, no top-p. `log_probs` are
the sampler's own. `scoring.token_log_probs` computes them again with gradients, within 1e-3 in float32 and 2e-2 in
bfloat16.

`python rollout.py` prints the tokens of two responses with their log-probs, and times decoding with and without cache.
"""

import hashlib
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticLayer

from scoring import can_pack, has_plain_head, head_logits, positions, token_log_probs, without_dropout

PREFILL_TOKENS = 4096  # prompt tokens in one forward pass, padding included
WITHOUT_FLOAT64 = ("mps",)  # kinds of device
COMPILED_MULTIPLE = 64  # compiled decoding pads prompts to a multiple of this: each new length is compiled again


@dataclass
class Rollout:
    r"""N = len(prompts) * group_size responses, group after group. P: the longest prompt; T: the longest response."""

    sequences: torch.Tensor  # [N, P+T] token ids: left-padded prompt, then response, then padding
    attention_mask: torch.Tensor  # [N, P+T] 1 at real tokens, 0 at padding on either side
    response_mask: torch.Tensor  # [N, T] True at sampled tokens, up to and including the first eos
    log_probs: torch.Tensor  # [N, T] float32, log pi_old(y_t | x, y_<t) as sampled; 0 outside the mask
    texts: list  # N strings: the responses without special tokens
    truncated: torch.Tensor  # [N] True where max_new_tokens ended the response, not an eos
    sampler_log_probs: torch.Tensor = None  # [N, T] as sampled, where log_probs was computed again by the trainer
    ref_log_probs: torch.Tensor = None  # [N, T] of a frozen reference, where there is one
    advantages: torch.Tensor = None  # [N] per response or [N, T] per token, once rewards are known

    def to(self, device):
        r"""The same Rollout on another device."""
        return Rollout(*(x.to(device) if isinstance(x, torch.Tensor) else x for x in vars(self).values()))

    def select(self, rows):
        r"""The Rollout of some rows (indices, or a mask [N]), without columns that are padding in all of them."""
        rows = torch.as_tensor(rows, device=self.sequences.device)
        if rows.dtype == torch.bool:
            rows = rows.nonzero().squeeze(1)
        attention_mask, response_mask = self.attention_mask[rows], self.response_mask[rows]
        prompt_length = self.sequences.shape[1] - self.response_mask.shape[1]
        left = int(attention_mask.argmax(dim=1).min())  # the first column with a token in it
        width = max(1, int(response_mask.sum(dim=1).max()))
        columns = slice(left, prompt_length + width)

        def of_tokens(x):  # [N, T] -> [rows, width]; what is [N] or missing has no columns
            return x if x is None else x[rows] if x.dim() == 1 else x[rows, :width]

        return Rollout(
            self.sequences[rows, columns], attention_mask[:, columns], response_mask[:, :width],
            of_tokens(self.log_probs), [self.texts[i] for i in rows.tolist()], self.truncated[rows],
            of_tokens(self.sampler_log_probs), of_tokens(self.ref_log_probs), of_tokens(self.advantages),
        )


def concatenate(rollouts):
    r"""One Rollout of several, row after row, padded to the longest prompt and the longest response."""
    width = max(r.response_mask.shape[1] for r in rollouts)
    prompt = max(r.sequences.shape[1] - r.response_mask.shape[1] for r in rollouts)

    def joined(name, left):
        parts = []
        for r in rollouts:
            right = width - r.response_mask.shape[1]
            before = prompt - (r.sequences.shape[1] - r.response_mask.shape[1]) if left else 0
            parts.append(torch.nn.functional.pad(getattr(r, name), (before, right)))  # zeros, outside every mask
        return torch.cat(parts)

    return Rollout(
        joined("sequences", True), joined("attention_mask", True), joined("response_mask", False),
        joined("log_probs", False), [text for r in rollouts for text in r.texts],
        torch.cat([r.truncated for r in rollouts]),
    )


def eos_token_ids(model, tokenizer):
    r"""Every token that ends a response, as a sorted list: the tokenizer's eos and those of the generation config.

    They may differ: a chat model may end its turn with another token than the one that ends a document.
    """
    configured = getattr(model.generation_config, "eos_token_id", None)
    configured = configured if isinstance(configured, (list, tuple)) else [configured]
    return sorted({token for token in [tokenizer.eos_token_id, *configured] if token is not None})


def pad_token_id(tokenizer):
    r"""The token that fills padding. Any token will do: no mask here is made from tokens."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def pad_left(tokenizer, prompts, multiple=1):
    r"""Tokenizes complete prompts (no special tokens are added): (input_ids [B, P], attention_mask [B, P]).

    P is the longest prompt, rounded up to a multiple.
    """
    rows = tokenizer(list(prompts), add_special_tokens=False).input_ids
    for i, row in enumerate(rows):
        if not row:
            raise ValueError(f"prompt {i} is empty: a prompt needs at least one token")
    longest = -(-max(len(row) for row in rows) // multiple) * multiple
    pad = pad_token_id(tokenizer)
    input_ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])  # [B, P]
    attention_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])  # [B, P]
    return input_ids, attention_mask


def seeded(key):
    r"""A random generator that depends on the text `key` only."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def uniforms(prompts, group_size, max_new_tokens, seed):
    r"""One uniform number per response and position: [N, T] float64, N = len(prompts) * group_size.

    Row j of a prompt depends on (seed, prompt, j) only, not on the rest of the batch. So a response stays the same when
    prompts are batched differently. A prompt that occurs again goes on counting j; otherwise its samples would repeat.
    """
    seen, rows = {}, []
    for prompt in prompts:
        for _ in range(group_size):
            j = seen[prompt] = seen.get(prompt, -1) + 1
            rows.append(torch.rand(max_new_tokens, generator=seeded(f"{seed}\0{j}\0{prompt}"), dtype=torch.float64))
    return torch.stack(rows)  # [N, T]


def for_draws(uniform, device):
    r"""Uniform numbers [N, T] float64, moved to the device: as they are, or in whole 2^-40 where it has no float64."""
    return ((uniform * 2**40).long() if device.type in WITHOUT_FLOAT64 else uniform).to(device)


def inverse_cdf(log_probs, uniform):
    r"""Draws token v with probability p_v: the first v whose cumulative probability exceeds `uniform` [N]: [N].

    Example: p = (0.2, 0.5, 0.3) has cumulative (0.2, 0.7, 1.0); u = 0.1 draws 0, u = 0.2 draws 1, u = 0.95 draws 2.
    uniform is float64, or int64 in units of 2^-40 (see `for_draws`); sums of whole numbers are as exact. In float32 the
    sum of a large vocabulary is not.
    """
    # Times the total, which rounding leaves a little off 1. A token of probability 0 is never drawn.
    if uniform.is_floating_point():
        cumulative = log_probs.exp().cumsum(dim=-1, dtype=torch.float64)  # [N, V]
        threshold = uniform[:, None] * cumulative[:, -1:]  # [N, 1]
    else:
        cumulative = (log_probs.exp() * 2**40).long().cumsum(dim=-1)  # [N, V]
        high, low = uniform[:, None] >> 20, uniform[:, None] & 2**20 - 1  # [N, 1]: one product would need 80 bits
        threshold = (cumulative[:, -1:] * high + (cumulative[:, -1:] * low >> 20)) >> 20  # [N, 1]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp(max=log_probs.shape[1] - 1)  # [N]


class InPlaceLayer(DynamicLayer):
    r"""Keys and values of one layer, written in place into buffers [N, heads, P+T, size], of which `length` are used.

    transformers' own DynamicLayer grows by torch.cat, which copies the whole cache at every token.
    """

    def __init__(self, keys, values, length):
        super().__init__()
        self.buffers, self.length, self.is_initialized = (keys, values), length, True
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]

    def update(self, keys, values, *args, **kwargs):
        end = self.length + keys.shape[2]
        for buffer, new in zip(self.buffers, (keys, values)):
            buffer[:, :, self.length : end] = new
        self.length = end
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices):
        self.__init__(*(buffer[indices] for buffer in self.buffers), self.length)


class FixedLayer(StaticLayer):
    r"""The same for "static" and "compiled": attention sees the whole buffers, and their addresses never change."""

    def __init__(self, keys, values, length):
        super().__init__(max_cache_len=keys.shape[2])
        self.lazy_initialization(keys, values)  # marks its buffers as fixed for torch.compile
        self.keys.copy_(keys)
        self.values.copy_(values)
        self.cumulative_length.fill_(length)

    def update(self, keys, values, *args, **kwargs):
        return super().update(keys.to(self.keys.dtype), values.to(self.values.dtype), *args, **kwargs)


def attention_dtype(tensor):
    r"""The precision in which attention reads keys and values: autocast's where it is on, else their own.

    Under autocast, rotary keys are float32. A float32 cache would take twice the memory, and all of it would be
    converted at every token.
    """
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def prefill(model, prompt_ids, prompt_mask, group_size, room, static=False):
    r"""Reads each prompt once: (cache of N = B * group_size rows with room for more tokens, logits [N, V] of y_1).

    Prompts are read in order of length, PREFILL_TOKENS at a time, so that little is padding.
    """
    B, P = prompt_ids.shape
    lengths = prompt_mask.sum(dim=1)  # [B]
    buffers, logits = None, None
    for chunk in lengths.argsort(descending=True).split(max(1, PREFILL_TOKENS // P)):
        p = int(lengths[chunk].max())
        mask = prompt_mask[chunk, P - p :]  # [b, p]
        part = DynamicCache()  # without a configuration: whole sequences, also where attention has a window
        new_logits = next_token_logits(  # [b, V]
            model, network_of(model), input_ids=prompt_ids[chunk, P - p :], attention_mask=mask,
            position_ids=positions(mask), past_key_values=part)
        if len(part.layers) == 0 or any(getattr(layer, "keys", None) is None for layer in part.layers):
            raise ValueError("the sampler needs a model whose every layer attends to cached keys and values")
        rows = (chunk[:, None] * group_size + torch.arange(group_size, device=chunk.device)).flatten()  # [b * G]
        if buffers is None:
            logits = new_logits.new_empty(B * group_size, new_logits.shape[1])  # [N, V]
            buffers = [tuple(x.new_zeros(B * group_size, x.shape[1], P + room, x.shape[3], dtype=attention_dtype(x))
                             for x in (layer.keys, layer.values))  # zeros, as what is masked must still be finite
                       for layer in part.layers]  # [N, heads, P + room, size]
        logits[rows] = new_logits.repeat_interleave(group_size, dim=0)
        for layer, pair in zip(part.layers, buffers):
            for buffer, new in zip(pair, (layer.keys, layer.values)):
                buffer[rows, :, P - p : P] = new.to(buffer.dtype).repeat_interleave(group_size, dim=0)
    return Cache(layers=[(FixedLayer if static else InPlaceLayer)(*pair, P) for pair in buffers]), logits


def network_of(model):
    r"""What runs at each token: the decoder, for `head_logits`; or the whole model, where its head is not plain."""
    return model.get_decoder() if has_plain_head(model) else model


def next_token_logits(model, network, **inputs):
    r"""Logits of the token after each row: [rows, V] float32. network: `network_of(model)`, or that compiled."""
    if has_plain_head(model):
        return head_logits(model, network(use_cache=True, **inputs).last_hidden_state[:, -1])
    return network(use_cache=True, logits_to_keep=1, **inputs).logits[:, -1].float()


@torch.no_grad()
@without_dropout  # the sampler is the policy itself
def sample_rollouts(
    model, tokenizer, prompts, group_size=8, max_new_tokens=64, temperature=1.0, greedy=False, seed=0, uniform=None,
    decode="eager"
):
    r"""Samples `group_size` responses to each prompt from softmax(logits / temperature): a Rollout.

    prompts      complete texts, see `gsm8k.format_prompt`; tokenized as they are
    greedy       take the most probable token instead; `log_probs` still are those of the tempered distribution
    seed         the only source of randomness, together with the prompt and the index in its group: see `uniforms`
    uniform      [N, max_new_tokens] float64: the numbers of `uniforms` themselves, instead of a seed
    decode       "eager": rows leave the batch as they end. "static": all rows to the end, in a cache of fixed shape.
                 "compiled": the same through torch.compile, with CUDA graphs on a GPU; slow at the first call
    Raises ValueError where there is no prompt, a prompt is empty, or a number is out of range.
    Cost: 2 * parameters floating-point operations per prompt token (once per group) and per response token, plus
    attention. Each decoding step reads all weights and the cache once; at small batch this sets its time.
    The model's attention function may be another one afterwards, with the same values to rounding: `scoring.can_pack`.
    """
    if not prompts:
        raise ValueError("no prompts: give at least one")
    if group_size < 1 or max_new_tokens < 1:
        raise ValueError("group_size and max_new_tokens must be at least 1")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}; greedy=True takes the most probable token")
    if decode not in ("eager", "static", "compiled"):
        raise ValueError(f"decode must be eager, static or compiled, not {decode!r}")
    device = model.device
    prompt_ids, prompt_mask = (tensor.to(device) for tensor in pad_left(  # [B, P]
        tokenizer, prompts, multiple=COMPILED_MULTIPLE if decode == "compiled" else 1))
    check_positions(model, int(prompt_mask.sum(dim=1).max()), max_new_tokens)
    can_pack(model)  # chooses the attention function; the same before and after the first update

    cache, logits = prefill(model, prompt_ids, prompt_mask, group_size, max_new_tokens, static=decode != "eager")
    prompt_ids = prompt_ids.repeat_interleave(group_size, dim=0)  # [N, P]
    prompt_mask = prompt_mask.repeat_interleave(group_size, dim=0)  # [N, P]
    network = network_of(model)
    if decode == "compiled":
        # One graph for all tokens, as their shapes are the same. Another rollout can use it if its padded prompts are
        # as long and as many. torch compiles the first eight shapes; with further ones the model runs as it is written.
        mode = "reduce-overhead" if device.type == "cuda" else "default"  # the first: CUDA graphs
        network = torch.compile(network, mode=mode, dynamic=False)

    (n, P), pad = prompt_ids.shape, pad_token_id(tokenizer)
    eos = torch.tensor(eos_token_ids(model, tokenizer), device=device)
    if not greedy:
        uniform = uniforms(prompts, group_size, max_new_tokens, seed) if uniform is None else uniform
        uniform = for_draws(uniform, device)  # [N, T]
    tokens = torch.full((n, max_new_tokens), pad, device=device)  # [N, T]
    log_probs = torch.zeros(n, max_new_tokens, device=device)  # [N, T]
    ended = torch.zeros(n, dtype=torch.bool, device=device)  # [N]
    lengths = torch.full((n,), max_new_tokens, device=device)  # [N]
    rows = torch.arange(n, device=device)  # the rows still in the batch
    mask = torch.cat([prompt_mask, prompt_mask.new_zeros(n, max_new_tokens)], dim=1)  # [len(rows), P+T]

    for t in range(max_new_tokens):  # one token for every row; the four lines below are the sampler
        log_p = (logits / temperature).log_softmax(dim=-1)  # [len(rows), V]
        token = log_p.argmax(dim=-1) if greedy else inverse_cdf(log_p, uniform[rows, t])  # [len(rows)]
        tokens[rows, t] = token
        log_probs[rows, t] = log_p.gather(1, token[:, None]).squeeze(1)

        ends = (token[:, None] == eos).any(dim=1) & ~ended[rows]  # [len(rows)]
        lengths[rows[ends]] = t + 1
        ended[rows[ends]] = True
        alive = (~ended[rows]).nonzero().squeeze(1)
        if len(alive) == 0 or t + 1 == max_new_tokens:
            break
        # Leaving the batch costs a copy of the cache. So rows wait until a quarter of the batch has ended.
        if decode == "eager" and len(alive) <= 3 / 4 * len(rows):
            rows, token, mask = rows[alive], token[alive], mask[alive]
            cache.batch_select_indices(alive)
        mask[:, P + t] = 1
        seen = mask if decode != "eager" else mask[:, : P + t + 1]  # what is not yet written stays masked
        logits = next_token_logits(  # [len(rows), V]
            model, network, input_ids=token[:, None], attention_mask=seen,
            position_ids=seen.sum(dim=1, keepdim=True) - 1, past_key_values=cache)

    longest = int(lengths.max())
    response_mask = torch.arange(longest, device=device) < lengths[:, None]  # [N, T]
    tokens = tokens[:, :longest].masked_fill(~response_mask, pad)  # [N, T]; rows that waited went on after it
    texts = tokenizer.batch_decode(
        [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist())], skip_special_tokens=True
    )
    rollout = Rollout(
        sequences=torch.cat([prompt_ids, tokens], dim=1),
        attention_mask=torch.cat([prompt_mask, response_mask.to(prompt_mask.dtype)], dim=1),
        response_mask=response_mask,
        log_probs=log_probs[:, :longest].masked_fill(~response_mask, 0.0),
        texts=texts,
        truncated=~ended,
    )
    return rollout.select(range(n)) if decode == "compiled" else rollout  # without the padding to a multiple


def check_positions(model, prompt_length, max_new_tokens):
    r"""Raises ValueError where a prompt and its response do not fit into the positions that the model knows."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # beyond it the positions of all rows in the batch change
        limit = rope.get("original_max_position_embeddings", limit)
    if limit and prompt_length + max_new_tokens > limit:
        raise ValueError(f"a prompt of {prompt_length} tokens and max_new_tokens = {max_new_tokens} exceed the model's "
                         f"{limit} positions: lower max_new_tokens or leave out long problems")


@torch.no_grad()
def check_model(model, tokenizer, decode="eager"):
    r"""Raises ValueError, one line, where sampler and trainer would see different policies. Call it before a run.

    It samples from two prompts of different length together. Their log-probs must be the same from the sampler (cache,
    padding) and from the trainer (padding, the prompt read once for its group). Those of the shorter prompt must be the
    same without padding too. Models fail here that carry a state across padding, keep no keys and values, ignore
    position ids, or drop units at random. Each would otherwise train on wrong numbers without an error.
    """
    try:
        with torch.autocast(model.device.type, enabled=False):
            rollout = sample_rollouts(model, tokenizer, ["12 + 7 is more than 3 * 5, as 19 is more than 15", "7 is"],
                                      2, 8, seed=0, decode="eager" if decode == "eager" else "static")
            trainer = token_log_probs(model, rollout)  # [4, T]
            alone = token_log_probs(model, rollout.select([2, 3]))  # unpadded, as both rows have the short prompt
            spread = max((a - b).abs().max().item() for a, b in [
                (rollout.log_probs, trainer), (token_log_probs(model, rollout, 1.0, 2), trainer),
                (trainer[2:, : alone.shape[1]], alone)])  # nats
            largest = trainer.abs().max().item()
    except Exception as error:  # models without keys and values, or without a decoder, raise many kinds
        cause = (str(error).strip() or repr(error)).splitlines()[0][:120]
        raise ValueError(f"{type(model).__name__} cannot be sampled from here ({cause}): use a decoder-only model "
                         "whose every layer attends to cached keys and values") from error
    if spread > 1e-2 * max(1.0, largest):  # nan passes: the first update names broken weights
        raise ValueError(f"the log-probs of {type(model).__name__} depend on padding, on the cache or on chance (by "
                         f"{spread:.2g} nats): use a decoder-only model whose every layer attends to cached keys and "
                         "values and that takes position ids")


def main():
    import argparse
    import time
    from pathlib import Path

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gsm8k import format_prompt, load_problems

    tiny = Path(__file__).resolve().parent / "tiny"
    parser = argparse.ArgumentParser(description="Decode one problem with and without a KV cache.")
    parser.add_argument("--model", default=str(tiny / "model"), help="a Hugging Face model directory or hub name")
    model_name = parser.parse_args().model
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).eval()
    problem = load_problems(tiny / "test.jsonl", limit=1)[0]
    prompt = format_prompt(tokenizer, problem["question"])

    rollout = sample_rollouts(model, tokenizer, [prompt], group_size=2, max_new_tokens=72, seed=1)
    width = rollout.response_mask.shape[1]
    again = token_log_probs(model, rollout).detach()  # [2, T]
    print(problem["question"])
    for row in range(2):
        print(f"\nresponse {row}: token, log-prob of the sampler, of the trainer")
        for t in range(int(rollout.response_mask[row].sum())):
            token = tokenizer.decode(rollout.sequences[row, rollout.sequences.shape[1] - width + t])
            print(f"  {token!r:12s} {rollout.log_probs[row, t]:9.4f} {again[row, t]:9.4f}")

    # Without a cache each token is a forward pass over all tokens before it.
    started = time.time()
    ids = pad_left(tokenizer, [prompt])[0]  # [1, P]
    prompt_length, eos = ids.shape[1], eos_token_ids(model, tokenizer)
    with torch.no_grad():
        while ids.shape[1] < prompt_length + 72 and (ids.shape[1] == prompt_length or int(ids[0, -1]) not in eos):
            token = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(dim=-1)  # [1]
            ids = torch.cat([ids, token[:, None]], dim=1)
    without = time.time() - started
    started = time.time()
    cached = sample_rollouts(model, tokenizer, [prompt], 1, 72, greedy=True)
    tokens = ids.shape[1] - prompt_length
    same = cached.sequences[0].tolist() == ids[0].tolist()
    print(f"\ngreedy, {prompt_length} + {tokens} tokens: {without:.3f} s without a cache over "
          f"{sum(range(prompt_length, prompt_length + tokens))} positions, {time.time() - started:.3f} s with one over "
          f"{prompt_length + tokens - 1}; {'the same tokens' if same else 'DIFFERENT tokens'}")


if __name__ == "__main__":
    main()
