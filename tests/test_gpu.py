r"""What must hold on a CUDA device: `pytest -m gpu`. On other machines every test here is skipped.

Speed and memory are measured by benchmarks/gpu.py.
"""

import copy
import math

import pytest
import torch
from conftest import small_model
from test_rollout import prompts_for
from test_train import run

from rollout import sample_rollouts
from scoring import token_log_probs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.fixture(params=["llama", "qwen2"])
def on_device(request, tiny):
    r"""(model on the GPU, tokenizer)."""
    model = tiny[0] if request.param == "llama" else small_model("qwen2", tiny[1])
    return copy.deepcopy(model).to("cuda"), tiny[1]


def test_scoring_on_the_device_is_scoring_on_the_cpu(on_device):
    model, tokenizer = on_device
    rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer), 4, 24, seed=0)
    for group_size in (1, 4):
        here = token_log_probs(model, rollout, 1.0, group_size).cpu()
        there = token_log_probs(copy.deepcopy(model).cpu(), rollout.to("cpu"), 1.0, group_size)
        torch.testing.assert_close(here, there, atol=1e-3, rtol=0)
        torch.testing.assert_close(rollout.log_probs.cpu(), there, atol=1e-3, rtol=0)


def test_bfloat16_log_probs_are_near_those_of_float32(on_device):
    model, tokenizer = on_device
    rollout = sample_rollouts(model, tokenizer, prompts_for(tokenizer), 8, 40, seed=1)
    exact = token_log_probs(model, rollout)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        half = token_log_probs(model, rollout)
    mean = (half - exact).abs().sum() / rollout.response_mask.sum()
    assert 0 < mean < 2e-2


@pytest.mark.parametrize("decode", ["static", "compiled"])
def test_the_same_greedy_tokens_as_eager_decoding(on_device, decode):
    model, tokenizer = on_device
    eager, other = (sample_rollouts(model, tokenizer, prompts_for(tokenizer), 2, 24, greedy=True, decode=how)
                    for how in ("eager", decode))
    assert torch.equal(eager.sequences, other.sequences)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_a_step_of_the_main_job(tmp_path, dtype):
    flags = ["--steps", 1, "--eval-every", 0, "--save-every", 1, "--dtype", dtype]
    here = run(*flags, "--device", "cuda", "--out", tmp_path / "here")[1]
    assert all(here[name] is not None and math.isfinite(here[name]) for name in ("loss", "grad_norm", "kl_to_old"))
    assert here["grad_norm"] > 0 and here["skipped_updates"] == 0 and here["sampler_mismatch"] < 2e-2
    if dtype == "float32":
        on_cpu = run(*flags, "--device", "cpu", "--out", tmp_path / "cpu")[1]
        assert here["loss"] == pytest.approx(on_cpu["loss"], rel=1e-2)
        assert here["grad_norm"] == pytest.approx(on_cpu["grad_norm"], rel=1e-2)
