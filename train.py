r"""Reinforcement learning with verifiable rewards, as one readable loop: `python train.py --objective pmd_mean`.

    for step = 1 .. steps
        sample      y_1 .. y_G ~ pi_old( . | x) for each prompt x of the step        rollout.py
        verify      r_i = 1 if the answer of y_i is right, else 0                    reward_math.py
        baseline    A_i = r_i - mean of r over the group of x                        pmd_mean.py
        update      for each minibatch of whole groups: one AdamW step on
                    the mean over responses of (tau/2) (A/tau - log pi_theta(y|x)/pi_old(y|x))^2
        evaluate    greedy answers to held-out problems, now and then

pi_old is the policy at the start of the step; its log-probs are the sampler's own. What the step minimises and why is
told in `pmd_mean.py`.

Presets. `tiny` is the embedded model and task (see tiny/make.py), for two CPU cores and three minutes. `gsm8k` trains
Qwen2.5-0.5B-Instruct on GSM8K and wants a GPU and a network; it was NOT run on a GPU by its authors. `auto` takes
gsm8k where there is a CUDA device. Every setting can be given on the command line: `python train.py --help`.

What a run writes in its folder
    config.json          the settings, in full
    metrics.jsonl        one object a step, defined below; written as the step ends
    curves.png           the picture of it
    checkpoint-<step>/   the last whole checkpoint; `--resume FOLDER` goes on from it, as if never stopped
    model/               the trained model, a Hugging Face directory

Metrics, each over the whole step: all its responses, tokens, minibatches and epochs.
    reward_mean             mean reward of the sampled responses; without shaping, the fraction that is right
    eval_accuracy           fraction of the held-out problems answered right, greedily; step 0 is the base model; null
                            where not evaluated
    loss                    mean over optimizer steps of the minibatch's loss
    grad_norm               mean over optimizer steps of the gradient's Euclidean norm, before clipping
    kl_to_old               KL(pi_old || pi_theta) in nats per token: mean of w - 1 - log w over the response tokens, with
                            w = pi_theta/pi_old, each measured just before its minibatch's optimizer step
    entropy                 nats per token of the sampling policy, estimated by the mean of -log pi_old(y_t)
    response_length         mean number of sampled tokens in a response, the eos included
    truncated_fraction      fraction of responses that max_new_tokens ended
    zero_variance_fraction  fraction of groups whose rewards are all equal: they teach nothing
    seconds_rollout         sampling and verifying; seconds_update: all optimizer steps
    tokens_per_second       sampled tokens by seconds_rollout + seconds_update
"""

import argparse
import dataclasses
import json
import math
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from aggregation import aggregate
from checkpoint import checkpoints, load_optimizer, save_checkpoint, truncate_metrics, write_json
from curves import draw_curves
from gsm8k import format_prompt, load_problems
from pmd_mean import pmd_loss, pmd_mean_advantages, pmd_part_advantages
from reward_math import math_reward, verify
from rollout import sample_rollouts, token_log_probs

HERE = Path(__file__).resolve().parent
OBJECTIVES = ("pmd_mean", "pmd_part")

# What differs between the two presets; everything else has its default in Settings.
PRESETS = {
    "tiny": dict(
        model=str(HERE / "tiny" / "model"), train_data=str(HERE / "tiny" / "train.jsonl"),
        eval_data=str(HERE / "tiny" / "test.jsonl"), eval_size=384, eval_every=10, steps=50, prompts_per_step=32,
        group_size=8, minibatch_size=64, micro_batch_size=64, max_new_tokens=72, lr=1e-3, tau=0.1, save_every=10,
    ),
    "gsm8k": dict(
        model="Qwen/Qwen2.5-0.5B-Instruct", train_data="openai/gsm8k", eval_data="openai/gsm8k", eval_size=512,
        eval_every=20, steps=400, prompts_per_step=64, group_size=16, minibatch_size=256, micro_batch_size=16,
        max_new_tokens=320, lr=1e-6, tau=0.01, save_every=20,
    ),
}


def setting(default, meaning, **kwargs):
    return dataclasses.field(default=default, metadata={"help": meaning, **kwargs})


