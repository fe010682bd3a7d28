r"""Fixtures that several test files share: the embedded model, small models of other families, the real GSM8K."""

import os
import sys
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs the network, and none may wait for it
if os.environ.get("PRETEND_CPU"):  # plain, or bfloat16: what this CPU says that it multiplies in hardware
    torch.cpu.get_capabilities = lambda: dict.fromkeys(
        ("avx512_bf16", "amx_bf16"), os.environ["PRETEND_CPU"] == "bfloat16")
torch.set_num_threads(1)  # tensors are small here, and two threads wait for each other on a machine that is busy
ROOT = Path(__file__).resolve().parent.parent


LONGEST = ("test_parallel", "test_interruptions", "test_train", "test_objectives")


def pytest_collection_modifyitems(items):
    r"""The longest files first, so that the two workers of pytest.ini end at the same time."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    r"""Runs in tests are many and short, and a picture takes a second; test_train.py's fixture `finished` draws one."""
    if "plumbing.run" in sys.modules:
        monkeypatch.setattr(sys.modules["plumbing.run"], "draw_curves", lambda *_: None)


@pytest.fixture(scope="session")
def tiny():
    r"""(model, tokenizer) of tiny/model; tests must not change the weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = ROOT / "tiny" / "model"
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="session")
def tokenizer(tiny):
    return tiny[1]


def sharper(model):
    r"""Weights three times as large as at random initialisation, so that the choice of a token means something."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)
    return model.eval()


def small_model(family, tokenizer):
    r"""A random model of another family than the embedded one, with its vocabulary: qwen2, gemma, or gpt2.

    gpt2 has learned positions, so that wrong position ids show.
    """
    import transformers as hf

    torch.manual_seed(0)
    common = dict(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
                  bos_token_id=None)
    rotary = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=512, **common)
    if family == "qwen2":
        model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**rotary))
    elif family == "gemma":
        model = hf.GemmaForCausalLM(hf.GemmaConfig(head_dim=8, **rotary))
    else:
        model = hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=512, **common))
    return sharper(model)


@pytest.fixture(scope="session")
def gsm8k_folder():
    r"""The folder with GSM8K's train.jsonl and test.jsonl, where it is there."""
    folder = ROOT.parent / "shared" / "data" / "gsm8k"
    if not (folder / "test.jsonl").is_file():
        pytest.skip(f"the real GSM8K is not at {folder}")
    return folder
