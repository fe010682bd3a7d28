r"""train.py with every objective: the loss it composes, its flags, the reference, the filter and the shaping."""

import copy
import math

import pytest
import torch
from conftest import ROOT
from test_train import QUICK, read_metrics, run, without_timings

import train as program
from aggregation import MODES
from gsm8k import format_prompt, load_problems
from objectives import OBJECTIVES
from plumbing.settings import needs_reference
from rewards import mixed_groups
from rollout import concatenate, sample_rollouts
from scoring import token_log_probs


@pytest.fixture(scope="module")
def batch(tiny):
    r"""A rollout of 4 prompts x 4, moved a little from its sampler: (model, rollout, ref_log_probs, rewards)."""
    model, tokenizer = tiny
    prompts = [format_prompt(tokenizer, p["question"]) for p in load_problems(ROOT / "tiny" / "train.jsonl", limit=4)]
    rollout = sample_rollouts(model, tokenizer, prompts, 4, 40, seed=0)
    generator = torch.Generator().manual_seed(0)
    noise = [torch.where(rollout.response_mask, torch.randn(rollout.log_probs.shape, generator=generator) * 0.2, 0.0)
             for _ in range(2)]
    reference = rollout.log_probs + noise[1]
    rollout.log_probs = rollout.log_probs + noise[0]
    return model, rollout, reference, torch.tensor([1.0, 0, 0, 1] * 3 + [0.0, 0, 0, 1])


def gradient(batch, objective, micro_batch_size, *arguments):
    model, rollout, reference, rewards = batch
    settings = program.parse_settings([*QUICK, "--objective", objective, "--micro-batch-size", str(micro_batch_size),
                                       *arguments])
    rollout = copy.copy(rollout)
    rollout.ref_log_probs = reference if needs_reference(settings) else None
    rollout.advantages = OBJECTIVES[objective].advantages(rewards, rollout, settings)
    rows = torch.tensor([12, 13, 14, 15, 0, 1, 2, 3])
    totals = program.backward(model, OBJECTIVES[objective], rollout, rows, settings)
    result = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    return result, totals


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_microbatches_add_up_for_every_objective(batch, objective):
    whole, totals = gradient(batch, objective, 8)
    parts, totals_of_parts = gradient(batch, objective, 3)
    assert whole.norm() > 0
    assert (parts - whole).norm() < 2e-5 * whole.norm()
    assert vars(totals_of_parts) == pytest.approx(vars(totals), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_microbatches_add_up_for_every_aggregation(batch, mode):
    whole, _ = gradient(batch, "rpg_urkl", 8, "--aggregate", mode)
    parts, _ = gradient(batch, "rpg_urkl", 3, "--aggregate", mode)
    assert (parts - whole).norm() < 2e-5 * whole.norm()


@pytest.mark.parametrize("kl", ["fkl", "rkl", "ufkl", "urkl"])
def test_the_two_styles_have_one_gradient(batch, kl):
    for arguments in ([], ["--ratio", "sequence", "--aggregate", "seq-mean-token-sum"], ["--reference", "initial"]):
        a, _ = gradient(batch, f"rpg_{kl}", 8, "--beta", "0.1", *arguments)
        b, _ = gradient(batch, f"rpg_reinforce_{kl}", 8, "--beta", "0.1", *arguments)
        assert (a - b).norm() < 1e-4 * a.norm()


def test_sequence_ratio_is_the_product_of_token_ratios(batch):
    r"""The gradient of rpg_urkl on whole responses by hand: -w (A - beta log w) grad log pi(y), mean over responses."""
    model, rollout, _, rewards = batch
    result, totals = gradient(batch, "rpg_urkl", 8, "--beta", "0.3", "--ratio", "sequence",
                              "--aggregate", "seq-mean-token-sum")
    rows = torch.tensor([12, 13, 14, 15, 0, 1, 2, 3])
    log_p = token_log_probs(model, rollout)[rows].sum(dim=1)  # [8]
    log_w = (log_p - rollout.log_probs[rows].sum(dim=1)).detach()
    advantages = (rewards.view(4, 4) - rewards.view(4, 4).mean(dim=1, keepdim=True)).flatten()[rows]
    surrogate = -(log_w.exp() * (advantages - 0.3 * log_w) * log_p).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(surrogate, model.parameters())])
    assert (result - expected).norm() < 1e-4 * expected.norm()


