r"""Reinforcement learning with verifiable rewards, as one readable loop: `python train.py --objective pmd_mean`.

    for step = 1 .. steps
        sample      y_1 .. y_G ~ pi_old( . | x) for each prompt x of the step        rollout.py
        verify      r_i = 1 if the answer of y_i is right, else 0                    reward_math.py
        baseline    A_i = r_i - mean of r over the group of x, or the objective's own
        update      for each minibatch of whole groups: one AdamW step on the objective's loss
        evaluate    greedy answers to held-out problems, now and then

pi_old is the policy at the start of the step; its log-probs are the sampler's own, so that no second pass is needed
(`--old-log-probs recomputed` makes one, as does bfloat16 by default, where decoding with a cache and reading at once
differ by more than float32 rounding). The objectives, with the file that derives each loss:

    pmd_mean, pmd_part                          pmd_mean.py     (tau/2) (A/tau - log pi_theta/pi_old)^2 per response
    rpg_<kl>, rpg_reinforce_<kl>                rpg_losses.py   kl: fkl, rkl, ufkl, urkl; the two styles of RPG
    rpg_clip_<kl>, rpg_reinforce_clip_<kl>      rpg_losses.py   the same with RPG-Style Clip
    grpo, dr_grpo, dapo, rloo,                  baselines.py    what both papers compare with
    reinforce_pp, gspo

A response that was cut off stays in its group: it counts in the baseline, with the reward that its text earns.

Presets. `tiny` is the embedded model and task (see tiny/make.py), for two CPU cores and three minutes. `gsm8k` trains
Qwen2.5-0.5B-Instruct on GSM8K and wants a GPU and a network; it was NOT run on a GPU by its authors. `auto` takes
gsm8k where there is a CUDA device. Every setting can be given on the command line: `python train.py --help`.

Several processes: `torchrun --nproc_per_node=2 train.py ...` draws the same samples and takes the same steps as one, to
rounding; what is split and what is summed is in parallel.py. `--shard` splits the weights too (FSDP2).

What a run writes in its folder
    config.json          the settings, in full
    metrics.jsonl        one object a step, defined below; written as the step ends
    curves.png           the picture of it
    checkpoint-<step>/   the last whole checkpoint; `--resume FOLDER` goes on from it, as if never stopped
    model/               the trained model, a Hugging Face directory

Metrics, each over the whole step, never its last minibatch: of sampling over all sampled responses, those too that
--filter-groups drops; of training over all minibatches and epochs, null in a step where every group was filtered out.
    reward_mean             mean reward of the sampled responses; without shaping, the fraction that is right
    eval_accuracy           fraction of the held-out problems answered right, greedily; step 0 is the base model; null
                            where not evaluated
    loss                    mean over optimizer steps of the minibatch's loss
    grad_norm               mean over optimizer steps of the gradient's Euclidean norm, before clipping
    skipped_updates         optimizer steps left out as their gradient was not finite; loss and grad_norm leave them out
    kl_to_old               KL(pi_old || pi_theta) in nats per token: mean of w - 1 - log w over the response tokens,
                            w = pi_theta/pi_old, each measured just before its minibatch's optimizer step
    kl_to_reference         the same of the reference: mean of k3(pi_ref/pi_theta) at the tokens of pi_old, without a
                            weight: KL(pi_theta || pi_ref) while pi_theta is near pi_old; null without a reference
    sampler_mismatch        nats: mean over response tokens of |log pi_old(y_t) of the sampler - of the trainer|, of the
                            first minibatch, before any update; what rounding, or a bug, does to the ratio w
    entropy                 nats per token of the sampling policy, estimated by the mean of -log pi_old(y_t)
    response_length         mean number of sampled tokens in a response, the eos included
    truncated_fraction      fraction of responses that max_new_tokens ended
    zero_variance_fraction  fraction of sampled groups whose rewards are all equal: they teach nothing
    seconds_rollout         sampling and verifying; seconds_update: all optimizer steps
    tokens_per_second       sampled tokens by seconds_rollout + seconds_update
"""

