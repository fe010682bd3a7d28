r"""ObjectiveTrainer against train.py, on the CPU, in an environment of its own:

    pip install -r integrations/requirements-trl.txt && pytest integrations/test_trl.py

Two optimizer steps of 4 responses each, in microbatches of 2, on 8 responses that were sampled beforehand. TRL's
gradient of either step must be the one that train.py's functions compute from the same tokens, the same rewards and
the weights of that moment: on policy in the first step, off policy in the second.

TRL and train.py both round log-probs to float32, each in its own way, and rotate by other positions where prompts are
padded on the left (TRL gives none). Together that is 4e-6 to 5e-6 of a first gradient, 1e-5 for pmd_part, and up to
2.4e-5 off policy. So the mapping is tested in float64, with a plain log_softmax on both sides; and the first gradient
again with both programs as they are, in float32.
"""

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "integrations")]

from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from trl import GRPOConfig

import trl_trainer
from aggregation import aggregate
from gsm8k import format_prompt, load_problems
from objectives import OBJECTIVES
from plumbing.settings import needs_reference
from reward_math import math_reward
from rollout import Rollout, sample_rollouts
from scoring import token_log_probs
from trl_trainer import ObjectiveTrainer

pytestmark = pytest.mark.trl
TINY = ROOT / "tiny" / "model"
TAU, BETA = 0.1, 0.05  # a beta that one sees
G, ROWS = 4, 8


def tiny_model(dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=dtype)


class PlainHead:
    r"""TRL's head without its float32 tiles."""

    @staticmethod
    def apply(hidden, weight, bias, targets, temperature, *_):
        log_probs = (hidden @ weight.T / temperature).log_softmax(dim=-1)  # [M, V]
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1).detach()
        return log_probs.gather(1, targets[:, None]).squeeze(1), entropy, None, None, None


def plain_log_probs(model, part):
    r"""scoring.token_log_probs in the model's own dtype, and without position ids: [N, T]."""
    T = part.response_mask.shape[1]
    logits = model(input_ids=part.sequences, attention_mask=part.attention_mask).logits[:, -T - 1 : -1]  # [N, T, V]
    log_probs = logits.log_softmax(dim=-1).gather(2, part.sequences[:, -T:, None]).squeeze(2)
    return torch.where(part.response_mask, log_probs, 0.0)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def sampled(tokenizer):
    r"""(problems, question -> its responses as token lists): two problems, groups neither all right nor all wrong."""
    problems = load_problems(ROOT / "tiny" / "train.jsonl", limit=24)
    texts = [format_prompt(tokenizer, problem["question"]) for problem in problems]
    rollout = sample_rollouts(tiny_model(), tokenizer, texts, G, 72, seed="integrations")
    P = rollout.sequences.shape[1] - rollout.response_mask.shape[1]
    chosen, responses = [], {}
    for i, problem in enumerate(problems):
        rows = range(i * G, (i + 1) * G)
        if len({math_reward(rollout.texts[row], problem["answer"]) for row in rows}) == 2 and len(chosen) < ROWS // G:
            chosen.append(problem)
            responses[problem["question"]] = [
                rollout.sequences[row, P:][rollout.response_mask[row]].tolist() for row in rows]
    assert len(chosen) == ROWS // G
    return chosen, responses


def canned(tokenizer, responses, first=lambda trainer: 0, with_environment=False):
    r"""TRL's rollout_func: the k-th occurrence of a prompt gets its k-th response."""
    def rollout_func(prompts, trainer):
        seen = defaultdict(lambda: first(trainer))
        completion_ids = []
        for prompt in prompts:
            question = next(q for q in responses if prompt[0]["content"].startswith(q))
            completion_ids.append(responses[question][seen[question]])
            seen[question] += 1
        prompt_ids = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True).input_ids
        output = dict(prompt_ids=prompt_ids, completion_ids=completion_ids, logprobs=None)
        if with_environment:  # the third token of each response is not the model's
            output["env_mask"] = [[int(t != 2) for t in range(len(ids))] for ids in completion_ids]
        return output
    return rollout_func