def test_the_reference_enters_the_gradient(batch):
    sampler, _ = gradient(batch, "rpg_urkl", 8, "--beta", "0.5")
    initial, totals = gradient(batch, "rpg_urkl", 8, "--beta", "0.5", "--reference", "initial")
    assert (sampler - initial).norm() > 0.01 * sampler.norm() and totals.kl_ref > 0


@pytest.mark.parametrize("objective", ["pmd_part", "pmd_k25", "rpg_urkl", "rpg_reinforce_clip_fkl", "grpo", "dapo",
                                       "rloo", "reinforce_pp", "gspo"])
def test_every_kind_of_objective_takes_a_step(tmp_path, objective):
    rows = run("--objective", objective, "--steps", 1, "--eval-every", 0, "--save-every", 0, "--out", tmp_path / "run")
    filtered = objective == "dapo" and rows[-1]["zero_variance_fraction"] == 1.0
    assert filtered or math.isfinite(rows[-1]["loss"])


@pytest.mark.parametrize("objective, flag, value", [
    ("pmd_mean", "--beta", "0.1"), ("pmd_mean", "--eps-low", "0.1"), ("rpg_urkl", "--tau", "0.1"),
    ("rpg_urkl", "--clip-c", "3"), ("grpo", "--clip-c", "3"), ("dapo", "--beta", "0.1"), ("grpo", "--ratio", "token"),
    ("rloo", "--eps-high", "0.3"), ("gspo", "--reference", "initial"), ("pmd_mean", "--ref-update-every", "5"),
    ("rpg_urkl", "--ref-update-every", "5"), ("grpo --beta 0", "--ref-update-every", "5"),
    ("rpg_clip_fkl", "--clip-c", "1"),
    ("pmd_mean", "--overlong-penalty", "99"),
])
def test_a_flag_that_is_not_used_or_cannot_work_is_an_error(capsys, objective, flag, value):
    with pytest.raises(SystemExit) as stop:
        program.parse_settings([*QUICK, "--objective", *objective.split(), flag, value])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert flag in error and "\n" not in error


def test_every_objective_specific_setting_changes_its_loss(batch):
    for objective, flag, value in [
        ("pmd_part", "--tau", "0.05"), ("pmd_mean", "--tau", "1"), ("rpg_clip_urkl", "--eps-high", "0.01"),
        ("rpg_clip_urkl", "--eps-low", "0.01"), ("rpg_reinforce_clip_rkl", "--beta", "0.5"), ("grpo", "--beta", "0.5"),
        ("grpo", "--eps-high", "0.01"), ("dapo", "--eps-low", "0.01"), ("gspo", "--eps-low", "0.5"),
        ("reinforce_pp", "--beta", "0.5"), ("reinforce_pp", "--eps-low", "0.01"), ("rpg_fkl", "--beta", "0.5"),
        ("pmd_k25", "--tau", "1"), ("pmd_k25", "--eps-low", "0.01"), ("pmd_k25", "--eps-high", "0.01"),
    ]:
        plain, _ = gradient(batch, objective, 8)
        changed, _ = gradient(batch, objective, 8, flag, value)
        assert (plain - changed).norm() > 1e-3 * plain.norm(), (objective, flag)
    plain, _ = gradient(batch, "pmd_mean", 8)
    left_out, _ = gradient(batch, "pmd_mean", 8, "--leave-one-out")
    assert (plain - left_out).norm() > 1e-3 * plain.norm()