import copy
import dataclasses
import hashlib
import json
import math
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

import parallel
import rpg_losses
from aggregation import aggregate
from baselines import grpo_advantages, grpo_loss, gspo_loss, reinforce_loss, reinforce_pp_advantages
from checkpoint import checkpoints, load_state, save_checkpoint, truncate_metrics, write_json, write_model
from curves import draw_curves
from gsm8k import format_prompt, load_problems
from kl_estimators import k3
from pmd_mean import pmd_loss, pmd_mean_advantages, pmd_part_advantages
from reward_math import math_reward, verify
from rewards import length_reward, mixed_groups, overlong_penalty
from rollout import check_positions, concatenate, has_plain_head, sample_rollouts, token_log_probs, uniforms
from settings import PMD, RPG, RPG_CLIP, USED_BY, fail, parse_settings, printable


METRICS = ("step", "reward_mean", "eval_accuracy", "loss", "grad_norm", "skipped_updates", "kl_to_old",
           "kl_to_reference", "sampler_mismatch", "entropy", "response_length", "truncated_fraction",
           "zero_variance_fraction", "seconds_rollout", "seconds_update", "tokens_per_second")
SKIPPED_IN_A_ROW = 3  # updates with a gradient that is not finite, after which the run stops


def load_model(settings, source):
    r"""(model, tokenizer) through AutoModelForCausalLM, in float32 and without dropout, on the device."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if (source.startswith((".", os.sep)) or Path(source).exists()) and not (Path(source) / "config.json").is_file():
        fail(f"no model at {source}: give a Hugging Face model directory or a hub name with --model")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    except Exception as error:  # transformers raises many kinds; each means that there is no model to be had
        fail(f"cannot load the model {source}: {(str(error).strip() or repr(error)).splitlines()[0][:200]}")
    # Dropout would make the policy that is updated another one than the policy that sampled.
    model.config.attention_dropout = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout") and not isinstance(module.attention_dropout, torch.nn.Module):
            module.attention_dropout = 0.0
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable()
        model.train()  # transformers recomputes in training mode only
    model.to(device_of(settings))
    has_plain_head(model)  # asked now, while the weights are whole
    return model, tokenizer


def device_of(settings):
    if settings.device == "auto":
        local = int(os.environ.get("LOCAL_RANK", 0))  # of torchrun: this process's number on its machine
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        return torch.empty(0, device=settings.device).device
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {settings.device} cannot be used here: {str(error).strip().splitlines()[0][:200]}")


def in_bfloat16(settings):
    r"""Asked for, or the machine multiplies it in hardware: GPUs since Ampere, CPUs with AVX512-BF16 or AMX."""
    if settings.dtype != "auto":
        return settings.dtype == "bfloat16"
    if device_of(settings).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(settings):
    r"""Matrix products in bfloat16 where `in_bfloat16` says so; the weights stay float32."""
    return torch.autocast(device_of(settings).type, dtype=torch.bfloat16, enabled=in_bfloat16(settings))


def next_problems(problems, settings, drawn):
    r"""The next prompts_per_step problems after `drawn` of them: the data in a new random order each epoch.

    A function of (seed, drawn) and nothing else, so that a run that is resumed goes on with the next problem.
    """
    chosen, order_of = [], {}
    for place in range(drawn, drawn + settings.prompts_per_step):
        epoch, index = divmod(place, len(problems))
        if epoch not in order_of:
            order_of[epoch] = torch.randperm(len(problems), generator=seeded(settings.seed, "data", epoch))
        chosen.append(problems[order_of[epoch][index]])
    return chosen


def seeded(*key):
    r"""A random generator that depends on the key and nothing else."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def sample(model, tokenizer, problems, settings, step, drawn):
    r"""Samples and verifies: (rollout, correct [N], drawn). With --filter-groups in up to three rounds of prompts."""
    rollouts, correct, useful = [], [], 0
    while not rollouts or settings.filter_groups and len(rollouts) < 3 and useful < settings.prompts_per_step:
        batch = next_problems(problems, settings, drawn)
        drawn += len(batch)
        prompts = [format_prompt(tokenizer, problem["question"]) for problem in batch]
        draws = uniforms(prompts, settings.group_size, settings.max_new_tokens,
                         seed=f"{settings.seed} {step} {len(rollouts)}")  # [prompts * G, T]
        shares = []  # one Rollout, of this process's prompts; none where there are fewer prompts than processes
        if parallel.mine(prompts):
            with autocast(settings):
                shares = [sample_rollouts(
                    model, tokenizer, parallel.mine(prompts), settings.group_size, settings.max_new_tokens,
                    settings.temperature, decode=settings.decode,
                    uniform=parallel.mine(draws.view(len(prompts), settings.group_size, -1)).flatten(0, 1),
                )]
        rollouts.append(gather_rollouts(shares, settings.group_size, model.device))
        golds = [problem["answer"] for problem in batch for _ in range(settings.group_size)]
        correct.append(torch.tensor([math_reward(text, gold) for text, gold in zip(rollouts[-1].texts, golds)]))
        useful += int(mixed_groups(correct[-1], settings.group_size).sum()) // settings.group_size
    return concatenate(rollouts), torch.cat(correct), drawn


