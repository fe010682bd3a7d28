r"""Settings: everything that can be chosen about a run, its defaults, and the command line made from them.

All settings are in one dataclass, `Settings`, with a line of documentation each. `python train.py --help` prints them.
A setting that is not given takes its default from the preset (the task), from the objective (objectives.py), or from
here, in that order. config.json holds all of them. A setting of the group `objective` that the objective does not use
is None.
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

from aggregation import MODES
from objectives import OBJECTIVES
from plumbing import parallel

HERE = Path(__file__).resolve().parent.parent

# What differs between the two presets. tau and beta are for the objectives that use them.
#
# tiny: chosen by trial on the embedded task, to pass 0.90 in under a minute (docs/measurements.md). A rollout feeds up
# to 16 optimizer steps. Groups that are all right or all wrong are dropped, about half of them, so it is 8 to 9 on
# average.
#
# gsm8k, from both papers' runs: 16 responses a prompt, 16 optimizer steps per rollout (theirs: 512 prompts, minibatches
# of 32; here: 64, minibatches of 4), lr 1e-6, constant after 10 steps; tau 0.01 (OpenKimi's scripts) and beta 1e-4
# (RPG) are the defaults of their objectives. Ours: 64 prompts, for one GPU; 200 steps, half of RPG's 400; evaluation,
# checkpoints. 512 new tokens, where RPG has 4,096 and more: GSM8K's own solutions are short, but a weak model's are
# not. Of 64 responses of a Qwen2.5-Coder-0.5B-Instruct in 4 bits at temperature 1, 38 % were longer than 320 tokens and
# 19 % longer than 400. Memory: 2,048 tokens bound a forward pass (docs/limits.md); 64 responses seldom do.
PRESETS = {
    "tiny": dict(
        model=str(HERE / "tiny" / "model"), train_data=str(HERE / "tiny" / "train.jsonl"),
        eval_data=str(HERE / "tiny" / "test.jsonl"), eval_size=384, eval_every=16, steps=16, prompts_per_step=48,
        group_size=8, minibatch_size=24, micro_batch_size=64, tokens_per_microbatch=8192, max_new_tokens=72,
        temperature=0.7, reward_above=0.0, reward_below=1.0, lr=1.2e-4, lr_decay_steps=50, tau=0.1, beta=1e-3,
        save_every=10,
    ),
    "gsm8k": dict(
        model="Qwen/Qwen2.5-0.5B-Instruct", train_data="openai/gsm8k", eval_data="openai/gsm8k", eval_size=512,
        eval_every=10, steps=200, prompts_per_step=64, group_size=16, minibatch_size=64, micro_batch_size=64,
        tokens_per_microbatch=2048, max_new_tokens=512,
        temperature=1.0, reward_above=-1.0, reward_below=2.0, lr=1e-6, lr_decay_steps=0, save_every=10,
    ),
}


def setting(default, meaning, **kwargs):
    return dataclasses.field(default=default, metadata={"help": meaning, **kwargs})


def number_or_auto(text):
    return text if text == "auto" else int(text)


@dataclass
class Settings:
    r"""Every setting of a run. Each is a flag; --help has them in this order. None: the preset or objective decides."""

    objective: str = setting("pmd_mean", "what to optimise: pmd_mean, pmd_part, pmd_k25, rpg_KL, rpg_reinforce_KL, "
                             "rpg_clip_KL, rpg_reinforce_clip_KL with KL one of fkl, rkl, ufkl, urkl; grpo, dr_grpo, "
                             "dapo, rloo, reinforce_pp, gspo; each is an entry of objectives.py", group="task")
    preset: str = setting("tiny", "defaults for the embedded task, or for GSM8K on a GPU", choices=("tiny", "gsm8k"))
    model: str = setting(None, "a Hugging Face model directory or hub name")
    train_data: str = setting(None, "a JSONL file with question and answer, or a hub name")
    eval_data: str = setting(None, "the same for held-out problems; a hub data set's test split is used")
    eval_size: int = setting(None, "evaluate on so many held-out problems, the first of the file")

    prompts_per_step: int = setting(None, "prompts sampled from in a step", group="sampling")
    group_size: int = setting(None, "responses per prompt, G")
    max_new_tokens: int = setting(None, "longest response in tokens; a longer one is cut off")
    temperature: float = setting(None, "sampling temperature; it is part of the policy that is trained")
    filter_groups: bool = setting(False, "drop groups that are all right or all wrong and sample more prompts, up to "
                                  "three times as many (dapo has it on)")
    reward_above: float = setting(None, "train on a prompt only where the mean of its group's verdicts, 1 or 0, is "
                                  "above this: 0 drops groups that are all wrong; nothing is sampled in their place")
    reward_below: float = setting(None, "and below this: 1 drops groups that are all right; -1 and 2 drop none")
    overlong_penalty: int = setting(0, "DAPO's penalty: the reward falls by up to 1/2 over so many tokens before "
                                    "max_new_tokens; 0: none (dapo: a fifth of --max-new-tokens)")
    length_reward: float = setting(0.0, "weight of Kimi k1.5's length reward; 0: none")

    tau: float = setting(None, "PMD's regularisation strength; a larger tau makes a smaller step", group="objective")
    beta: float = setting(None, "strength of the KL penalty of RPG, GRPO and REINFORCE++")
    reference: str = setting(None, "the policy that the KL is to: the sampler, or the initial model",
                             choices=("sampler", "initial"))
    ref_update_every: int = setting(None, "every so many optimizer steps, copy the current policy into the reference; "
                                    "0: never")
    ref_update_kl: float = setting(None, "copy it when a moving average of KL(policy || reference), in nats per token, "
                                   "passes this; 0: never")
    ratio: str = setting(None, "an event of RPG is a token, or the whole response (whose ratio is exact)",
                         choices=("token", "sequence"))
    eps_low: float = setting(None, "clip ratios below 1 - eps_low")
    eps_high: float = setting(None, "clip ratios above 1 + eps_high")
    clip_c: float = setting(None, "RPG-Style Clip: events with a negative advantage have a gradient while their ratio "
                             "is below this")
    leave_one_out: bool = setting(None, "leave a response's own reward out of its baseline")
    aggregate: str = setting(None, "how the losses of events become one number, see aggregation.py; with --ratio "
                             "sequence it is seq-mean-token-sum", choices=MODES)

    steps: int = setting(None, "rounds of sampling and updating", group="optimizer")
    lr: float = setting(None, "AdamW's learning rate")
    minibatch_size: int = setting(None, "responses per optimizer step: whole groups, and a divisor of a step's "
                                  "responses (where groups are dropped, the last minibatch may be smaller)")
    epochs: int = setting(1, "passes over a step's responses")
    warmup_steps: int = setting(10, "optimizer steps over which the learning rate rises linearly to --lr")
    lr_decay_steps: int = setting(None, "after so many optimizer steps the learning rate has halved: lr / (1 + t / "
                                  "this) at optimizer step t; 0: constant")
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay")
    optimizer_reset_every: int = setting(0, "every so many steps AdamW forgets its averages; 1: after each, as in Kimi "
                                         "k1.5; 0: never")

    seed: int = setting(0, "seed of everything random", group="run")
    out: str = setting(None, "folder of the run, new or empty (default: runs/<objective>-<time>)")
    resume: str = setting(None, "folder of a run to go on with; its own settings hold, only --steps may be given too")
    eval_every: int = setting(None, "steps between evaluations; 0: never evaluate")
    save_every: int = setting(None, "steps between checkpoints, with one more at the end; 0: none")

    device: str = setting("auto", "cpu, cuda, cuda:1, mps, ...; auto: cuda where there is a device, else mps for "
                          "the gsm8k preset", group="hardware")
    dtype: str = setting("auto", "precision of the decoder's matrix products; weights, head and losses stay float32. "
                         "auto: bfloat16 on a CUDA device that has it, else float32. On a CPU that multiplies bfloat16 "
                         "in hardware (AVX512-BF16, AMX) bfloat16 may be faster for a model of 0.5B; for the embedded "
                         "model it is not. float16, with a scaled loss, is for GPUs without bfloat16 (T4, V100)",
                         choices=("auto", "float32", "bfloat16", "float16"))
    micro_batch_size: int = setting(None, "at most so many responses per forward pass; gradients add up to the "
                                    "minibatch's. auto: as many as --tokens-per-microbatch allows, which is halved "
                                    "when a GPU's memory is not enough", parse=number_or_auto)
    tokens_per_microbatch: int = setting(None, "at most so many tokens per forward pass, with padding, and the "
                                         "prompt of a group counted as often as it is read: once where rows are packed, "
                                         "as the first line of a run says; this bounds the memory of an update")
    gradient_checkpointing: bool = setting(False, "compute activations again in backward: less memory, a third more "
                                           "time")
    old_log_probs: str = setting("auto", "log-probs of the policy that sampled: the sampler's own, or recomputed by "
                                 "one more pass over the responses; auto: recomputed in 16 bits and with "
                                 "--importance-weights, else the sampler's",
                                 choices=("auto", "sampler", "recomputed"))
    importance_weights: str = setting("off", "multiply losses by pi_old(trainer) / pi_old(sampler), of the token or of "
                                      "the whole response as the loss is: truncate bounds the weight by "
                                      "--importance-threshold C, mask drops weights outside [1/C, C]; old log-probs "
                                      "are then recomputed", choices=("off", "truncate", "mask"))
    importance_threshold: float = setting(2.0, "C of --importance-weights")
    decode: str = setting("eager", "eager: responses that have ended leave the batch; static: a cache of fixed shape; "
                          "compiled: the same through torch.compile, with prompts padded to a multiple of 64 and CUDA "
                          "graphs on a GPU", choices=("eager", "static", "compiled"))


def groups():
    r"""{group of --help: its fields}, in order."""
    found = {}
    for field in dataclasses.fields(Settings):
        group = field.metadata.get("group", group if found else None)
        found.setdefault(group, []).append(field)
    return found


def printable(text):
    r"""Text for the console. Control characters, which could clear the screen, become escapes; long lines are cut."""
    shown = "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text[:2000])
    lines = [line if len(line) <= 500 else f"{line[:500]} ... ({len(line) - 500} more characters)"
             for line in shown.split("\n")]
    return "\n".join(lines) + (f" ... ({len(text) - 2000} more characters)" if len(text) > 2000 else "")


def fail(message):
    r"""Ends the program after a user's mistake: one line that says what to do, exit status 2."""
    if parallel.rank() == 0:  # all processes find the same mistake, one prints it
        print(f"train.py: {printable(str(message)).replace(chr(10), ' ')}", file=sys.stderr)
    sys.exit(2)