def test_reference_is_updated_every_k_steps_and_resumes(tmp_path):
    arguments = ["--objective", "rpg_urkl", "--reference", "initial", "--beta", "0.01", "--ref-update-every", "2",
                 "--eval-every", "0", "--lr", "1e-3", "--warmup-steps", "0"]
    whole = run(*arguments, "--steps", 3, "--save-every", 3, "--out", tmp_path / "whole")
    run(*arguments, "--steps", 1, "--save-every", 1, "--out", tmp_path / "run")
    run("--resume", tmp_path / "run", "--steps", 3, quick=False)
    assert without_timings(read_metrics(tmp_path / "run")) == without_timings(whole)
    never = [a for a in arguments if a not in ("--ref-update-every", "2")]
    fixed = run(*never, "--steps", 3, "--save-every", 0, "--out", tmp_path / "fixed")
    assert whole[1]["kl_to_reference"] == fixed[1]["kl_to_reference"]
    assert whole[3]["kl_to_reference"] < fixed[3]["kl_to_reference"]


def test_reference_is_updated_when_the_kl_passes_its_target(tmp_path):
    arguments = ["--objective", "rpg_urkl", "--reference", "initial", "--beta", "0.01", "--eval-every", "0",
                 "--save-every", "0", "--lr", "1e-3", "--warmup-steps", "0", "--steps", 3]
    fixed = run(*arguments, "--out", tmp_path / "fixed")
    updated = run(*arguments, "--ref-update-kl", "1e-6", "--out", tmp_path / "updated")
    never = run(*arguments, "--ref-update-kl", "1e6", "--out", tmp_path / "never")
    assert updated[3]["kl_to_reference"] < fixed[3]["kl_to_reference"] == never[3]["kl_to_reference"]


def test_filtering_draws_more_prompts_and_trains_on_mixed_groups_only(tiny):
    model, tokenizer = tiny
    settings = program.parse_settings([*QUICK, "--objective", "dapo"])
    problems = load_problems(ROOT / "tiny" / "train.jsonl")
    rollout, correct, drawn = program.sample(model, tokenizer, problems, settings, 1, 0)
    rounds = drawn // 4
    mixed = int(mixed_groups(correct, 4).sum()) // 4
    assert 1 <= rounds <= 3 and len(correct) == len(rollout.texts) == 16 * rounds
    assert rounds == 3 or mixed >= 4
    assert rounds == 1 or int(mixed_groups(correct[:16], 4).sum()) // 4 < 4  # another round only where one was needed
    plain = program.parse_settings([*QUICK, "--objective", "grpo"])
    assert program.sample(model, tokenizer, problems, plain, 1, 0)[2] == 4


def test_a_step_without_a_useful_group_is_skipped(tmp_path, monkeypatch):
    for reward in (0.0, 1.0):
        monkeypatch.setattr(program, "math_reward", lambda *_: reward)
        out = tmp_path / str(reward)
        rows = run("--objective", "dapo", "--overlong-penalty", 0, "--steps", 1, "--eval-every", 0, "--out", out)
        assert rows[-1]["loss"] is None and rows[-1]["zero_variance_fraction"] == 1.0


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_batch_with_equal_rewards_gives_no_nan(batch, objective, reward):
    model, rollout, reference, rewards = batch
    result, totals = gradient((model, rollout, reference, torch.full_like(rewards, reward)), objective, 8)
    assert result.isfinite().all() and math.isfinite(totals.loss)


def test_shaping(batch):
    _, rollout, _, rewards = batch
    plain = program.parse_settings([*QUICK])
    assert torch.equal(program.shaped_rewards(plain, rewards, rollout), rewards)
    overlong = program.parse_settings([*QUICK, "--overlong-penalty", "10"])
    lengths = rollout.response_mask.sum(dim=1)
    expected = rewards + ((30 - lengths) / 10).clamp(-1, 0) / 2  # rewards are 0 and 1, DAPO's +-1
    torch.testing.assert_close(program.shaped_rewards(overlong, rewards, rollout), expected)
    short = program.parse_settings([*QUICK, "--length-reward", "0.5"])
    shaped = program.shaped_rewards(short, rewards, rollout)
    assert (shaped - rewards).abs().max() <= 0.25 + 1e-6 and (shaped[rewards == 0] <= 0).all()


