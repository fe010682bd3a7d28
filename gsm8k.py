r"""GSM8K: grade-school word problems, and the prompt that asks a language model for one (arXiv 2110.14168).

What it teaches: a verifiable task needs only three things. These are a question, a gold answer, and a prompt in the
form that the model was trained on. A wrong form makes a run fail without an error: a chat model that gets plain text
without its template rarely ends its answer. Then every response is cut off, and nothing is learned.

A row is a dict with GSM8K's two columns. The answer holds calculator annotations and ends in the gold:

    question   Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. ...
    answer     Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = ... in April and May.\n#### 72

`python gsm8k.py` shows one problem of the embedded task as the model sees it; `--data` and `--model` choose others.
"""

import re
from pathlib import Path

HUB_NAME = "openai/gsm8k"
COLUMNS = ("question", "answer")

# Asked in the user's turn, as some chat templates (Gemma's) have no system turn.
INSTRUCTION = "Solve the problem step by step. End with a line: #### <answer>"


def load_problems(source, split="train", limit=None):
    r"""Loads problems as a list of {"question": str, "answer": str}, in file order.

    source   "openai/gsm8k" (or another hub data set with these columns), or the path of a local JSONL file
    split    the hub data set's split, "train" or "test"; a local file has only itself
    limit    keep the first `limit` rows; None keeps all
    Raises ValueError with one line that says what to do: for a missing file, for one that is not JSONL, for a missing
    column, for no rows, and where the hub cannot be reached.
    """
    import datasets  # here, as it takes seconds

    path = Path(source)
    looks_local = path.suffix in (".jsonl", ".json") or path.exists()
    if looks_local and not path.is_file():
        raise ValueError(f"no data file at {source}: give the path of a JSONL file with question and answer")
    if looks_local and path.stat().st_size == 0:
        raise ValueError(f"the data file {source} is empty: it needs an object with question and answer on each line")
    try:
        if looks_local:
            datasets.disable_progress_bars()
            rows = datasets.load_dataset("json", data_files=str(path), split="train")
        else:
            rows = datasets.load_dataset(source, "main" if source == HUB_NAME else None, split=split)
        columns = rows.column_names
        problems = list(rows.select(range(min(limit or len(rows), len(rows)))))  # raises for text that is not UTF-8
    except Exception as error:  # datasets raises many kinds; each means that the rows cannot be had
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if looks_local:
            raise ValueError(
                f"{source} is not a JSONL file with question and answer on each line ({reason})") from error
        raise ValueError(
            f"cannot load {source} from the hub ({reason}): check the network and the name, or give a local JSONL file"
        ) from error
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        found = ", ".join(repr(column)[:40] for column in columns[:8])
        raise ValueError(f"{source} has no column {missing[0]}: found {found}; "
                         "rename its columns to question and answer")
    for number, problem in enumerate(problems, start=1):
        if any(problem[column] is None or not str(problem[column]).strip() for column in COLUMNS):
            raise ValueError(f"{source}, row {number}, has an empty question or answer: fill it in or leave it out")
    if not problems:
        raise ValueError(f"{source} has no rows: it needs at least one problem")
    return [{column: str(problem[column]) for column in COLUMNS} for problem in problems]


def strip_annotations(answer):
    r"""GSM8K's answer without its calculator annotations: `48/2 = <<48/2=24>>24 clips` -> `48/2 = 24 clips`."""
    return re.sub(r"<<[^<>]*>>", "", answer)


def format_prompt(tokenizer, question):
    r"""The text after which the model is to write its solution.

    With a chat template: one user turn (the question and INSTRUCTION) and the opening of the assistant's turn.
    Without one: a plain form, after the token that the tokenizer itself puts in front of a text, if any.
    The result is complete: tokenize it with `add_special_tokens=False`, or a template's own <bos> is there twice.
    """
    if tokenizer.chat_template:
        turn = {"role": "user", "content": f"{question}\n{INSTRUCTION}"}
        return tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    opening = tokenizer.bos_token if tokenizer.bos_token_id in tokenizer("a").input_ids[:1] else ""
    return f"{opening}Question: {question}\n{INSTRUCTION}\nAnswer:"


if __name__ == "__main__":
    import argparse
    import sys

    from transformers import AutoTokenizer

    tiny = Path(__file__).parent / "tiny"
    parser = argparse.ArgumentParser(description="Show one problem and its prompt.")
    parser.add_argument("--data", default=str(tiny / "test.jsonl"), help="a JSONL file, or openai/gsm8k")
    parser.add_argument("--model", default=str(tiny / "model"), help="a Hugging Face model directory or hub name")
    arguments = parser.parse_args()
    try:
        problem = load_problems(arguments.data, split="test", limit=1)[0]
    except ValueError as error:
        print(f"gsm8k.py: {error}", file=sys.stderr)
        sys.exit(2)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    prompt = format_prompt(tokenizer, problem["question"])
    print(f"--- prompt, {len(tokenizer(prompt, add_special_tokens=False).input_ids)} tokens\n{prompt}")
    print(f"--- reference solution without annotations\n{strip_annotations(problem['answer'])}")
