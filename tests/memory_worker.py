r"""Run by test_memory.py in a process of its own: the peak of one update above the model's own memory, in MB.

The model's own memory: weights, gradients and AdamW's two averages. Its layers are small, so that what is measured is
the projection to a vocabulary of 151,936.
"""

import sys
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train as program  # noqa: E402
from rollout import Rollout  # noqa: E402
from settings import parse_settings  # noqa: E402


def memory(name):  # MB; VmRSS now, VmHWM at its peak
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


V, N, P, T = 151_936, 16, 64, 256
torch.manual_seed(0)
size = int(sys.argv[1])
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=V, hidden_size=size, intermediate_size=2 * size, num_hidden_layers=1,
                                     num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True))
settings = parse_settings(["--preset", "tiny", "--group-size", "16", "--prompts-per-step", "1",
                           "--minibatch-size", "16", "--tokens-per-microbatch", "100000", "--device", "cpu", "--dtype",
                           "float32"])
mask = torch.ones(N, T, dtype=torch.bool)
rollout = Rollout(torch.randint(V, (N, P + T)), torch.ones(N, P + T, dtype=torch.long), mask, torch.full((N, T), -12.0),
                  [""] * N, torch.zeros(N, dtype=torch.bool))
advantages, optimizer = torch.linspace(-1, 1, N), torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
short = rollout.select(range(N))
short.response_mask[:, 4:] = False
program.update(model, optimizer, short.select(range(N)), None, advantages, torch.arange(N), settings, 0)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
totals = program.update(model, optimizer, rollout, None, advantages, torch.arange(N), settings, 1)
assert totals["tokens"] == N * T and not totals["skipped"]
print(memory("VmHWM") - before)
