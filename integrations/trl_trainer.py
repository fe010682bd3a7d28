r"""Any objective of this project inside TRL: a subclass of GRPOTrainer (written for and checked with trl 1.16.0).

    from integrations.trl_trainer import ObjectiveTrainer
    trainer = ObjectiveTrainer(model, reward, args=GRPOConfig(...), train_dataset=data, objective="pmd_mean", tau=0.01)

Sampling, vLLM, PEFT, accelerate, logging and checkpoints stay TRL's. Two things are replaced: the advantages, computed
from the rewards that TRL has gathered from all processes, and the loss, computed from TRL's own tensors.

    in TRL                                                     here
    inputs["completion_mask"], times inputs["tool_mask"]       response_mask [N, T]
    per_token_logps, temperature included                      log_probs [N, T]
    inputs["old_per_token_logps"]; absent: per_token_logps     old_log_probs [N, T], detached
    inputs["ref_per_token_logps"]                              ref_log_probs [N, T], where the objective has a reference
    inputs["advantages"]                                       advantages [N], [N, T] for REINFORCE++
    inputs["importance_sampling_ratio"], with vLLM             a weight of each event, before they are added up
    num_generations, max_completion_length, temperature        group_size, max_new_tokens, temperature
    num_iterations                                             epochs
    beta, epsilon, epsilon_high, delta, loss_type, ...         not of GRPOConfig: keywords of the trainer, see GIVEN

Normalisation. TRL calls the loss once per microbatch and process; gradients are summed over the microbatches of an
optimizer step (it has turned the division of transformers' Trainer off) and averaged over processes. So the number of
responses to divide by is N * accumulation steps, that of one process: the average over processes does the rest. The
number of tokens is TRL's num_items_in_batch, counted over the whole generation and all processes, divided by the
processes and by the optimizer steps of one pass over the generation: exact where a pass is one step (the default), else
an average over them.

One step per generation is also where the policy still is the sampler: PMD's tau and RPG's KL to the sampler then do
nothing. So set steps_per_generation above gradient_accumulation_steps (both default to 1), as main() below does.

Not here: what `train.py` does while sampling (--filter-groups, --overlong-penalty, --length-reward). In TRL shaping is
another reward function. Evaluation is TRL's own.

`python integrations/trl_trainer.py --objective pmd_mean` trains the embedded model on the CPU.
"""

import copy
import dataclasses
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from trl import GRPOConfig, GRPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules

from aggregation import aggregate
from gsm8k import INSTRUCTION, format_prompt, load_problems
from objectives import OBJECTIVES
from plumbing.settings import PRESETS, needs_reference, parse_settings
from reward_math import math_reward

# Settings that are keywords of ObjectiveTrainer, with the defaults of `python train.py --preset gsm8k`.
GIVEN = ("tau", "beta", "eps_low", "eps_high", "clip_c", "ratio", "reference", "leave_one_out", "aggregate")
# Options of TRL's own objective, which is not trained here: refused, so that none is ignored in silence.
REFUSED = ("beta", "epsilon", "epsilon_high", "delta", "loss_type", "scale_rewards", "importance_sampling_level",
           "multi_objective_aggregation", "use_bias_correction_kl", "off_policy_mask_threshold", "top_entropy_quantile",
           "entropy_coef", "use_adaptive_entropy")