def test_truncated_responses_stay_in_their_group(tiny, batch):
    r"""A group of one right and three cut off: the cut ones count in the baseline and are pushed down."""
    model, rollout, _, _ = batch
    settings = program.parse_settings([*QUICK])
    rewards = torch.tensor([1.0, 0, 0, 0] * 4)
    cut = copy.copy(rollout)
    cut.truncated = rewards == 0
    assert program.shaped_rewards(settings, rewards, cut).tolist() == rewards.tolist()
    assert OBJECTIVES["pmd_mean"].advantages(rewards, cut, settings).tolist() == [0.75, -0.25, -0.25, -0.25] * 4
    whole, _ = gradient((model, rollout, None, rewards), "pmd_mean", 8)
    with_cut, _ = gradient((model, cut, None, rewards), "pmd_mean", 8)
    assert torch.equal(whole, with_cut)


def test_only_mixed_groups_are_trained_on(tmp_path, monkeypatch):
    trained = []
    plain = program.backward

    def spy(model, objective, rollout, rows, *rest):
        trained.append(rollout.advantages[rows].view(-1, 4))
        return plain(model, objective, rollout, rows, *rest)

    monkeypatch.setattr(program, "backward", spy)
    arguments = ["--objective", "dapo", "--overlong-penalty", "0", "--eval-every", "0"]
    whole = run(*arguments, "--steps", 3, "--save-every", 3, "--out", tmp_path / "whole")
    assert trained and all((groups != 0).all(dim=1).all() for groups in trained)
    assert any(0 < row["zero_variance_fraction"] < 1 for row in whole[1:])
    run(*arguments, "--steps", 1, "--save-every", 1, "--out", tmp_path / "run")  # goes on with the next problem
    run("--resume", tmp_path / "run", "--steps", 3, quick=False)
    assert without_timings(read_metrics(tmp_path / "run")) == without_timings(whole)


def test_reward_bounds_choose_what_is_trained_on(tmp_path, monkeypatch):
    r"""Nothing is sampled in place of what is dropped, and what is in neither bound's way is kept."""
    correct = torch.tensor([0.0, 0, 1, 0, 1, 1, 1, 1])
    for bounds, kept in (([], [0, 1, 2, 3, 4, 5, 6, 7]), (["--reward-above", "0"], [0, 1, 2, 3, 4, 5, 6, 7]),
                         (["--reward-above", "0", "--reward-below", "1"], [0, 1, 2, 3]),
                         (["--reward-above", "0.25"], [4, 5, 6, 7]), (["--reward-below", "0.25"], [])):
        settings = program.parse_settings([*QUICK, "--group-size", "4", *bounds])
        assert program.trained_rows(settings, correct).tolist() == kept
    for bounds in (["--reward-above", "nan"], ["--reward-above", "1", "--reward-below", "1"]):
        with pytest.raises(SystemExit) as stop:
            program.parse_settings([*QUICK, *bounds])
        assert stop.value.code == 2
    sampled, trained = [], []
    plain, plain_sample = program.backward, program.sample
    monkeypatch.setattr(program, "sample", lambda *x: sampled.append(plain_sample(*x)) or sampled[-1])
    monkeypatch.setattr(program, "backward", lambda *x: trained.append(x[2].advantages[x[3]]) or plain(*x))
    rows = run("--reward-above", 0, "--reward-below", 1, "--group-size", 4, "--prompts-per-step", 4, "--steps", 1,
               "--eval-every", 0, "--save-every", 0, "--out", tmp_path / "run")
    (rollout, correct, drawn), = sampled
    assert drawn == 4 and len(rollout.texts) == 16
    assert 0 < len(torch.cat(trained)) == int(mixed_groups(correct, 4).sum()) < 16
    assert rows[1]["reward_mean"] == pytest.approx(correct.mean().item())  # of all that was sampled