@dataclass
class Settings:
    r"""Every setting of a run, each a command-line flag. None means: by the preset (see PRESETS)."""

    objective: str = setting("pmd_mean", "what to optimise", choices=OBJECTIVES)
    preset: str = setting("auto", "defaults for the embedded task or for GSM8K; auto: gsm8k where there is CUDA",
                          choices=("auto", "tiny", "gsm8k"))
    model: str = setting(None, "Hugging Face model directory or hub name")
    train_data: str = setting(None, "JSONL file with question and answer, or hub name")
    eval_data: str = setting(None, "the same for the held-out problems; of a hub data set its test split")
    eval_size: int = setting(None, "held-out problems to evaluate on, the first of the file")
    eval_every: int = setting(None, "steps between evaluations; 0: never evaluate")
    steps: int = setting(None, "steps: rounds of sampling and updating")
    prompts_per_step: int = setting(None, "prompts sampled from in a step")
    group_size: int = setting(None, "responses per prompt, G")
    minibatch_size: int = setting(None, "responses per optimizer step: whole groups, a divisor of all responses")
    micro_batch_size: int = setting(None, "responses per forward pass; gradients add up to the minibatch's")
    epochs: int = setting(1, "passes over a step's responses")
    max_new_tokens: int = setting(None, "longest response, in tokens; a longer one is truncated")
    temperature: float = setting(1.0, "sampling temperature; the policy trained is the tempered one")
    lr: float = setting(None, "AdamW's learning rate")
    warmup_steps: int = setting(10, "optimizer steps in which the learning rate rises linearly to --lr")
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay")
    max_grad_norm: float = setting(1.0, "gradients longer than this are scaled down to it")
    tau: float = setting(None, "PMD's regularisation strength: larger is a smaller step")
    seed: int = setting(0, "seed of everything random")
    out: str = setting(None, "folder of the run, new or empty; default runs/<objective>-<time>")
    save_every: int = setting(None, "steps between checkpoints, and one at the end; 0: none")
    resume: str = setting(None, "folder of a run to continue, with its own settings; only --steps may be given too")
    device: str = setting("auto", "cpu, cuda, cuda:1, ...; auto: cuda where there is one")
    dtype: str = setting("auto", "of matrix products; the weights stay float32, as bfloat16 ones lose small updates. "
                         "auto: bfloat16 on CUDA, else float32", choices=("auto", "float32", "bfloat16"))
    gradient_checkpointing: bool = setting(False, "recompute activations in backward: less memory, a third more time")


def fail(message):
    r"""Ends the program for a mistake of its user: one line that says what to do, exit status 2."""
    print(f"train.py: {message}", file=sys.stderr)
    sys.exit(2)


def parse_settings(arguments=None):
    r"""Settings from the command line, completed from the preset and checked; exits with status 2 on bad input."""
    parser = argparse.ArgumentParser(
        description="Reinforcement learning of a language model on math word problems.", allow_abbrev=False,
        epilog="Example: python train.py --objective pmd_mean --steps 20 --out runs/first",
    )
    parser.error = lambda message: fail(f"{message}; see python train.py --help")
    for field in dataclasses.fields(Settings):
        flag, meaning = "--" + field.name.replace("_", "-"), field.metadata["help"]
        if field.name in PRESETS["tiny"]:
            show = [str(PRESETS[preset][field.name]).replace(f"{HERE}{os.sep}", "") for preset in ("tiny", "gsm8k")]
            meaning += f" (default: tiny {show[0]}, gsm8k {show[1]})"
        elif field.default is not None:
            meaning += f" (default: {field.default})"
        if field.type is bool:
            parser.add_argument(flag, action="store_true", default=None, help=meaning)
        else:
            parser.add_argument(flag, type=field.type, choices=field.metadata.get("choices"), help=meaning,
                                metavar=None if "choices" in field.metadata else field.name.split("_")[-1].upper())
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}

    if "resume" in given:
        settings = resumed_settings(given)
    else:
        settings = Settings(**given)
        if settings.preset == "auto":
            settings.preset = "gsm8k" if torch.cuda.is_available() else "tiny"
            found = "a CUDA device was found" if torch.cuda.is_available() else "no CUDA device was found"
            print(f"preset {settings.preset}, as {found}; --preset chooses")
        for name, value in PRESETS[settings.preset].items():
            if getattr(settings, name) is None:
                setattr(settings, name, value)
        settings.out = settings.out or f"runs/{settings.objective}-{time.strftime('%Y%m%d-%H%M%S')}"
    check(settings)
    return settings