class Recorder(ObjectiveTrainer):
    r"""Keeps what TRL hands to the loss, and the weights of that moment."""

    def __init__(self, *args, **kwargs):
        self.seen = []
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        weights = {name: p.detach().clone() for name, p in self.accelerator.unwrap_model(model).named_parameters()}
        self.seen.append((dict(inputs), weights, loss.detach()))
        return loss


class Gradients(TrainerCallback):
    r"""The gradient of every optimizer step, as one vector, before clipping (which is off)."""

    def __init__(self):
        self.of_step = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.of_step.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))


def run(tmp_path, tokenizer, sampled, objective, trainer_class=Recorder, accumulation=2, max_steps=2, config=None,
        with_environment=False, dtype=torch.float32, **kwargs):
    problems, responses = sampled
    gradients = Gradients()
    args = GRPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", logging_steps=1,
        save_strategy="no", disable_tqdm=True, max_grad_norm=0.0, lr_scheduler_type="constant",
        learning_rate=1e-5 if objective == "gspo" else 2e-3,  # GSPO clips at 3e-4: nothing would be left of step 2
        per_device_train_batch_size=2, gradient_accumulation_steps=accumulation, steps_per_generation=4,
        num_generations=G, max_completion_length=72, max_steps=max_steps, **config or {})
    kwargs.setdefault("reward_funcs", trl_trainer.reward)
    kwargs.setdefault("rollout_func", canned(tokenizer, responses, with_environment=with_environment))
    trainer = trainer_class(
        tiny_model(dtype), args=args, objective=objective, processing_class=tokenizer, callbacks=[gradients],
        train_dataset=trl_trainer.prompts(problems, tokenizer), **kwargs)
    trainer.train()
    return trainer, gradients.of_step


def strengths(objective):
    return {name: value for name, value in (("tau", TAU), ("beta", BETA)) if name in OBJECTIVES[objective].settings}


def rollout_of(inputs, mask=None):
    r"""A Rollout of TRL's tensors; log_probs are filled in by the caller."""
    mask = inputs["completion_mask"].bool() if mask is None else mask
    return Rollout(
        torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
        torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1), mask,
        torch.zeros(mask.shape), [""] * len(mask), torch.zeros(len(mask), dtype=torch.bool))


def with_weights(weights):
    model = tiny_model(next(iter(weights.values())).dtype)
    model.load_state_dict(weights, strict=False)  # lm_head is tied to the embedding
    return model


def texts_of(inputs, tokenizer):
    return tokenizer.batch_decode([ids[mask.bool()] for ids, mask in
                                   zip(inputs["completion_ids"], inputs["completion_mask"])], skip_special_tokens=True)


def joined(batches, name):
    return torch.cat([batch[name] for batch in batches])


