r"""The loop: its command line, its gradient, its record, and that a run that was stopped goes on as if it had not."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from conftest import ROOT, small_model
from safetensors.torch import load_file

import train as program
from gsm8k import format_prompt, load_problems
from objectives import OBJECTIVES
from plumbing import settings as choices
from plumbing.batches import microbatches
from plumbing.model import load_model
from train import next_problems
from pmd_mean import pmd_mean_advantages
from rollout import sample_rollouts
from scoring import token_log_probs

QUICK = ["--preset", "tiny", "--prompts-per-step", "4", "--group-size", "4", "--minibatch-size", "8",
         "--micro-batch-size", "4", "--eval-size", "8", "--eval-every", "2", "--max-new-tokens", "40",
         "--device", "cpu", "--train-data", str(ROOT / "tiny" / "test.jsonl"), "--seed", "6",
         "--temperature", "1", "--reward-above", "-1", "--reward-below", "2"]
# Fewer problems than in train.jsonl, to start sooner; a seed for which some groups of every step differ in reward.
NOT_REPRODUCED = ("seconds_rollout", "seconds_update", "tokens_per_second")  # timings


def run(*arguments, quick=True):
    return program.train(program.parse_settings([*(QUICK if quick else []), *map(str, arguments)]))


def read_metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_timings(rows):
    return [{name: value for name, value in row.items() if name not in NOT_REPRODUCED} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    r"""The folder of a run of four steps with a checkpoint every two, never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run("--steps", 4, "--save-every", 2, "--out", folder)
    return folder


# --- what a run leaves ---

def test_a_run_leaves_what_the_readme_says(finished):
    rows = read_metrics(finished)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["eval_accuracy"] is None for row in rows] == [False, True, False, True, False]
    names = {"step", "reward_mean", "eval_accuracy", "loss", "grad_norm", "kl_to_old", "entropy", "response_length",
             "truncated_fraction", "zero_variance_fraction", *NOT_REPRODUCED}
    assert all(names <= set(row) for row in rows) and rows[0]["loss"] is None
    for row in rows[1:]:
        assert all(row[name] is None or math.isfinite(row[name]) for name in names)
        assert 0 <= row["reward_mean"] <= 1 and row["kl_to_old"] >= 0 and 1 <= row["response_length"] <= 40
    config = json.loads((finished / "config.json").read_text())
    assert config["tau"] == choices.PRESETS["tiny"]["tau"] and config["steps"] == 4
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    base = AutoModelForCausalLM.from_pretrained(ROOT / "tiny" / "model")
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters()))
    assert sample_rollouts(model, tokenizer, ["a"], 1, 4).texts


def test_only_the_last_checkpoint_is_kept_and_nothing_in_it_is_a_pickle(finished):
    assert sorted(path.name for path in finished.glob("checkpoint*")) == ["checkpoint-000004"]
    names = {path.name for path in (finished / "checkpoint-000004").iterdir()}
    assert "model.safetensors" in names and not any(name.endswith((".bin", ".pkl")) for name in names)
    torch.load(finished / "checkpoint-000004" / "optimizer.pt", weights_only=True)


def test_never_evaluates_when_asked_not_to(tmp_path, capsys):
    rows = run("--steps", 1, "--eval-every", 0, "--save-every", 0, "--eval-data", "no/such/file.jsonl",
               "--out", tmp_path / "run")
    assert [row["eval_accuracy"] for row in rows] == [None, None]
    assert not list((tmp_path / "run").glob("checkpoint*"))
    assert "not evaluated" in capsys.readouterr().out


def test_samples_and_result_are_printed(tmp_path, capsys):
    run("--steps", 1, "--eval-every", 1, "--out", tmp_path / "run")
    text = capsys.readouterr().out
    assert "no CUDA device" not in text  # the preset was given
    assert text.count("held-out problems right") == 2 and ("-> right" in text or "-> WRONG" in text)
    assert "accuracy" in text.splitlines()[-4] and str(tmp_path / "run" / "curves.png") in text


# --- the gradient ---

