r"""What a GPU does with this project, in one command: `python benchmarks/gpu.py`.

1. precision   log-probs in bfloat16 against float32, and on the GPU against the CPU; how far sampler and trainer are
               apart in step 1 of the embedded task
2. decoding    eager, static, compiled: the same greedy tokens? tokens per second, host synchronisations per token
3. update      forward and backward: tokens per second and their share of peak. Peak is the rate of a large matrix
               product, measured in the same run. Work is 6 operations for each weight and token. What is computed twice
               (checkpointing, the head) counts once; attention is not counted
4. memory      the peak of each phase of a step of the gsm8k preset
5. main job    the embedded task, as `python train.py` runs it
6. processes   two processes on this device take the step of one (gloo, as nccl needs a device for each)

Nothing is downloaded. The large model is a Qwen2.5-0.5B of random weights. It has the vocabulary of 151,936 words, but
reads text through the embedded tokenizer. So what it says means nothing, and its speed and memory are those of the real
one. Parts 5 and 6 train the embedded model.

Results go to results.json and results.md in --out, a new folder. A part that fails is reported there, the other parts
run all the same, and the exit status is 1. `--device cpu --small` runs every part on a CPU in about a minute, to test
this file: nothing is compiled, `compiled` runs the captured graph. Its authors did **not** run this file on a GPU.
"""

import argparse
import copy
import functools
import itertools
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train as program  # noqa: E402
from benchmarks.throughput import matmul_peak, one_update, seconds_of  # noqa: E402
from gsm8k import format_prompt, load_problems  # noqa: E402
from objectives import OBJECTIVES  # noqa: E402
from plumbing.batches import log_probs_of  # noqa: E402
from plumbing.model import autocast, head_precision  # noqa: E402
from plumbing.settings import parse_settings  # noqa: E402
from pmd_mean import pmd_mean_advantages  # noqa: E402
from rollout import Rollout, sample_rollouts  # noqa: E402
from scoring import token_log_probs  # noqa: E402

QWEN = dict(vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, max_position_embeddings=32_768, tie_word_embeddings=True, bos_token_id=None,
            pad_token_id=None, eos_token_id=None)
TINY = ROOT / "tiny" / "model"
SMALL = ["--prompts-per-step", "4", "--group-size", "4", "--minibatch-size", "8", "--max-new-tokens", "64"]
NOT_MEASURED = "not measured"
LAST_START = 6  # minutes after which no part is begun


class Bench:
    r"""The device, the model of parts 1 to 4, its tokenizer and its prompts."""

    def __init__(self, known):
        self.small, self.train_data, self.device = known.small, str(known.train_data), torch.device(known.device)
        self.on_cuda = self.device.type == "cuda"
        self.tokenizer = AutoTokenizer.from_pretrained(TINY)
        torch.manual_seed(0)
        if self.small:
            model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        else:
            with self.device:
                model = Qwen2ForCausalLM(Qwen2Config(**QWEN))
            with torch.no_grad():  # else all words are about as likely, and rounding would pick among them
                model.get_output_embeddings().weight.mul_(5)
        self.model = model.to(self.device).eval()
        self.problems = load_problems(self.train_data)
        self.prompts = [format_prompt(self.tokenizer, problem["question"]) for problem in self.problems[:8]]

    def settings(self, preset, *flags):
        small = ["--preset", "tiny", *SMALL] if self.small else []
        return parse_settings(["--preset", preset, "--device", str(self.device), "--out", "unused", *small,
                               *map(str, flags)])

    def embedded(self, folder, *flags):
        r"""Runs the embedded task; returns the rows of its metrics.jsonl."""
        return program.train(self.settings("tiny", "--save-every", 0, "--out", folder, *flags))

    def timed(self, function):
        return seconds_of(function, self.device)

    def peak_gib(self, function):
        r"""(the device's peak memory while it runs, result)."""
        if not self.on_cuda:
            return NOT_MEASURED, function()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        result = function()
        return torch.cuda.max_memory_allocated(self.device) / 2**30, result


def precision(bench):
    rollout = sample_rollouts(bench.model, bench.tokenizer, bench.prompts[:2], 2, 16 if bench.small else 32, seed=0)
    mask = rollout.response_mask.cpu()
    with torch.no_grad():
        exact = token_log_probs(bench.model, rollout).cpu()[mask]  # [M]
        on_cpu = token_log_probs(copy.deepcopy(bench.model).cpu(), rollout.to("cpu"))[mask]
        with autocast(bench.settings("tiny", "--dtype", "bfloat16")):
            half = token_log_probs(bench.model, rollout).cpu()[mask]
    for what, other in (("bfloat16 against float32", half), ("float32 here against the CPU", on_cpu)):
        apart = (other - exact).abs()
        yield {"what": what, "mean difference, nats": apart.mean().item(), "largest": apart.max().item()}
    for dtype, old in (("float32", "sampler"), ("bfloat16", "sampler"), ("bfloat16", "recomputed")):
        with tempfile.TemporaryDirectory() as folder:
            row = bench.embedded(f"{folder}/run", "--steps", 1, "--eval-every", 0, "--dtype", dtype, "--old-log-probs",
                                 old)[1]
        yield {"what": f"embedded task, step 1, {dtype}, old log-probs: {old}",
               "sampler_mismatch": row["sampler_mismatch"], "kl_to_old": row["kl_to_old"]}


