r"""The embedded default: exact problems, splits that share nothing, and a model that is right now and then."""

import json
import random
import re
from fractions import Fraction

import pytest
import torch
from conftest import ROOT

from tiny.problems import LARGEST, SITUATIONS, compute, make_problem, make_split, solve

TINY = ROOT / "tiny"


def read(split):
    return [json.loads(line) for line in (TINY / f"{split}.jsonl").read_text().splitlines()]


def situation_of(question):
    r"""(index, numbers) of the situation that a question was made from."""
    found = []
    for i, (template, *_) in enumerate(SITUATIONS):
        names = set()

        def once(match):
            if match[1] in names:
                return f"(?P={match[1]})"
            names.add(match[1])
            return f"(?P<{match[1]}>" + (r"\d+" if match[1] in "abcde" else r"\w+") + ")"

        pattern = re.sub(r"\\\{(\w)\\\}", once, re.escape(template))
        match = re.fullmatch(pattern, question)
        if match:
            found.append((i, tuple(match[v] for v in "abcde" if v in names)))
    assert len(found) == 1, question
    return found[0]


def test_at_least_forty_situations_of_two_to_four_steps():
    assert len(SITUATIONS) >= 40
    assert {len(situation) - 3 for situation in SITUATIONS} == {2, 3, 4}
    assert len({situation[0] for situation in SITUATIONS}) == len(SITUATIONS)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_calculation_is_exact(split):
    rows = read(split)
    assert len(rows) >= (2000 if split == "train" else 512) and all(set(row) == {"question", "answer"} for row in rows)
    for row in rows:
        *steps, last = row["answer"].splitlines()
        assert 2 <= len(steps) <= 4
        for step in steps:
            written, left, operation, right, annotated, result = re.search(
                r"((\d+)([-+*/])(\d+))=<<\1=(\d+)>>(\d+)", step).groups()
            a, b = Fraction(left), Fraction(right)
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operation]
            assert value == int(result) == int(annotated) and 1 <= value <= LARGEST
        assert last == f"#### {result}"


def test_splits_share_no_problem_and_no_number_tuple_of_a_situation():
    train, test = (read(split) for split in ("train", "test"))
    questions = [row["question"] for row in train + test]
    assert len(set(questions)) == len(questions)
    in_train, in_test = ({situation_of(row["question"]) for row in rows} for rows in (train, test))
    assert not in_train & in_test
    assert {i for i, _ in in_train} == {i for i, _ in in_test} == set(range(len(SITUATIONS)))


def test_the_committed_files_are_what_the_generator_makes():
    from tiny.make import SEED, TEST_PER_SITUATION, TRAIN_PER_SITUATION

    for split, per_situation in (("train", TRAIN_PER_SITUATION), ("test", TEST_PER_SITUATION)):
        made = make_split(split, per_situation, SEED)
        assert read(split) == [{"question": p["question"], "answer": p["answer"]} for p in made]


def test_solve_by_hand():
    steps = ["The bags hold [b*c] {t}.", "{n} has [a+x] {t}."]
    numbers = dict(a=10, b=3, c=4)
    assert solve(steps, numbers) == (["The bags hold 3*4=<<3*4=12>>12 {t}.", "{n} has 10+12=<<10+12=22>>22 {t}."], 22)
    assert solve(steps, numbers, "1+")[1] == 17
    assert solve(steps, numbers, "2-") is None  # 10 - 12 is negative
    assert solve(steps, numbers, "early")[1] == 12
    assert compute(7, "/", 2) is None and compute(8, "/", 2) == 4 and compute(100, "*", 2) is None


def test_the_mistake_is_never_right_by_luck():
    rng = random.Random(3)
    for situation in range(len(SITUATIONS)):
        problem = make_problem(situation, rng, "train")
        assert problem["mistaken"].split("#### ")[1] != problem["answer"].split("#### ")[1]


def test_the_model_is_small_and_its_tokenizer_splits_digits(tiny):
    model, tokenizer = tiny
    assert model.num_parameters() <= 2_000_000
    files = list((TINY / "model").iterdir())
    assert sum(file.stat().st_size for file in files) <= 8 * 2**20
    assert (TINY / "model" / "model.safetensors").exists() and tokenizer.chat_template
    text = "Ünïcode, 1234 apples ☂\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    digits = [tokenizer.decode([i]) for i in ids if re.search(r"\d", tokenizer.decode([i]))]
    assert digits == ["1", "2", "3", "4"]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_base_model_is_wrong_greedily_more_often_than_not_and_right_when_sampled(tiny):
    from gsm8k import format_prompt
    from reward_math import verify
    from rollout import sample_rollouts

    model, tokenizer = tiny
    rows = read("test")[:256]
    prompts = [format_prompt(tokenizer, row["question"]) for row in rows]
    greedy = sample_rollouts(model, tokenizer, prompts, 1, 72, greedy=True)
    accuracy = sum(verify(text, row["answer"]) for text, row in zip(greedy.texts, rows)) / len(rows)
    assert 0.2 <= accuracy <= 0.5
    sampled = sample_rollouts(model, tokenizer, prompts[:64], 16, 72, seed=0)
    right = torch.tensor([verify(text, rows[i // 16]["answer"]) for i, text in enumerate(sampled.texts)]).view(64, 16)
    assert right.any(dim=1).float().mean() > 0.9  # reinforcement learning can find the right answer
    assert greedy.truncated.float().mean() < 0.02