def minibatch_gradient(tiny, *arguments):
    model, tokenizer = tiny
    settings = program.parse_settings([*QUICK, *map(str, arguments)])
    problems = load_problems(ROOT / "tiny" / "train.jsonl", limit=4)
    prompts = [format_prompt(tokenizer, problem["question"]) for problem in problems]
    rollout = sample_rollouts(model, tokenizer, prompts, 4, 40, settings.temperature, seed=0)
    generator = torch.Generator().manual_seed(0)
    rewards = (torch.rand(16, generator=generator) < 0.5).float()
    advantages = pmd_mean_advantages(rewards, 4)
    old = torch.randn(rollout.log_probs.shape, generator=generator) * 0.1  # as if the policy had moved since
    rollout.log_probs += torch.where(rollout.response_mask, old, 0.0)
    rows = torch.tensor([3, 0, 1, 2, 11, 10, 9, 8])
    rollout.advantages = advantages
    totals = program.backward(model, OBJECTIVES[settings.objective], rollout, rows, settings)
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    return gradient, totals, (model, rollout, advantages, rows, settings)


def test_microbatches_add_up_to_the_full_batch(tiny):
    whole, totals, _ = minibatch_gradient(tiny, "--micro-batch-size", 8)
    for size in (1, 3):
        parts, totals_of_parts, _ = minibatch_gradient(tiny, "--micro-batch-size", size)
        assert (parts - whole).norm() < 1e-5 * whole.norm()
        assert vars(totals_of_parts) == pytest.approx(vars(totals), rel=1e-4)


def test_token_budgets_add_up_to_the_full_batch(tiny):
    whole, totals, (_, rollout, _, rows, _) = minibatch_gradient(tiny, "--micro-batch-size", 8)
    lengths, prompts = rollout.response_mask.sum(dim=1), rollout.attention_mask.sum(dim=1)
    prompts = prompts - lengths
    seen = []
    for budget in (10**6, 300, 150, 1):
        flags = ("--micro-batch-size", 8, "--tokens-per-microbatch", budget)
        parts, totals_of_parts, (*_, settings) = minibatch_gradient(tiny, *flags)
        assert (parts - whole).norm() < 1e-5 * whole.norm()
        assert vars(totals_of_parts) == pytest.approx(vars(totals), rel=1e-4)
        cut = microbatches(tiny[0], rollout, rows, settings)
        assert sorted(row for part, _ in cut for row in part.tolist()) == sorted(rows.tolist())
        for part, piece in cut:
            padded = len(part) // piece * int(prompts[part].max()) + len(part) * int(lengths[part].max())
            assert padded <= budget or len(part) == piece == 1
            assert len({row // 4 for row in part.view(-1, piece)[0].tolist()}) == 1  # a piece shares its prompt
        longest = [int(lengths[part].max()) for part, _ in cut]
        assert longest == sorted(longest)
        seen.append((len(cut), cut[0][1]))
    assert seen[0] == (1, 4) and seen[-1] == (8, 1) and seen[1][0] > 1


def test_old_log_probs_can_be_recomputed(tmp_path, monkeypatch):
    passes = []
    real = program.log_probs_of
    monkeypatch.setattr(program, "log_probs_of", lambda *arguments: passes.append(1) or real(*arguments))
    rows = {}
    for choice in ("auto", "recomputed"):
        rows[choice] = run("--steps", 1, "--eval-every", 0, "--save-every", 0, "--old-log-probs", choice,
                           "--out", tmp_path / choice)[1]
    assert len(passes) == 1  # only where it was asked for, in float32
    assert rows["auto"]["loss"] == pytest.approx(rows["recomputed"]["loss"], rel=1e-4)
    assert all(0 < row["sampler_mismatch"] < 1e-4 for row in rows.values())
    monkeypatch.setattr(program, "sample_rollouts", lambda *a, **k: sample_rollouts(*a[:5], 0.7, **k))
    wrong = run("--steps", 1, "--eval-every", 0, "--save-every", 0, "--out", tmp_path / "wrong")[1]
    assert wrong["sampler_mismatch"] > 1e-3  # the metric sees a sampler with another temperature


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_the_gradient_is_that_of_the_regression(tiny, temperature):
    r"""Against -(A - tau s) grad log pi(y), the mean over responses, with s from a second forward pass."""
    gradient, totals, (model, rollout, advantages, rows, settings) = minibatch_gradient(
        tiny, "--tau", 0.3, "--temperature", temperature)
    log_probs = token_log_probs(model, rollout, temperature)[rows]  # [8, T]
    s = (log_probs - rollout.log_probs[rows]).sum(dim=1)  # [8]
    surrogate = -((advantages[rows] - 0.3 * s).detach() * log_probs.sum(dim=1)).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(surrogate, model.parameters())])
    assert (gradient - expected).norm() < 1e-4 * expected.norm()
    assert totals.loss == pytest.approx(((advantages[rows] - 0.3 * s).square() / 0.6).mean().item(), rel=1e-4)
    log_ratio = (log_probs - rollout.log_probs[rows])[rollout.response_mask[rows]]
    assert totals.kl / totals.num_tokens == pytest.approx((log_ratio.exp() - 1 - log_ratio).mean().item(), rel=1e-3)


