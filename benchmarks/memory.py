r"""Peak memory of an update on a CPU, by model and by tokens in a forward pass: `python benchmarks/memory.py`.

Each row is a process of its own (Linux). It makes a model of random weights from its configuration, takes one AdamW
step, so that all averages exist, and then one update on one microbatch: 4 or 16 responses of 256 tokens, up to 8 of
them to a prompt of 100. Everything is float32.

    state          computed: weights, gradients and AdamW's two averages, 16 bytes a parameter
    peak           measured: of the process during the update, above what Python and its libraries take
    a token        the rest, (peak - state) / tokens: activations, logits, copies
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.throughput import one_update, processor  # noqa: E402
from plumbing.settings import parse_settings  # noqa: E402
from rollout import Rollout  # noqa: E402

PROMPT, RESPONSE, GROUP = 100, 256, 8
MODELS = {  # of Qwen2Config: width, feed-forward, layers, heads, key heads, vocabulary
    "0.9M (embedded)": (128, 384, 4, 4, 2, 1024),
    "135M (as SmolLM2)": (576, 1536, 30, 9, 3, 49_152),
    "494M (as Qwen2.5)": (896, 4864, 24, 14, 2, 151_936),
}
ROWS = [(model, responses, again) for model in MODELS for responses in (4, 16) for again in (False, True)]


def status(name):
    r"""GiB of this process: VmRSS now, VmHWM at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 2**20


def measure(shape, responses, checkpointing=False):
    r"""{tokens, state_gib, peak_gib} of one update in this process; shape: of Qwen2Config, as in MODELS."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    width, inner, layers, heads, key_heads, words = shape
    empty = status("VmRSS")
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=words, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, tie_word_embeddings=True))
    if checkpointing:
        model.activation_checkpointing_enable()
        model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def update(responses, length):
        settings = parse_settings(["--preset", "tiny", "--group-size", str(min(GROUP, responses)), "--prompts-per-step",
                                   str(max(1, responses // GROUP)), "--minibatch-size", str(responses),
                                   "--micro-batch-size", "auto", "--tokens-per-microbatch", "1000000", "--device",
                                   "cpu", "--dtype", "float32", "--out", "unused"])
        settings.gradient_checkpointing = checkpointing
        ids = torch.randint(words, (responses, PROMPT + length))
        rollout = Rollout(ids, torch.ones_like(ids), torch.ones(responses, length, dtype=torch.bool),
                          torch.full((responses, length), -7.0), [""] * responses, torch.zeros(responses).bool(),
                          advantages=torch.linspace(-1, 1, responses))
        one_update(model, optimizer, rollout, torch.arange(responses), settings)

    update(2, 4)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    update(responses, RESPONSE)
    return dict(tokens=responses * RESPONSE + PROMPT * max(1, responses // GROUP),
                state_gib=16 * sum(parameter.numel() for parameter in model.parameters()) / 2**30,
                peak_gib=status("VmHWM") - empty)


def main():
    parser = argparse.ArgumentParser(description="Peak memory of an update on a CPU.")
    parser.add_argument("--out", type=Path, help="folder for memory.md and memory.json")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    known = parser.parse_args()
    if known.row is not None:
        model, responses, checkpointing = ROWS[known.row]
        row = measure(MODELS[model], responses, checkpointing)
        print(json.dumps(dict(model=model, checkpointing=checkpointing, **row,
                              mb_a_token=(row["peak_gib"] - row["state_gib"]) * 1024 / row["tokens"])))
        return
    lines = [f"{processor()}, {torch.get_num_threads()} threads, float32", "",
             "| model | tokens | checkpointing | state, computed (GiB) | peak, measured (GiB) | a token (MiB) |",
             "| --- | --- | --- | --- | --- | --- |"]
    print("\n".join(lines), flush=True)
    rows = []
    for number in range(len(ROWS)):
        done = subprocess.run([sys.executable, __file__, "--row", str(number)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        lines.append(f"| {row['model']} | {row['tokens']} | {'yes' if row['checkpointing'] else 'no'} | "
                     f"{row['state_gib']:.2f} | {row['peak_gib']:.2f} | {row['mb_a_token']:.2f} |")
        print(lines[-1], flush=True)
    if known.out:
        known.out.mkdir(parents=True, exist_ok=True)
        (known.out / "memory.md").write_text("\n".join(lines) + "\n")
        (known.out / "memory.json").write_text(json.dumps(dict(processor=processor(), rows=rows), indent=2) + "\n")


if __name__ == "__main__":
    main()
