r"""The sampler: its masks, its distribution, its log-probs, and its independence of the batch."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import sharper, small_model

from gsm8k import format_prompt
from rollout import Rollout, inverse_cdf, pad_left, sample_rollouts, uniforms
from scoring import attention, can_pack, has_plain_head, pack, positions, token_log_probs

PROMPTS = [
    "Ava has 12 apples. How many apples does Ava have?",
    "A box holds 5 plums. Ben fills 7 boxes and then sells 9 plums. How many plums remain?",
    "Short.",
]


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma", "gpt2"])
def any_model(request, tiny):
    r"""(model, tokenizer): the embedded Llama and small models of three other families."""
    return tiny if request.param == "llama" else (small_model(request.param, tiny[1]), tiny[1])


def prompts_for(tokenizer):
    return [format_prompt(tokenizer, prompt) for prompt in PROMPTS]


def test_greedy_is_transformers_generate(any_model):
    model, tokenizer = any_model
    prompts = prompts_for(tokenizer)
    ours = sample_rollouts(model, tokenizer, prompts, group_size=1, max_new_tokens=24, greedy=True)
    ids, mask = pad_left(tokenizer, prompts)
    theirs = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=24, do_sample=False)
    prompt_length = ids.shape[1]
    for row in range(len(prompts)):
        length = int(ours.response_mask[row].sum())
        assert ours.sequences[row, prompt_length:][:length].tolist() == theirs[row, prompt_length:][:length].tolist()
        ended = theirs[row, prompt_length + length - 1] == tokenizer.eos_token_id
        assert bool(ours.truncated[row]) != bool(ended)


def test_left_padding_changes_nothing(any_model):
    model, tokenizer = any_model
    together = sample_rollouts(model, tokenizer, prompts_for(tokenizer), 1, 16, greedy=True)
    for row, prompt in enumerate(prompts_for(tokenizer)):
        alone = sample_rollouts(model, tokenizer, [prompt], 1, 16, greedy=True)
        assert alone.texts[0] == together.texts[row]
        length = int(alone.response_mask.sum())
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[row, :length], atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_trainer_and_sampler_agree(any_model, temperature):
    model, tokenizer = any_model
    rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer), 4, 24, temperature, seed=1)
    again = token_log_probs(model, rollout, temperature)
    assert again.shape == rollout.log_probs.shape == rollout.response_mask.shape
    torch.testing.assert_close(again, rollout.log_probs, atol=1e-3, rtol=0)
    other = token_log_probs(model, rollout, temperature + 0.5)
    assert (other - rollout.log_probs).abs().max() > 0.01  # the temperature matters, so the check above can fail


def test_log_probs_are_those_of_a_plain_forward_pass(tiny):
    model, tokenizer = tiny
    prompt = prompts_for(tokenizer)[1]
    rollout = sample_rollouts(model, tokenizer, [prompt], 3, 24, temperature=1.3, seed=5)
    prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
    for row in range(3):
        length = int(rollout.response_mask[row].sum())
        response = rollout.sequences[row, len(prompt_ids) : len(prompt_ids) + length].tolist()
        logits = model(input_ids=torch.tensor([prompt_ids + response])).logits[0]  # [P+T, V]
        for t, token in enumerate(response):
            expected = (logits[len(prompt_ids) + t - 1] / 1.3).log_softmax(-1)[token]
            assert abs(expected - rollout.log_probs[row, t]) < 1e-3


def test_mask_counts_up_to_and_including_the_first_eos(any_model):
    model, tokenizer = any_model
    rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer), 16, 12, temperature=2.0, seed=3)
    n, width = rollout.response_mask.shape
    assert n == 48 and width <= 12
    prompt_length = rollout.sequences.shape[1] - width
    for row in range(n):
        response = rollout.sequences[row, prompt_length:].tolist()
        ended = tokenizer.eos_token_id in response[: int(rollout.response_mask[row].sum())]
        expected = response.index(tokenizer.eos_token_id) + 1 if ended else 12
        assert rollout.response_mask[row].tolist() == [t < expected for t in range(width)]
        assert bool(rollout.truncated[row]) == (not ended)
        assert (rollout.log_probs[row, expected:] == 0).all()
        assert rollout.attention_mask[row, prompt_length:].tolist() == rollout.response_mask[row].int().tolist()


def test_pad_token_that_is_eos_still_counts_the_eos(tiny):
    model, tokenizer = tiny
    same = copy.deepcopy(tokenizer)
    same.pad_token = same.eos_token
    prompts = prompts_for(tokenizer)
    a = sample_rollouts(model, tokenizer, prompts, 4, 60, seed=2)
    b = sample_rollouts(model, same, prompts, 4, 60, seed=2)
    assert not a.truncated.all()
    assert a.response_mask.tolist() == b.response_mask.tolist() and a.texts == b.texts
    torch.testing.assert_close(a.log_probs, b.log_probs, atol=1e-5, rtol=0)


def test_every_eos_of_the_generation_config_ends_a_response(tiny):
    model, tokenizer = tiny
    model = copy.deepcopy(model)
    newline = tokenizer("\n").input_ids[0]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, newline]
    rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer)[:2], 2, 60, seed=0)
    ends = {int(row[int(mask.sum()) - 1]) for row, mask in
            zip(rollout.sequences[:, -rollout.response_mask.shape[1]:], rollout.response_mask)}
    assert newline in ends and not any("\n" in text.strip() for text in rollout.texts)


def test_sampled_frequencies_are_the_tempered_softmax(tiny):
    model, tokenizer = tiny
    prompt, temperature, n = prompts_for(tokenizer)[2], 1.5, 4000
    rollout = sample_rollouts(model, tokenizer, [prompt], n, 1, temperature, seed=11)
    ids, _ = pad_left(tokenizer, [prompt])
    p = (model(input_ids=ids).logits[0, -1] / temperature).softmax(-1)
    counts = torch.bincount(rollout.sequences[:, -1], minlength=len(p))
    common = p * n > 20
    z = (counts - p * n)[common] / (p * n * (1 - p))[common].sqrt()
    assert common.sum() >= 3
    assert z.abs().max() < 4.5  # standard deviations
    wrong = (model(input_ids=ids).logits[0, -1]).softmax(-1)  # without the temperature the same test fails
    assert ((counts - wrong * n)[common] / (wrong * n * (1 - wrong))[common].sqrt()).abs().max() > 4.5


def test_inverse_cdf_by_hand():
    log_p = torch.tensor([[0.2, 0.5, 0.3, 0.0]]).log().expand(5, 4)
    drawn = inverse_cdf(log_p, torch.tensor([0.0, 0.1, 0.2001, 0.95, 1 - 1e-12], dtype=torch.float64))
    assert drawn.tolist() == [0, 0, 1, 2, 2]
    first_impossible = torch.tensor([[0.0, 1.0]]).log()
    assert inverse_cdf(first_impossible, torch.zeros(1, dtype=torch.float64)).tolist() == [1]


def test_same_seed_same_samples_other_seed_other_samples(tiny):
    model, tokenizer = tiny
    runs = [sample_rollouts(model, tokenizer, prompts_for(tokenizer), 4, 32, seed=s) for s in (7, 7, 8)]
    assert runs[0].texts == runs[1].texts
    assert torch.equal(runs[0].log_probs, runs[1].log_probs)
    assert runs[0].texts != runs[2].texts
    torch.rand(3)  # the global generator has no part in it
    assert sample_rollouts(model, tokenizer, prompts_for(tokenizer), 4, 32, seed=7).texts == runs[0].texts


def test_samples_do_not_depend_on_the_rest_of_the_batch(tiny):
    model, tokenizer = tiny
    prompts = prompts_for(tokenizer)
    together = sample_rollouts(model, tokenizer, prompts, 4, 40, seed=7)
    reversed_ = sample_rollouts(model, tokenizer, prompts[::-1], 4, 40, seed=7)
    larger_group = sample_rollouts(model, tokenizer, prompts[1:2], 8, 40, seed=7)
    assert together.texts[0:4] == reversed_.texts[8:12]
    assert together.texts[4:8] == larger_group.texts[:4]


def test_a_repeated_prompt_is_sampled_anew(tiny):
    model, tokenizer = tiny
    prompt = prompts_for(tokenizer)[0]
    apart = uniforms([prompt, prompt], 2, 5, seed=0)
    assert torch.equal(apart, uniforms([prompt], 4, 5, seed=0))
    assert len({tuple(row.tolist()) for row in apart}) == 4
    assert not torch.equal(uniforms([prompt], 1, 5, seed=0), uniforms([prompt], 1, 5, seed=1))


def test_select_is_exact_and_trims(tiny):
    model, tokenizer = tiny
    rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer), 4, 60, seed=0)
    full = token_log_probs(model, rollout)
    rows = [9, 8, 10]  # the short prompt
    part = rollout.select(rows)
    assert isinstance(part, Rollout) and part.texts == [rollout.texts[i] for i in rows]
    assert part.sequences.shape[1] < rollout.sequences.shape[1]
    assert part.attention_mask[:, 0].all()
    width = part.response_mask.shape[1]
    torch.testing.assert_close(token_log_probs(model, part), full[rows, :width], atol=1e-5, rtol=0)
    assert (full[rows, width:] == 0).all()


def test_positions_by_hand():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert positions(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]


def test_gradient_is_that_of_plain_unpadded_passes(tiny):
    model, tokenizer = tiny
    ours, plain = copy.deepcopy(model), copy.deepcopy(model)
    rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer), 2, 20, seed=0)
    token_log_probs(ours, rollout, group_size=2).sum().backward()
    P = rollout.sequences.shape[1] - rollout.response_mask.shape[1]
    for ids, mask, response in zip(rollout.sequences, rollout.attention_mask, rollout.response_mask):
        start, length = P - int(mask[:P].sum()), int(response.sum())
        row = ids[start : P + length][None]
        log_p = plain(row).logits[0, :-1].log_softmax(dim=-1).gather(1, row[0, 1:, None]).squeeze(1)
        log_p[-length:].sum().backward()
    for parameter, wanted in zip(ours.parameters(), plain.parameters()):
        assert wanted.grad.norm() > 0 and (parameter.grad - wanted.grad).norm() < 1e-4 * wanted.grad.norm()
    assert not rollout.log_probs.requires_grad


def test_training_mode_is_put_back(tiny):
    model = copy.deepcopy(tiny[0]).train()
    sample_rollouts(model, tiny[1], prompts_for(tiny[1])[:1], 1, 2)
    assert model.training

    def stop(*_):
        raise KeyboardInterrupt

    model.model.norm.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        sample_rollouts(model, tiny[1], prompts_for(tiny[1])[:1], 1, 2)
    assert model.training


def test_rows_are_selected_by_index_or_by_mask(tiny):
    rollout = sample_rollouts(*tiny, prompts_for(tiny[1]), 2, 8, seed=0)
    mask = torch.tensor([False, True, False, False, True, False])
    by_mask, by_index = rollout.select(mask), rollout.select([1, 4])
    assert by_mask.texts == by_index.texts == [rollout.texts[1], rollout.texts[4]]
    assert torch.equal(by_mask.sequences, by_index.sequences)


def test_positions_that_depend_on_the_batch_are_refused(tokenizer):
    r"""longrope stretches all positions once one of them is beyond the original length."""
    import transformers as hf

    rope = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[2.0] * 4)
    model = hf.Phi3ForCausalLM(hf.Phi3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, original_max_position_embeddings=64, rope_parameters=rope,
        bos_token_id=None, eos_token_id=1, pad_token_id=0)).eval()
    sample_rollouts(model, tokenizer, ["Short."], 1, 8, seed=0)
    with pytest.raises(ValueError, match="64 positions"):
        sample_rollouts(model, tokenizer, ["word " * 60], 1, 8, seed=0)


@pytest.mark.parametrize("arguments, message", [
    (dict(prompts=[]), "no prompts"),
    (dict(prompts=["a", ""]), "prompt 1 is empty"),
    (dict(prompts=["a"], group_size=0), "at least 1"),
    (dict(prompts=["a"], max_new_tokens=0), "at least 1"),
    (dict(prompts=["a"], temperature=0.0), "greedy=True"),
    (dict(prompts=["a"], temperature=float("nan")), "greedy=True"),
    (dict(prompts=["a"], max_new_tokens=4000), "2048 positions"),
])
def test_bad_arguments_are_refused(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_rollouts(*tiny, **arguments)


# --- the cache, the group's shared prompt, the vocabulary in blocks ---

@pytest.mark.parametrize("decode", ["eager", "static"])
def test_a_window_of_attention_and_a_soft_capped_head(tokenizer, decode):
    r"""Gemma 2: some layers see 8 tokens only, and the logits are bounded behind the head."""
    import transformers as hf

    torch.manual_seed(0)
    model = sharper(hf.Gemma2ForCausalLM(hf.Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=8, final_logit_softcapping=2.0, attn_implementation="eager",
        eos_token_id=tokenizer.eos_token_id, pad_token_id=0, bos_token_id=None)))
    assert not has_plain_head(model) and model(torch.arange(4)[None]).logits.abs().max() <= 2.0
    rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer), 3, 20, seed=0, decode=decode)
    again = token_log_probs(model, rollout, group_size=3)
    torch.testing.assert_close(again, rollout.log_probs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_prompt_read_once_for_its_group_gives_the_same_gradient(any_model, temperature):
    model, tokenizer = copy.deepcopy(any_model[0]), any_model[1]
    assert has_plain_head(model)
    rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer), 4, 24, temperature, seed=1)
    weights = torch.randn(rollout.log_probs.shape, generator=torch.Generator().manual_seed(0))
    results = {}
    for group_size in (1, 2, 4):
        model.zero_grad()
        log_probs = token_log_probs(model, rollout, temperature, group_size)
        (weights * log_probs).sum().backward()
        results[group_size] = log_probs.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])
    for group_size in (2, 4):
        torch.testing.assert_close(results[group_size][0], results[1][0], atol=1e-4, rtol=0)
        assert (results[group_size][1] - results[1][1]).norm() < 1e-5 * results[1][1].norm()


# --- packed rows: prompts once, no padding ---

def test_a_packed_row_by_hand():
    r"""The example in pack's docstring. Tokens: x is 10 + t and 20 + t, y 30 + t, z 40 + t, u 50 + t, w 60 + t."""
    rollout = SimpleNamespace(
        sequences=torch.tensor([[0, 11, 12, 31, 32, 0], [0, 11, 12, 41, 42, 43], [21, 22, 23, 51, 0, 0],
                                [21, 22, 23, 61, 62, 0]]),
        attention_mask=torch.tensor([[0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]))
    rollout.response_mask = rollout.attention_mask[:, 3:].bool()
    inputs, before = pack(rollout, 2)
    assert inputs["input_ids"].tolist() == [[11, 12, 21, 22, 23, 31, 41, 42, 61]]
    assert inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2, 2, 2, 3, 3]]
    row = inputs["input_ids"][0]
    assert row[before].tolist() == [12, 31, 12, 41, 42, 23, 23, 61]  # before y_1 y_2, z_1 z_2 z_3, u_1, w_1 w_2
    (_, own, real, _), (queries, keys, read, seen) = inputs["blocks"]
    assert row[own].flatten()[real].tolist() == [11, 12, 21, 22, 23]
    assert [row[keys[1]][seen[1, 0, t]].tolist() for t in range(2)] == [[11, 12, 41], [11, 12, 41, 42]]
    assert row[queries].flatten()[read].tolist() == [31, 41, 42, 61]
    apart, _ = pack(rollout)  # every row with its own prompt
    assert apart["input_ids"].tolist() == [[11, 12, 11, 12, 21, 22, 23, 21, 22, 23, 31, 41, 42, 61]]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_give_what_padded_rows_give(any_model, checkpointing):
    model, tokenizer = copy.deepcopy(any_model[0]), any_model[1]
    rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer), 4, 24, seed=1)
    T = rollout.response_mask.shape[1]
    for row in range(0, 12, 2):  # cut to 1, 5, 9, ... tokens: random models seldom end a response
        rollout.response_mask[row, 1 + 2 * row :] = rollout.attention_mask[row, 1 + 2 * row - T :] = 0
    weights = torch.randn(rollout.log_probs.shape, generator=torch.Generator().manual_seed(0))
    if checkpointing:
        model.activation_checkpointing_enable()
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    results = {}
    assert can_pack(model)
    for packed, group_size in ((True, 4), (True, 1), (False, 1)):
        model.packs = packed
        model.zero_grad()
        log_probs = token_log_probs(model, rollout, 0.8, group_size)
        (weights * log_probs).sum().backward()
        results[packed, group_size] = log_probs.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])
    for key in ((True, 4), (True, 1)):
        torch.testing.assert_close(results[key][0], results[False, 1][0], atol=1e-4, rtol=0)
        assert (results[key][1] - results[False, 1][1]).norm() < 1e-5 * results[False, 1][1].norm()