def gather_rollouts(shares, group_size, device):
    r"""One Rollout, in the order of the prompts, of the Rollouts that the processes hold for their prompts."""
    if parallel.world() == 1:
        return shares[0]
    shares = [share.to("cpu") for share in shares]
    groups = [share.select(torch.arange(first, first + group_size))
              for share in shares for first in range(0, len(share.texts), group_size)]
    return concatenate(parallel.gather(groups)).to(device)


def shaped_rewards(settings, correct, rollout):
    r"""[N]: 1 for a right answer, plus the shaping that was asked for."""
    lengths = rollout.response_mask.sum(dim=1).cpu()  # [N]
    rewards = correct
    if settings.overlong_penalty:
        rewards = rewards + overlong_penalty(lengths, settings.max_new_tokens, settings.overlong_penalty)
    if settings.length_reward:
        rewards = rewards + settings.length_reward * length_reward(correct, lengths, settings.group_size)
    return rewards


def evaluate(model, tokenizer, problems, settings):
    r"""Greedy answers to held-out problems: (fraction right, list of (problem, response, right))."""
    prompts = [format_prompt(tokenizer, problem["question"]) for problem in problems]
    order = parallel.mine(sorted(range(len(problems)), key=lambda i: len(prompts[i])))  # like lengths pad little
    batch_size = settings.prompts_per_step * settings.group_size  # as many rows at a time as when sampling
    texts = []
    for start in range(0, len(order), batch_size):
        with autocast(settings):
            texts += sample_rollouts(model, tokenizer, [prompts[i] for i in order[start : start + batch_size]], 1,
                                     settings.max_new_tokens, greedy=True, decode=settings.decode).texts
    texts = dict(parallel.gather(list(zip(order, texts))))
    answers = [(problem, texts[i], verify(texts[i], problem["answer"])) for i, problem in enumerate(problems)]
    return sum(right for *_, right in answers) / len(answers), answers


def show(answers, step, accuracy):
    r"""Prints a few whole answers with their verdict: always the same problems, so that one sees what changes."""
    lines = [f"\n--- step {step}: {accuracy:.1%} of {len(answers)} held-out problems right; two of them:"]
    for problem, response, right in answers[:2]:
        gold = printable(problem["answer"].split("####")[-1].strip())
        response = printable(response) or "(no text)"
        lines.append(f"{printable(problem['question'])}\n  " + response.replace("\n", "\n  "))
        lines.append(f"  -> {'right' if right else f'WRONG, the answer is {gold}'}")
    if parallel.rank() == 0:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # of a console that may not know every character
        tqdm.write("\n".join(lines).encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)