def expected_gradients(trainer, tokenizer, problems, accumulation, G=G, log_probs_of=token_log_probs):
    r"""What train.py's functions give for each optimizer step, from tokens, problems and weights alone."""
    batches = [inputs for inputs, _, _ in trainer.seen]
    everything = {name: joined(batches, name) for name in
                  ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
    questions = [tokenizer.decode(ids[mask.bool()]) for ids, mask in
                 zip(everything["prompt_ids"], everything["prompt_mask"])]
    problem_of = [next(i for i, p in enumerate(problems) if p["question"] in text) for text in questions]
    # TRL shuffles a generation's rows, train.py's functions want group after group.
    order = torch.tensor(problem_of).argsort(stable=True)
    rewards = torch.tensor([math_reward(text, problems[i]["answer"]) for text, i in
                            zip(texts_of(everything, tokenizer), problem_of)])
    settings = trainer.settings
    assert settings.group_size == G
    whole = rollout_of(everything)
    initial = with_weights(trainer.seen[0][1])
    with torch.no_grad():
        whole.log_probs = log_probs_of(initial, whole)  # the sampler's; the reference is the same model
    objective = OBJECTIVES[settings.objective]
    whole.ref_log_probs = whole.log_probs if needs_reference(settings) else None
    advantages = objective.advantages(rewards[order], whole.select(order), settings)
    whole.advantages = advantages[order.argsort()]  # back to TRL's order
    result, tokens = [], int(whole.response_mask.sum())
    steps = len(batches) // accumulation
    for step in range(steps):
        rows = torch.arange(len(whole.texts)).view(steps, -1)[step]
        model = with_weights(trainer.seen[step * accumulation][1])
        part = whole.select(rows)
        losses = objective.loss(log_probs_of(model, part), part, settings)
        loss = aggregate(losses, part.response_mask, settings.aggregate, num_tokens=tokens / steps,
                         max_new_tokens=settings.max_new_tokens)
        loss.backward()
        result.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    return result


def relative(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("objective", [
    "pmd_mean", "pmd_part", "rpg_urkl", "rpg_reinforce_fkl", "rpg_clip_rkl", "rpg_reinforce_clip_urkl", "grpo",
    "dr_grpo", "dapo", "rloo", "reinforce_pp", "gspo"])
def test_gradient_of_both_steps_is_that_of_train(tmp_path, tokenizer, sampled, objective, monkeypatch):
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", PlainHead)
    trainer, got = run(tmp_path, tokenizer, sampled, objective, dtype=torch.float64, **strengths(objective))
    wanted = expected_gradients(trainer, tokenizer, sampled[0], accumulation=2, log_probs_of=plain_log_probs)
    assert len(got) == len(wanted) == 2
    for step in range(2):
        assert wanted[step].norm() > 1e-4
        # float32 advantages of REINFORCE++ are sums in another order
        assert relative(got[step], wanted[step]) < (1e-5 if objective == "reinforce_pp" else 1e-9), f"step {step}"
    assert (trainer.ref_model is not None) == needs_reference(trainer.settings)


@pytest.mark.parametrize("objective", ["pmd_mean", "rpg_urkl", "rpg_reinforce_clip_urkl", "grpo", "reinforce_pp"])
def test_first_gradient_as_it_is(tmp_path, tokenizer, sampled, objective):
    r"""float32, TRL's own head, scoring.token_log_probs."""
    trainer, got = run(tmp_path, tokenizer, sampled, objective, **strengths(objective))
    wanted = expected_gradients(trainer, tokenizer, sampled[0], accumulation=2)
    assert relative(got[0], wanted[0]) < 1e-5


def test_one_step_per_generation_is_the_exact_token_mean(tmp_path, tokenizer, sampled):
    r"""Where a generation serves one optimizer step, TRL's count of tokens is the minibatch's own."""
    with pytest.warns(UserWarning, match="one optimizer step per generation"):  # the KL to the sampler does nothing
        trainer, got = run(tmp_path, tokenizer, sampled, "rpg_urkl", accumulation=4, max_steps=1, beta=BETA)
    wanted = expected_gradients(trainer, tokenizer, sampled[0], accumulation=4)
    assert relative(got[0], wanted[0]) < 1e-5
    counts = [int(inputs["completion_mask"].sum()) for inputs, _, _ in trainer.seen]
    assert len(set(counts)) > 1  # a mean of microbatch means would be another number


def test_a_reference_and_whole_responses(tmp_path, tokenizer, sampled, monkeypatch):
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", PlainHead)
    given = dict(beta=BETA, reference="initial", ratio="sequence", leave_one_out=True)
    trainer, got = run(tmp_path, tokenizer, sampled, "rpg_urkl", dtype=torch.float64, **given)
    assert trainer.settings.aggregate == "seq-mean-token-sum" and trainer.ref_model is not None
    wanted = expected_gradients(trainer, tokenizer, sampled[0], accumulation=2, log_probs_of=plain_log_probs)
    assert max(relative(g, w) for g, w in zip(got, wanted)) < 1e-9


def test_tokens_of_an_environment_are_left_out(tmp_path, tokenizer, sampled, monkeypatch):
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", PlainHead)
    trainer, got = run(tmp_path, tokenizer, sampled, "pmd_mean", with_environment=True, dtype=torch.float64, tau=TAU)
    for step in range(2):
        model = with_weights(trainer.seen[2 * step][1])
        for inputs, _, _ in trainer.seen[2 * step : 2 * step + 2]:
            mask = inputs["completion_mask"].bool()
            mask = mask & (torch.arange(mask.shape[1]) != 2)
            part = rollout_of(inputs, mask)
            s = (plain_log_probs(model, part)
                 - plain_log_probs(with_weights(trainer.seen[0][1]), part).detach()).sum(dim=1)  # [2]
            (TAU / 2 * (inputs["advantages"] / TAU - s).square().sum() / 4).backward()
        wanted = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert relative(got[step], wanted) < 1e-9


def test_vllm_weights_count_events(tmp_path, tokenizer, sampled):
    trainer, _ = run(tmp_path, tokenizer, sampled, "pmd_mean", tau=TAU)
    trainer.model.train()
    inputs = dict(trainer.seen[0][0])
    one = [trainer._compute_loss(trainer.model, inputs | dict(
        importance_sampling_ratio=torch.tensor(weights)[:, None])).item() for weights in ([1.0, 0.0], [0.0, 1.0])]
    mixed = inputs | dict(importance_sampling_ratio=torch.tensor([[0.5], [2.0]]))
    assert one[0] != pytest.approx(one[1])
    assert trainer._compute_loss(trainer.model, mixed).item() == pytest.approx(0.5 * one[0] + 2 * one[1], rel=1e-5)
    by_token = inputs | dict(importance_sampling_ratio=torch.ones(inputs["completion_mask"].shape))
    with pytest.raises(ValueError, match="sequence_mask"):
        trainer._compute_loss(trainer.model, by_token)


def test_trl_logs_as_always(tmp_path, tokenizer, sampled):
    trainer, _ = run(tmp_path, tokenizer, sampled, "grpo", beta=BETA)
    row = trainer.state.log_history[0]
    assert {"loss", "grad_norm", "reward", "reward_std", "completions/mean_length", "entropy", "kl",
            "frac_reward_zero_std", "rewards/reward/mean", "clip_ratio/region_mean"} <= set(row)
    rewards = [math_reward(tokenizer.decode(ids, skip_special_tokens=True), problem["answer"])
               for problem in sampled[0] for ids in sampled[1][problem["question"]]]
    assert row["reward"] == pytest.approx(sum(rewards) / len(rewards))


@pytest.mark.parametrize("objective", ["pmd_mean", "grpo"])
def test_lora(tmp_path, tokenizer, sampled, objective):
    r"""With PEFT only the adapter moves; the reference is the model without it."""
    from peft import LoraConfig

    set_seed(0)
    trainer, got = run(tmp_path, tokenizer, sampled, objective, trainer_class=ObjectiveTrainer,
                       peft_config=LoraConfig(r=4, target_modules=["q_proj"]), **strengths(objective))
    before = tiny_model().state_dict()
    after = trainer.model.get_base_model().state_dict()
    assert all(torch.equal(before[name], after[name.replace("q_proj.", "q_proj.base_layer.")]) for name in before)
    adapter = sum(p.numel() for name, p in trainer.model.named_parameters() if "lora" in name)
    assert got[1].norm() > 0 and got[1].numel() == adapter


def test_evaluation_is_trls(tmp_path, tokenizer, sampled):
    trainer, _ = run(tmp_path, tokenizer, sampled, "rloo", config=dict(per_device_eval_batch_size=4))
    metrics = trainer.evaluate(trl_trainer.prompts(sampled[0], tokenizer))
    assert 0 <= metrics["eval_reward"] <= 1


def test_the_readmes_configuration_takes_four_steps_of_128():
    lines = (ROOT / "integrations" / "README.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("args = GRPOConfig("))
    names = dict(GRPOConfig=GRPOConfig)
    exec("\n".join(lines[start : start + 2]).replace('"out",', '"out", use_cpu=True, bf16=False,'), names)
    args = names["args"]
    assert args.generation_batch_size == 512
    assert args.steps_per_generation // args.gradient_accumulation_steps * args.num_iterations == 4


@pytest.mark.parametrize("objective, config, given, message", [
    ("ppo", {}, {}, "objective must be one of"),
    ("grpo", {}, dict(tau=1.0), "tau is not used by grpo"),
    ("grpo", dict(beta=0.1), {}, "beta is an option of TRL"),
    ("pmd_mean", dict(loss_type="dr_grpo"), {}, "loss_type is an option of TRL"),
    ("pmd_mean", dict(entropy_coef=0.1), {}, "entropy_coef is an option of TRL"),
])
def test_what_would_be_ignored_is_refused(tmp_path, tokenizer, sampled, objective, config, given, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, tokenizer, sampled, objective, config=config, **given)


def test_a_response_without_reward_is_refused(tmp_path, tokenizer, sampled):
    with pytest.raises(ValueError, match="return a number"):
        run(tmp_path, tokenizer, sampled, "pmd_mean", reward_funcs=lambda completions, **_: [None] * len(completions))


def test_config_is_left_as_it_was_and_every_objective_is_known(tmp_path, tokenizer, sampled):
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", num_generations=G)
    data = trl_trainer.prompts(sampled[0], tokenizer)
    for objective in OBJECTIVES:
        trainer = ObjectiveTrainer(tiny_model(), trl_trainer.reward, args, objective=objective, train_dataset=data,
                                   processing_class=tokenizer)
        assert trainer.settings.aggregate == OBJECTIVES[objective].aggregate
        assert args.beta == 0.0


@pytest.mark.slow
def test_documented_command_raises_the_reward(tmp_path):
    r"""The README's command, shorter and faster: four generations, the reward of the last two above the first's."""
    command = [sys.executable, str(ROOT / "integrations" / "trl_trainer.py"), "--objective", "pmd_mean",
               "--steps", "16", "--lr", "3e-4", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rewards = [float(word) for word in done.stdout.strip().splitlines()[-1].split("generation ")[1].split()]
    assert len(rewards) == 4
    assert sum(rewards[-2:]) / 2 > rewards[0] + 0.05
    assert (tmp_path / "run" / "checkpoint-16" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["pmd_mean", "rpg_urkl", "reinforce_pp"])
def test_two_processes_are_one(tmp_path, tokenizer, sampled, objective):
    r"""One group of 8, half on each of two processes: the averaged gradient is that of the whole group in one."""
    problems, responses = sampled
    everyone = [ids for question in responses for ids in responses[question]]
    torch.save((problems[:1], {problems[0]["question"]: everyone}), tmp_path / "sampled.pt")
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__,
                    objective, str(tmp_path)], check=True, capture_output=True, timeout=300)
    got = torch.load(tmp_path / "gradient.pt")
    trainer, wanted = one_group(tmp_path, objective)
    assert relative(got, wanted[0]) < 1e-5
    assert relative(wanted[0], expected_gradients(trainer, tokenizer, problems[:1], accumulation=1, G=ROWS)[0]) < 1e-5


def one_group(path, objective):
    r"""One optimizer step on one group of 8 that all processes share."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    problems, responses = torch.load(path / "sampled.pt")
    processes = int(os.environ.get("WORLD_SIZE", 1))
    gradients = Gradients()
    args = GRPOConfig(
        str(path / "run"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
        max_grad_norm=0.0, per_device_train_batch_size=ROWS // processes, num_generations=ROWS, max_steps=1,
        max_completion_length=72, disable_tqdm=True)
    first = lambda trainer: trainer.accelerator.process_index * (ROWS // processes)
    trainer = Recorder(tiny_model(), trl_trainer.reward, args, objective=objective, processing_class=tokenizer,
                       callbacks=[gradients], train_dataset=trl_trainer.prompts(problems, tokenizer),
                       rollout_func=canned(tokenizer, responses, first), **strengths(objective))
    trainer.train()
    return trainer, gradients.of_step


if __name__ == "__main__":  # a process of test_two_processes_are_one
    trainer, gradients = one_group(Path(sys.argv[2]), sys.argv[1])
    if trainer.accelerator.is_main_process:
        torch.save(gradients[0], Path(sys.argv[2]) / "gradient.pt")
    torch.distributed.destroy_process_group()