class ObjectiveTrainer(GRPOTrainer):
    r"""GRPOTrainer with `objective`, a name in objectives.OBJECTIVES, and the settings of GIVEN that it uses."""

    def __init__(self, model, reward_funcs, args, *, objective="pmd_mean", **kwargs):
        given = {name: kwargs.pop(name) for name in GIVEN if name in kwargs}
        if objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, not {objective!r}")
        self.objective = OBJECTIVES[objective]
        unused = [name for name in given if name not in (*self.objective.settings, "aggregate")]
        changed = [name for name in REFUSED if getattr(args, name) != getattr(GRPOConfig, name)]
        if unused:
            raise ValueError(f"{unused[0]} is not used by {objective}: leave it out")
        if changed:
            raise ValueError(f"{changed[0]} is an option of TRL's own objective: leave it out of GRPOConfig and give "
                             f"ObjectiveTrainer its keywords ({', '.join(GIVEN)})")
        steps = args.steps_per_generation // args.gradient_accumulation_steps * args.num_iterations
        to_sampler = "tau" in self.objective.settings or self.objective.settings.get("reference") == "sampler"
        if steps == 1 and to_sampler and given.get("reference") != "initial":
            warnings.warn("one optimizer step per generation: the policy is still the sampler, and tau or the KL to it "
                          "does nothing; set steps_per_generation above gradient_accumulation_steps", stacklevel=2)
        flags = [text for name in ("ratio", "reference") if name in given
                 for text in (f"--{name}", given[name])]  # they choose other defaults
        self.settings = dataclasses.replace(
            parse_settings(["--preset", "gsm8k", "--objective", objective, *flags]), **given,
            group_size=args.num_generations, max_new_tokens=args.max_completion_length, temperature=args.temperature)
        args = copy.copy(args)
        args.beta = self.settings.beta if needs_reference(self.settings) else 0.0  # TRL loads a reference where not 0
        super().__init__(model, reward_funcs, args, **kwargs)

    def _calculate_rewards(self, *args, **kwargs):
        self.rewards_per_func = super()._calculate_rewards(*args, **kwargs)  # [all N, functions], of all processes
        return self.rewards_per_func

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self.forward_pass = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self.forward_pass

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return batch
        if self.rewards_per_func.isnan().all(dim=1).any():
            raise ValueError("a response got None from every reward function: return a number for each")
        rewards = (self.rewards_per_func * self.reward_weights.to(self.rewards_per_func)).nansum(dim=1)  # [all N]
        everyone = SimpleNamespace()
        if self.settings.objective == "reinforce_pp":  # its advantages are normalised over the tokens of all processes
            mask = response_mask(batch)  # [N, T]
            if "old_per_token_logps" not in batch:
                ids, known = (torch.cat([batch[f"prompt_{part}"], batch[f"completion_{part}"]], dim=1)
                              for part in ("ids", "mask"))
                with torch.no_grad():
                    batch["old_per_token_logps"] = self._get_per_token_logps_and_entropies(
                        self.model, ids, known, mask.shape[1], self.args.per_device_train_batch_size)[0]
            everyone.response_mask, everyone.log_probs, everyone.ref_log_probs = (
                None if x is None else self.accelerator.gather(self.accelerator.pad_across_processes(x, dim=1))
                for x in (mask.long(), batch["old_per_token_logps"], batch.get("ref_per_token_logps"))
            )  # [all N, longest T]; long, as pad_across_processes makes integers of the bools that it pads
        advantages = self.objective.advantages(rewards, everyone, self.settings)  # [all N] or [all N, T]
        here = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        batch["advantages"] = advantages[here] if advantages.dim() == 1 else advantages[here, : mask.shape[1]]
        return batch

    def _compute_loss(self, model, inputs):
        trl_loss = super()._compute_loss(model, inputs)  # the forward pass and TRL's metrics
        log_probs, _, aux_loss = self.forward_pass  # [N, T]
        del self.forward_pass
        if not self.model.training:
            return trl_loss
        mask = response_mask(inputs)  # [N, T]
        old_log_probs = inputs.get("old_per_token_logps", log_probs.detach())
        log_probs, old_log_probs, ref_log_probs = (
            None if x is None else torch.where(mask, x, 0.0)
            for x in (log_probs, old_log_probs, inputs.get("ref_per_token_logps")))  # [N, T]
        part = SimpleNamespace(log_probs=old_log_probs, ref_log_probs=ref_log_probs, response_mask=mask,
                               advantages=inputs["advantages"])
        losses = self.objective.loss(log_probs, part, self.settings)  # [N, T] or [N]
        weights = inputs.get("importance_sampling_ratio")  # [N, 1] or [N, T]
        if weights is not None:
            if losses.dim() == 1 and weights.shape[1] > 1:
                raise ValueError("the events of this objective are whole responses: set vllm_importance_sampling_mode "
                                 "to sequence_mask or sequence_truncate")
            losses = losses * (weights if losses.dim() == 2 else weights.squeeze(1))
        accumulated = self.current_gradient_accumulation_steps
        share = accumulated / self.args.steps_per_generation / self.accelerator.num_processes
        loss = aggregate(losses, mask, self.settings.aggregate, len(mask) * accumulated,
                         inputs["num_items_in_batch"] * share, self.settings.max_new_tokens)
        return loss + self.router_aux_loss_coef * aux_loss / accumulated if self.aux_loss_enabled else loss


def response_mask(batch):
    r"""[N, T] bool: tokens of the response that the model wrote itself, the eos included."""
    return (batch["completion_mask"] * batch.get("tool_mask", 1)).bool()


def reward(completions, answer, **kwargs):
    r"""TRL's form of a reward: one number per response, from it and the other columns of the data set."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [math_reward(text, gold) for text, gold in zip(texts, answer)]


def prompts(problems, tokenizer):
    r"""The problems as TRL's data set: the prompts of gsm8k.format_prompt, a conversation where there is a template."""
    from datasets import Dataset

    return Dataset.from_list([
        dict(prompt=[dict(role="user", content=f"{problem['question']}\n{INSTRUCTION}")] if tokenizer.chat_template
             else format_prompt(tokenizer, problem["question"]), answer=problem["answer"]) for problem in problems])


def main():
    import argparse

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny = PRESETS["tiny"]
    parser = argparse.ArgumentParser(description="Train the embedded model with TRL, on the CPU.")
    parser.add_argument("--objective", default="pmd_mean", choices=tuple(OBJECTIVES), metavar="NAME",
                        help=f"one of {', '.join(OBJECTIVES)}")
    parser.add_argument("--steps", type=int, default=48,
                        help="optimizer steps, four for each generation (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=tiny["lr"], help="learning rate, constant (default: %(default)s)")
    parser.add_argument("--out", default="runs/trl", help="folder of TRL's checkpoint (default: %(default)s)")
    chosen = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(tiny["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny["model"])
    # 32 prompts x 8 responses a generation, four optimizer steps of 64 responses on them.
    args = GRPOConfig(
        chosen.out, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", logging_steps=4,
        max_steps=chosen.steps, save_steps=chosen.steps, learning_rate=chosen.lr, lr_scheduler_type="constant",
        per_device_train_batch_size=64, num_generations=8, steps_per_generation=4,
        max_completion_length=tiny["max_new_tokens"])
    strength = {name: tiny[name] for name in ("tau", "beta") if name in OBJECTIVES[chosen.objective].settings}
    trainer = ObjectiveTrainer(model, reward, args, objective=chosen.objective, **strength, processing_class=tokenizer,
                               train_dataset=prompts(load_problems(tiny["train_data"]), tokenizer))
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    print(f"{chosen.objective}: mean reward of each generation " + " ".join(f"{reward:.3f}" for reward in rewards))
    return rewards


if __name__ == "__main__":
    main()