def decoding(bench):
    prompts, group_size, length = (bench.prompts[:2], 2, 12) if bench.small else (bench.prompts, 8, 64)
    compiler = functools.partial(torch.compile, backend="eager") if bench.small else torch.compile
    for dtype, decode in itertools.product(("float32", "bfloat16"), ("eager", "static", "compiled")):
        sample = functools.partial(sample_rollouts, bench.model, bench.tokenizer, prompts, group_size, length,
                                   greedy=True, decode=decode)
        with autocast(bench.settings("tiny", "--dtype", dtype)), mock.patch.object(torch, "compile", compiler):
            first, rollout = bench.timed(sample)
            seconds, _ = bench.timed(sample)
            syncs = host_synchronisations(sample) / length if bench.on_cuda else NOT_MEASURED
        said = rollout.sequences[:, -rollout.response_mask.shape[1]:]
        eager = said if decode == "eager" else eager
        equal = (said == eager).float().mean().item() if said.shape == eager.shape else 0.0
        yield {"what": f"{decode}, {dtype}", "share of tokens as eager's": equal,
               "tokens per second": int(rollout.response_mask.sum()) / seconds, "seconds of the first call": first,
               "host syncs per step of decoding": syncs}
        if dtype == "float32" and equal < 1:
            raise AssertionError(f"{decode} decoding in float32 gives other greedy tokens than eager decoding")


def host_synchronisations(function):
    r"""How often the host waits for the device: set_sync_debug_mode warns at each operation that makes it wait."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def update(bench):
    size = 512 if bench.small else 8192
    dtype = torch.bfloat16 if bench.on_cuda and torch.cuda.is_bf16_supported(False) else torch.float32
    peak = matmul_peak(size, device=bench.device, dtype=dtype)
    yield {"what": f"matrix product of {size} x {size}, {str(dtype)[6:]}", "TFLOP/s": peak / 1e12}
    sizes = (256, 1024) if bench.small else (4096, 16_384, 65_536)
    for tokens, checkpointing, tf32 in itertools.product(sizes, (False, True), (False, True)[: 1 + bench.on_cuda]):
        row = {"what": f"{tokens} tokens", "checkpointing": str(checkpointing), "TF32": str(tf32)}
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            seconds, processed, responses = one_microbatch(bench, tokens, checkpointing, str(dtype)[6:])
            weights = sum(parameter.numel() for parameter in bench.model.parameters() if parameter.dim() > 1)
            row |= {"response tokens per second": responses / seconds,
                    "share of peak": 6 * weights * processed / seconds / peak}
        except torch.OutOfMemoryError:
            row["response tokens per second"] = "out of memory"
        yield row
    torch.set_float32_matmul_precision("highest")


def one_microbatch(bench, tokens, checkpointing, dtype):
    r"""(seconds, tokens processed, response tokens) of one forward and backward pass over `tokens` tokens."""
    P, T, G = (8, 24, 4) if bench.small else (64, 192, 16)
    N = tokens // (P + T)
    settings = bench.settings("gsm8k", "--group-size", G, "--prompts-per-step", N // G, "--minibatch-size", N,
                              "--micro-batch-size", N, "--tokens-per-microbatch", tokens, "--dtype", dtype,
                              *["--gradient-checkpointing"] * checkpointing)
    ids = torch.randint(2, 1000, (N, P + T), device=bench.device)
    rollout = Rollout(ids, torch.ones_like(ids), torch.ones_like(ids[:, P:], dtype=torch.bool),
                      torch.full((N, T), -7.0, device=bench.device), [""] * N, torch.ones_like(ids[:, 0]).bool(),
                      advantages=pmd_mean_advantages((torch.arange(N) % 2).float(), G).to(bench.device))
    rows = torch.arange(N, device=bench.device)
    with_checkpointing(bench.model, checkpointing)
    once = functools.partial(program.backward, bench.model, OBJECTIVES["pmd_mean"], rollout, rows, settings)
    try:
        seconds = [bench.timed(once)[0] for _ in range(3)]
    finally:
        bench.model.zero_grad(set_to_none=True)
        with_checkpointing(bench.model, False)
    return min(seconds), N * T + P * N // G, N * T


def with_checkpointing(model, on):
    (model.activation_checkpointing_enable if on else model.activation_checkpointing_disable)()
    model.train(on)  # transformers computes again in training mode only


def memory(bench):
    settings, model = bench.settings("gsm8k"), bench.model
    torch.set_float32_matmul_precision(head_precision(settings))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    peaks = {}

    def update():
        one_update(model, optimizer, rollout, next(program.minibatches(rollout, settings, 1)), settings)

    for step in (1, 2):  # the first one makes the gradients and AdamW's averages, which then stay
        peaks["sampling"], (rollout, correct, _) = bench.peak_gib(
            lambda: program.sample(model, bench.tokenizer, bench.problems, settings, step, 0))
        peaks["scoring"], rollout.log_probs = bench.peak_gib(lambda: log_probs_of(model, rollout, settings))
        rollout.advantages = pmd_mean_advantages((torch.arange(len(correct)) % 2).float(), settings.group_size).to(
            bench.device)
        peaks["update"], _ = bench.peak_gib(update)
    settings.gradient_checkpointing = True
    with_checkpointing(model, True)
    peaks["update, --gradient-checkpointing"], _ = bench.peak_gib(update)
    N, T = rollout.response_mask.shape
    for phase, peak in peaks.items():
        yield {"what": phase, "peak GiB": peak, "responses": N, "longest": T}


def main_job(bench):
    bench.model = None  # only the embedded one is needed from here on
    flags = ["--steps", 2, "--eval-every", 2, "--eval-size", 8] if bench.small else []
    with tempfile.TemporaryDirectory() as folder:
        peak, (seconds, rows) = bench.peak_gib(lambda: bench.timed(lambda: bench.embedded(f"{folder}/run", *flags)))
    yield {"what": f"{len(rows) - 1} steps", "accuracy before": rows[0]["eval_accuracy"],
           "accuracy after": rows[-1]["eval_accuracy"], "seconds": seconds, "peak GiB": peak}


def two_processes(bench):
    base = load_file(TINY / "model.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        one_step(bench, f"{folder}/one")
        subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__,
                        "--device", str(bench.device), "--worker", f"{folder}/two", "--small"], check=True, timeout=240)
        one, two = (load_file(f"{folder}/{run}/model/model.safetensors") for run in ("one", "two"))
    moved, apart = (sum((one[key] - other[key]).square().sum() for key in base).sqrt().item() for other in (base, two))
    yield {"what": "the weights of one process", "moved by": moved, "two are apart from them by": apart}
    if not apart < 0.02 * moved:  # AdamW's first steps have the size of lr however small a gradient is
        raise AssertionError("two processes take another step than one")


def one_step(bench, folder):
    bench.small = True
    bench.embedded(folder, "--steps", 1, "--eval-every", 0, "--dtype", "float32")


PARTS = [precision, decoding, update, memory, main_job, two_processes]


def table(rows):
    r"""Rows (dicts) as a Markdown table with a column for each key that occurs."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shown = [[f"{row[key]:.3g}" if isinstance(row.get(key), float) else str(row.get(key, "")) for key in columns]
             for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *shown])


