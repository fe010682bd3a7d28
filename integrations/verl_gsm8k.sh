#!/usr/bin/env bash
# PMD-mean on GSM8K with verl 0.9.1: Qwen2.5-0.5B-Instruct on one node of GPUs.
#
# NOT RUN by its authors, who had no GPU. What was checked without one: every option below exists in verl 0.9.1 and
# makes the configuration that is meant (integrations/test_verl.py composes it), the plugin registers its names, and its
# numbers are right.
#
# Before: verl with its rollout engine, in an environment of its own,  pip install "verl[vllm,fsdp]==0.9.1"
# and GSM8K as parquet files in verl's format: its repository's examples/data_preprocess/gsm8k.py writes them.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
data=${DATA:-$HOME/data/gsm8k}
gpus=${GPUS:-1}
objective=${OBJECTIVE:-pmd_mean} # or rpg_urkl, rpg_reinforce_clip_urkl, ...: see integrations/verl_plugin.py
export PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}" # Ray's workers inherit it; on several nodes set it on each

overrides=(
  # The one import: the trainer and every worker import this module, which registers losses and baselines.
  actor_rollout_ref.model.external_lib=integrations.verl_plugin

  # The objective. dro_beta is tau of PMD, kl_loss_coef is beta of RPG; each is ignored by the other.
  algorithm.adv_estimator=pmd_mean
  "actor_rollout_ref.actor.policy_loss.loss_mode=$objective"
  actor_rollout_ref.actor.policy_loss.dro_beta=0.01
  actor_rollout_ref.actor.kl_loss_coef=1e-4
  # A plain mean of responses for PMD; token-mean for RPG, as in its paper.
  "actor_rollout_ref.actor.loss_agg_mode=$([[ $objective == pmd_* ]] && echo seq-mean-token-sum || echo token-mean)"
  # No other KL, neither in the loss nor in the reward: no reference model is loaded.
  actor_rollout_ref.actor.use_kl_loss=False
  algorithm.use_kl_in_reward=False

  # As the gsm8k preset of train.py: 64 prompts x 16 responses a step, in minibatches of 4 prompts.
  data.train_batch_size=64
  actor_rollout_ref.rollout.n=16
  actor_rollout_ref.actor.ppo_mini_batch_size=4
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8
  actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16
  actor_rollout_ref.actor.optim.lr=1e-6
  actor_rollout_ref.rollout.temperature=1.0

  "data.train_files=$data/train.parquet"
  "data.val_files=$data/test.parquet"
  data.max_prompt_length=256
  data.max_response_length=320
  actor_rollout_ref.model.path=Qwen/Qwen2.5-0.5B-Instruct
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.tensor_model_parallel_size=1
  actor_rollout_ref.rollout.gpu_memory_utilization=0.4

  "trainer.n_gpus_per_node=$gpus"
  trainer.nnodes=1
  trainer.total_epochs=2
  trainer.test_freq=20
  trainer.save_freq=100
  trainer.logger=[console]
  trainer.project_name=pmd
  "trainer.experiment_name=$objective"
)
[[ ${1:-} == --print ]] && { printf '%s\n' "${overrides[@]}"; exit; } # what the test reads
python -m verl.trainer.main_ppo "${overrides[@]}" "$@"