def advantages_of(settings, rewards, rollout, ref_log_probs):
    r"""The objective's advantages: [N], or [N, T] for REINFORCE++, whose reward holds a KL per token."""
    group_size = settings.group_size
    if settings.objective == "pmd_part":
        return pmd_part_advantages(rewards, group_size, settings.tau, settings.leave_one_out)
    if settings.objective in ("grpo", "dapo", "gspo"):
        return grpo_advantages(rewards, group_size)
    if settings.objective == "reinforce_pp":
        return reinforce_pp_advantages(rewards, rollout.log_probs, rollout.response_mask, settings.beta, ref_log_probs)
    return pmd_mean_advantages(rewards, group_size, settings.leave_one_out or settings.objective == "rloo")


def losses_of(settings, log_probs, part, ref_log_probs, advantages):
    r"""The objective's loss per event: [n, T] where an event is a token, [n] where it is a whole response."""
    name, old_log_probs, mask = settings.objective, part.log_probs, part.response_mask
    if name in PMD:
        return pmd_loss(log_probs, old_log_probs, advantages, mask, settings.tau)  # [n]
    if name in RPG or name in RPG_CLIP:
        if settings.ratio == "sequence":  # all log-probs are 0 outside the mask
            log_probs, old_log_probs = log_probs.sum(dim=1), old_log_probs.sum(dim=1)  # [n]
            ref_log_probs = None if ref_log_probs is None else ref_log_probs.sum(dim=1)  # [n]
        if name in RPG:
            loss = getattr(rpg_losses, f"{name.removeprefix('rpg_')}_loss")
            return loss(log_probs, old_log_probs, advantages, settings.beta, ref_log_probs)
        loss = rpg_losses.reinforce_dual_clip_loss if "reinforce" in name else rpg_losses.dual_clip_loss
        return loss(log_probs, old_log_probs, advantages, settings.beta, name.split("_")[-1], settings.eps_low,
                    settings.eps_high, settings.clip_c, ref_log_probs)
    if name == "rloo":
        return reinforce_loss(log_probs, advantages)  # [n, T]
    if name == "gspo":
        return gspo_loss(log_probs, old_log_probs, advantages, mask, settings.eps_low, settings.eps_high)  # [n]
    beta = settings.beta if name == "grpo" else 0.0  # REINFORCE++ has its KL in the reward
    return grpo_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs, settings.eps_low, settings.eps_high)


def needs_reference(settings):
    r"""Does the objective measure a KL to another policy than the sampler? Then a frozen copy of the model is kept."""
    return settings.reference == "initial" and settings.beta > 0 and settings.objective in USED_BY["beta"]


def microbatches(rollout, rows, settings):
    r"""Cuts whole groups of rows into parts for one forward pass: a list of (rows of the part, rows per prompt).

    At most micro_batch_size responses and tokens_per_microbatch tokens, padding included, in a part; responses of like
    length together, so that little is padding. Where a group does not fit, it is cut into pieces that do. Nothing is
    shared with gradient checkpointing, which keeps no cache, nor with sharded weights, which every process must put
    together equally often.
    """
    G, lengths = settings.group_size, rollout.response_mask.sum(dim=1).cpu()  # [N]
    prompts = rollout.attention_mask.sum(dim=1).cpu() - lengths  # [N]
    rows = rows.cpu().view(-1, G)
    if len(rows) == 0:
        return []
    rows = rows.gather(1, lengths[rows].argsort(dim=1))  # within a group too, for the pieces

    def tokens(pieces):  # [k, piece] -> of one padded forward pass
        return len(pieces) * (int(prompts[pieces].max()) + pieces.shape[1] * int(lengths[pieces].max()))

    for piece in (g for g in range(1 if settings.gradient_checkpointing or settings.shard else G, 0, -1) if G % g == 0):
        pieces = rows.view(-1, piece)
        if piece == 1 or piece <= settings.micro_batch_size and all(
                tokens(one[None]) <= settings.tokens_per_microbatch for one in pieces):
            break
    parts = []
    for one in pieces[lengths[pieces].amax(dim=1).argsort()]:
        larger = torch.cat([parts[-1], one[None]]) if parts else one[None]  # [k, piece]
        if parts and larger.numel() <= settings.micro_batch_size and tokens(larger) <= settings.tokens_per_microbatch:
            parts[-1] = larger
        else:
            parts.append(one[None])
    return [(part.flatten().to(rollout.sequences.device), piece) for part in parts]