def main():
    parser = argparse.ArgumentParser(description="What a GPU does with this project.")
    parser.add_argument("--device", default="cuda:0", help="a device of torch (default: cuda:0)")
    parser.add_argument("--small", action="store_true", help="tiny sizes and the embedded model, to test this file")
    parser.add_argument("--train-data", type=Path, default=ROOT / "tiny" / "train.jsonl",
                        help="a JSONL file with question and answer, such as GSM8K's (default: tiny/train.jsonl)")
    parser.add_argument("--out", type=Path, help="a new folder (default: benchmarks/results/<device>)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # the run folder of a process of part 6
    known = parser.parse_args()
    on_cuda = known.device.startswith("cuda")
    if on_cuda and not torch.cuda.is_available():
        parser.exit(2, "gpu.py: there is no CUDA device: --device cpu --small tests this program on a CPU\n")
    if not on_cuda and not known.small:
        parser.exit(2, "gpu.py: on a CPU the large model takes hours: add --small\n")
    bench = Bench(known)
    if known.worker:  # one of the two processes
        dist.init_process_group("gloo")
        one_step(bench, known.worker)
        return dist.destroy_process_group()
    name = torch.cuda.get_device_name(bench.device) if on_cuda else f"{platform.machine()} CPU"
    out = known.out or ROOT / "benchmarks" / "results" / re.sub(r"\W+", "-", name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        parser.exit(2, f"gpu.py: {out} exists and is not empty: give another --out\n")
    out.mkdir(parents=True, exist_ok=True)
    versions = f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
    results, started = dict(device=name, versions=versions, parts={}, failed={}), time.time()
    text = f"# {name}\n\n{versions}\n"
    for part in PARTS:
        rows, began = results["parts"].setdefault(part.__name__, []), time.time()
        try:
            if began - started > 60 * LAST_START:
                raise TimeoutError(f"not run, as {LAST_START} minutes were over")
            rows.extend(part(bench))
        except Exception as error:  # a GPU's time is short: the other parts run all the same
            results["failed"][part.__name__] = f"{type(error).__name__}: {error}"
            text += f"\n**{part.__name__} failed**: {error}\n"
        text += f"\n## {part.__name__} ({time.time() - began:.0f} s)\n\n{table(rows)}\n"
        (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        (out / "results.md").write_text(text)
    print(f"\n{text}\nwritten to {out}")
    sys.exit(1 if results["failed"] else 0)


if __name__ == "__main__":
    main()
