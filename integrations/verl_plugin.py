r"""The objectives of this project inside verl: losses and group baselines in verl's registries (verl 0.9.1).

    PYTHONPATH=$PWD python -m verl.trainer.main_ppo ...                             $PWD: the folder of this project
        actor_rollout_ref.model.external_lib=integrations.verl_plugin               the one import
        algorithm.adv_estimator=pmd_mean
        actor_rollout_ref.actor.policy_loss.loss_mode=pmd_mean
        actor_rollout_ref.actor.policy_loss.dro_beta=0.01                           tau
        actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum                    a plain mean of responses

verl imports `external_lib` wherever it builds its HFModelConfig (verl/workers/config/model.py): in the trainer, which
computes advantages, and in every worker, which computes losses. `verl_gsm8k.sh` is a whole launch script.

    adv_estimator       pmd_mean, pmd_mean_loo, pmd_part, pmd_part_loo, grpo_exact: group baselines of `uid`
    loss_mode           pmd_mean, pmd_part (one loss), rpg_KL, rpg_reinforce_KL, rpg_clip_KL, rpg_reinforce_clip_KL
                        with KL one of fkl, rkl, ufkl, urkl; RPG goes with adv_estimator pmd_mean or pmd_mean_loo

    verl's option, under actor_rollout_ref.actor               here
    policy_loss.dro_beta      default None                     tau of PMD; verl's own reader of it is loss_mode dro
    kl_loss_coef              default 0.001                    beta of RPG (the paper: 1e-4)
    clip_ratio_low, clip_ratio_high, clip_ratio_c              eps_low, eps_high, clip_c of the clipped losses
    loss_agg_mode             default token-mean               aggregate; token-sum has no counterpart
    loss_scale_factor         default None: padded length      max_new_tokens of seq-mean-token-sum-norm
    +algorithm.tau            not an option of verl's          tau of the estimators pmd_part and pmd_part_loo

PolicyLossConfig takes no new fields, so tau and beta use the two whose meaning is theirs: dro_beta weighs half a
squared log-ratio, as tau does; kl_loss_coef weighs the KL in the loss, as beta does. Leave use_kl_loss off with RPG,
which has its KL already; with PMD it adds another one, to a fixed reference.

One response is one output: agent loops that return several for a session are not meant.

What verl hands to a loss has no reference's log-probs in it, so RPG's KL is to the sampler, as by default in train.py.
verl multiplies its losses by the number of data-parallel ranks, as gradients are averaged over them; so does this one.
"""

import dataclasses
from functools import partial
from types import SimpleNamespace

import torch
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, register_adv_est, register_policy_loss

from aggregation import aggregate
from baselines import grpo_advantages
from kl_estimators import k3
from objectives import OBJECTIVES
from plumbing.settings import parse_settings
from pmd_mean import pmd_mean_advantages, pmd_part_advantages


PMD = ("pmd_mean", "pmd_part")  # an event is a whole response
RPG = tuple(name for name in OBJECTIVES if name.startswith("rpg_"))