def scored(model, part, piece, settings):
    r"""log pi_theta(y_t | x, y_<t) of a microbatch: [n, T] float32."""
    with autocast(settings):
        if parallel.is_sharded(model):
            return model.scorer(part, settings.temperature, piece)
        return token_log_probs(model, part, settings.temperature, piece)


@torch.no_grad()
def log_probs_of(model, rollout, settings):
    r"""log pi(y_t | x, y_<t) of a whole rollout under a model, without gradients: [N, T]."""
    log_probs = torch.zeros_like(rollout.log_probs)  # [N, T]
    groups = parallel.mine(torch.arange(len(log_probs)).view(-1, settings.group_size))
    for chunk, piece in in_step(microbatches(rollout, groups, settings), model):
        part = rollout.select(chunk if len(chunk) else [0])
        scores = scored(model, part, piece, settings)  # [n, T]
        if len(chunk):
            log_probs[chunk, : part.response_mask.shape[1]] = scores
    return parallel.total(log_probs)


def in_step(parts, model):
    r"""The microbatches, and under --shard as many empty ones more as the process with most of them has.

    Sharded weights are put together by all processes at once, so each must run the model equally often.
    """
    if not parallel.is_sharded(model):
        return parts
    most = max(parallel.gather([len(parts)]))
    return parts + [(torch.zeros(0, dtype=torch.long), 1)] * (most - len(parts))


def learning_rate(settings, optimizer_steps):
    r"""A linear rise, then constant or falling as 1/t: never a function of --steps, which a resumed run may raise."""
    rise = min(1.0, (optimizer_steps + 1) / max(1, settings.warmup_steps))
    fall = 1 + optimizer_steps / settings.lr_decay_steps if settings.lr_decay_steps else 1
    return settings.lr * rise / fall


def update(model, optimizer, rollout, ref_log_probs, advantages, rows, settings, optimizer_steps):
    r"""One optimizer step on the responses `rows`, whole groups; returns sums for the step's metrics.

    Each microbatch adds its share of one sum over the whole minibatch (`aggregate` with the minibatch's counts), and
    the gradients of the processes are added up, so that cutting and splitting change the gradient by rounding only.
    A gradient that is not finite leaves the weights alone, and "skipped" is 1.
    """
    lengths = rollout.response_mask.sum(dim=1)  # [N]
    num_tokens = int(lengths[rows].sum())
    sums = dict.fromkeys(("loss", "kl", "kl_ref", "mismatch"), 0.0)
    optimizer.zero_grad(set_to_none=True)
    groups = parallel.mine(rows.view(-1, settings.group_size))
    for chunk, piece in in_step(microbatches(rollout, groups, settings), model):
        part = rollout.select(chunk if len(chunk) else [0])
        width = part.response_mask.shape[1]
        log_probs = scored(model, part, piece, settings)  # [n, T]
        if not len(chunk):
            (0.0 * log_probs).sum().backward()
            continue
        part_ref = None if ref_log_probs is None else ref_log_probs[chunk, :width]  # [n, T]
        part_advantages = advantages[chunk] if advantages.dim() == 1 else advantages[chunk, :width]  # [n] or [n, T]
        losses = losses_of(settings, log_probs, part, part_ref, part_advantages)  # [n, T] or [n]
        loss = aggregate(losses, part.response_mask, settings.aggregate, num_responses=len(rows),
                         num_tokens=num_tokens, max_new_tokens=settings.max_new_tokens)
        loss.backward()
        with torch.no_grad():
            sums["loss"] += loss.item()
            sums["kl"] += k3(part.log_probs, log_probs).sum().item()  # [n, T], 0 outside the mask
            sums["mismatch"] += (part.log_probs - log_probs).abs().sum().item()
            if part_ref is not None:
                sums["kl_ref"] += k3(log_probs, part_ref).sum().item()
    parallel.sum_gradients(model)
    everyone = parallel.total(torch.tensor(list(sums.values()), dtype=torch.float64, device=model.device))
    totals = dict(zip(sums, everyone.tolist()), tokens=num_tokens, skipped=0)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    totals["grad_norm"] = (norm.full_tensor() if parallel.is_sharded(model) else norm).item()
    if not math.isfinite(totals["loss"]) or not math.isfinite(totals["grad_norm"]):
        return {**totals, "skipped": 1}
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, optimizer_steps)
    optimizer.step()
    return totals


