r"""What sampling and updating cost, in one run: `python benchmarks/throughput.py --out benchmarks/results`.

1. Sampling 32 and 96 prompts x 8 responses of the embedded model, against transformers' `generate` on the same prompts,
   taking turns. Both run in float32, and in bfloat16 where the processor multiplies it. The ratio compares the faster
   precision of each.
2. Tokens per second of sampling and of an update (forward and backward), and their share of this machine's peak.
   The share is floating-point operations per second of the matrix products, divided by those of one large matrix
   product that is measured in the same run. Operations: 2 for each weight and token forward, 6 with backward;
   attention is not counted.
3. The same for larger groups, responses and models, one at a time. These models have random weights and a vocabulary of
   1,024. Their responses run to max_new_tokens, unless an end-of-sequence is drawn by chance.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train as program  # noqa: E402
from gsm8k import format_prompt, load_problems  # noqa: E402
from objectives import OBJECTIVES  # noqa: E402
from plumbing.settings import parse_settings  # noqa: E402
from pmd_mean import pmd_mean_advantages  # noqa: E402
from rollout import pad_left, sample_rollouts  # noqa: E402

SIZES = {"0.5M": (96, 3), "0.9M": (128, 4), "3M": (192, 6), "13M": (384, 8)}  # width, layers


def seconds_of(function, device="cpu"):
    r"""(seconds, result), from an idle device to an idle device."""
    def wait():
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    clock, result = time.perf_counter(), function()
    wait()
    return time.perf_counter() - clock, result


def matmul_peak(size=1536, repeats=8, device="cpu", dtype=torch.float32):
    r"""Floating-point operations per second of a matrix product, the best of `repeats`."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: a @ b, device)[0] for _ in range(repeats))


def processor():
    r"""The name of this machine's processor."""
    info = Path("/proc/cpuinfo")  # Linux
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def random_model(name, tokenizer):
    width, layers = SIZES[name]
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=max(1, width // 64), tie_word_embeddings=True,
        max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id, pad_token_id=0, bos_token_id=None))


def one_update(model, optimizer, rollout, rows, settings, steps_before=0):
    optimizer.zero_grad(set_to_none=True)
    update = program.backward(model, OBJECTIVES[settings.objective], rollout, rows, settings)
    program.optimizer_step(model, optimizer, update, settings, steps_before)