def default_text(field):
    r"""The default of a setting for --help: by preset, by objective, or its own."""
    if field.name in PRESETS["gsm8k"]:
        shown = {preset: str(PRESETS[preset][field.name]).replace(f"{HERE}{os.sep}", "") for preset in PRESETS}
        return f" (default: tiny {shown['tiny']}, gsm8k {shown['gsm8k']})"
    names = {}
    for name, objective in OBJECTIVES.items():
        value = dict(objective.settings, aggregate=objective.aggregate).get(field.name)
        if value is not None and not callable(value) and value != field.default:
            names.setdefault(value, []).append(name)
    if field.name in PRESETS["tiny"]:
        return f" (default: {', '.join(map(str, names))}; preset tiny {PRESETS['tiny'][field.name]})"
    if len(names) == 1:
        return f" (default: {field.default if field.default is not None else next(iter(names))})"
    if names:
        usual = max(names, key=lambda value: len(names[value]))
        others = "".join(f"; {value} for {', '.join(group)}" for value, group in names.items() if value != usual)
        return f" (default: {usual}{others})"
    return "" if field.default is None or field.type is bool else f" (default: {field.default})"


def parse_settings(arguments=None):
    r"""Settings from the command line, completed and checked; exits with status 2 on bad input."""
    parser = argparse.ArgumentParser(
        usage="python train.py [--objective NAME] [--steps STEPS] [--out OUT] [any setting below]", allow_abbrev=False,
        description="Reinforcement learning of a language model on math word problems.",
        epilog="Example: python train.py --objective pmd_mean --steps 20 --out runs/first",
    )
    parser.error = lambda message: fail(f"{message}; see python train.py --help")
    for group, fields in groups().items():
        section = parser.add_argument_group(group)
        for field in fields:
            flag, meaning = "--" + field.name.replace("_", "-"), field.metadata["help"] + default_text(field)
            choices = tuple(OBJECTIVES) if field.name == "objective" else field.metadata.get("choices")
            if field.type is bool:
                section.add_argument(flag, action="store_true", default=None, help=meaning)
            else:
                section.add_argument(flag, type=field.metadata.get("parse", field.type), choices=choices, help=meaning,
                                     metavar="NAME" if field.name == "objective" else None if choices
                                     else field.name.split("_")[-1].upper())
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    settings = resumed_settings(given) if "resume" in given else new_settings(given)
    check(settings)
    return settings