def train(settings):
    r"""Runs the settings; returns the rows of metrics.jsonl. One process of several writes files and the console."""
    started = time.time()
    out, first = Path(settings.out), parallel.rank() == 0
    if not settings.resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        fail(f"{out} exists and is not empty: give another --out, or go on with the run in it by --resume {out}")
    try:
        problems = load_problems(settings.train_data, "train")
        held_out = load_problems(settings.eval_data, "test", settings.eval_size) if settings.eval_every else []
    except ValueError as error:
        fail(error)
    saved = checkpoints(out)[-1:] if settings.resume else []
    finished = (out / "model" / "config.json").is_file()
    if settings.resume and finished and not saved:
        fail(f"the run in {out} is finished and kept no checkpoint to go on from: start a new one with another --out")
    model, tokenizer = load_model(settings, str(saved[0]) if saved else settings.model)
    prompts = [format_prompt(tokenizer, problem["question"]) for problem in problems + held_out]
    longest = max(map(len, tokenizer(prompts, add_special_tokens=False).input_ids))
    try:
        check_positions(model, longest, settings.max_new_tokens)
    except ValueError as error:
        fail(str(error).replace("max_new_tokens", "--max-new-tokens"))
    reference = copy.deepcopy(model).requires_grad_(False) if needs_reference(settings) else None
    if settings.shard:
        parallel.shard(model, token_log_probs)
        if reference:
            parallel.shard(reference, token_log_probs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    progress = dict(step=0, optimizer_steps=0, drawn=0, average_kl=0.0, skipped=0, seconds=0.0)
    if saved:
        try:
            progress = load_state(saved[0], model, optimizer, reference, names=progress)
        except ValueError as error:
            fail(error)
    if settings.resume and finished and progress["step"] >= settings.steps:
        fail(f"the run in {out} is complete at step {progress['step']}: raise --steps to go on")
    parallel.from_first(None)  # every process has looked at the folder before one of them writes to it
    metrics_path = out / "metrics.jsonl"
    rows = []
    if first:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "config.json", {**dataclasses.asdict(settings), "resume": None})
        rows = truncate_metrics(metrics_path, progress["step"] if saved else -1)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{settings.objective}: {parameters:,} parameters on {parallel.world()} x {model.device}, "
              f"{len(problems)} training problems, {len(held_out)} held out, run in {out}")
        if settings.resume:
            print(f"goes on after step {progress['step']}")
    rows = parallel.from_first(rows)

    def record(row):
        rows.append(row)
        if first:
            with open(metrics_path, "a") as file:
                file.write(json.dumps(row) + "\n")

    def evaluated(step):
        if not settings.eval_every or (step % settings.eval_every and step != settings.steps):
            return None
        with parallel.whole_weights(model):
            accuracy, answers = evaluate(model, tokenizer, held_out, settings)
        show(answers, step, accuracy)
        return accuracy

    def save(step):
        stop_if_broken(step, model, out)  # before a good checkpoint is replaced
        save_checkpoint(out, step, model, tokenizer, optimizer, reference, dict(
            optimizer_steps=optimizer_steps, drawn=drawn, average_kl=average_kl, skipped=skipped,
            seconds=progress["seconds"] + time.time() - started))

    if not saved:
        record({**dict.fromkeys(METRICS), "step": 0, "eval_accuracy": evaluated(0)})
    bar = tqdm(range(progress["step"] + 1, settings.steps + 1), initial=progress["step"], total=settings.steps,
               desc=settings.objective, unit="step", disable=not first)
    optimizer_steps, drawn, average_kl, skipped = (
        progress[name] for name in ("optimizer_steps", "drawn", "average_kl", "skipped"))  # skipped: updates in a row
    G = settings.group_size
    for step in bar:
        # Sample a group of responses to each prompt, from the policy as it is now, and verify them.
        clock = time.time()
        with parallel.whole_weights(model):
            sampled, correct, drawn = sample(model, tokenizer, problems, settings, step, drawn)
        rewards = shaped_rewards(settings, correct, sampled)  # [N]
        seconds_rollout = time.time() - clock

        # Baseline, over all responses of a group.
        clock = time.time()
        rollout, kept = sampled, torch.arange(len(rewards))
        if settings.filter_groups:
            kept = mixed_groups(correct, G).nonzero().squeeze(1)[: settings.prompts_per_step * G]
            rollout = sampled.select(kept) if len(kept) else None
        totals, mismatch = [], None
        if len(kept) and recomputes_old_log_probs(settings):
            recomputed = log_probs_of(model, rollout, settings)  # [N, T]
            mismatch = (recomputed - rollout.log_probs).abs().sum().item() / int(rollout.response_mask.sum())
            rollout.log_probs = recomputed
        if len(kept):
            ref_log_probs = log_probs_of(reference, rollout, settings) if reference else None  # [N, T]
            advantages = advantages_of(settings, rewards[kept].to(model.device), rollout, ref_log_probs)

        # Update: minibatches of whole groups, in a new order each epoch.
        for epoch in range(settings.epochs if len(kept) else 0):
            order = torch.randperm(len(kept) // G, generator=seeded(settings.seed, "minibatches", step, epoch))
            for groups in order.split(settings.minibatch_size // G):
                minibatch = (groups[:, None] * G + torch.arange(G)).flatten().to(model.device)  # [minibatch_size]
                totals.append(update(model, optimizer, rollout, ref_log_probs, advantages, minibatch, settings,
                                     optimizer_steps))
                skipped = skipped + 1 if totals[-1]["skipped"] else 0
                if skipped:
                    stop_if_hopeless(step, skipped, totals[-1], model, out)
                optimizer_steps += 1
                average_kl = 0.9 * average_kl + 0.1 * totals[-1]["kl_ref"] / max(1, totals[-1]["tokens"])
                if (settings.ref_update_every and optimizer_steps % settings.ref_update_every == 0
                        or 0 < settings.ref_update_kl < average_kl):
                    reference.load_state_dict(model.state_dict())
                    ref_log_probs = log_probs_of(reference, rollout, settings)
                    average_kl = 0.0
        if settings.optimizer_reset:
            optimizer.state.clear()
        seconds_update = time.time() - clock

        # Evaluate and record.
        tokens = int(sampled.response_mask.sum())
        if totals and mismatch is None:
            mismatch = totals[0]["mismatch"] / max(1, totals[0]["tokens"])
        taken = [t for t in totals if not t["skipped"]]
        trained_tokens = max(1, sum(t["tokens"] for t in taken))
        grouped = rewards.view(-1, G)  # [prompts, G]
        row = dict(
            step=step,
            reward_mean=rewards.mean().item(),
            eval_accuracy=evaluated(step),
            loss=sum(t["loss"] for t in taken) / len(taken) if taken else None,
            grad_norm=sum(t["grad_norm"] for t in taken) / len(taken) if taken else None,
            skipped_updates=len(totals) - len(taken),
            kl_to_old=sum(t["kl"] for t in taken) / trained_tokens if taken else None,
            kl_to_reference=sum(t["kl_ref"] for t in taken) / trained_tokens if taken and reference else None,
            sampler_mismatch=mismatch if mismatch is not None and math.isfinite(mismatch) else None,
            entropy=-sampled.log_probs.sum().item() / max(1, tokens),
            response_length=tokens / len(rewards),
            truncated_fraction=sampled.truncated.float().mean().item(),
            zero_variance_fraction=(grouped == grouped[:, :1]).all(dim=1).float().mean().item(),
            seconds_rollout=seconds_rollout,
            seconds_update=seconds_update,
            tokens_per_second=tokens / (seconds_rollout + seconds_update),
        )
        record(row)
        accuracies = [r["eval_accuracy"] for r in rows if r["eval_accuracy"] is not None]
        bar.set_postfix(reward=f"{row['reward_mean']:.3f}", accuracy=f"{accuracies[-1]:.3f}" if accuracies else "-")
        stopped = parallel.from_first(Interrupt.asked)  # one process may hear of it before another
        if stopped or settings.save_every and (step % settings.save_every == 0 or step == settings.steps):
            save(step)
        if stopped and step < settings.steps:
            bar.close()
            if first:
                print(f"\ntrain.py: stopped after step {step}, which is saved; go on with --resume {out}",
                      file=sys.stderr)
            sys.exit(130)
    bar.close()

    write_model(out / "model", model, tokenizer)
    if not first:
        return rows
    draw_curves(rows, out / "curves.png", f"{settings.objective} on the {settings.preset} preset, seed {settings.seed}")
    seconds = progress["seconds"] + time.time() - started
    accuracies = [row["eval_accuracy"] for row in rows if row["eval_accuracy"] is not None]
    verdict = "not evaluated"
    if accuracies:
        verdict = f"accuracy {accuracies[0]:.3f} -> {accuracies[-1]:.3f} on {len(held_out)} held-out problems"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    print(f"\n{settings.objective}, {settings.steps} steps: {verdict}, {seconds:.0f} s, peak memory {peak:.2f} GiB")
    for name, what in [("metrics.jsonl", "a line a step"), ("curves.png", "the curves"), ("model", "what was trained")]:
        print(f"  {out / name}  {what}")
    return rows


def recomputes_old_log_probs(settings):
    return settings.old_log_probs == "recomputed" or settings.old_log_probs == "auto" and in_bfloat16(settings)


def stop_if_hopeless(step, skipped, totals, model, out):
    r"""Ends the run after a few updates in a row that could not be taken, or at once where the weights are broken."""
    stop_if_broken(step, model, out)
    if skipped >= SKIPPED_IN_A_ROW:
        what = "loss" if not math.isfinite(totals["loss"]) else "gradient"
        stop_not_finite(step, f"the {what} was not finite in {skipped} updates in a row (loss {totals['loss']}, "
                        f"gradient norm {totals['grad_norm']})", out)


def stop_if_broken(step, model, out):
    for name, parameter in model.named_parameters():
        if not parallel.local(parameter).isfinite().all():
            stop_not_finite(step, f"the weights of {name} are not finite", out)


def stop_not_finite(step, cause, out):
    last = checkpoints(out)[-1:]
    kept = f"the last checkpoint is {last[0]}" if last else "no checkpoint was written yet"
    print(f"\ntrain.py: stopped at step {step}: {cause}; {kept}; try a smaller --lr or a larger --tau", file=sys.stderr)
    sys.exit(1)


class Interrupt:
    r"""Ctrl-C, or SIGTERM from a cluster: the step is finished and saved first. A second one stops at once."""

    asked = False

    @classmethod
    def heard(cls, number, frame):
        if cls.asked:
            print("\ntrain.py: stopped at once; --resume goes on from the last checkpoint", file=sys.stderr)
            os._exit(130)
        cls.asked = True
        print("\ntrain.py: will stop after this step and save it; again to stop at once", file=sys.stderr)


if __name__ == "__main__":
    settings = parse_settings()
    signal.signal(signal.SIGINT, Interrupt.heard)
    signal.signal(signal.SIGTERM, Interrupt.heard)
    parallel.start(device_of(settings))
    settings.out = parallel.from_first(settings.out)  # its default has the time in it
    try:
        train(settings)
    except OSError as error:
        fail(f"cannot write to {settings.out} ({error.strerror or error}): make room or give another --out; "
             f"what is there can be continued with --resume {settings.out}")
    finally:
        parallel.stop()
