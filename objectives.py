r"""Objectives: a table with one entry for each name of --objective.

    rewards [N]  ->  advantages [N] or [N, T]  ->  losses of events [n, T] or [n]  ->  aggregate: one number

The fields of an entry:

    advantages  (rewards [N], rollout, settings) -> [N] per response, or [N, T] per token. Rewards come group after
                group, settings.group_size each. Only REINFORCE++ looks at the rollout
    loss        (log_probs [n, T], part, settings) -> [n, T] where an event is a token, [n] where it is a response.
                log_probs has the gradient. part is the microbatch, a rollout.Rollout: part.log_probs [n, T] of the
                policy that sampled, part.ref_log_probs [n, T] or None, part.advantages [n] or [n, T],
                part.response_mask [n, T]
    aggregate   how events become one number, see aggregation.py
    settings    the settings that the objective uses, with its defaults. A preset may have its own defaults. The command
                line refuses a setting of the group "objective" (tau, beta, ...) that is not listed here
    source      paper, section or equation

The functions are those of pmd_mean.py, pmd_variants.py, rpg_losses.py and baselines.py. This file says only which
arguments they get. To add an objective, add an entry: README.md shows one in at most 15 lines.

`python objectives.py` prints the table.
"""

from collections.abc import Callable
from dataclasses import dataclass

from baselines import (
    grpo_advantages, grpo_loss, gspo_loss, reinforce_loss, reinforce_pp_advantages, rloo_advantages,
)
from pmd_mean import pmd_loss, pmd_mean_advantages, pmd_part_advantages
from pmd_variants import pmd_k25_loss
from rpg_losses import (
    dual_clip_loss, fkl_loss, reinforce_dual_clip_loss, reinforce_fkl_loss, reinforce_rkl_loss, reinforce_ufkl_loss,
    reinforce_urkl_loss, rkl_loss, ufkl_loss, urkl_loss,
)


@dataclass(frozen=True)
class Objective:
    r"""An entry of the table; see the top of the file for its fields."""

    advantages: Callable
    loss: Callable
    aggregate: str
    settings: dict
    source: str


# --- what the entries of RPG share: the baseline is the group mean, as in the paper; an event is a token, or with
# --ratio sequence a response ---

def mean_baseline(rewards, rollout, s):
    return pmd_mean_advantages(rewards, s.group_size, s.leave_one_out)  # [N]


def rpg(loss, **fixed):
    r"""An RPG loss as a loss of this table. Log-probs are 0 outside the mask, so their sum over T needs no mask."""

    def of_events(log_probs, part, s):
        old_log_probs, ref_log_probs = part.log_probs, part.ref_log_probs
        if s.ratio == "sequence":
            log_probs, old_log_probs = log_probs.sum(dim=1), old_log_probs.sum(dim=1)  # [n]
            ref_log_probs = None if ref_log_probs is None else ref_log_probs.sum(dim=1)  # [n]
        clip = dict(eps_low=s.eps_low, eps_high=s.eps_high, c=s.clip_c, **fixed) if fixed else {}
        return loss(log_probs, old_log_probs, part.advantages, s.beta, ref_log_probs=ref_log_probs, **clip)

    return of_events


RPG = dict(beta=1e-4, reference="sampler", ratio="token", leave_one_out=False, ref_update_every=0, ref_update_kl=0.0)
RPG_CLIP = dict(RPG, eps_low=0.2, eps_high=0.28, clip_c=10.0)  # c: the authors' scripts


# --- what the entries of the GRPO family share ---

def standardised(rewards, rollout, s):
    return grpo_advantages(rewards, s.group_size)  # [N]


def ppo_clip(log_probs, part, s):
    return grpo_loss(log_probs, part.log_probs, part.advantages, 0.0, None, s.eps_low, s.eps_high)  # [n, T]


GRPO_KL = dict(beta=1e-4, reference="initial", ref_update_every=0, ref_update_kl=0.0)