@pytest.mark.parametrize("family", ["window", "layers with a window", "chosen attention"])
def test_models_that_cannot_be_packed_are_padded(tokenizer, family):
    import transformers as hf

    torch.manual_seed(0)
    sizes = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, bos_token_id=None, eos_token_id=1, pad_token_id=0)
    model = sharper({
        "window": lambda: hf.MistralForCausalLM(hf.MistralConfig(sliding_window=8, **sizes)),
        "layers with a window": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(
            use_sliding_window=True, sliding_window=8, max_window_layers=1, **sizes)),
        "chosen attention": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(attn_implementation="eager", **sizes)),
    }[family]())
    chosen = model.config._attn_implementation
    rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer), 3, 20, seed=0)
    assert not can_pack(model) and model.config._attn_implementation == chosen
    again = token_log_probs(model, rollout, group_size=3)
    torch.testing.assert_close(again, rollout.log_probs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("chosen", ["eager", "sdpa"])
def test_attention_that_is_chosen_after_sampling_is_used(tiny, chosen):
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer), 3, 20, seed=0)
    model.set_attn_implementation(chosen)
    again = token_log_probs(model, rollout, group_size=3)
    torch.testing.assert_close(again, rollout.log_probs, atol=1e-4, rtol=0)


def test_a_trial_does_not_depend_on_dropout_precision_or_another_model(tokenizer):
    import transformers as hf

    sizes = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_attention_heads=4,
                 num_key_value_heads=2)
    training = hf.LlamaForCausalLM(hf.LlamaConfig(attention_dropout=0.5, num_hidden_layers=2, **sizes)).train()
    assert has_plain_head(training) and can_pack(training) and training.training
    config = hf.Qwen2Config(num_hidden_layers=24, **sizes)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):  # the second one finds "packed" in its configuration
        assert can_pack(sharper(hf.Qwen2ForCausalLM(config)).to(dtype))


