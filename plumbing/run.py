r"""A run: its folder, data, model, optimizer and checkpoints, its record and console, and when it has to stop.

This is the part of `train.py` that is not reinforcement learning. Several processes share one run: each holds the
model, and the first one writes files and prints (plumbing/parallel.py).
"""

import copy
import dataclasses
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

from gsm8k import format_prompt, load_problems
from plumbing import metrics, parallel
from plumbing.checkpoint import checkpoints, load_state, save_checkpoint, truncate_metrics, write_json, write_model
from plumbing.curves import draw_curves
from plumbing.model import grad_scaler, load_model, precision
from plumbing.settings import fail, needs_reference, printable
from rollout import check_positions
from scoring import can_pack, has_plain_head

SKIPPED_IN_A_ROW = 3  # so many updates that are not finite, one after another, end the run


class Run:
    r"""What `train` needs to start, or to go on with a run that was stopped, and what a run writes.

    policy, tokenizer, optimizer, reference    the last one is a frozen copy of the model, or None
    scaler                                     of the loss, see grad_scaler
    problems, held_out                         training problems and those to evaluate on
    optimizer_steps, drawn                     optimizer steps and problems used so far
    average_kl, skipped_in_a_row               of the KL to the reference; updates skipped
    A checkpoint keeps the last four beside weights, optimizer and scaler.
    """

    def __init__(self, settings):
        self.settings, self.out, self.started = settings, Path(settings.out), time.time()
        if not settings.resume and self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            fail(f"{self.out} exists and is not empty: give another --out, or go on with the run in it by --resume "
                 f"{self.out}")
        try:
            self.problems = load_problems(settings.train_data, "train")
            self.held_out = load_problems(settings.eval_data, "test", settings.eval_size) if settings.eval_every else []
        except ValueError as error:
            fail(error)
        saved = checkpoints(self.out)[-1:] if settings.resume else []
        finished = (self.out / "model" / "config.json").is_file()
        if settings.resume and finished and not saved:
            fail(f"the run in {self.out} is finished and kept no checkpoint to go on from: start a new one with "
                 "another --out")
        self.policy, self.tokenizer = load_model(settings, str(saved[0]) if saved else settings.model)
        prompts = [format_prompt(self.tokenizer, problem["question"]) for problem in self.problems + self.held_out]
        longest = max(map(len, self.tokenizer(prompts, add_special_tokens=False).input_ids))
        try:
            check_positions(self.policy, longest, settings.max_new_tokens)
        except ValueError as error:
            fail(str(error).replace("max_new_tokens", "--max-new-tokens"))
        self.reference = copy.deepcopy(self.policy).requires_grad_(False) if needs_reference(settings) else None
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=settings.lr,
                                           weight_decay=settings.weight_decay, fused=True)
        self.scaler = grad_scaler(settings)
        state = dict(step=0, optimizer_steps=0, drawn=0, average_kl=0.0, skipped_in_a_row=0, seconds=0.0,
                     scaler=self.scaler.state_dict())
        if saved:
            try:
                state = load_state(saved[0], self.policy, self.optimizer, self.reference, names=state)
            except ValueError as error:
                fail(error)
        self.first_step, self.seconds_before = state["step"] + 1, state["seconds"]
        self.optimizer_steps, self.drawn, self.average_kl, self.skipped_in_a_row = (
            state[name] for name in ("optimizer_steps", "drawn", "average_kl", "skipped_in_a_row"))
        self.scaler.load_state_dict(state["scaler"])
        if settings.resume and finished and state["step"] >= settings.steps:
            fail(f"the run in {self.out} is complete at step {state['step']}: raise --steps to go on")
        parallel.from_first(None)  # every process has looked at the folder before one of them writes to it
        self.rows, self.is_new = [], not saved
        if parallel.rank() == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(self.out / "config.json", {**dataclasses.asdict(settings), "resume": None})
            self.rows = truncate_metrics(self.out / "metrics.jsonl", state["step"] if saved else -1)
            self.print_start()
        self.rows = parallel.from_first(self.rows)

    def print_start(self):
        parameters = sum(parameter.numel() for parameter in self.policy.parameters())
        head = "whole logits, as its head does more than W h"
        if has_plain_head(self.policy):
            head = f"vocabulary in blocks, rows {'packed' if can_pack(self.policy) else 'padded'}"
        print(f"{self.settings.objective}: {parameters:,} parameters on {parallel.world()} x {self.policy.device}, "
              f"{precision(self.settings)}, {head}, {len(self.problems)} training problems, {len(self.held_out)} held "
              f"out, run in {self.out}")
        if self.settings.resume:
            print(f"goes on after step {self.first_step - 1}")

    def steps(self):
        r"""Yields the steps that are left, with a progress bar; saves checkpoints when due, at last the model."""
        settings, steps = self.settings, range(self.first_step, self.settings.steps + 1)
        with tqdm(steps, initial=self.first_step - 1, total=settings.steps, desc=settings.objective, unit="step",
                  disable=parallel.rank() > 0) as self.bar:
            for step in self.bar:
                self.updates, self.mismatch, self.seconds, self.clock = [], None, [], time.time()
                yield step
                if settings.optimizer_reset_every and step % settings.optimizer_reset_every == 0:
                    self.optimizer.state.clear()
                stopped = parallel.from_first(Interrupt.asked)  # a signal may reach one process before another
                if stopped or settings.save_every and (step % settings.save_every == 0 or step == settings.steps):
                    self.save(step)
                if stopped and step < settings.steps:
                    self.bar.close()
                    if parallel.rank() == 0:
                        print(f"\ntrain.py: stopped after step {step}, which is saved; go on with --resume {self.out}",
                              file=sys.stderr)
                    sys.exit(130)
        if parallel.rank() == 0:
            self.finish()
        parallel.from_first(None)  # nobody goes on, or looks at the folder again, before all of it is written

    def lap(self):
        r"""Ends a timed part of the step: sampling first, then all updates."""
        self.seconds.append(time.time() - self.clock)
        self.clock = time.time()

    def evaluation_is_due(self, step):
        every = self.settings.eval_every
        return every and (step % every == 0 or step == self.settings.steps)

    def after(self, update, step):
        r"""Counts an update, a metrics.Update. Ends the run where it cannot go on."""
        self.updates.append(update)
        if update.overflowed:  # neither broken nor taken
            return
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if update.skipped else 0
        if update.skipped:
            self.stop_if_broken(step)
            if self.skipped_in_a_row >= SKIPPED_IN_A_ROW:
                what = "loss" if not math.isfinite(update.loss) else "gradient"
                self.stop_not_finite(step, f"the {what} was not finite in {self.skipped_in_a_row} updates in a row "
                                     f"(loss {update.loss}, gradient norm {update.grad_norm})")
        self.average_kl = metrics.average_kl(self.average_kl, update)

    def reference_is_due(self):
        r"""Is it time to copy the policy into the reference, by the number of updates or by the average KL to it?"""
        every, kl = self.settings.ref_update_every, self.settings.ref_update_kl
        due = bool(every and self.optimizer_steps % every == 0 or kl and self.average_kl > kl)
        self.average_kl = 0.0 if due else self.average_kl
        return due

    def record(self, step, sampled=None, rewards=None, accuracy=None):
        r"""Writes a line of metrics.jsonl; at step 0 it is the base model's."""
        row = {**dict.fromkeys(metrics.NAMES), "step": step, "eval_accuracy": accuracy}
        if sampled is not None:
            row = metrics.row(step, sampled, rewards, self.updates, self.settings.group_size, self.mismatch,
                              self.reference is not None, accuracy, self.seconds)
            accuracies = [r["eval_accuracy"] for r in [*self.rows, row] if r["eval_accuracy"] is not None]
            self.bar.set_postfix(reward=f"{rewards.mean():.3f}",
                                 accuracy=f"{accuracies[-1]:.3f}" if accuracies else "-")
        self.rows.append(row)
        if parallel.rank() == 0:
            with open(self.out / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")

    def save(self, step):
        self.stop_if_broken(step)  # before a good checkpoint is replaced
        if parallel.rank() == 0:
            save_checkpoint(self.out, step, self.policy, self.tokenizer, self.optimizer, self.reference, dict(
                optimizer_steps=self.optimizer_steps, drawn=self.drawn, average_kl=self.average_kl,
                skipped_in_a_row=self.skipped_in_a_row, scaler=self.scaler.state_dict(),
                seconds=self.seconds_before + time.time() - self.started))

    def finish(self):
        r"""Writes the trained model and the picture, and prints the result."""
        settings = self.settings
        write_model(self.out / "model", self.policy, self.tokenizer)
        draw_curves(self.rows, self.out / "curves.png",
                    f"{settings.objective} on the {settings.preset} preset, seed {settings.seed}")
        accuracies = [row["eval_accuracy"] for row in self.rows if row["eval_accuracy"] is not None]
        verdict = "not evaluated"
        if accuracies:
            verdict = f"accuracy {accuracies[0]:.3f} -> {accuracies[-1]:.3f} on {len(self.held_out)} held-out problems"
        seconds = self.seconds_before + time.time() - self.started
        print(f"\n{settings.objective}, {settings.steps} steps: {verdict}, {seconds:.0f} s, peak memory "
              f"{peak_memory(self.policy.device)}")
        for name, what in [("metrics.jsonl", "a line a step"), ("curves.png", "the curves"),
                           ("model", "what was trained")]:
            print(f"  {self.out / name}  {what}")

    def stop_if_broken(self, step):
        for name, parameter in self.policy.named_parameters():
            if not parameter.isfinite().all():
                self.stop_not_finite(step, f"the weights of {name} are not finite")

    def stop_not_finite(self, step, cause):
        last = checkpoints(self.out)[-1:]
        kept = f"the last checkpoint is {last[0]}" if last else "no checkpoint was written yet"
        if parallel.rank() == 0:  # all processes find the same, one prints it
            print(f"\ntrain.py: stopped at step {step}: {cause}; {kept}; try a smaller --lr or a larger --tau",
                  file=sys.stderr)
        sys.exit(1)


def peak_memory(device):
    r"""Of this process so far, as text: the host's, and the CUDA device's where there is one."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    of_device = ""
    if device.type == "cuda":
        of_device = f", of {device} {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
    return f"{host:.2f} GiB{of_device}"


def show(answers, step, accuracy):
    r"""Prints two whole answers with their verdict, always to the same problems, so that one sees what changes."""
    lines = [f"\n--- step {step}: {accuracy:.1%} of {len(answers)} held-out problems right; two of them:"]
    for problem, response, right in answers[:2]:
        gold = printable(problem["answer"].split("####")[-1].strip())
        response = printable(response) or "(no text)"
        lines.append(f"{printable(problem['question'])}\n  " + response.replace("\n", "\n  "))
        lines.append(f"  -> {'right' if right else f'WRONG, the answer is {gold}'}")
    if parallel.rank() == 0:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # the console may not have every character
        tqdm.write("\n".join(lines).encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)


class Interrupt:
    r"""Ctrl-C, or SIGTERM from a cluster: finish the step and save it, then stop. A second one stops at once."""

    asked = False

    @classmethod
    def heard(cls, number, frame):
        if cls.asked:
            print("\ntrain.py: stopped at once; --resume goes on from the last checkpoint", file=sys.stderr)
            os._exit(130)
        cls.asked = True
        print("\ntrain.py: will stop after this step and save it; again to stop at once", file=sys.stderr)

    @classmethod
    def listen(cls):
        signal.signal(signal.SIGINT, cls.heard)
        signal.signal(signal.SIGTERM, cls.heard)
