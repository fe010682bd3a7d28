r"""Rollouts: sampling a group of responses per prompt, one token at a time, with the log-probs that training needs.

What it teaches. A language model is a policy pi(y|x) = prod_t pi(y_t | x, y_<t). Sampling needs the distribution of
the next token only, and all earlier tokens enter it through their keys and values in attention, which never change
once computed. Keeping those (the KV cache) turns each new token into a forward pass over ONE position instead of the
whole sequence: for a response of T tokens after a prompt of P, about P + T positions in all instead of T * (P + T/2).

    prefill   [x_1 ... x_P]  -> keys and values of the prompt, and the distribution of y_1
    decode    [y_1]          -> append its key and value, get the distribution of y_2
              [y_2]          -> ...

A group shares its prompt, so a prompt is prefilled once and its cache repeated `group_size` times. A response that has
ended leaves the batch.

Layout. Prompts are padded on the left, so that every row's response starts in the same column:

    sequences        pad pad x_1 x_2 x_3 | y_1 y_2 eos pad        [N, P+T]
    attention_mask    0   0   1   1   1  |  1   1   1   0         [N, P+T]
    response_mask                           1   1   1   0         [N, T]   every sampled token, the eos included

Position ids count real tokens only. With left padding they must be given: rotary models would not notice their
absence (only distances matter to them), models with learned positions would be wrong in silence.

The policy that is trained is the one that was sampled from: temperature included, no top-k, no top-p. `log_probs`
are the sampler's own; `token_log_probs` recomputes them in one pass, with gradients, within 1e-3 in float32.

`python rollout.py` prints the tokens of two responses with their log-probs, and times decoding with and without cache.
"""

import hashlib
from dataclasses import dataclass

import torch


@dataclass
class Rollout:
    r"""N = len(prompts) * group_size responses, group after group; P is the longest prompt, T the longest response."""

    sequences: torch.Tensor  # [N, P+T] token ids: left-padded prompt, then response, then padding
    attention_mask: torch.Tensor  # [N, P+T] 1 at real tokens, 0 at padding on either side
    response_mask: torch.Tensor  # [N, T] True at sampled tokens, up to and including the first eos
    log_probs: torch.Tensor  # [N, T] float32, log pi_old(y_t | x, y_<t) as sampled; 0 outside the mask
    texts: list  # N strings: the responses without special tokens
    truncated: torch.Tensor  # [N] True where max_new_tokens ended the response, not an eos

    def select(self, rows):
        r"""The Rollout of some rows (a list or tensor of indices), without the padding that all of them share."""
        rows = torch.as_tensor(rows, device=self.sequences.device)
        attention_mask, response_mask = self.attention_mask[rows], self.response_mask[rows]
        prompt_length = self.sequences.shape[1] - self.response_mask.shape[1]
        left = int(attention_mask.argmax(dim=1).min())  # the first column with a token in it
        width = max(1, int(response_mask.sum(dim=1).max()))
        columns = slice(left, prompt_length + width)
        return Rollout(
            self.sequences[rows, columns], attention_mask[:, columns], response_mask[:, :width],
            self.log_probs[rows, :width], [self.texts[i] for i in rows.tolist()], self.truncated[rows],
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

    They differ in practice: a chat model ends its turn with another token than the one that ends a document.
    """
    configured = getattr(model.generation_config, "eos_token_id", None)
    configured = configured if isinstance(configured, (list, tuple)) else [configured]
    return sorted({token for token in [tokenizer.eos_token_id, *configured] if token is not None})


def pad_token_id(tokenizer):
    r"""The token that fills the gaps. Any will do: no mask here ever looks at which token stands somewhere."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def pad_left(tokenizer, prompts):
    r"""Tokenizes complete prompts (no special tokens are added): (input_ids [B, P], attention_mask [B, P])."""
    rows = tokenizer(list(prompts), add_special_tokens=False).input_ids
    for i, row in enumerate(rows):
        if not row:
            raise ValueError(f"prompt {i} is empty: a prompt needs at least one token")
    longest = max(len(row) for row in rows)
    pad = pad_token_id(tokenizer)
    input_ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])  # [B, P]
    attention_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])  # [B, P]
    return input_ids, attention_mask