def test_gradient_checkpointing_gives_the_same_gradient(tiny):
    settings = program.parse_settings([*QUICK, "--gradient-checkpointing"])
    model, tokenizer = load_model(settings, settings.model)
    plain, _, _ = minibatch_gradient(tiny)
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    sample_rollouts(model, tokenizer, ["a"], 1, 2)
    calls.clear()
    arguments = ("--gradient-checkpointing", "--micro-batch-size", 8)
    recomputed, _, batch = minibatch_gradient((model, tokenizer), *arguments)
    sampling = batch[1].response_mask.shape[1]  # forward passes: the prefill and T - 1 tokens
    assert len(calls) == sampling + 2  # forward, and again in backward
    assert (recomputed - plain).norm() < 1e-5 * plain.norm()
    assert model.training


def test_dropout_is_off(tmp_path, tokenizer):
    model = small_model("gpt2", tokenizer)
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    settings = program.parse_settings([*QUICK, "--model", str(tmp_path / "gpt2")])
    loaded, _ = load_model(settings, settings.model)
    ids = torch.arange(10)[None]
    loaded.train()
    assert torch.equal(loaded(input_ids=ids).logits, loaded(input_ids=ids).logits)


# --- learning, other models, other data ---

@pytest.mark.slow
def test_a_short_run_learns(tmp_path):
    rows = run("--preset", "tiny", "--device", "cpu",
               "--steps", 4, "--eval-every", 4, "--eval-size", 128, "--save-every", 0, "--out",
               tmp_path / "run", quick=False)
    first, last = rows[0]["eval_accuracy"], rows[-1]["eval_accuracy"]
    assert 0.2 <= first <= 0.5
    assert last > first + 0.15
    assert rows[-1]["reward_mean"] + rows[-2]["reward_mean"] > rows[1]["reward_mean"] + rows[2]["reward_mean"]