def new_settings(given):
    r"""The given settings, completed from the preset and the objective."""
    settings = Settings(**given)
    if "preset" not in given and torch.cuda.is_available() and parallel.rank() == 0:
        print("the embedded task; a CUDA device was found, so --preset gsm8k would train on GSM8K")
    objective = OBJECTIVES[settings.objective]
    own = {field.name for field in groups()["objective"]} - {"aggregate"}
    for name in given:
        if name in own and name not in objective.settings:
            users = [other for other in OBJECTIVES if name in OBJECTIVES[other].settings]
            fail(f"--{name.replace('_', '-')} is not used by {settings.objective}: leave it out, or choose one of "
                 f"{', '.join(users)}")
    # Where an event is a whole response, a mean over tokens would divide its loss by its length.
    whole = settings.ratio == "sequence"
    defaults = {**objective.settings, "aggregate": "seq-mean-token-sum" if whole else objective.aggregate,
                **{name: value for name, value in PRESETS[settings.preset].items()
                   if name not in own or name in objective.settings}}
    for name, value in defaults.items():
        if name not in given and not callable(value):
            setattr(settings, name, value)
    for name, value in objective.settings.items():
        if name not in given and callable(value):  # a function of the other settings
            setattr(settings, name, value(settings))
    settings.out = settings.out or f"runs/{settings.objective}-{time.strftime('%Y%m%d-%H%M%S')}"
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
    for field in dataclasses.fields(Settings):
        value, flag = getattr(settings, field.name), f"--{field.name.replace('_', '-')}"
        if value in (None, "auto") or field.type not in (int, float) or field.name == "seed":
            continue
        if field.name in ("tau", "lr", "temperature"):
            if not 0 < value < math.inf:
                fail(f"{flag} must be a positive number, not {value}")
        elif field.name in ("eval_size", "steps", "prompts_per_step", "group_size", "minibatch_size",
                            "micro_batch_size", "epochs", "max_new_tokens", "tokens_per_microbatch"):
            if value < 1:
                fail(f"{flag} must be at least 1, not {value}")
        elif field.name != "reward_above" and not value >= 0:
            fail(f"{flag} must not be negative")
    if settings.clip_c is not None and settings.clip_c <= 1:
        fail(f"--clip-c must be larger than 1, not {settings.clip_c}")
    if settings.overlong_penalty > settings.max_new_tokens:
        fail(f"--overlong-penalty {settings.overlong_penalty} is more than --max-new-tokens {settings.max_new_tokens}")
    if not settings.reward_above < settings.reward_below:
        fail(f"--reward-above {settings.reward_above} must be less than --reward-below {settings.reward_below}: "
             "else no group is trained on")
    if (settings.ref_update_every or settings.ref_update_kl) and not needs_reference(settings):
        fail("--ref-update-every and --ref-update-kl need --reference initial and --beta above 0: the sampler is new "
             "at each step anyway")
    if settings.importance_weights != "off" and settings.old_log_probs == "sampler":
        fail("--importance-weights compares the sampler's log-probs with the trainer's: leave out --old-log-probs")
    if not settings.importance_threshold >= 1:
        fail(f"--importance-threshold must be at least 1, not {settings.importance_threshold}")
    if settings.group_size == 1:
        fail("--group-size 1 leaves nothing to compare a response with: use at least 2")
    responses = settings.prompts_per_step * settings.group_size
    if settings.minibatch_size % settings.group_size or responses % settings.minibatch_size:
        fail(f"--minibatch-size {settings.minibatch_size} must hold whole groups of {settings.group_size} and divide "
             f"the {settings.prompts_per_step} x {settings.group_size} = {responses} responses of a step")


def needs_reference(settings):
    r"""Does the objective have a KL to another policy than the sampler? Then a frozen copy of the model is kept."""
    return settings.reference == "initial" and settings.beta > 0
