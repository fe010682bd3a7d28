r"""Settings: everything that can be chosen about a run, its defaults, and the command line made from them.

One dataclass, `Settings`, a line of documentation each; `python train.py --help` prints them. A setting that is not
given takes its default from the preset (the task) or from the objective, and all of them end up in config.json.

`python settings.py` prints the settings of each objective that are not the same for all.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import parallel

HERE = Path(__file__).resolve().parent

KLS = ("fkl", "rkl", "ufkl", "urkl")
PMD = ("pmd_mean", "pmd_part")
RPG = tuple(f"rpg_{style}{kl}" for style in ("", "reinforce_") for kl in KLS)
RPG_CLIP = tuple(f"rpg_{style}clip_{kl}" for style in ("", "reinforce_") for kl in KLS)
OBJECTIVES = (*PMD, *RPG, *RPG_CLIP, "grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "gspo")

# Settings that only some objectives use; given with another one they are an error.
USED_BY = dict(
    tau=PMD,
    leave_one_out=(*PMD, *RPG, *RPG_CLIP),
    ratio=(*RPG, *RPG_CLIP),
    reference=(*RPG, *RPG_CLIP),
    beta=(*RPG, *RPG_CLIP, "grpo", "reinforce_pp"),
    ref_update_every=(*RPG, *RPG_CLIP, "grpo", "reinforce_pp"),
    ref_update_kl=(*RPG, *RPG_CLIP, "grpo", "reinforce_pp"),
    eps_low=(*RPG_CLIP, "grpo", "dr_grpo", "dapo", "reinforce_pp", "gspo"),
    eps_high=(*RPG_CLIP, "grpo", "dr_grpo", "dapo", "reinforce_pp", "gspo"),
    clip_c=RPG_CLIP,
)

# Defaults of the objectives that have their own; the first line is everyone else's.
OBJECTIVE_DEFAULTS = {
    None: dict(aggregate="token-mean", eps_low=0.2, eps_high=0.2, clip_c=10.0, ratio="token", reference="sampler",
               filter_groups=False),
    **{name: dict(aggregate="seq-mean-token-sum") for name in (*PMD, "rloo")},
    **{name: dict(eps_high=0.28) for name in RPG_CLIP},
    "grpo": dict(aggregate="seq-mean-token-mean", reference="initial"),
    "dr_grpo": dict(aggregate="seq-mean-token-sum-norm"),
    "gspo": dict(aggregate="seq-mean-token-sum", eps_low=3e-4, eps_high=4e-4),
    "dapo": dict(eps_high=0.28, filter_groups=True),
    "reinforce_pp": dict(reference="initial"),
}
MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")

# What differs between the two presets; everything else has its default in Settings.
PRESETS = {
    "tiny": dict(
        model=str(HERE / "tiny" / "model"), train_data=str(HERE / "tiny" / "train.jsonl"),
        eval_data=str(HERE / "tiny" / "test.jsonl"), eval_size=384, eval_every=18, steps=54, prompts_per_step=32,
        group_size=8, minibatch_size=64, micro_batch_size=64, tokens_per_microbatch=8192, max_new_tokens=72, lr=1e-4,
        lr_decay_steps=80, tau=0.1, beta=1e-3, save_every=10,
    ),
    "gsm8k": dict(
        model="Qwen/Qwen2.5-0.5B-Instruct", train_data="openai/gsm8k", eval_data="openai/gsm8k", eval_size=512,
        eval_every=20, steps=400, prompts_per_step=32, group_size=16, minibatch_size=128, micro_batch_size=64,
        tokens_per_microbatch=4096, max_new_tokens=320, lr=1e-6, lr_decay_steps=0, tau=0.01, beta=1e-4, save_every=20,
    ),
}


def setting(default, meaning, **kwargs):
    return dataclasses.field(default=default, metadata={"help": meaning, **kwargs})


@dataclass
class Settings:
    r"""Every setting of a run, each a command-line flag. None means: by the preset or the objective."""

    objective: str = setting("pmd_mean", "what to optimise: pmd_mean, pmd_part, rpg_KL, rpg_reinforce_KL, rpg_clip_KL, "
                             "rpg_reinforce_clip_KL with KL one of fkl, rkl, ufkl, urkl; grpo, dr_grpo, dapo, rloo, "
                             "reinforce_pp, gspo", choices=OBJECTIVES)
    preset: str = setting("tiny", "defaults for the embedded task, or for GSM8K on a GPU", choices=("tiny", "gsm8k"))
    model: str = setting(None, "Hugging Face model directory or hub name")
    train_data: str = setting(None, "JSONL file with question and answer, or hub name")
    eval_data: str = setting(None, "the same for the held-out problems; of a hub data set its test split")
    eval_size: int = setting(None, "held-out problems to evaluate on, the first of the file")
    eval_every: int = setting(None, "steps between evaluations; 0: never evaluate")
    steps: int = setting(None, "steps: rounds of sampling and updating")
    prompts_per_step: int = setting(None, "prompts sampled from in a step")
    group_size: int = setting(None, "responses per prompt, G")
    minibatch_size: int = setting(None, "responses per optimizer step: whole groups, a divisor of all responses "
                                  "(with --filter-groups the last one may be smaller)")
    micro_batch_size: int = setting(None, "responses per forward pass at most; gradients add up to the minibatch's")
    tokens_per_microbatch: int = setting(None, "tokens per forward pass at most, padding included, the prompt of a "
                                         "group counted once: bounds the memory of an update whatever the lengths")
    epochs: int = setting(1, "passes over a step's responses")
    max_new_tokens: int = setting(None, "longest response, in tokens; a longer one is truncated")
    temperature: float = setting(1.0, "sampling temperature; the policy trained is the tempered one")
    lr: float = setting(None, "AdamW's learning rate")
    warmup_steps: int = setting(10, "optimizer steps in which the learning rate rises linearly to --lr")
    lr_decay_steps: int = setting(None, "optimizer steps t in which the learning rate halves, as lr / (1 + t / this), "
                                  "whatever --steps is; 0: constant, as in the papers")
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay")
    max_grad_norm: float = setting(1.0, "gradients longer than this are scaled down to it")
    tau: float = setting(None, "PMD's regularisation strength: larger is a smaller step")
    beta: float = setting(None, "strength of the KL penalty: RPG's, GRPO's, REINFORCE++'s")
    eps_low: float = setting(None, "clipping: ratios down to 1 - eps_low")
    eps_high: float = setting(None, "clipping: ratios up to 1 + eps_high")
    clip_c: float = setting(None, "RPG-Style Clip: bad events move while their ratio is below clip_c")
    ratio: str = setting(None, "what an event of RPG is: a token, or the whole response (its ratio is exact)",
                         choices=("token", "sequence"))
    aggregate: str = setting(None, "how the losses of events become one number, see aggregation.py; "
                             "seq-mean-token-sum with --ratio sequence", choices=MODES)
    reference: str = setting(None, "the policy that RPG's KL is to: the sampler, or the initial model",
                             choices=("sampler", "initial"))
    ref_update_every: int = setting(0, "optimizer steps after which the policy of then replaces the initial model as "
                                    "reference, and so on; 0: never")
    ref_update_kl: float = setting(0.0, "the same, when a moving average of KL(policy || reference) in nats per token "
                                   "passes this; 0: never")
    leave_one_out: bool = setting(False, "a response's own reward is left out of its baseline")
    filter_groups: bool = setting(None, "drop groups that are all right or all wrong and sample others, three times as "
                                  "many prompts at most (dapo does it by itself)")
    overlong_penalty: int = setting(None, "DAPO's: over the last so many tokens before max_new_tokens, the reward "
                                    "falls by up to 1/2; 0: none (default: 0; a fifth of --max-new-tokens for dapo)")
    length_reward: float = setting(0.0, "weight of Kimi k1.5's length reward; 0: none")
    old_log_probs: str = setting("auto", "log-probs of the policy that sampled: the sampler's own, or recomputed by "
                                 "one more pass over the responses; auto: recomputed in bfloat16, else the sampler's",
                                 choices=("auto", "sampler", "recomputed"))
    optimizer_reset: bool = setting(False, "AdamW forgets its averages at each step, as in Kimi k1.5")
    seed: int = setting(0, "seed of everything random")
    out: str = setting(None, "folder of the run, new or empty; default runs/<objective>-<time>")
    save_every: int = setting(None, "steps between checkpoints, and one at the end; 0: none")
    resume: str = setting(None, "folder of a run to continue, with its own settings; only --steps may be given too")
    device: str = setting("auto", "cpu, cuda, cuda:1, ...; auto: cuda where there is one")
    dtype: str = setting("auto", "of the decoder's matrix products; weights, head and losses stay float32. auto: bfloat16 "
                         "on a CUDA device that has it, else float32. On a CPU that multiplies bfloat16 in hardware "
                         "(AVX512-BF16, AMX) bfloat16 may pay for a model of 0.5B; for the embedded one it does not",
                         choices=("auto", "float32", "bfloat16"))
    decode: str = setting("eager", "eager: responses that have ended leave the batch; static: a cache of fixed shape; "
                          "compiled: that through torch.compile, prompts padded to a multiple of 64, CUDA graphs on a "
                          "GPU",
                          choices=("eager", "static", "compiled"))
    gradient_checkpointing: bool = setting(False, "recompute activations in backward: less memory, a third more time")


def printable(text):
    r"""Text for the console: control characters, which could clear the screen, as escapes; long lines cut."""
    shown = "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text[:2000])
    lines = [line if len(line) <= 500 else f"{line[:500]} ... ({len(line) - 500} more characters)"
             for line in shown.split("\n")]
    return "\n".join(lines) + (f" ... ({len(text) - 2000} more characters)" if len(text) > 2000 else "")


def fail(message):
    r"""Ends the program for a mistake of its user: one line that says what to do, exit status 2."""
    if parallel.rank() == 0:  # all processes find the same mistake
        print(f"train.py: {printable(str(message)).replace(chr(10), ' ')}", file=sys.stderr)
    sys.exit(2)


def default_text(field):
    r"""The default of a setting for --help: by preset, by objective, or its own."""
    if field.name in PRESETS["tiny"]:
        shown = {preset: str(PRESETS[preset][field.name]).replace(f"{HERE}{os.sep}", "") for preset in PRESETS}
        return f" (default: tiny {shown['tiny']}, gsm8k {shown['gsm8k']})"
    if field.name in OBJECTIVE_DEFAULTS[None]:
        names = {}
        for objective, defaults in OBJECTIVE_DEFAULTS.items():
            if objective and field.name in defaults:
                names.setdefault(defaults[field.name], []).append(objective.replace("_fkl", "_<kl>"))
        others = "".join(f"; {value} for {', '.join(name for name in group if not name.endswith(KLS))}"
                         for value, group in names.items())
        return f" (default: {OBJECTIVE_DEFAULTS[None][field.name]}{others})"
    return "" if field.default is None else f" (default: {field.default})"


def parse_settings(arguments=None):
    r"""Settings from the command line, completed from the preset and checked; exits with status 2 on bad input."""
    parser = argparse.ArgumentParser(
        usage="python train.py [--objective NAME] [--steps STEPS] [--out OUT] [any setting below]", allow_abbrev=False,
        description="Reinforcement learning of a language model on math word problems.",
        epilog="Example: python train.py --objective pmd_mean --steps 20 --out runs/first",
    )
    parser.error = lambda message: fail(f"{message}; see python train.py --help")
    for field in dataclasses.fields(Settings):
        flag, meaning = "--" + field.name.replace("_", "-"), field.metadata["help"]
        meaning += default_text(field)
        if field.type is bool:
            parser.add_argument(flag, action="store_true", default=None, help=meaning)
        else:
            parser.add_argument(flag, type=field.type, choices=field.metadata.get("choices"), help=meaning,
                                metavar="NAME" if field.name == "objective" else None if "choices" in field.metadata
                                else field.name.split("_")[-1].upper())
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}

    if "resume" in given:
        settings = resumed_settings(given)
    else:
        settings = Settings(**given)
        if "preset" not in given and torch.cuda.is_available() and parallel.rank() == 0:
            print("the embedded task; a CUDA device was found, so --preset gsm8k would train on GSM8K")
        for name, objectives in USED_BY.items():
            if name in given and settings.objective not in objectives:
                fail(f"--{name.replace('_', '-')} is not used by {settings.objective}: leave it out, or choose one of "
                     f"{', '.join(objectives)}")
        defaults = {**OBJECTIVE_DEFAULTS[None], **OBJECTIVE_DEFAULTS.get(settings.objective, {}),
                    **PRESETS[settings.preset]}
        if settings.ratio == "sequence":  # the events are whole responses
            defaults["aggregate"] = "seq-mean-token-sum"
        for name, value in defaults.items():
            if getattr(settings, name) is None:
                setattr(settings, name, value)
        if settings.overlong_penalty is None:
            settings.overlong_penalty = settings.max_new_tokens // 5 if settings.objective == "dapo" else 0
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
                 "max_new_tokens", "tokens_per_microbatch"):
        if getattr(settings, name) < 1:
            fail(f"--{name.replace('_', '-')} must be at least 1, not {getattr(settings, name)}")
    for name in ("eval_every", "save_every", "warmup_steps", "lr_decay_steps", "weight_decay", "beta",
                 "ref_update_every", "ref_update_kl", "overlong_penalty", "length_reward", "eps_low", "eps_high"):
        if not getattr(settings, name) >= 0:
            fail(f"--{name.replace('_', '-')} must not be negative")
    for name in ("tau", "lr", "temperature", "max_grad_norm"):
        if not 0 < getattr(settings, name) < math.inf:
            fail(f"--{name.replace('_', '-')} must be a positive number, not {getattr(settings, name)}")
    if settings.clip_c <= 1:
        fail(f"--clip-c must be larger than 1, not {settings.clip_c}")
    if settings.overlong_penalty > settings.max_new_tokens:
        fail(f"--overlong-penalty {settings.overlong_penalty} is more than --max-new-tokens {settings.max_new_tokens}")
    updated = settings.ref_update_every or settings.ref_update_kl
    if updated and (settings.reference == "sampler" or not settings.beta):
        fail("--ref-update-every and --ref-update-kl need --reference initial and --beta above 0: the sampler is new "
             "at each step anyway")
    if settings.group_size == 1:
        fail("--group-size 1 leaves nothing to compare a response with: use at least 2")
    responses = settings.prompts_per_step * settings.group_size
    if settings.minibatch_size % settings.group_size or responses % settings.minibatch_size:
        fail(f"--minibatch-size {settings.minibatch_size} must hold whole groups of {settings.group_size} and divide "
             f"the {settings.prompts_per_step} x {settings.group_size} = {responses} responses of a step")


if __name__ == "__main__":
    names = sorted({name for defaults in OBJECTIVE_DEFAULTS.values() for name in defaults} | set(USED_BY))
    for objective in OBJECTIVES:
        settings = {**OBJECTIVE_DEFAULTS[None], **PRESETS["tiny"], **OBJECTIVE_DEFAULTS.get(objective, {})}
        used = [name for name in names if objective in USED_BY.get(name, OBJECTIVES)]
        print(f"{objective:26s}" + ", ".join(f"{name} {settings.get(name, 'off')}" for name in used))