@pytest.mark.parametrize("family", ["qwen2", "gemma"])
def test_another_model_family_goes_through_the_same_loop(tmp_path, tokenizer, family):
    small_model(family, tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = run("--model", tmp_path / "model", "--steps", 2, "--out", tmp_path / "run")
    assert len(rows) == 3 and all(math.isfinite(row["loss"]) for row in rows[1:])


def test_real_gsm8k_rows(tmp_path, gsm8k_folder):
    rows = run("--steps", 2, "--train-data", gsm8k_folder / "train.jsonl", "--eval-data", gsm8k_folder / "test.jsonl",
               "--out", tmp_path / "run")
    assert len(rows) == 3 and math.isfinite(rows[-1]["loss"])


def test_bfloat16_products_with_float32_weights(tmp_path):
    rows = run("--steps", 1, "--dtype", "bfloat16", "--save-every", 1, "--out", tmp_path / "run")
    assert math.isfinite(rows[-1]["loss"]) and rows[-1]["kl_to_old"] < 0.05
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_each_epoch_visits_every_problem_once():
    settings = program.parse_settings([*QUICK])
    problems = list(range(10))
    places = [p for drawn in range(0, 20, 4) for p in next_problems(problems, settings, drawn)]
    assert sorted(places[:10]) == sorted(places[10:]) == problems
    assert places[:10] != places[10:] and places[:10] != problems
    settings.seed = 1
    assert [p for drawn in range(0, 20, 4) for p in next_problems(problems, settings, drawn)] != places


# --- nothing lost ---

def test_resumed_equals_uninterrupted(tmp_path, finished):
    run("--steps", 2, "--save-every", 2, "--out", tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "reward_mean": 9}\n{"step": 4, "rew')  # steps after the checkpoint, one cut short
    run("--resume", tmp_path / "run", "--steps", 4, quick=False)
    assert without_timings(read_metrics(tmp_path / "run")) == without_timings(read_metrics(finished))
    a = load_file(finished / "model" / "model.safetensors")
    b = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_killed_while_its_model_was_written_ends_well(tmp_path, finished):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "model").rename(tmp_path / "run" / "model.tmp")
    run("--resume", tmp_path / "run", quick=False)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert read_metrics(tmp_path / "run") == read_metrics(finished)


def test_a_finished_run_without_checkpoints_is_left_alone(tmp_path, capsys):
    run("--steps", 1, "--save-every", 0, "--out", tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(SystemExit) as stop:
        run("--resume", tmp_path / "run", "--steps", 2, quick=False)
    assert stop.value.code == 2 and "no checkpoint" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
    run("--steps", 1, "--save-every", 0, "--out", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")  # as if it had been killed
    rows = run("--resume", tmp_path / "run", quick=False)
    assert [row["step"] for row in rows] == [0, 1] and rows == read_metrics(tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, capsys):
    run("--steps", 2, "--save-every", 2, "--out", tmp_path / "run")
    kept = {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoint-000002").iterdir()}
    broken = dataclasses.replace(OBJECTIVES["pmd_mean"], loss=lambda log_probs, *_: log_probs.sum(dim=1) * math.nan)
    monkeypatch.setitem(OBJECTIVES, "pmd_mean", broken)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run("--resume", tmp_path / "run", "--steps", 4, quick=False)
    assert stop.value.code == 1
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py:")]
    assert len(message) == 1 and "step 4" in message[0] and "3 updates in a row" in message[0]
    assert "checkpoint-000002" in message[0]
    assert {path: path.read_bytes() for path in kept} == kept


def test_broken_weights_are_named(tmp_path, tiny, capsys):
    import copy

    model = copy.deepcopy(tiny[0])
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    tiny[1].save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit) as stop:
        run("--model", tmp_path / "model", "--steps", 1, "--eval-every", 0, "--out", tmp_path / "run")
    assert stop.value.code == 1
    assert "layers.1.mlp.down_proj.weight" in capsys.readouterr().err


# --- bad input: one line, status 2 ---

@pytest.mark.parametrize("arguments, says", [
    (["--objective", "ppo2"], "ppo2"),
    (["--no-such-flag"], "--no-such-flag"),
    (["--tua", "0.1"], "--tua"),
    (["--steps", "many"], "many"),
    (["--group-size", "3"], "--minibatch-size"),
    (["--minibatch-size", "12"], "--minibatch-size"),
    (["--group-size", "1"], "--group-size 1"),
    (["--tau", "0"], "--tau"),
    (["--tau", "-1"], "--tau"),
    (["--tau", "nan"], "--tau"),
    (["--lr", "inf"], "--lr"),
    (["--temperature", "0"], "--temperature"),
    (["--steps", "0"], "--steps"),
    (["--eval-every", "-1"], "--eval-every"),
    (["--max-new-tokens", "3000"], "--max-new-tokens"),
    (["--model", "./no/such/model"], "./no/such/model"),
    (["--model", "nobody/no-such-model"], "nobody/no-such-model"),
    (["--train-data", "no/such.jsonl"], "no/such.jsonl"),
    (["--eval-data", "no/such.jsonl"], "no/such.jsonl"),
    (["--device", "abacus"], "--device abacus"),
    (["--resume", "no/such/run"], "no/such/run"),
])
def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, arguments, says):
    base = [] if "--resume" in arguments else [*QUICK, "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        program.train(program.parse_settings([*base, *arguments]))
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("train.py: ") and says in error and "\n" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run("--device", "cuda", "--out", tmp_path / "run")
    assert stop.value.code == 2 and "--device cuda" in capsys.readouterr().err


def test_a_folder_with_another_run_is_left_alone(finished, capsys):
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(SystemExit) as stop:
        run("--steps", 1, "--out", finished)
    assert stop.value.code == 2 and "--resume" in capsys.readouterr().err
    assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("arguments, says", [
    (["--lr", "1"], "--lr"), (["--steps", "1"], "can only be raised"), ([], "complete at step 4"),
])
def test_resume_refuses(finished, capsys, arguments, says):
    with pytest.raises(SystemExit) as stop:
        run("--resume", finished, *arguments, quick=False)
    assert stop.value.code == 2 and says in capsys.readouterr().err


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        program.parse_settings(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in choices.Settings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')} " in text
    assert str(ROOT) not in text
