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
from objectives import OBJECTIVES  # noqa: E402
from plumbing.settings import parse_settings  # noqa: E402


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
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
rollout.advantages = torch.linspace(-1, 1, N)


def one_update(rollout):
    optimizer.zero_grad(set_to_none=True)
    update = program.backward(model, OBJECTIVES[settings.objective], rollout, torch.arange(N), settings)
    program.optimizer_step(model, optimizer, update, settings, 0)
    return update


short = rollout.select(range(N))
short.response_mask[:, 4:] = False
one_update(short.select(range(N)))
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
update = one_update(rollout)
assert update.num_tokens == N * T and not update.skipped
print(memory("VmHWM") - before)