@pytest.mark.parametrize("objective", ["rpg_urkl", "pmd_mean"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_importance_weights_of_the_sampler(batch, objective, mode):
    r"""Each loss, of a token or of a response as the objective has it, times its own weight, before the mean."""
    model, rollout, reference, rewards = batch
    rollout = copy.copy(rollout)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(rollout.log_probs.shape, generator=generator) * (1.0 if objective == "rpg_urkl" else 0.2)
    rollout.sampler_log_probs = torch.where(rollout.response_mask, rollout.log_probs + noise, 0.0)
    plain, _ = gradient((model, rollout, reference, rewards), objective, 8)
    got, _ = gradient((model, rollout, reference, rewards), objective, 8, "--importance-weights", mode)
    parts, _ = gradient((model, rollout, reference, rewards), objective, 3, "--importance-weights", mode)
    assert (got - parts).norm() < 2e-5 * got.norm() and (got - plain).norm() > 0.05 * plain.norm()

    settings = program.parse_settings([*QUICK, "--objective", objective])
    rows = torch.tensor([12, 13, 14, 15, 0, 1, 2, 3])
    rollout.advantages = OBJECTIVES[objective].advantages(rewards, rollout, settings)
    part = rollout.select(rows)
    losses = OBJECTIVES[objective].loss(token_log_probs(model, part), part, settings)
    log_w = part.log_probs - part.sampler_log_probs
    log_w = log_w.sum(dim=1) if objective == "pmd_mean" else log_w
    outside = log_w.abs() > math.log(2)
    w = torch.where(outside, 0.0, log_w.exp()) if mode == "mask" else log_w.exp().clamp(max=2)
    assert outside.any() and not outside.all()
    loss = (w * losses * part.response_mask).sum() / part.response_mask.sum() if objective == "rpg_urkl" else \
        (w * losses).mean()
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])
    assert (got - wanted).norm() < 2e-5 * wanted.norm()


def test_importance_weights_in_a_run(tmp_path, capsys):
    r"""Sampler and trainer agree here, so the weights are 1 up to rounding and the run is the same up to rounding."""
    flags = ["--steps", 2, "--eval-every", 0, "--save-every", 0]
    plain = run(*flags, "--old-log-probs", "recomputed", "--out", tmp_path / "plain")
    weighted = run(*flags, "--importance-weights", "truncate", "--out", tmp_path / "weighted")
    for row, other in zip(plain[1:], weighted[1:]):
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-3, abs=1e-5)
        assert 0 < other["sampler_mismatch"] < 1e-5
    for wrong in (["--importance-weights", "mask", "--old-log-probs", "sampler"], ["--importance-threshold", "0.5"]):
        with pytest.raises(SystemExit) as stop:
            program.parse_settings([*QUICK, *wrong])
        assert stop.value.code == 2
    assert "leave out --old-log-probs" in capsys.readouterr().err


def test_optimizer_reset_forgets(tmp_path):
    out = tmp_path / "run"

    def steps_counted(step):
        state = torch.load(out / f"checkpoint-{step:06d}" / "optimizer.pt", weights_only=True)["state"]
        return {int(averages["step"]) for averages in state.values()}

    flags = ["--optimizer-reset-every", 2, "--reward-above", -1, "--reward-below", 2, "--eval-every", 0, "--save-every",
             1, "--out", out]
    run("--steps", 1, *flags)
    first = steps_counted(1)
    run("--resume", out, "--steps", 2, quick=False)
    assert steps_counted(2) == set()
    run("--resume", out, "--steps", 3, quick=False)
    assert len(first) == 1 and steps_counted(3) == first  # counts from 0 again


def test_concatenate_keeps_rows(tiny):
    model, tokenizer = tiny
    prompts = [format_prompt(tokenizer, text) for text in ("Short.", "A longer question with many more words in it?")]
    parts = [sample_rollouts(model, tokenizer, [prompt], 2, width, seed=0) for prompt, width in zip(prompts, (30, 12))]
    both = concatenate(parts)
    log_probs = token_log_probs(model, both)
    for i, part in enumerate(parts):
        width = part.response_mask.shape[1]
        rows = slice(2 * i, 2 * i + 2)
        assert torch.equal(both.response_mask[rows, :width], part.response_mask)
        assert not both.response_mask[rows, width:].any()
        torch.testing.assert_close(log_probs[rows, :width], token_log_probs(model, part), atol=1e-5, rtol=0)
    assert both.texts == parts[0].texts + parts[1].texts