def test_attention_written_out_leaves_what_it_does_not_know_to_torch():
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True, training=True)
    query, key, value = torch.randn(3, 4, 2, 8), torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 8)
    seen = torch.ones(3, 1, 2, 5, dtype=torch.bool)
    plain, _ = attention(module, query, key, value, seen, scaling=0.5, dropout=0.0)
    dropped, _ = attention(module, query, key, value, seen, scaling=0.5, dropout=0.5)
    assert (plain - dropped).abs().max() > 0.01
    with pytest.raises(ValueError, match="softcap"):
        attention(module, query, key, value, seen, scaling=0.5, dropout=0.0, softcap=5.0)


def test_a_model_that_was_packed_is_saved_as_any_other(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    model = copy.deepcopy(tiny[0])
    assert can_pack(model) and model.config._attn_implementation == "packed"
    model.save_pretrained(tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_one_token_responses_in_a_group(tiny):
    rollout = sample_rollouts(*tiny, prompts_for(tiny[1]), 4, 1, seed=0)
    torch.testing.assert_close(token_log_probs(tiny[0], rollout, 1.0, 4), rollout.log_probs, atol=1e-4, rtol=0)


def test_the_group_s_prompt_is_read_once(tiny):
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer), 8, 20, seed=0)
    seen = []
    assert can_pack(model)
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2].numel()))
    N, T = rollout.response_mask.shape
    P = rollout.sequences.shape[1] - T
    token_log_probs(model, rollout, 1.0, 8)
    prompts, responses = rollout.attention_mask[::8, :P].sum(), rollout.response_mask.sum()
    assert prompts < N // 8 * P and responses < N * T  # there is padding, and none of it is read
    assert seen == [prompts + responses - N]  # nothing follows a last token
    seen.clear()
    sample_rollouts(model, tokenizer, prompts_for(tokenizer), 8, 20, seed=0)
    assert seen[0] == N // 8 * P and sum(seen[1:]) <= N * (T - 1)


