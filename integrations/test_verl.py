r"""The verl plugin against the plain functions, on CPU tensors, in an environment of its own:

    pip install -r integrations/requirements-verl.txt && pip install --no-deps verl==0.9.1
    pytest integrations/test_verl.py

Nothing is trained: verl needs GPUs for that. What verl calls on the way to a gradient is called here: its registries,
its own `compute_advantage` and `ppo_loss` with the configuration that the launch script makes.
"""

import functools
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import verl
from hydra import compose, initialize_config_dir
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo.core_algos import agg_loss, get_adv_estimator_fn, get_policy_loss_fn
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.workers.utils.losses import ppo_loss

import integrations.verl_plugin as plugin
import rpg_losses
from aggregation import aggregate
from baselines import grpo_advantages, rloo_advantages
from pmd_mean import pmd_loss, pmd_mean_advantages, pmd_part_advantages

pytestmark = pytest.mark.verl
PMD = plugin.PMD
OBJECTIVES = (*PMD, *plugin.RPG)
TAU, BETA = 0.1, 0.05
SCRIPT = ROOT / "integrations" / "verl_gsm8k.sh"


@functools.cache
def configuration(*overrides, objective="pmd_mean"):
    r"""verl's configuration of the launch script."""
    printed = subprocess.run(["bash", str(SCRIPT), "--print"], capture_output=True, text=True, check=True,
                             env={**os.environ, "OBJECTIVE": objective, "DATA": "data"}).stdout.splitlines()
    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        return compose("ppo_trainer", [*printed, *overrides])


def actor(*overrides):
    r"""A new ActorConfig: the launch script's, with strengths that one sees."""
    prefix = "actor_rollout_ref.actor."
    strengths = (f"{prefix}policy_loss.dro_beta={TAU}", f"{prefix}kl_loss_coef={BETA}", f"{prefix}clip_ratio_low=0.1",
                 f"{prefix}clip_ratio_high=0.15", f"{prefix}clip_ratio_c=2.5")
    config = configuration(*strengths, *(f"+{prefix}{o[1:]}" if o[0] == "+" else prefix + o for o in overrides))
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