OBJECTIVES = {
    "pmd_mean": Objective(
        advantages=lambda rewards, rollout, s: pmd_mean_advantages(rewards, s.group_size, s.leave_one_out),  # [N]
        loss=lambda log_probs, part, s: pmd_loss(
            log_probs, part.log_probs, part.advantages, part.response_mask, s.tau),  # [n], an event is a response
        aggregate="seq-mean-token-sum",
        settings=dict(tau=0.01, leave_one_out=False),  # the authors' tau; preset tiny has 0.1
        source="2602.05933; k1.5 eq. 3, K2"),
    "pmd_part": Objective(
        advantages=lambda rewards, rollout, s: pmd_part_advantages(rewards, s.group_size, s.tau, s.leave_one_out),
        loss=lambda log_probs, part, s: pmd_loss(
            log_probs, part.log_probs, part.advantages, part.response_mask, s.tau),
        aggregate="seq-mean-token-sum", settings=dict(tau=0.01, leave_one_out=False), source="k1.5 eq. 2 and 3"),
    "pmd_k25": Objective(
        advantages=mean_baseline,
        loss=lambda log_probs, part, s: pmd_k25_loss(
            log_probs, part.log_probs, part.advantages, s.tau, s.eps_low, s.eps_high),  # [n, T]
        aggregate="token-mean",
        settings=dict(tau=0.01, eps_low=0.2, eps_high=0.28, leave_one_out=False),  # our choice; the source has none
        source="K2.5, 2602.02276 eq. 1"),

    "rpg_fkl": Objective(mean_baseline, rpg(fkl_loss), "token-mean", RPG, "2505.17508 Prop. E.1"),
    "rpg_rkl": Objective(mean_baseline, rpg(rkl_loss), "token-mean", RPG, "2505.17508 Prop. E.3"),
    "rpg_ufkl": Objective(mean_baseline, rpg(ufkl_loss), "token-mean", RPG, "2505.17508 Prop. 3.2"),
    "rpg_urkl": Objective(mean_baseline, rpg(urkl_loss), "token-mean", RPG, "2505.17508 Prop. 3.6"),
    "rpg_reinforce_fkl": Objective(mean_baseline, rpg(reinforce_fkl_loss), "token-mean", RPG, "2505.17508 Table 2"),
    "rpg_reinforce_rkl": Objective(mean_baseline, rpg(reinforce_rkl_loss), "token-mean", RPG, "2505.17508 Table 2"),
    "rpg_reinforce_ufkl": Objective(mean_baseline, rpg(reinforce_ufkl_loss), "token-mean", RPG, "2505.17508 Table 2"),
    "rpg_reinforce_urkl": Objective(mean_baseline, rpg(reinforce_urkl_loss), "token-mean", RPG, "2505.17508 Table 2"),

    "rpg_clip_fkl": Objective(
        mean_baseline, rpg(dual_clip_loss, kl="fkl"), "token-mean", RPG_CLIP, "2505.17508 Alg. 1"),
    "rpg_clip_rkl": Objective(
        mean_baseline, rpg(dual_clip_loss, kl="rkl"), "token-mean", RPG_CLIP, "2505.17508 Alg. 1"),
    "rpg_clip_ufkl": Objective(
        mean_baseline, rpg(dual_clip_loss, kl="ufkl"), "token-mean", RPG_CLIP, "2505.17508 Alg. 1"),
    "rpg_clip_urkl": Objective(
        mean_baseline, rpg(dual_clip_loss, kl="urkl"), "token-mean", RPG_CLIP, "2505.17508 Alg. 1"),
    "rpg_reinforce_clip_fkl": Objective(
        mean_baseline, rpg(reinforce_dual_clip_loss, kl="fkl"), "token-mean", RPG_CLIP, "2505.17508 Alg. 2"),
    "rpg_reinforce_clip_rkl": Objective(
        mean_baseline, rpg(reinforce_dual_clip_loss, kl="rkl"), "token-mean", RPG_CLIP, "2505.17508 Alg. 2"),
    "rpg_reinforce_clip_ufkl": Objective(
        mean_baseline, rpg(reinforce_dual_clip_loss, kl="ufkl"), "token-mean", RPG_CLIP, "2505.17508 Alg. 2"),
    "rpg_reinforce_clip_urkl": Objective(
        mean_baseline, rpg(reinforce_dual_clip_loss, kl="urkl"), "token-mean", RPG_CLIP, "2505.17508 Alg. 2"),

    "grpo": Objective(
        standardised,
        lambda log_probs, part, s: grpo_loss(
            log_probs, part.log_probs, part.advantages, s.beta, part.ref_log_probs, s.eps_low, s.eps_high),
        "seq-mean-token-mean", dict(GRPO_KL, eps_low=0.2, eps_high=0.2), "2402.03300"),
    "dr_grpo": Objective(
        lambda rewards, rollout, s: pmd_mean_advantages(rewards, s.group_size), ppo_clip,
        "seq-mean-token-sum-norm", dict(eps_low=0.2, eps_high=0.2), "2503.20783"),
    "dapo": Objective(
        standardised, ppo_clip, "token-mean",
        dict(eps_low=0.2, eps_high=0.28, filter_groups=True, overlong_penalty=lambda s: s.max_new_tokens // 5),
        "2503.14476"),
    "rloo": Objective(
        lambda rewards, rollout, s: rloo_advantages(rewards, s.group_size),
        lambda log_probs, part, s: reinforce_loss(log_probs, part.advantages),
        "seq-mean-token-sum", {}, "2402.14740"),
    "reinforce_pp": Objective(  # its KL is in the reward
        lambda rewards, rollout, s: reinforce_pp_advantages(
            rewards, rollout.log_probs, rollout.response_mask, s.beta, rollout.ref_log_probs),
        ppo_clip, "token-mean", dict(GRPO_KL, eps_low=0.2, eps_high=0.2), "2501.03262"),
    "gspo": Objective(
        standardised,
        lambda log_probs, part, s: gspo_loss(
            log_probs, part.log_probs, part.advantages, part.response_mask, s.eps_low, s.eps_high),
        "seq-mean-token-sum", dict(eps_low=3e-4, eps_high=4e-4), "2507.18071"),
}


if __name__ == "__main__":
    for name, objective in OBJECTIVES.items():
        used = ", ".join(f"{key} {'by max_new_tokens' if callable(value) else value}"
                         for key, value in objective.settings.items())
        print(f"{name:24s} {objective.aggregate:24s} {objective.source:22s} {used}")