def test_rows_leave_the_batch(tiny):
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    rows = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer)[:2], 16, 72, seed=0)
    lengths = rollout.response_mask.sum(dim=1)
    alive = [int((lengths > t).sum()) for t in range(1, int(lengths.max()))]
    assert all(a <= n <= a * 4 / 3 + 1 for a, n in zip(alive, rows[1:])) and rows[-1] < 32


def test_prompts_of_very_different_length_pad_little(tiny, monkeypatch):
    import rollout as module

    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    prompts = prompts_for(tokenizer) + ["word " * 300]
    whole = sample_rollouts(model, tokenizer, prompts, 2, 12, seed=0)
    seen = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2].numel()))
    monkeypatch.setattr(module, "PREFILL_TOKENS", 400)
    bucketed = sample_rollouts(model, tokenizer, prompts, 2, 12, seed=0)
    tokens = sum(len(tokenizer(prompt).input_ids) for prompt in prompts)
    padded = len(prompts) * max(len(tokenizer(prompt).input_ids) for prompt in prompts)
    assert tokens <= sum(n for n in seen if n > 8) < padded
    assert bucketed.texts == whole.texts
    torch.testing.assert_close(bucketed.log_probs, whole.log_probs, atol=1e-4, rtol=0)


def test_a_cache_of_fixed_shape_samples_the_same(any_model):
    model, tokenizer = any_model
    rollouts = [sample_rollouts(model, tokenizer, prompts_for(tokenizer), 4, 40, 1.2, seed=3, decode=decode)
                for decode in ("eager", "static")]
    assert rollouts[0].texts == rollouts[1].texts
    assert torch.equal(rollouts[0].sequences, rollouts[1].sequences)
    torch.testing.assert_close(rollouts[0].log_probs, rollouts[1].log_probs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_the_vocabulary_in_blocks(dtype, tolerance, monkeypatch):
    import scoring as module

    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=generator).to(dtype).requires_grad_()
                      for shape in ((7, 16), (1000, 16)))
    targets = torch.tensor([0, 1, 255, 256, 511, 998, 999])  # on both sides of the blocks' borders
    upstream = torch.randn(7, generator=generator)
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 7 * 256)
    ours = module.VocabularyLogProbs.apply(hidden, weight, targets)
    gradients = torch.autograd.grad((ours * upstream).sum(), (hidden, weight))
    plain = (hidden.float() @ weight.float().T).log_softmax(dim=-1)[torch.arange(7), targets]
    expected = torch.autograd.grad((plain * upstream).sum(), (hidden, weight))
    torch.testing.assert_close(ours, plain, atol=tolerance, rtol=tolerance)
    for a, b in zip(gradients, expected):
        assert a.dtype == dtype and (a.float() - b.float()).norm() < max(tolerance, 1e-5) * b.float().norm()


