r"""Makes the embedded default from nothing: tiny/train.jsonl, tiny/test.jsonl and tiny/model.

    python tiny/make.py                about 12 minutes on two CPU cores; --out DIR writes elsewhere

The model stands where a small instruct model stands on a GPU: it writes well-formed solutions and often gets them
wrong. It is made that way on purpose, so that reinforcement learning has something to do on a laptop:

- It learns from an UNRELIABLE TEACHER. Each situation of `problems.py` has one mistake (a wrong operation, or a last
  step left out). In two situations of three the teacher makes it 70 % of the time, in the others 15 %. So greedy
  decoding is wrong more often than right, while right solutions are well within reach of sampling.
- Its arithmetic is sound: the teacher's calculations are exact, also on the mistaken path. What reinforcement
  learning has to find is which solution earns the reward, not how to multiply.

It never sees a test problem, nor the numbers of one: see `split_of` in `problems.py`. The loss is on the solution
only, as in supervised fine-tuning, and every problem is drawn anew.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from gsm8k import INSTRUCTION, format_prompt, strip_annotations  # noqa: E402
from tiny.problems import LARGEST, SITUATIONS, compute, make_problem, make_split  # noqa: E402

SEED = 0
TRAIN_PER_SITUATION, TEST_PER_SITUATION = 64, 12
STEPS, BATCH_SIZE, PEAK_LR = 2000, 64, 3e-3
DRILLS = 0.2  # fraction of the rows
MISTAKE_RATE_FAULTY, MISTAKE_RATE_SOUND = 0.70, 0.15

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(texts):
    r"""A byte-level BPE: every text can be written in it, each digit is one token, a frequent word is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"[0-9]"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", chat_template=CHAT_TEMPLATE,
        additional_special_tokens=["<|user|>", "<|assistant|>"], padding_side="left", model_max_length=2048,
    )


def make_model(tokenizer):
    r"""An untrained Llama of about one million parameters."""
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))


def teach(situation, rng):
    r"""One (question, solution) of the unreliable teacher; situations 2, 5, 8, ... are those it mostly gets right."""
    problem = make_problem(situation, rng, "train")
    mistake_rate = MISTAKE_RATE_SOUND if situation % 3 == 2 else MISTAKE_RATE_FAULTY
    solution = problem["mistaken"] if rng.random() < mistake_rate else problem["answer"]
    return problem["question"], strip_annotations(solution)


def lesson_row(tokenizer, rng):
    r"""One problem as (ids, labels): the loss is on the teacher's solution, labels are -100 elsewhere."""
    question, solution = teach(rng.randrange(len(SITUATIONS)), rng)
    prompt = tokenizer(format_prompt(tokenizer, question)).input_ids
    response = tokenizer(solution).input_ids + [tokenizer.eos_token_id]
    return prompt + response, [-100] * len(prompt) + response


def drill_row(tokenizer, rng):
    r"""Some exact calculations as (ids, labels), the loss on the results: arithmetic practice, cheaper than lessons."""
    ids = tokenizer(format_prompt(tokenizer, "Calculate.")).input_ids
    labels = [-100] * len(ids)
    for _ in range(rng.randint(4, 12)):
        factor = rng.randint(2, 12)
        product = factor * rng.randint(2, LARGEST // factor)
        total = rng.randint(3, LARGEST)
        part = rng.randint(1, total - 1)
        left, operation, right = rng.choice([
            (part, "+", total - part), (total, "-", part), (factor, "*", product // factor),
            (product // factor, "*", factor), (product, "/", factor),
        ])
        given = tokenizer(f"{left}{operation}{right}=").input_ids
        result = tokenizer(f"{compute(left, operation, right)}\n").input_ids
        ids, labels = ids + given + result, labels + [-100] * len(given) + result
    return ids, labels


def training_batches(tokenizer, rng):
    r"""Endless batches of freshly drawn rows, right-padded: input_ids [N, L], labels [N, L].

    Sixteen batches are drawn at a time and filled in order of length: 30 % less padding than filling them as drawn.
    """
    while True:
        rows = [drill_row(tokenizer, rng) if rng.random() < DRILLS else lesson_row(tokenizer, rng)
                for _ in range(16 * BATCH_SIZE)]
        rows.sort(key=lambda row: len(row[0]))
        for start in rng.sample(range(0, len(rows), BATCH_SIZE), 16):
            batch = rows[start:start + BATCH_SIZE]
            length = len(batch[-1][0])
            pad = tokenizer.pad_token_id
            input_ids = torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in batch])  # [N, L]
            labels = torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in batch])  # [N, L]
            yield input_ids, labels


def train(model, tokenizer, steps):
    r"""Supervised training on the teacher's solutions, with a warm-up and a linear decay of the learning rate."""
    batches = training_batches(tokenizer, random.Random(SEED))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, (steps - step) / steps, 1.0)
    )
    model.train()
    progress = tqdm(range(steps), desc="teaching", unit="step")
    for step in progress:
        input_ids, labels = next(batches)
        # Causal attention never looks right, so the padding on the right needs no mask.
        hidden = model.model(input_ids=input_ids).last_hidden_state[:, :-1]  # [N, L-1, H]
        taught = labels[:, 1:] != -100  # [N, L-1]; only these are projected on the vocabulary
        loss = F.cross_entropy(model.lm_head(hidden[taught]), labels[:, 1:][taught])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.4f}")


def main():
    parser = argparse.ArgumentParser(description="Make the embedded task and model from nothing.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for train.jsonl, test.jsonl and model/")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of the teaching")
    arguments = parser.parse_args()
    started = time.time()
    torch.manual_seed(SEED)

    arguments.out.mkdir(parents=True, exist_ok=True)
    for split, per_situation in (("train", TRAIN_PER_SITUATION), ("test", TEST_PER_SITUATION)):
        with open(arguments.out / f"{split}.jsonl", "w") as file:
            for problem in make_split(split, per_situation, SEED):
                file.write(json.dumps({"question": problem["question"], "answer": problem["answer"]}) + "\n")

    rng = random.Random(SEED + 1)
    lessons = [teach(situation, rng) for situation in range(len(SITUATIONS)) for _ in range(100)]
    tokenizer = make_tokenizer([text for lesson in lessons for text in lesson] + [INSTRUCTION] * 100)
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, arguments.steps)
    model.save_pretrained(arguments.out / "model")
    tokenizer.save_pretrained(arguments.out / "model")
    print(f"wrote {arguments.out} in {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
