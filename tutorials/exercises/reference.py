r"""The project's own functions in the place of the exercises, for `pytest tutorials/exercises --solutions reference`.

Imported, never copied. Where an exercise asks for a part of a function, the function is given what makes it show it.
What the project has no function for comes from tutorials/tests/model_answers.py.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

import aggregation
import baselines
import enumeration
import kl_estimators
import pmd_mean
import reward_math
import rewards
import rollout
import rpg_losses

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import model_answers  # noqa: E402


class _Tokenizer:
    r"""A tokenizer whose texts are lists of token ids already."""

    chat_template = bos_token_id = None

    def __init__(self, pad, eos):
        self.pad_token_id, self.eos_token_id = pad, eos

    def __call__(self, rows, **_):
        return SimpleNamespace(input_ids=[list(row) for row in rows])

    def batch_decode(self, rows, **_):
        return [" ".join(map(str, row)) for row in rows]


def _pad_left(rows, pad):
    return rollout.pad_left(_Tokenizer(pad, None), rows)


def _speaker(logits, eos_ids):
    r"""A model whose logits at position t are logits[t], whatever it reads: a GPT-2 with nothing but its positions."""
    import transformers

    length, size = logits.shape
    config = transformers.GPT2Config(vocab_size=size, n_embd=size, n_positions=length, n_layer=1, n_head=1, n_inner=1,
                                     bos_token_id=None, eos_token_id=None, tie_word_embeddings=False)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.generation_config.eos_token_id = list(eos_ids)
    model.transformer.ln_f = torch.nn.Identity()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.lm_head.weight.copy_(torch.eye(size))
        model.transformer.wpe.weight.copy_(logits)
    return model


def _response_mask(tokens, eos_ids):
    r"""The mask of rollout.sample_rollouts for a model that says these tokens, one row at a time."""
    n, width = tokens.shape
    size = max(int(tokens.max()), *eos_ids) + 1
    mask = torch.zeros(n, width, dtype=torch.bool)
    for row in range(n):
        one_hot = torch.nn.functional.one_hot(tokens[row], size).float()  # [T, V]
        model = _speaker(torch.cat([one_hot, one_hot[-1:]]), eos_ids)  # the prompt, one token, stands at position 0
        said = rollout.sample_rollouts(model, _Tokenizer(eos_ids[0], eos_ids[0]), [(0,)], 1, width, greedy=True)
        mask[row, :said.response_mask.shape[1]] = said.response_mask[0]
    return mask


def _response_log_probs(logits, sequences, mask, temperature):
    r"""rollout.token_log_probs of a model with these logits, one row at a time."""
    rows = []
    for row in range(len(sequences)):
        model, one = _speaker(logits[row], []), slice(row, row + 1)
        said = rollout.Rollout(sequences[one], torch.ones_like(sequences[one]), mask[one], torch.zeros(mask[one].shape),
                               [""], torch.zeros(1, dtype=torch.bool))
        rows.append(rollout.token_log_probs(model, said, temperature).detach())
    return torch.cat(rows)


def _kl_weight(kl, advantages, beta, w, l, q):
    r"""Minus the gradient of the project's loss of this kl, by log pi_theta, at pi_old = 1."""
    log_p = w.log().requires_grad_()
    loss = getattr(rpg_losses, f"{kl}_loss")(log_p, torch.zeros_like(w), advantages, beta, w.log() - l)
    return -torch.autograd.grad(loss.sum(), log_p)[0]


SOLUTIONS = {
    "ex01_rewards": dict(
        extract_answer=reward_math.extract_answer, is_equivalent=reward_math.is_equivalent,
        math_reward=reward_math.math_reward, length_reward=rewards.length_reward),
    "ex02_rollouts": dict(
        pad_left=_pad_left, positions=rollout.positions, response_mask=_response_mask,
        response_log_probs=_response_log_probs, inverse_cdf=rollout.inverse_cdf),
    "ex03_policy_gradients": dict(
        reinforce_loss=baselines.reinforce_loss, group_mean_advantages=pmd_mean.pmd_mean_advantages,
        leave_one_out_advantages=baselines.rloo_advantages, grpo_advantages=baselines.grpo_advantages,
        token_mean=lambda losses, mask, num_tokens=None: aggregation.aggregate(
            losses, mask, "token-mean", num_tokens=num_tokens),
        dr_grpo_mean=lambda losses, mask, max_new_tokens: aggregation.aggregate(
            losses, mask, "seq-mean-token-sum-norm", max_new_tokens=max_new_tokens)),
    "ex04_kl_estimators": dict(
        k2=kl_estimators.k2, k3=kl_estimators.k3, divergence=enumeration.divergence,
        corrected_grpo_penalty=kl_estimators.corrected_grpo_penalty),
    "ex05_pmd_mean": dict(
        pmd_part_policy=pmd_mean.pmd_part_policy, pmd_part_advantages=pmd_mean.pmd_part_advantages,
        pmd_loss=pmd_mean.pmd_loss, pmd_mean_policy=pmd_mean.pmd_mean_policy),
    "ex06_rpg": dict(
        kl_weight=_kl_weight,
        rkl_loss=rpg_losses.rkl_loss, ufkl_loss=rpg_losses.ufkl_loss, urkl_loss=rpg_losses.urkl_loss,
        reinforce_urkl_loss=rpg_losses.reinforce_urkl_loss),
    "ex07_off_policy": dict(
        ppo_clip_loss=lambda log_probs, old_log_probs, advantages, eps_low, eps_high: baselines.grpo_loss(
            log_probs, old_log_probs, advantages, eps_low=eps_low, eps_high=eps_high),
        dual_clip_loss=lambda log_probs, old_log_probs, advantages, beta, eps_low, eps_high, c:
            rpg_losses.dual_clip_loss(log_probs, old_log_probs, advantages, beta, "urkl", eps_low, eps_high, c),
        gspo_loss=baselines.gspo_loss),
    "ex08_whole_run": dict(
        certificate=model_answers.certificate, collapsing_loss=model_answers.collapsing_loss,
        mended_loss=model_answers.mended_loss, new_advantages=baselines.rloo_advantages,
        new_loss=model_answers.new_loss),
}