def resumed_settings(given):
    r"""The settings of the run in given["resume"], with --steps raised where it was given."""
    extra = sorted(set(given) - {"resume", "steps"})
    if extra:
        fail(f"--resume goes on with the run's own settings: leave out --{extra[0].replace('_', '-')}")
    path = Path(given["resume"]) / "config.json"
    try:
        settings = Settings(**json.loads(path.read_text()))
    except OSError:
        fail(f"no run to resume in {given['resume']}: {path} cannot be read")
    except (ValueError, TypeError):
        fail(f"{path} is not the config.json of a run of this program")
    settings.resume = given["resume"]
    settings.out = given["resume"]  # the folder may have been moved
    if given.get("steps", settings.steps) < settings.steps:
        fail(f"--steps {given['steps']} is less than the run's {settings.steps}: with --resume it can only be raised")
    settings.steps = given.get("steps", settings.steps)
    return settings


def check(settings):
    r"""Exits with status 2 and one line where a setting cannot work."""
    for name in ("eval_size", "steps", "prompts_per_step", "group_size", "minibatch_size", "micro_batch_size", "epochs",
                 "max_new_tokens"):
        if getattr(settings, name) < 1:
            fail(f"--{name.replace('_', '-')} must be at least 1, not {getattr(settings, name)}")
    for name in ("eval_every", "save_every", "warmup_steps", "weight_decay"):
        if not getattr(settings, name) >= 0:
            fail(f"--{name.replace('_', '-')} must not be negative")
    for name in ("tau", "lr", "temperature", "max_grad_norm"):
        if not 0 < getattr(settings, name) < math.inf:
            fail(f"--{name.replace('_', '-')} must be a positive number, not {getattr(settings, name)}")
    if settings.group_size == 1:
        fail("--group-size 1 leaves nothing to compare a response with: use at least 2")
    responses = settings.prompts_per_step * settings.group_size
    if settings.minibatch_size % settings.group_size or responses % settings.minibatch_size:
        fail(f"--minibatch-size {settings.minibatch_size} must hold whole groups of {settings.group_size} and divide the "
             f"{settings.prompts_per_step} x {settings.group_size} = {responses} responses of a step")


