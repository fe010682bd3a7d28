r"""Memory of an update: [N, T, V] in float32 never exists; microbatches are halved where memory is not enough."""

import ast
import copy
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from test_train import minibatch_gradient, run

import train as program
from plumbing.batches import log_probs_of
from rollout import sample_rollouts


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_an_update_with_151936_words_stays_under_1_gb():
    # Its layers are small, so that what is measured is the projection to the vocabulary. A process of its own: a peak.
    code = "from benchmarks.memory import measure; print(measure((64, 128, 1, 2, 1, 151_936), 16))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    row = ast.literal_eval(done.stdout.splitlines()[-1])
    whole = row["tokens"] * 151_936 * 4 / 2**20  # the logits in one piece: more than 2300 MiB
    assert whole > 2300 and 0 < 1024 * (row["peak_gib"] - row["state_gib"]) < 1000


# --- --micro-batch-size auto ---

@pytest.fixture(params=["forward", "backward"])
def small_memory(request, tiny):
    r"""(model, tokenizer, the numbers of tokens for which there was no room): training has room for 200.

    "backward": the last layer has its gradients when memory is found not to be enough.
    """
    model, refused = copy.deepcopy(tiny[0]), []

    def check(x):  # [1, tokens, D]
        if x.shape[1] > 200:
            refused.append(x.shape[1])
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def after(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output  # [1, tokens, D]
        if request.param == "forward" and torch.is_grad_enabled():
            check(hidden)
        elif hidden.requires_grad:
            hidden.register_hook(check)

    model.model.layers[1].register_forward_hook(after)
    return model, tiny[1], refused


def test_halved_microbatches_have_the_same_gradient_and_stay(tiny, small_memory, capsys):
    model, tokenizer, refused = small_memory
    flags = ("--micro-batch-size", "auto", "--tokens-per-microbatch", 2000)
    whole, totals, _ = minibatch_gradient(tiny, *flags)
    assert "out of memory" not in capsys.readouterr().err
    parts, totals_of_parts, (_, rollout, _, rows, settings) = minibatch_gradient((model, tokenizer), *flags)
    assert refused and (parts - whole).norm() < 1e-5 * whole.norm()
    assert vars(totals_of_parts) == pytest.approx(vars(totals), rel=1e-4)
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and f"at most {settings.tokens_per_microbatch} tokens" in said[0]
    assert settings.tokens_per_microbatch < 2000
    refused.clear()
    program.backward(model, program.OBJECTIVES[settings.objective], rollout, rows, settings)
    assert not refused and not capsys.readouterr().err


def test_a_model_that_reads_each_prompt_for_itself_stays_within_its_tokens(tokenizer):
    import transformers as hf

    model = hf.MistralForCausalLM(hf.MistralConfig(
        sliding_window=8, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=None, eos_token_id=1, pad_token_id=0)).eval()
    settings = program.parse_settings(["--group-size", "8", "--prompts-per-step", "2", "--minibatch-size", "16",
                                       "--tokens-per-microbatch", "400", "--device", "cpu"])
    rollout, read = sample_rollouts(model, tokenizer, ["word " * 100, "Short."], 8, 8, seed=0), []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[:2].numel()))
    log_probs_of(model, rollout, settings)
    assert 200 < max(read) <= 400


def test_without_auto_an_error_is_an_error(small_memory):
    with pytest.raises(torch.OutOfMemoryError):
        minibatch_gradient(small_memory[:2], "--micro-batch-size", 8, "--tokens-per-microbatch", 2000)


def test_one_response_that_does_not_fit_is_one_line(tiny, capsys):
    model = copy.deepcopy(tiny[0])

    def refuse(*_):
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError

    model.model.layers[0].register_forward_hook(refuse)
    with pytest.raises(SystemExit) as stop:
        minibatch_gradient((model, tiny[1]), "--micro-batch-size", "auto")
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in said and "--gradient-checkpointing" in said


def test_scoring_is_halved_too(tiny, monkeypatch):
    from plumbing import batches

    _, _, (model, rollout, *_, settings) = minibatch_gradient(tiny, "--micro-batch-size", "auto")
    whole, real = log_probs_of(model, rollout, settings), batches.token_log_probs

    def refuse(model, part, *arguments):
        if len(part.texts) > 3:
            raise torch.OutOfMemoryError
        return real(model, part, *arguments)

    monkeypatch.setattr(batches, "token_log_probs", refuse)
    torch.testing.assert_close(log_probs_of(model, rollout, settings), whole, atol=1e-4, rtol=0)


def test_a_run_with_auto_goes_on_after_it_was_stopped(tmp_path):
    flags = ["--micro-batch-size", "auto", "--eval-every", 0, "--save-every", 1, "--out", tmp_path / "run"]
    assert len(run("--steps", 1, *flags)) == 2
    assert len(run("--resume", tmp_path / "run", "--steps", 2, quick=False)) == 3


@pytest.mark.parametrize("value", ["0", "-1", "automatic", "1.5"])
def test_a_bad_size_is_one_line(value, capsys):
    with pytest.raises(SystemExit) as stop:
        program.parse_settings(["--micro-batch-size", value])
    assert stop.value.code == 2 and "--micro-batch-size" in capsys.readouterr().err