def positions(attention_mask):
    r"""Position ids [N, L] that count real tokens: [0 0 1 1 1] -> [0 0 0 1 2]."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def uniforms(prompts, group_size, max_new_tokens, seed):
    r"""One uniform number per response and position: [N, T] float64, N = len(prompts) * group_size.

    Row j of a prompt depends on (seed, prompt, j) only, never on the rest of the batch, so a response stays the same
    when prompts are batched differently. A prompt that occurs again goes on counting j, or it would repeat itself.
    """
    seen, rows = {}, []
    for prompt in prompts:
        for _ in range(group_size):
            j = seen[prompt] = seen.get(prompt, -1) + 1
            key = hashlib.sha256(f"{seed}\0{j}\0{prompt}".encode("utf-8", "surrogatepass")).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
            rows.append(torch.rand(max_new_tokens, generator=generator, dtype=torch.float64))
    return torch.stack(rows)  # [N, T]


def inverse_cdf(log_probs, uniform):
    r"""Draws token v with probability p_v: the first v whose cumulative probability exceeds `uniform` [N]: [N].

    Example: p = (0.2, 0.5, 0.3) has cumulative (0.2, 0.7, 1.0); u = 0.1 draws 0, u = 0.2 draws 1, u = 0.95 draws 2.
    """
    cumulative = log_probs.exp().cumsum(dim=-1, dtype=torch.float64)  # [N, V]
    # Scaled by the total, as rounding leaves it a little off 1; and a token of probability 0 is never drawn.
    threshold = uniform[:, None] * cumulative[:, -1:]  # [N, 1]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp(max=log_probs.shape[1] - 1)  # [N]


@torch.no_grad()
def sample_rollouts(
    model, tokenizer, prompts, group_size=8, max_new_tokens=64, temperature=1.0, greedy=False, seed=0
):
    r"""Samples `group_size` responses to each prompt from softmax(logits / temperature): a Rollout.

    prompts      complete texts, see `gsm8k.format_prompt`; tokenized as they are
    greedy       take the most probable token instead; `log_probs` are still those of the tempered distribution
    seed         with the prompt and the index in its group, the only source of randomness: see `uniforms`
    Raises ValueError where there is no prompt, a prompt is empty, or a number is out of range.
    Cost: 2 * parameters floating-point operations per prompt token (once per group) and per response token, plus
    attention; each decode step reads all weights and the cache once, which is what bounds it at small batch.
    """
    if not prompts:
        raise ValueError("no prompts: give at least one")
    if group_size < 1 or max_new_tokens < 1:
        raise ValueError("group_size and max_new_tokens must be at least 1")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}; greedy=True takes the most probable token")
    device = model.device
    prompt_ids, prompt_mask = (tensor.to(device) for tensor in pad_left(tokenizer, prompts))  # [B, P]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and prompt_ids.shape[1] + max_new_tokens > limit:
        raise ValueError(f"a prompt of {prompt_ids.shape[1]} tokens and max_new_tokens = {max_new_tokens} exceed the "
                         f"model's {limit} positions: shorten one of them")
    was_training = model.training
    model.eval()  # no dropout: the sampler is the policy itself

    # Prefill: one row per prompt, then the cache and the first distribution repeated for the group.
    output = model(
        input_ids=prompt_ids, attention_mask=prompt_mask, position_ids=positions(prompt_mask), use_cache=True,
        logits_to_keep=1,
    )
    cache = output.past_key_values
    cache.batch_repeat_interleave(group_size)
    logits = output.logits[:, -1].repeat_interleave(group_size, dim=0)  # [N, V]
    prompt_ids = prompt_ids.repeat_interleave(group_size, dim=0)  # [N, P]
    prompt_mask = prompt_mask.repeat_interleave(group_size, dim=0)  # [N, P]

    n, pad = len(prompt_ids), pad_token_id(tokenizer)
    eos = torch.tensor(eos_token_ids(model, tokenizer), device=device)
    uniform = None if greedy else uniforms(prompts, group_size, max_new_tokens, seed).to(device)  # [N, T]
    tokens = torch.full((n, max_new_tokens), pad, device=device)  # [N, T]
    log_probs = torch.zeros(n, max_new_tokens, device=device)  # [N, T]
    lengths = torch.full((n,), max_new_tokens, device=device)  # [N]
    truncated = torch.ones(n, dtype=torch.bool, device=device)  # [N]
    rows = torch.arange(n, device=device)  # the rows still in the batch
    mask = prompt_mask  # [len(rows), P+t]

    for t in range(max_new_tokens):
        log_p = (logits.float() / temperature).log_softmax(dim=-1)  # [len(rows), V]
        token = log_p.argmax(dim=-1) if greedy else inverse_cdf(log_p, uniform[rows, t])  # [len(rows)]
        tokens[rows, t] = token
        log_probs[rows, t] = log_p.gather(1, token[:, None]).squeeze(1)

        ended = torch.isin(token, eos)  # [len(rows)]
        lengths[rows[ended]] = t + 1
        truncated[rows[ended]] = False
        if ended.any():
            alive = (~ended).nonzero().squeeze(1)
            rows, token, mask = rows[alive], token[alive], mask[alive]
            cache.batch_select_indices(alive)
        if len(rows) == 0 or t + 1 == max_new_tokens:
            break
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        output = model(
            input_ids=token[:, None], attention_mask=mask, position_ids=mask.sum(dim=1, keepdim=True) - 1,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )
        logits = output.logits[:, -1]

    model.train(was_training)
    longest = int(lengths.max())
    response_mask = torch.arange(longest, device=device) < lengths[:, None]  # [N, T]
    tokens = tokens[:, :longest]
    texts = tokenizer.batch_decode(
        [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist())], skip_special_tokens=True
    )
    return Rollout(
        sequences=torch.cat([prompt_ids, tokens], dim=1),
        attention_mask=torch.cat([prompt_mask, response_mask.to(prompt_mask.dtype)], dim=1),
        response_mask=response_mask,
        log_probs=log_probs[:, :longest],
        texts=texts,
        truncated=truncated,
    )


def token_log_probs(model, rollout, temperature=1.0):
    r"""log pi_theta(y_t | x, y_<t) of a rollout's response tokens, in one forward pass, with gradients: [N, T] float32.

    0 outside the response mask. The vocabulary is projected at the response positions only.
    """
    width = rollout.response_mask.shape[1]
    logits = model(
        input_ids=rollout.sequences, attention_mask=rollout.attention_mask,
        position_ids=positions(rollout.attention_mask), use_cache=False,
        logits_to_keep=width + 1,  # the distribution of y_t stands at the position before y_t
    ).logits[:, :-1]  # [N, T, V]
    log_p = (logits.float() / temperature).log_softmax(dim=-1)  # [N, T, V]
    log_probs = log_p.gather(2, rollout.sequences[:, -width:, None]).squeeze(2)  # [N, T]
    return log_probs.masked_fill(~rollout.response_mask, 0.0)


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

    # Without a cache each token is a forward pass over all that stands before it.
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