def test_many_blocks_do_not_add_up_rounding_errors_in_bfloat16(monkeypatch):
    import scoring as module

    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=generator).bfloat16().requires_grad_()
                      for shape in ((64, 16), (256 * 128, 16)))
    targets = torch.randint(len(weight), (64,), generator=generator)
    plain = (hidden.float() @ weight.float().T).log_softmax(dim=-1)[torch.arange(64), targets]
    expected = torch.autograd.grad(plain.sum(), hidden)[0].float()
    errors = []
    for blocks in (1, 128):
        monkeypatch.setattr(module, "BLOCK_NUMBERS", 64 * len(weight) // blocks)
        ours = torch.autograd.grad(module.VocabularyLogProbs.apply(hidden, weight, targets).sum(), hidden)[0].float()
        errors.append((ours - expected).norm() / expected.norm())
    assert errors[1] < 1.5 * errors[0] < 0.01


def test_blocks_are_used_and_change_nothing(any_model, monkeypatch):
    import scoring as module

    model, tokenizer = copy.deepcopy(any_model[0]), any_model[1]
    rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer), 2, 16, seed=1)
    results = []
    for numbers in (2**24, 256 * int(rollout.response_mask.sum())):
        monkeypatch.setattr(module, "BLOCK_NUMBERS", numbers)
        model.zero_grad()
        log_probs = token_log_probs(model, rollout, 0.8, 2)
        log_probs.square().sum().backward()
        results.append((log_probs.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
        assert ("VocabularyLogProbs" in repr(log_probs.grad_fn.next_functions)) == (numbers < 2**24)
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-4, rtol=0)
    assert (results[0][1] - results[1][1]).norm() < 1e-5 * results[0][1].norm()


def test_bfloat16_sampler_and_trainer_agree(tiny):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rollout = sample_rollouts(*tiny, prompts_for(tiny[1]), 8, 40, seed=1)
        again = token_log_probs(tiny[0], rollout, 1.0, 8).detach()
    mean = (again - rollout.log_probs).abs().sum() / rollout.response_mask.sum()
    assert mean < 2e-2
    assert (token_log_probs(tiny[0], rollout).detach() - again).abs().max() > 1e-5  # it was another precision