def policy_loss(settings, old_log_prob, log_prob, advantages, response_mask, loss_agg_mode="token-mean", config=None,
                rollout_is_weights=None):
    r"""verl's form of a loss: (scalar, metrics). Tensors [N, T]; advantages are one number per response, or per token.

    PMD's event is the whole response, so it takes one advantage for it, and rollout_is_weights of a whole response
    (algorithm.rollout_correction.rollout_is=sequence). Raises ValueError where these are missing or do not fit.
    """
    in_pmd = settings.objective in PMD
    if in_pmd and not config.policy_loss.dro_beta:
        raise ValueError("PMD needs tau: set actor_rollout_ref.actor.policy_loss.dro_beta, for example 0.01")
    if not in_pmd and config.use_kl_loss:
        raise ValueError(f"{settings.objective} has its KL: set actor_rollout_ref.actor.use_kl_loss=False")
    mask = response_mask.bool()  # [N, T]
    log_probs, old_log_probs = (torch.where(mask, x, 0.0) for x in (log_prob, old_log_prob))  # [N, T]
    settings = dataclasses.replace(
        settings, tau=config.policy_loss.dro_beta, beta=config.kl_loss_coef, eps_low=config.clip_ratio_low,
        eps_high=config.clip_ratio_high, clip_c=config.clip_ratio_c)
    if in_pmd:
        advantages = of_response(advantages, mask, "the advantages", "choose a group baseline as adv_estimator")  # [N]
        if rollout_is_weights is not None:
            rollout_is_weights = of_response(rollout_is_weights, mask, "the rollout correction's weights",
                                             "set algorithm.rollout_correction.rollout_is=sequence")  # [N]
    part = SimpleNamespace(log_probs=old_log_probs, ref_log_probs=None, response_mask=mask, advantages=advantages)
    losses = OBJECTIVES[settings.objective].loss(log_probs, part, settings)  # [N, T] or [N]
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    batch = config.global_batch_info  # of the whole minibatch: all microbatches and ranks
    loss = batch.get("dp_size", 1) * aggregate(
        losses, mask, loss_agg_mode, batch.get("global_batch_size"), batch.get("batch_num_tokens"),
        batch.get("loss_scale_factor") or mask.shape[1])
    kl = k3(old_log_probs, log_probs.detach())[mask].sum() / mask.sum().clamp(min=1)
    return loss, {"actor/ppo_kl": kl.item()}


def of_response(values, mask, what, remedy):
    r"""[N] from [N, T] of which each row holds one number at its tokens; ValueError where it does not."""
    first = values.gather(1, mask.int().argmax(dim=1, keepdim=True))  # [N, 1]
    if not torch.where(mask, values == first, True).all():
        raise ValueError(f"PMD's events are whole responses, but {what} differ from token to token: {remedy}")
    return first.squeeze(1)


def group_baseline(advantages, token_level_rewards, response_mask, index, config=None, **kwargs):
    r"""verl's form of an estimator: (advantages, returns), both [N, T], one number per response, 0 outside the mask.

    index [N]: the prompt (`uid`) of each response, in any order; groups need not be of one size.
    """
    rewards = token_level_rewards.sum(dim=1)  # [N]
    result = torch.zeros_like(rewards)
    rows_of = {}
    for row, prompt in enumerate(index):
        rows_of.setdefault(prompt, []).append(row)
    for rows in rows_of.values():
        if len(rows) > 1:  # a response alone has nothing to be compared with: 0
            result[rows] = advantages(rewards[rows], len(rows), config).to(result)
    result = result[:, None] * response_mask  # [N, T]
    return result, result


def tau_of(config):
    tau = config.get("tau") if config is not None else None
    if tau is None:
        raise ValueError("pmd_part needs tau for its baseline: add +algorithm.tau=0.01, as policy_loss.dro_beta")
    return tau


BASELINES = dict(
    pmd_mean=lambda r, G, config: pmd_mean_advantages(r, G),
    pmd_mean_loo=lambda r, G, config: pmd_mean_advantages(r, G, leave_one_out=True),
    pmd_part=lambda r, G, config: pmd_part_advantages(r, G, tau_of(config)),
    pmd_part_loo=lambda r, G, config: pmd_part_advantages(r, G, tau_of(config), leave_one_out=True),
    grpo_exact=lambda r, G, config: grpo_advantages(r, G),  # no epsilon: equal rewards give exact zeros
)
for name in (*PMD, *RPG):
    if name in POLICY_LOSS_REGISTRY:  # register_policy_loss would replace it in silence
        raise ImportError(f"verl has a loss_mode {name} already: this plugin was written for verl 0.9.1")
    register_policy_loss(name)(partial(policy_loss, parse_settings(["--preset", "gsm8k", "--objective", name])))
for name, advantages in BASELINES.items():
    register_adv_est(name)(partial(group_baseline, advantages))