def measure(model, tokenizer, prompts, group_size, max_new_tokens, peak, repeats=5):
    r"""A row of the table: medians over `repeats`, after one that is not counted."""
    settings = parse_settings(["--preset", "tiny", "--group-size", str(group_size), "--prompts-per-step",
                               str(len(prompts)), "--minibatch-size", str(group_size * len(prompts)),
                               "--micro-batch-size", "1024", "--max-new-tokens", str(max_new_tokens),
                               "--temperature", "1", "--out", "unused"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    rows = torch.arange(group_size * len(prompts))
    sampling, updating = [], []
    for repeat in range(repeats + 1):
        seconds, rollout = seconds_of(lambda: sample_rollouts(
            model, tokenizer, prompts, group_size, max_new_tokens, seed=repeat))
        sampling.append(seconds)
        rollout.advantages = pmd_mean_advantages((rows % 2).float(), group_size)
        updating.append(seconds_of(lambda: one_update(model, optimizer, rollout, rows, settings))[0])
    prompt_tokens = int(rollout.attention_mask.sum() - rollout.response_mask.sum()) // group_size
    response_tokens = int(rollout.response_mask.sum())
    # Tied weights: the embedding's matrix is multiplied once, in the head.
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    work = 2 * weights * (prompt_tokens + response_tokens)
    sampling, updating = statistics.median(sampling[1:]), statistics.median(updating[1:])
    return dict(rollout_seconds=sampling, update_seconds=updating, response_tokens=response_tokens,
                rollout_tokens_per_second=response_tokens / sampling,
                update_tokens_per_second=response_tokens / updating,
                rollout_share_of_peak=work / sampling / peak, update_share_of_peak=3 * work / updating / peak)


def against_generate(model, tokenizer, prompts, repeats=5):
    r"""{(who, precision): median seconds} of 8 responses to each prompt, taking turns."""
    ids, mask = pad_left(tokenizer, prompts)
    theirs = AutoModelForCausalLM.from_pretrained(ROOT / "tiny" / "model", dtype=torch.float32).eval()

    def generate():
        return theirs.generate(input_ids=ids, attention_mask=mask, max_new_tokens=72, do_sample=True, top_k=0,
                               num_return_sequences=8)

    times, can = {}, torch.cpu.get_capabilities()
    multiplies_bfloat16 = any(can.get(name) for name in ("avx512_bf16", "amx_bf16"))
    for repeat in range(repeats + 1):
        for precision in ["float32"] + ["bfloat16"] * multiplies_bfloat16:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                for who, function in (("rollout.py", lambda: sample_rollouts(
                        model, tokenizer, prompts, 8, 72, seed=repeat)), ("generate", generate)):
                    times.setdefault((who, precision), []).append(seconds_of(function)[0])
    return {key: statistics.median(values[1:]) for key, values in times.items()}


def draw(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True, constrained_layout=True)
    for axis, (kind, label) in zip(axes, (("group", "group size (8 prompts, 48 tokens)"),
                                          ("length", "response length in tokens (8 prompts x 8)"),
                                          ("model", "weights of the model (8 prompts x 8, 48 tokens)"))):
        of_kind = [row for row in rows if row["kind"] == kind]
        x = [str(row["value"]) for row in of_kind]
        for name, color in (("rollout", "tab:blue"), ("update", "tab:orange")):
            axis.plot(x, [row[f"{name}_tokens_per_second"] for row in of_kind], "o-", color=color, label=name)
        axis.set(xlabel=label, yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("response tokens per second")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description="Tokens per second of sampling and updating, and their share of peak.")
    parser.add_argument("--out", type=Path, help="folder for throughput.md, .json and .png")
    known = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny" / "model")
    tiny = AutoModelForCausalLM.from_pretrained(ROOT / "tiny" / "model", dtype=torch.float32).eval()
    prompts = [format_prompt(tokenizer, p["question"]) for p in load_problems(ROOT / "tiny" / "train.jsonl", limit=96)]
    lines = []

    def say(line):
        print(line, flush=True)
        lines.append(line)

    peak, seconds = matmul_peak(), {}
    say(f"{processor()}, {torch.get_num_threads()} threads, float32 matrix product: {peak / 1e9:.0f} GFLOP/s\n")
    for number in (32, 96):
        times = against_generate(tiny, tokenizer, prompts[:number])
        for (who, precision), taken in times.items():
            say(f"- {number} prompts x 8, {who:10s} {precision}: {taken:.2f} s")
            seconds[f"{number} {who} {precision}"] = taken
        best = {who: min(s for (w, _), s in times.items() if w == who) for who in ("rollout.py", "generate")}
        say(f"- {number} prompts x 8, generate / rollout.py: {best['generate'] / best['rollout.py']:.2f}\n")

    say("| varied | value | rollout tokens/s | share of peak | update tokens/s | share of peak |\n"
        "| --- | --- | --- | --- | --- | --- |")
    rows = []
    cases = [("embedded task", "32 x 8", tiny, prompts[:32], 8, 72)]
    small = random_model("0.9M", tokenizer)
    cases += [("group", g, small, prompts[:8], g, 48) for g in (2, 4, 8, 16, 32)]
    cases += [("length", t, small, prompts[:8], 8, t) for t in (16, 32, 64, 128, 256)]
    cases += [("model", name, random_model(name, tokenizer), prompts[:8], 8, 48) for name in SIZES]
    for kind, value, model, some, group_size, length in cases:
        row = dict(kind=kind, value=value, **measure(model, tokenizer, some, group_size, length, peak))
        rows.append(row)
        say(f"| {kind} | {value} | {row['rollout_tokens_per_second']:,.0f} | {row['rollout_share_of_peak']:.0%} | "
            f"{row['update_tokens_per_second']:,.0f} | {row['update_share_of_peak']:.0%} |")
    if known.out:
        known.out.mkdir(parents=True, exist_ok=True)
        (known.out / "throughput.md").write_text("\n".join(lines) + "\n")
        (known.out / "throughput.json").write_text(json.dumps(dict(
            processor=processor(), peak_flops=peak, seconds=seconds, rows=rows), indent=2) + "\n")
        draw(rows, known.out / "throughput.png")


if __name__ == "__main__":
    main()