@pytest.fixture
def data():
    r"""Eight responses of 0 to 6 tokens, in two groups in mixed order; padding holds what must not be read."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([6, 3, 5, 1, 4, 6, 2, 0])
    mask = torch.arange(6) < lengths[:, None]  # [8, 6]
    old = -torch.rand(8, 6, generator=generator, dtype=torch.float64)
    log_probs = old + 0.3 * torch.randn(8, 6, generator=generator, dtype=torch.float64)
    rewards = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0], dtype=torch.float64)
    uid = np.array(list("abababab"), dtype=object)
    scores = torch.zeros(8, 6, dtype=torch.float64)
    scores[torch.arange(8), (lengths - 1).clamp(min=0)] = rewards  # verl: at the last token
    advantages = torch.zeros(8, dtype=torch.float64)
    for group in "ab":
        advantages[uid == group] = pmd_mean_advantages(rewards[uid == group], 4)
    return SimpleNamespace(
        mask=mask, old=torch.where(mask, old, math.nan), rewards=rewards, uid=uid, scores=scores,
        log_probs=torch.where(mask, log_probs, math.nan), advantages=advantages,
        by_token=advantages[:, None] * mask)  # [8, 6], as verl hands it over


def call(objective, data, config, mode="seq-mean-token-sum", rows=slice(None), **kwargs):
    r"""(loss, gradient [n, 6], metrics) of a registered loss."""
    log_probs = data.log_probs[rows].clone().requires_grad_()
    loss, metrics = get_policy_loss_fn(objective)(
        old_log_prob=data.old[rows], log_prob=log_probs, advantages=data.by_token[rows],
        response_mask=data.mask[rows], loss_agg_mode=mode, config=config, **kwargs)
    loss.backward()
    return loss.item(), log_probs.grad, metrics


def plain(objective, log_probs, old, advantages, mask):
    r"""The plain function of an objective, without train.py's dispatch: losses per event."""
    log_probs, old = torch.where(mask, log_probs, 0.0), torch.where(mask, old, 0.0)
    if objective in PMD:
        return pmd_loss(log_probs, old, advantages, mask, TAU)
    if "clip" not in objective:
        return getattr(rpg_losses, objective.removeprefix("rpg_") + "_loss")(log_probs, old, advantages, BETA)
    name = "reinforce_dual_clip_loss" if "reinforce" in objective else "dual_clip_loss"
    return getattr(rpg_losses, name)(log_probs, old, advantages, BETA, objective.split("_")[-1], 0.1, 0.15, 2.5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_registered_loss_is_the_plain_function(objective, mode, data):
    got, gradient, _ = call(objective, data, actor(), mode)
    log_probs = data.log_probs.clone().requires_grad_()
    losses = plain(objective, log_probs, data.old, data.advantages, data.mask)
    wanted = aggregate(losses, data.mask, mode, max_new_tokens=6)
    wanted.backward()
    assert got == pytest.approx(wanted.item(), rel=1e-12)
    assert torch.equal(gradient[~data.mask], torch.zeros_like(gradient[~data.mask]))
    torch.testing.assert_close(gradient[data.mask], log_probs.grad[data.mask], rtol=1e-12, atol=1e-15)
    assert gradient.abs().max() > 1e-4


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_microbatches_and_ranks_as_verls_agg_loss(mode, data):
    r"""Counts of the whole minibatch, times dp_size, and loss_scale_factor: the same as verl's own aggregation."""
    config = actor()
    config.global_batch_info.update(dp_size=2, batch_num_tokens=int(data.mask.sum()), global_batch_size=8,
                                    loss_scale_factor=10)
    halves = slice(0, 3), slice(3, 8)
    for rows in halves:
        losses = plain("rpg_urkl", data.log_probs[rows], data.old[rows], data.advantages[rows], data.mask[rows])
        wanted = agg_loss(losses, data.mask[rows], mode, **config.global_batch_info)
        assert call("rpg_urkl", data, config, mode, rows)[0] == pytest.approx(wanted.item(), rel=1e-6)
    # PMD's loss is per response: the two ranks' mean is the whole.
    parts = [call("pmd_mean", data, config, mode, rows) for rows in halves]
    whole = aggregate(plain("pmd_mean", data.log_probs, data.old, data.advantages, data.mask), data.mask, mode,
                      max_new_tokens=10)
    assert sum(loss for loss, *_ in parts) / 2 == pytest.approx(whole.item(), rel=1e-12)


@pytest.mark.parametrize("name, function", [
    ("pmd_mean", lambda r: pmd_mean_advantages(r, 4)),
    ("pmd_mean_loo", lambda r: rloo_advantages(r, 4)),
    ("pmd_part", lambda r: pmd_part_advantages(r, 4, TAU)),
    ("pmd_part_loo", lambda r: pmd_part_advantages(r, 4, TAU, leave_one_out=True)),
    ("grpo_exact", lambda r: grpo_advantages(r, 4)),
])
def test_estimator_through_verls_compute_advantage(name, function, data):
    config = configuration(f"algorithm.adv_estimator={name}", f"+algorithm.tau={TAU}").algorithm
    batch = DataProto.from_dict(
        tensors=dict(token_level_rewards=data.scores, response_mask=data.mask), non_tensors=dict(uid=data.uid))
    got = compute_advantage(batch, adv_estimator=config.adv_estimator, config=config).batch["advantages"]
    for group in "ab":
        rows = data.uid == group
        torch.testing.assert_close(got[rows], function(data.rewards[rows])[:, None] * data.mask[rows])


def test_estimator_with_groups_of_other_sizes_and_equal_rewards(data):
    uid = np.array(list("aaabbccd"), dtype=object)
    scores = torch.full((8, 6), 0.0)
    scores[:, 0] = torch.tensor([0.7, 0.7, 0.7, 1.0, 0.0, 0.7, 0.7, 1.0])
    for name in ("pmd_mean", "grpo_exact", "pmd_mean_loo"):
        got, _ = get_adv_estimator_fn(name)(token_level_rewards=scores, response_mask=torch.ones(8, 6), index=uid)
        assert torch.equal(got[[0, 1, 2, 5, 6, 7]], torch.zeros(6, 6))
        assert got[3, 0] > 0 > got[4, 0]


def test_through_verls_ppo_loss(data):
    r"""verl's own path from the engine's output to the loss: nested log-probs, padded fields, global counts."""
    rows = torch.arange(7)  # an empty response has no nested row
    mask, config = data.mask[rows], actor()
    lengths = mask.sum(dim=1)
    # One prompt token each; the engine's log-probs stand one place to the left of their tokens.
    log_probs = data.log_probs[rows].clone().requires_grad_()
    sequences = torch.nested.as_nested_tensor(
        [torch.cat([log_probs[i, :n], torch.zeros(1, dtype=torch.float64)]) for i, n in enumerate(lengths)],
        layout=torch.jagged)
    nested = lambda x: torch.nested.as_nested_tensor([x[i, :n] for i, n in enumerate(lengths)], layout=torch.jagged)
    batch = TensorDict(dict(
        input_ids=torch.nested.as_nested_tensor([torch.ones(n + 1, dtype=torch.long) for n in lengths],
                                                layout=torch.jagged),
        prompts=torch.nested.as_nested_tensor([torch.ones(1, dtype=torch.long) for _ in lengths], layout=torch.jagged),
        responses=nested(torch.ones(7, 6, dtype=torch.long)), response_mask=nested(mask.long()),
        old_log_probs=nested(data.old[rows]), advantages=nested(data.by_token[rows])), batch_size=[7])
    tu.assign_non_tensor(batch, dp_size=1, batch_num_tokens=int(mask.sum()), global_batch_size=7,
                         max_response_len=6)
    loss, metrics = ppo_loss(config, dict(log_probs=sequences), batch)
    wanted = plain("pmd_mean", data.log_probs[rows], data.old[rows], data.advantages[rows], mask).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert {"actor/ppo_kl", "actor/pg_loss"} <= set(metrics)


def test_rollout_correction(data):
    r"""Weights of whole responses multiply their events; weights of tokens do so for RPG and are refused for PMD."""
    config = actor()
    weights = torch.rand(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    by_token = weights[:, None] * data.mask
    got, *_ = call("pmd_mean", data, config, rollout_is_weights=by_token)
    losses = plain("pmd_mean", data.log_probs, data.old, data.advantages, data.mask) * weights
    assert got == pytest.approx(aggregate(losses, data.mask, "seq-mean-token-sum").item(), rel=1e-12)
    by_token = torch.rand(8, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * data.mask
    losses = plain("rpg_urkl", data.log_probs, data.old, data.advantages, data.mask) * by_token
    got, *_ = call("rpg_urkl", data, config, rollout_is_weights=by_token)
    assert got == pytest.approx(aggregate(losses, data.mask, "seq-mean-token-sum").item(), rel=1e-12)
    with pytest.raises(ValueError, match="rollout_is=sequence"):
        call("pmd_mean", data, config, rollout_is_weights=by_token)


def test_what_cannot_work_is_refused(data):
    with pytest.raises(ValueError, match="dro_beta"):
        call("pmd_mean", data, actor("policy_loss.dro_beta=null"))
    with pytest.raises(ValueError, match="use_kl_loss=False"):
        call("rpg_urkl", data, actor("use_kl_loss=True"))
    data.by_token = data.by_token * torch.arange(1, 7)
    with pytest.raises(ValueError, match="group baseline"):
        call("pmd_mean", data, actor())
    with pytest.raises(ValueError, match="algorithm.tau"):
        get_adv_estimator_fn("pmd_part")(token_level_rewards=data.scores, response_mask=data.mask, index=data.uid,
                                         config=configuration().algorithm)


def test_policy_loss_config_takes_no_new_field():
    r"""Why tau stands in dro_beta; where this fails, verl has changed and it need not any more."""
    with pytest.raises(Exception, match="unexpected keyword argument 'tau'"):
        actor("+policy_loss.tau=0.1")


@pytest.mark.parametrize("objective", ["pmd_mean", "pmd_part", "rpg_urkl", "rpg_reinforce_clip_rkl"])
def test_launch_script_makes_the_configuration_that_is_meant(objective):
    config = configuration(objective=objective)
    made = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert (made.policy_loss.loss_mode, made.policy_loss.dro_beta, made.kl_loss_coef) == (objective, 0.01, 1e-4)
    assert made.loss_agg_mode == ("seq-mean-token-sum" if objective in PMD else "token-mean")
    assert config.actor_rollout_ref.model.external_lib == "integrations.verl_plugin"
    assert not need_reference_policy(config)
    with pytest.warns(UserWarning, match="critic"):
        assert not need_critic(config)
    validate_config(config, use_reference_policy=False, use_critic=False)


def test_external_lib_is_the_one_import():
    r"""A fresh process, as a worker of verl: names are unknown until verl imports external_lib."""
    code = """
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
from verl.workers.config import HFModelConfig
assert "pmd_mean" not in POLICY_LOSS_REGISTRY and "pmd_mean" not in ADV_ESTIMATOR_REGISTRY
HFModelConfig(path="tiny/model", external_lib="integrations.verl_plugin")
assert "pmd_mean" in POLICY_LOSS_REGISTRY and "pmd_mean" in ADV_ESTIMATOR_REGISTRY
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_verls_dro_is_pmd_token_by_token(data):
    r"""loss_mode dro with the same tau: PMD's gradient where a response has one token, another where it has more."""
    config = actor()
    _, pmd, _ = call("pmd_mean", data, config)
    data.log_probs, data.old = (torch.where(data.mask, x, 0.0) for x in (data.log_probs, data.old))  # dro reads padding
    _, dro, _ = call("dro", data, config)
    short = data.mask.sum(dim=1) == 1
    # verl leaves an empty response out of its count, so 7 against 8
    torch.testing.assert_close(dro[short] * 7 / 8, pmd[short])
    assert not torch.allclose(dro[0] * 7 / 8, pmd[0], rtol=1e-2)
