r"""The same on every machine: what is computed in which precision, on which device, and which models are refused.

What a GPU runs by default (bfloat16 autocast, old log-probs computed again, gradient checkpointing, a cache of fixed
shape) is run here in bfloat16 on the CPU, which every CPU can do.
"""

import copy
import functools
import json
import math

import pytest
import torch
import transformers as hf
from conftest import small_model
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import plumbing.model
import plumbing.run
import rollout as sampling
import train as program
from gsm8k import format_prompt
from plumbing import metrics
from plumbing.model import product_dtype
from rollout import check_model, sample_rollouts
from scoring import has_plain_head, head_logits, token_log_probs
from test_rollout import prompts_for
from test_train import run, without_timings

CPUS = {"plain": {}, "bfloat16": dict(avx512_bf16=True, amx_bf16=True)}


# --- one default everywhere ---

@pytest.mark.parametrize("cpu", CPUS)
def test_every_cpu_computes_in_float32(monkeypatch, cpu):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: CPUS[cpu])
    settings = program.parse_settings(["--device", "cpu"])
    assert settings.preset == "tiny" and product_dtype(settings) == torch.float32
    assert not program.recomputes_old_log_probs(settings)
    settings = program.parse_settings(["--device", "cpu", "--dtype", "bfloat16"])
    assert product_dtype(settings) == torch.bfloat16


def test_a_cuda_device_changes_neither_task_nor_model(monkeypatch, capsys):
    plain = program.parse_settings([])
    capsys.readouterr()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert program.parse_settings(["--out", plain.out]) == plain
    printed = capsys.readouterr().out
    assert "--preset gsm8k" in printed and printed.count("\n") == 1


@pytest.mark.parametrize("local_rank", [0, 1])
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_process_of_a_machine_has_its_own_device(monkeypatch, device, local_rank):
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device=None: empty(*size, device="meta"))
    settings = program.parse_settings([])
    settings.device = device
    assert program.device_of(settings) == torch.device("cuda", local_rank)


# --- bfloat16 ---