def load_model(settings, source):
    r"""(model, tokenizer) through AutoModelForCausalLM, in float32 and without dropout, on the device."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if (source.startswith((".", os.sep)) or Path(source).exists()) and not (Path(source) / "config.json").is_file():
        fail(f"no model at {source}: give a Hugging Face model directory or a hub name with --model")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        fail(f"cannot load the model {source}: {str(error).strip().splitlines()[0][:200]}")
    # Dropout would make the policy that is updated another one than the policy that sampled.
    model.config.attention_dropout = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout") and not isinstance(module.attention_dropout, torch.nn.Module):
            module.attention_dropout = 0.0
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model.to(device_of(settings)), tokenizer


def device_of(settings):
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=settings.device).device
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {settings.device} cannot be used here: {str(error).strip().splitlines()[0][:200]}")


def autocast(settings):
    r"""Matrix products in bfloat16 where asked for (or on CUDA, by default); the weights stay float32."""
    device = device_of(settings)
    dtype = settings.dtype if settings.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def step_problems(problems, settings, step):
    r"""The problems of a step: the data in a new random order each epoch, cut into steps. A function of (seed, step)."""
    first = (step - 1) * settings.prompts_per_step
    chosen, order, epoch_of_order = [], None, None
    for place in range(first, first + settings.prompts_per_step):
        epoch, index = divmod(place, len(problems))
        if epoch != epoch_of_order:
            order = torch.randperm(len(problems), generator=seeded(settings.seed, "data", epoch))
            epoch_of_order = epoch
        chosen.append(problems[order[index]])
    return chosen


def seeded(*key):
    r"""A random generator that depends on the key and nothing else."""
    return torch.Generator().manual_seed(hash_of(key))


def hash_of(key):
    import hashlib

    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def evaluate(model, tokenizer, problems, settings):
    r"""Greedy answers to held-out problems: (fraction right, list of (problem, response, right))."""
    answers = []
    for start in range(0, len(problems), 128):
        part = problems[start : start + 128]
        prompts = [format_prompt(tokenizer, problem["question"]) for problem in part]
        with autocast(settings):
            rollout = sample_rollouts(model, tokenizer, prompts, 1, settings.max_new_tokens, greedy=True)
        answers += [(p, text, verify(text, p["answer"])) for p, text in zip(part, rollout.texts)]
    return sum(right for *_, right in answers) / len(answers), answers


def show(answers, step, accuracy):
    r"""Prints a few whole answers with their verdict: always the same problems, so that one sees what changes."""
    lines = [f"\n--- step {step}: {accuracy:.1%} of {len(answers)} held-out problems right; two of them:"]
    for problem, response, right in answers[:2]:
        gold = problem["answer"].splitlines()[-1]
        lines.append(f"{problem['question']}\n  " + "\n  ".join(response.splitlines() or ["(no text)"]))
        lines.append(f"  -> {'right' if right else f'WRONG, the answer is {gold}'}")
    tqdm.write("\n".join(lines), file=sys.stdout)


def update(model, optimizer, rollout, advantages, rows, settings, optimizer_steps):
    r"""One optimizer step on the responses `rows`; returns sums for the step's metrics.

    Microbatches are cut in order of length, to pad little. Each adds its share of one mean over the whole minibatch
    (`aggregate` with the minibatch's counts), so that their number changes the gradient by rounding only.
    """
    lengths = rollout.response_mask.sum(dim=1)  # [N]
    rows = rows[lengths[rows].argsort()]
    totals = dict(loss=0.0, grad_norm=0.0, kl=0.0, tokens=0)
    optimizer.zero_grad(set_to_none=True)
    for chunk in rows.split(settings.micro_batch_size):
        part = rollout.select(chunk)
        with autocast(settings):
            log_probs = token_log_probs(model, part, settings.temperature)  # [n, T]
        losses = pmd_loss(log_probs, part.log_probs, advantages[chunk], part.response_mask, settings.tau)  # [n]
        loss = aggregate(losses, part.response_mask, "seq-mean-token-sum", num_responses=len(rows))
        loss.backward()
        with torch.no_grad():
            log_ratio = log_probs - part.log_probs  # [n, T], 0 outside the mask
            totals["kl"] += (log_ratio.exp() - 1 - log_ratio).sum().item()
            totals["tokens"] += int(part.response_mask.sum())
            totals["loss"] += loss.item()
    totals["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm).item()
    if not math.isfinite(totals["loss"]) or not math.isfinite(totals["grad_norm"]):
        return totals  # the caller stops; the weights are untouched
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * min(1.0, (optimizer_steps + 1) / max(1, settings.warmup_steps))
    optimizer.step()
    return totals


def train(settings):
    r"""Runs the settings; returns the rows of metrics.jsonl."""
    started = time.time()
    out = Path(settings.out)
    if not settings.resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        fail(f"{out} exists and is not empty: give another --out, or go on with the run in it by --resume {out}")
    try:
        problems = load_problems(settings.train_data, "train")
        held_out = load_problems(settings.eval_data, "test", settings.eval_size) if settings.eval_every else []
    except ValueError as error:
        fail(error)
    saved = checkpoints(out)[-1:] if settings.resume else []
    model, tokenizer = load_model(settings, str(saved[0]) if saved else settings.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    progress = load_optimizer(saved[0], optimizer) if saved else {"step": 0, "optimizer_steps": 0, "seconds": 0.0}
    if settings.resume and progress["step"] >= settings.steps:
        fail(f"the run in {out} is complete at step {progress['step']}: raise --steps to go on")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", {**dataclasses.asdict(settings), "resume": None})
    metrics_path = out / "metrics.jsonl"
    rows = truncate_metrics(metrics_path, progress["step"] if saved else -1)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{settings.objective}: {parameters:,} parameters on {model.device}, {len(problems)} training problems, "
          f"{len(held_out)} held out, run in {out}")
    if settings.resume:
        print(f"goes on after step {progress['step']}")

    def record(row):
        rows.append(row)
        with open(metrics_path, "a") as file:
            file.write(json.dumps(row) + "\n")

    def evaluated(step):
        if not settings.eval_every or (step % settings.eval_every and step != settings.steps):
            return None
        accuracy, answers = evaluate(model, tokenizer, held_out, settings)
        show(answers, step, accuracy)
        return accuracy

    if not saved:
        record(dict(step=0, reward_mean=None, eval_accuracy=evaluated(0)))
    bar = tqdm(range(progress["step"] + 1, settings.steps + 1), initial=progress["step"], total=settings.steps,
               desc=settings.objective, unit="step")
    optimizer_steps = progress["optimizer_steps"]
    for step in bar:
        # Sample: a group of responses to each prompt, from the policy as it is now.
        clock = time.time()
        batch = step_problems(problems, settings, step)
        prompts = [format_prompt(tokenizer, problem["question"]) for problem in batch]
        with autocast(settings):
            rollout = sample_rollouts(
                model, tokenizer, prompts, settings.group_size, settings.max_new_tokens, settings.temperature,
                seed=f"{settings.seed} {step}",
            )

        # Verify.
        golds = [problem["answer"] for problem in batch for _ in range(settings.group_size)]
        rewards = torch.tensor([math_reward(text, gold) for text, gold in zip(rollout.texts, golds)])  # [N]
        seconds_rollout = time.time() - clock

        # Baseline.
        if settings.objective == "pmd_mean":
            advantages = pmd_mean_advantages(rewards, settings.group_size)  # [N]
        else:
            advantages = pmd_part_advantages(rewards, settings.group_size, settings.tau)  # [N]
        advantages = advantages.to(model.device)

        # Update: minibatches of whole groups, in a new order each epoch.
        clock = time.time()
        totals = []
        for epoch in range(settings.epochs):
            order = torch.randperm(len(batch), generator=seeded(settings.seed, "minibatches", step, epoch))
            for groups in order.split(settings.minibatch_size // settings.group_size):
                in_groups = (groups[:, None] * settings.group_size + torch.arange(settings.group_size)).flatten()
                totals.append(update(model, optimizer, rollout, advantages, in_groups.to(model.device), settings,
                                     optimizer_steps))
                if not math.isfinite(totals[-1]["loss"] + totals[-1]["grad_norm"]):
                    stop_not_finite(step, totals[-1], model, out)
                optimizer_steps += 1
        seconds_update = time.time() - clock

        # Evaluate and record.
        tokens = int(rollout.response_mask.sum())
        grouped = rewards.view(-1, settings.group_size)  # [prompts, G]
        row = dict(
            step=step,
            reward_mean=rewards.mean().item(),
            eval_accuracy=evaluated(step),
            loss=sum(t["loss"] for t in totals) / len(totals),
            grad_norm=sum(t["grad_norm"] for t in totals) / len(totals),
            kl_to_old=sum(t["kl"] for t in totals) / max(1, sum(t["tokens"] for t in totals)),
            entropy=-rollout.log_probs.sum().item() / max(1, tokens),
            response_length=tokens / len(rewards),
            truncated_fraction=rollout.truncated.float().mean().item(),
            zero_variance_fraction=(grouped == grouped[:, :1]).all(dim=1).float().mean().item(),
            seconds_rollout=seconds_rollout,
            seconds_update=seconds_update,
            tokens_per_second=tokens / (seconds_rollout + seconds_update),
        )
        record(row)
        accuracies = [r["eval_accuracy"] for r in rows if r["eval_accuracy"] is not None]
        bar.set_postfix(reward=f"{row['reward_mean']:.3f}", accuracy=f"{accuracies[-1]:.3f}" if accuracies else "-")
        if settings.save_every and (step % settings.save_every == 0 or step == settings.steps):
            seconds = progress["seconds"] + time.time() - started
            save_checkpoint(out, step, model, tokenizer, optimizer,
                            {"optimizer_steps": optimizer_steps, "seconds": seconds})
    bar.close()

    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    draw_curves(rows, out / "curves.png", f"{settings.objective}, {Path(settings.model).name}")
    seconds = progress["seconds"] + time.time() - started
    accuracies = [row["eval_accuracy"] for row in rows if row["eval_accuracy"] is not None]
    verdict = f"accuracy {accuracies[0]:.3f} -> {accuracies[-1]:.3f} on {len(held_out)} held-out problems" if accuracies \
        else "not evaluated"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{settings.objective}, {settings.steps} steps: {verdict}, {seconds:.0f} s, peak memory {peak:.2f} GiB")
    for name, what in (("metrics.jsonl", "a line a step"), ("curves.png", "the curves"), ("model", "the trained model")):
        print(f"  {out / name}  {what}")
    return rows


def stop_not_finite(step, totals, model, out):
    r"""Ends the run: the loss or its gradient is not a number. The weights are those before the step."""
    broken = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    cause = f"the weights of {broken[0]} are not finite" if broken else \
        "the loss is not finite" if not math.isfinite(totals["loss"]) else "the gradient is not finite"
    last = checkpoints(out)[-1:]
    kept = f"the last checkpoint is {last[0]}" if last else "no checkpoint was written yet"
    print(f"\ntrain.py: stopped at step {step}: {cause} (loss {totals['loss']}, gradient norm {totals['grad_norm']}); "
          f"{kept}; try a smaller --lr or a larger --tau", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    train(parse_settings())
