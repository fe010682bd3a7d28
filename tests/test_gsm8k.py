r"""Problems and prompts: real rows, both forms of prompt, and errors that say what to do."""

import copy
import subprocess
import sys

import pytest
from conftest import ROOT

from gsm8k import INSTRUCTION, format_prompt, load_problems, strip_annotations
from reward_math import verify

TINY = ROOT / "tiny" / "train.jsonl"


def test_local_rows_in_file_order():
    rows = load_problems(TINY)
    assert len(rows) > 1000 and set(rows[0]) == {"question", "answer"}
    assert load_problems(str(TINY), limit=3) == rows[:3]


def test_real_gsm8k(gsm8k_folder):
    rows = load_problems(gsm8k_folder / "test.jsonl")
    assert len(rows) == 1319
    assert rows[0]["question"].startswith("Janet") and rows[0]["answer"].endswith("#### 18")
    assert all("<<" not in strip_annotations(row["answer"]) for row in rows)


def test_extra_columns_are_left_out(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "question": "1+1?", "answer": "#### 2"}\n')
    assert load_problems(tmp_path / "rows.jsonl") == [{"question": "1+1?", "answer": "#### 2"}]


def test_strip_annotations_by_hand():
    assert strip_annotations("He has 48/2 = <<48/2=24>>24 clips.\n#### 24") == "He has 48/2 = 24 clips.\n#### 24"


def test_chat_template_is_used(tokenizer):
    prompt = format_prompt(tokenizer, "How many?")
    assert prompt == f"<|user|>How many?\n{INSTRUCTION}<|assistant|>"
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids[0]) == "<|user|>"


def test_plain_form_without_a_template(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    assert format_prompt(plain, "How many?") == f"Question: How many?\n{INSTRUCTION}\nAnswer:"


def test_plain_form_keeps_the_token_that_the_tokenizer_puts_first(tokenizer):
    from tokenizers.processors import TemplateProcessing

    with_bos = copy.deepcopy(tokenizer)
    with_bos.chat_template = None
    with_bos.bos_token = "<|user|>"
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", with_bos.bos_token_id)])
    assert format_prompt(with_bos, "How many?").startswith("<|user|>Question: How many?")


@pytest.mark.parametrize("content, says", [
    (None, "no data file"),
    ("", "is empty"),
    ('{"question": "1+1?"}\n', "no column answer"),
    ('{"text": "1+1?"}\n', "no column question"),
    ("this is not JSON\n", "not a JSONL file"),
    ('{"question": "1+1?", "answer": null}\n', "row 1, has an empty"),
    ('{"question": "1+1?", "answer": "#### 2"}\n{"question": " ", "answer": "#### 2"}\n', "row 2, has an empty"),
])
def test_bad_files_say_what_to_do(tmp_path, content, says):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=says) as error:
        load_problems(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_unreachable_hub_is_one_line(monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach the Hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match="cannot load openai/gsm8k") as error:
        load_problems("openai/gsm8k")
    assert "\n" not in str(error.value) and "local JSONL" in str(error.value)


def test_the_command_exits_with_2_on_a_missing_file():
    command = [sys.executable, str(ROOT / "gsm8k.py"), "--data", "no/such.jsonl"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("gsm8k.py: no data file")


def test_reference_solutions_of_the_embedded_task_verify():
    for row in load_problems(TINY, limit=300):
        assert verify(strip_annotations(row["answer"]), row["answer"])