@pytest.mark.parametrize("decode", ["eager", "static"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_a_gpu_does_by_default_runs_in_bfloat16_on_the_cpu(tmp_path, decode, checkpointing):
    flags = ["--gradient-checkpointing"] if checkpointing else []
    rows = run("--steps", 1, "--dtype", "bfloat16", "--decode", decode, *flags, "--eval-every", 1, "--save-every", 1,
               "--out", tmp_path / "run")
    assert math.isfinite(rows[1]["loss"]) and rows[1]["grad_norm"] > 0
    assert 0 < rows[1]["sampler_mismatch"] < 1e-2 and rows[1]["kl_to_old"] < 1e-3


class Conversions(TorchDispatchMode):
    r"""Counts conversions to another precision of tensors with at least `size` numbers."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if "_to_copy" in str(function) and arguments[0].numel() >= self.size:
            self.count += arguments[0].is_floating_point()
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("decode", ["eager", "static"])
def test_the_cache_is_kept_in_the_precision_of_attention(tiny, monkeypatch, decode):
    model, tokenizer = tiny
    caches, real = [], sampling.prefill
    monkeypatch.setattr(sampling, "prefill", lambda *a, **k: caches.append(real(*a, **k)) or caches[-1])
    prompts = prompts_for(tokenizer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sample_rollouts(model, tokenizer, prompts, 32, 2, seed=0, decode=decode)
        layer = caches[0][0].layers[0]
        assert layer.keys.dtype == layer.values.dtype == torch.bfloat16
        longest = max(len(tokenizer(prompt).input_ids) for prompt in prompts)
        whole = layer.buffers[0] if decode == "eager" else layer.keys
        assert whole.shape[2] == longest + 2  # room for every token from the start: nothing grows
        weights = max(parameter.numel() for parameter in model.parameters())
        size = layer.keys.shape[0] * layer.keys.shape[1] * (layer.keys.shape[2] - 10) * layer.keys.shape[3]
        assert size > weights  # so that no conversion of weights is counted
        with Conversions(size) as conversions:
            sample_rollouts(model, tokenizer, prompts, 32, 12, seed=0, decode=decode)
    assert conversions.count <= 2 * len(model.model.layers)  # those of the prefill, none for a token
    sample_rollouts(model, tokenizer, prompts, 2, 2, seed=0, decode=decode)
    assert caches[-1][0].layers[0].keys.dtype == torch.float32


@pytest.mark.parametrize("blocks", [False, True])
def test_logits_are_not_rounded_to_bfloat16(tiny, monkeypatch, blocks):
    r"""With logits of 16 to 64 the grid of bfloat16 is 0.125 to 0.25; the log-probs must stay off it."""
    import scoring

    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    with torch.no_grad():
        model.model.norm.weight.mul_(8)
    if blocks:
        monkeypatch.setattr(scoring, "BLOCK_NUMBERS", 256)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer), 4, 16, 4.0, seed=0)
        hidden = model.model(rollout.sequences, rollout.attention_mask).last_hidden_state[:, -1]
        log_probs = token_log_probs(model, rollout, 4.0)
        logits = head_logits(model, hidden)
        assert logits.abs().max() > 16 and logits.dtype == torch.float32
        rounded = model.lm_head(hidden).float()
    exact = hidden.double() @ model.lm_head.weight.double().T
    assert (logits - exact).abs().max() < 1e-3 < 1e-2 < (rounded - exact).abs().max()
    mean = (log_probs - rollout.log_probs).abs().sum() / rollout.response_mask.sum()
    assert mean < 1e-2


# --- float16: the loss is scaled ---

# Few and small updates, as a CPU multiplies float16 slowly.
IN_FLOAT16 = ["--dtype", "float16", "--prompts-per-step", 2, "--minibatch-size", 4, "--old-log-probs", "sampler",
              "--eval-every", 0]


def scaled_by(monkeypatch, factor):
    r"""The first factor of the loss, where there is one."""
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=factor))


def test_float16_trains_and_its_gradient_is_that_of_float32(tmp_path):
    flags = ["--steps", 1, "--eval-every", 0, "--save-every", 1]
    half, whole = (run(*flags, "--dtype", dtype, "--out", tmp_path / dtype)[1] for dtype in ("float16", "float32"))
    assert half["skipped_updates"] == half["overflowed_updates"] == 0
    assert half["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-2)
    assert half["loss"] == pytest.approx(whole["loss"], rel=1e-2, abs=1e-3)
    assert 1e-6 < half["sampler_mismatch"] < 1e-2  # another precision; read again, as in bfloat16
    assert half["kl_to_old"] < 1e-3
    weights = load_file(tmp_path / "float16" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_small_gradients_survive_only_with_the_scaled_loss(tiny):
    r"""A loss of 1e-5 times its size: float16 gradients are 0 in part without the factor."""
    model = copy.deepcopy(tiny[0])
    rollout = sample_rollouts(model, tiny[1], prompts_for(tiny[1]), 2, 16, seed=0)
    tail = model.model.layers[0].self_attn.q_proj.weight
    gradients = {}
    for name, dtype, scale in (("exact", torch.float32, 1.0), ("plain", torch.float16, 1.0),
                               ("scaled", torch.float16, 2.0**16)):
        model.zero_grad()
        with torch.autocast("cpu", dtype=dtype if dtype == torch.float16 else None, enabled=dtype == torch.float16):
            log_probs = token_log_probs(model, rollout)
        (log_probs.sum() * 1e-7 * scale).backward()
        gradients[name] = tail.grad / scale
    error = {name: ((gradients[name] - gradients["exact"]).norm() / gradients["exact"].norm()).item()
             for name in ("plain", "scaled")}
    assert error["scaled"] < 0.02 < 0.2 < error["plain"]


def test_overflows_of_the_scaled_gradient_are_counted_apart_and_shrink_the_factor(tmp_path, monkeypatch):
    scaled_by(monkeypatch, 2.0**23)
    rows = run(*IN_FLOAT16, "--steps", 3, "--epochs", 4, "--save-every", 3, "--out", tmp_path / "run")[1:]
    overflows = [row["overflowed_updates"] for row in rows]
    assert sum(overflows) > 3 and rows[-1]["grad_norm"] > 0
    assert all(row["skipped_updates"] == 0 for row in rows)  # more than three in a row, and the run went on
    state = json.loads(next((tmp_path / "run").glob("checkpoint-*/state.json")).read_text())
    assert state["scaler"]["scale"] == 2.0 ** (23 - sum(overflows))


def test_what_is_broken_in_float16_is_not_taken_for_an_overflow(tmp_path, monkeypatch, capsys):
    real = program.aggregate
    monkeypatch.setattr(program, "aggregate", lambda *a, **k: real(*a, **k) * math.nan)
    with pytest.raises(SystemExit) as stop:
        run(*IN_FLOAT16, "--steps", 2, "--out", tmp_path / "loss")
    assert stop.value.code == 1 and "3 updates in a row" in capsys.readouterr().err
    monkeypatch.undo()
    scaled_by(monkeypatch, 4.0)

    def broken(losses, *arguments, **keywords):  # finite, with a gradient that is not
        return real(losses, *arguments, **keywords) + (losses * 0).sum().sqrt()

    monkeypatch.setattr(program, "aggregate", broken)
    with pytest.raises(SystemExit) as stop:  # overflows at 4 and 2; at 1 the factor is no excuse any more
        run(*IN_FLOAT16, "--steps", 3, "--out", tmp_path / "gradient")
    assert stop.value.code == 1 and "the gradient was not finite in 3 updates" in capsys.readouterr().err


def test_float16_resumed_is_float16_unbroken(tmp_path, monkeypatch):
    scaled_by(monkeypatch, 2.0**24)
    flags = [*IN_FLOAT16, "--save-every", 1]
    whole = run("--steps", 2, *flags, "--out", tmp_path / "whole")
    run("--steps", 1, *flags, "--out", tmp_path / "run")
    monkeypatch.undo()  # the factor must come from the checkpoint
    parts = run("--resume", tmp_path / "run", "--steps", 2, quick=False)
    assert without_timings(parts) == without_timings(whole)
    states = [json.loads(next((tmp_path / name).glob("checkpoint-*/state.json")).read_text())["scaler"]
              for name in ("whole", "run")]
    assert states[0] == states[1] and states[0]["scale"] != torch.amp.GradScaler("cpu").get_scale()


# --- the head ---

def test_a_plain_head_is_recognised_to_rounding_and_no_other(tokenizer, monkeypatch):
    model = small_model("qwen2", tokenizer)
    real = type(model.model).forward

    def off_by_a_bit(self, *arguments, **keywords):
        output = real(self, *arguments, **keywords)
        off_by_a_bit.calls += 1
        output.last_hidden_state = output.last_hidden_state * (1 + 2e-7 * off_by_a_bit.calls)
        return output

    off_by_a_bit.calls = 0
    monkeypatch.setattr(type(model.model), "forward", off_by_a_bit)
    assert has_plain_head(model) and off_by_a_bit.calls == 2
    monkeypatch.undo()

    def behind(change):
        changed = copy.deepcopy(model)
        del changed.plain_head
        forward = changed.forward

        def other(*arguments, **keywords):
            output = forward(*arguments, **keywords)
            output.logits = change(output.logits)
            return output

        changed.forward = other
        return has_plain_head(changed)

    assert not behind(lambda z: 30 * (z / 30).tanh())  # a soft cap that the small logits of a new model do not show
    assert not behind(lambda z: z / 8) and not behind(lambda z: z + 1000)


@pytest.mark.parametrize("plain", [True, False])
def test_the_console_says_which_head_it_found(tmp_path, monkeypatch, capsys, plain):
    monkeypatch.setattr(plumbing.run, "has_plain_head", lambda _: plain)
    run("--steps", 1, "--eval-every", 0, "--save-every", 0, "--out", tmp_path / "run")
    assert ("vocabulary in blocks" if plain else "whole logits") in capsys.readouterr().out


# --- compiled decoding ---

def test_compiled_decoding_is_compiled_once_for_prompts_of_many_lengths(tiny, monkeypatch):
    r"""With the graph captured but not made into code, so that the test needs no compiler."""
    compiled, graphs = torch.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    monkeypatch.setattr(torch, "compile", lambda module, **_: compiled(module, backend=backend, dynamic=False))
    torch._dynamo.reset()
    counts = []
    for words in (1, 4, 9, 12):
        prompts = [format_prompt(tokenizer, "plums " * words)] * 2
        captured = sample_rollouts(model, tokenizer, prompts, 2, 8, seed=3, decode="compiled")
        eager = sample_rollouts(model, tokenizer, prompts, 2, 8, seed=3)
        assert captured.texts == eager.texts and torch.equal(captured.sequences, eager.sequences)
        counts.append(len(graphs))
    torch._dynamo.reset()
    assert counts[0] >= 1 and counts[-1] == counts[0]


# --- models ---

SIZES = dict(vocab_size=1024, bos_token_id=None, pad_token_id=0, eos_token_id=1)
ROTARY = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              **SIZES)


def save(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["opt", "xglm"])
def test_dropout_that_is_no_module_is_off_under_gradient_checkpointing(tmp_path, tokenizer, family):
    torch.manual_seed(0)
    if family == "opt":
        model = hf.OPTForCausalLM(hf.OPTConfig(
            hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256,
            word_embed_proj_dim=32, dropout=0.3, **SIZES))
    else:
        model = hf.XGLMForCausalLM(hf.XGLMConfig(
            d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, max_position_embeddings=256, dropout=0.3, **SIZES))
    rows = run("--model", save(tmp_path / "model", model, tokenizer), "--steps", 1, "--gradient-checkpointing",
               "--eval-every", 0, "--save-every", 0, "--out", tmp_path / "run")
    assert rows[1]["sampler_mismatch"] < 1e-5


REFUSED = {
    "Mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **SIZES)),
    "Jamba": lambda: hf.JambaForCausalLM(hf.JambaConfig(
        attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, num_experts=2, use_mamba_kernels=False,
        mamba_d_state=4, mamba_dt_rank=4, **ROTARY)),
    "Qwen3Next": lambda: hf.Qwen3NextForCausalLM(hf.Qwen3NextConfig(
        layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2, linear_num_value_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8, num_experts=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, head_dim=8, **ROTARY)),
    "LFM2": lambda: hf.Lfm2ForCausalLM(hf.Lfm2Config(layer_types=["conv", "full_attention"], **ROTARY)),
    "Bart": lambda: hf.BartForCausalLM(hf.BartConfig(
        d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, max_position_embeddings=256,
        is_decoder=True, is_encoder_decoder=False, dropout=0.0, init_std=0.5, **SIZES)),
}


@pytest.mark.parametrize("family", REFUSED)
def test_models_that_sampler_and_trainer_would_see_differently_are_refused(tmp_path, tokenizer, capsys, family):
    torch.manual_seed(0)
    folder = save(tmp_path / "model", REFUSED[family](), tokenizer)
    with pytest.raises(SystemExit) as stop:
        run("--model", folder, "--steps", 1, "--out", tmp_path / "run")
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py:")]
    assert stop.value.code == 2 and len(error) == 1 and "decoder-only" in error[0]
    assert not (tmp_path / "run").exists()


def test_a_model_that_drops_units_at_random_or_ignores_positions_is_refused(tokenizer):
    model = small_model("gpt2", tokenizer)
    check_model(model, tokenizer)
    dropping = copy.deepcopy(model).train()
    assert any(module.p > 0 for module in dropping.modules() if isinstance(module, torch.nn.Dropout))
    with pytest.raises(ValueError, match="padding"):
        check_model(dropping, tokenizer)
    deaf = copy.deepcopy(model)
    forward = deaf.transformer.forward
    deaf.transformer.forward = lambda *a, position_ids=None, **k: forward(*a, **k)
    with pytest.raises(ValueError, match="padding"):
        check_model(deaf, tokenizer)


def test_gpt_neo_is_refused_where_a_cache_of_fixed_shape_is_asked_for_and_wrong(tokenizer):
    torch.manual_seed(0)
    model = hf.GPTNeoForCausalLM(hf.GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, max_position_embeddings=256, window_size=8,
        attention_types=[[["global", "local"], 1]], initializer_range=0.5, **SIZES)).eval()
    check_model(model, tokenizer)
    with pytest.raises(ValueError):
        check_model(model, tokenizer, decode="static")


# --- the record ---

def test_a_skipped_update_leaves_the_average_kl_alone(tmp_path, monkeypatch):
    flags = ["--objective", "rpg_urkl", "--reference", "initial", "--ref-update-kl", "10", "--eval-every", "0",
             "--save-every", "1", "--steps", "1"]
    calls, real = [], program.aggregate

    def broken_once(*arguments, **keywords):
        calls.append(1)
        return real(*arguments, **keywords) * (math.nan if len(calls) == 1 else 1.0)

    monkeypatch.setattr(program, "aggregate", broken_once)
    monkeypatch.setattr(metrics, "k3", lambda p, q: (p - q) * (math.nan if len(calls) == 1 else 1.0))
    rows = run(*flags, "--out", tmp_path / "run")
    assert rows[1]["skipped_updates"] == 1
    state = json.loads(next((tmp_path / "run").glob("checkpoint-*/state.json")).read_text())
    assert math.isfinite(state["average_kl"])


def test_what_is_not_a_number_is_null_in_the_record(tmp_path, monkeypatch):
    real = sampling.sample_rollouts

    def infinite(*arguments, **keywords):
        rollout = real(*arguments, **keywords)
        rollout.log_probs[0, 0] = -torch.inf
        return rollout

    monkeypatch.setattr(program, "sample_rollouts", infinite)
    rows = run("--steps", 1, "--eval-every", 0, "--save-every", 0, "--lr", "1e-9", "--out", tmp_path / "run")
    assert rows[1]["entropy"] is None
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))


@pytest.mark.parametrize("device, dtype, precision", [
    ("cpu", "float32", "highest"), ("cpu", "bfloat16", "highest"), ("cuda", "float32", "highest"),
    ("cuda", "bfloat16", "high")])
def test_the_head_is_in_tf32_beside_bfloat16_on_cuda_only(monkeypatch, device, dtype, precision):
    settings = program.parse_settings(["--device", "cpu", "--dtype", dtype])
    monkeypatch.setattr(plumbing.model, "device_of", lambda _: torch.device(device))
    assert plumbing.model.head_precision(settings) == precision
    assert ("TF32" in plumbing.model.precision(settings)) == (device == "cuda")


def test_every_process_sets_the_head_s_precision_with_the_model(monkeypatch):
    seen = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(plumbing.model, "head_precision", lambda _: seen.append(1) or "highest")
    settings = program.parse_settings(["--device", "cpu"])
    plumbing.model.load_model(settings, settings.model)
    assert seen


def test_the_peak_memory_of_a_gpu_is_printed_beside_the_host_s(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    assert plumbing.run.peak_memory(torch.device("cuda", 1)).endswith("GiB, of cuda:1 3.00 GiB")
    assert "," not in plumbing.run.peak_memory(torch.device("cpu"))
