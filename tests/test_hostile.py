r"""Hostile text in the data and in what the model writes: it reaches the prompt, the verifier and the record unharmed,
and the console in a form that cannot move the cursor, change colours, hide a line or fill the screen."""

import dataclasses
import io
import json
import math
import re
import sys
import time
import unicodedata

import pytest

from plumbing import settings as choices
import train as program
from plumbing.checkpoint import truncate_metrics, write_json
from gsm8k import format_prompt, load_problems
from reward_math import extract_answer, math_reward, verify
from rollout import pad_left, sample_rollouts

MEGABYTE = 2**20
TEXTS = {
    "null bytes": "a\0b\0",
    "every C0 control": "".join(map(chr, range(32))),
    "delete and every C1 control": "".join(map(chr, range(127, 160))),
    "colours": "\x1b[31mred\x1b[0m \x9b31m",
    "clears the screen": "\x1b[2J\x1b[H\x1bc",
    "sets the window title": "\x1b]0;owned\x07",
    "carriage returns": "wrong\rright\r\nover",
    "backspaces": "wrong\b\b\b\b\bright",
    "line separators": "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1cseven",
    "right-to-left marks": "\u202e81\u202c \u200f\u2066abc\u2069",
    "zero width": "1\u200b8\u200d\ufeff",
    "not a character": "\ufffe\uffff\ue000\U000e0001",
    "broken bytes": "\ufffd\ufffd",
    "a megabyte on one line": "m" * MEGABYTE,
    "a megabyte of escapes": "\x1b" * MEGABYTE,
}
SURROGATE = {"lone surrogates": "a\ud800b\udfff"}
each_text = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
each_output = pytest.mark.parametrize("text", [*TEXTS.values(), *SURROGATE.values()], ids=[*TEXTS, *SURROGATE])


def write_problems(path, *questions, answer="#### 18", ensure_ascii=False):
    path.write_text("".join(json.dumps(dict(question=question, answer=answer), ensure_ascii=ensure_ascii) + "\n"
                            for question in questions), encoding="utf-8")
    return path


def assert_harmless(shown):
    r"""Nothing that a terminal obeys: no control but the newline, no direction mark, no separator, no surrogate."""
    bad = {character for character in shown if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert bad <= {"\n"}, bad
    assert max(map(len, shown.split("\n"))) < 6000  # 500 characters, each an escape, and the note


def assert_one_clear_line(error, *says):
    lines = [line for line in error.split("\n") if line.startswith("train.py:")]
    assert len(lines) == 1 and len(lines[0]) < 600 and "Traceback" not in error
    assert_harmless(lines[0])
    assert all(word in lines[0] for word in says), lines[0]


# --- data and prompt ---

@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_questions_and_answers_are_loaded_as_they_are(tmp_path, ensure_ascii):
    path = write_problems(tmp_path / "data.jsonl", *[f"x{text}x" for text in TEXTS.values()], ensure_ascii=ensure_ascii)
    assert [problem["question"] for problem in load_problems(path)] == [f"x{text}x" for text in TEXTS.values()]
    for answer in (text + "\n#### 18" for text in TEXTS.values()):
        assert load_problems(write_problems(path, "q", answer=answer, ensure_ascii=ensure_ascii))[0]["answer"] == answer


@pytest.mark.parametrize("content, why", [
    (b'{"question": "lone \\ud800", "answer": "#### 1"}\n', "a lone surrogate cannot be tokenized"),
    (b'{"question": "raw \0 null", "answer": "#### 1"}\n', "JSON has no raw control characters"),
    (b'{"question": "bad \xff byte", "answer": "#### 1"}\n', "not UTF-8"),
    (b'{"question": "q", "answer": "\xed\xa0\x80"}\n', "a surrogate in bytes is not UTF-8 either"),
    (b"\0" * 1000, "a file of nulls, as a crash may leave"),
    (b'{"question": "q", "\x1b[31man\\u001b[2Jswer": "a"}\n', "a column with escapes in its name"),
    (b'{"question": "q", "' + b"a" * MEGABYTE + b'": "a"}\n', "a column with a long name"),
    (b'{"question": "q", "a\\u001b[2J\\n\\rb": "a"}\n', "a column that is two lines"),
])
def test_data_that_cannot_be_read_is_one_clear_line(tmp_path, content, why):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_problems(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message and len(message) < len(str(path)) + 500
    assert_harmless(message)


@each_text
def test_the_prompt_holds_the_question_as_it_is(tokenizer, text):
    prompt = format_prompt(tokenizer, f"x{text}x")
    assert f"x{text}x" in prompt
    text = text[:200]
    prompt = format_prompt(tokenizer, f"x{text}x")
    ids, mask = pad_left(tokenizer, [prompt, "short"])
    assert tokenizer.decode(ids[0][mask[0].bool()].tolist()) == prompt


def test_a_hostile_prompt_is_sampled_from_like_any_other(tiny):
    model, tokenizer = tiny
    prompts = [format_prompt(tokenizer, text[:100]) for text in TEXTS.values()]
    together = sample_rollouts(model, tokenizer, prompts, 2, 6, seed=0)
    assert together.log_probs.isfinite().all() and len(together.texts) == 2 * len(prompts)
    alone = sample_rollouts(model, tokenizer, prompts[:1], 2, 6, seed=0)
    assert alone.texts == together.texts[:2]


# --- verifier ---

@each_output
def test_the_verdict_is_that_of_the_text_without_it(text):
    started = time.thread_time()
    for response in (f"{text}\n#### 18", f"{text} \\boxed{{18}}", f"#### 18\n{text}", f"{text}\nThe answer is 18."):
        assert verify(response, "18") is True and math_reward(response, "18") == 1.0
        assert verify(response, "81") is False and math_reward(response, "81", format_bonus=0.5) == 0.5
        assert verify("#### 18", f"{text}\n#### 18") is True and verify("#### 81", f"{text}\n#### 18") is False
    assert time.thread_time() - started < 5  # 0.2 s was measured for a megabyte: the bound has only to tell a hang


@each_output
def test_the_text_itself_is_no_right_answer(text):
    for response in (text, f"#### {text}", f"\\boxed{{{text}}}"):
        assert not verify(response, "7") and math_reward(response, "7") == 0.0
        assert extract_answer(response) is None or len(extract_answer(response)) <= 1000


@pytest.mark.parametrize("response, verdict", [
    ("#### 18\r", True), ("#### 18\r\n", True), ("#### 18\0", True), ("#### 18\u200f", True), ("#### \ufeff18", True),
    ("#### 18\ud800", True), ("#### 1\0" "8", False), ("#### 18\x1b[31m", False), ("#### 18\x0b20", False),
    ("#### 81\r#### 18", True), ("#### 18\r#### 81", False), ("#### \u202e81", False), ("#### 1\ud8008", False),
    ("#### 18\rDone: 20", True),
])
def test_marks_beside_a_number(response, verdict):
    r"""Line ends and invisible marks change nothing; what splits or follows the digits in another way makes it wrong.
    \r ends a line, and digits are read in the order in which they are stored, not in which a console shows them."""
    assert verify(response, "18") is verdict


# --- console ---

def shown(capsys, question="Q", response="R", answer="#### 18", right=False):
    capsys.readouterr()
    program.show([(dict(question=question, answer=answer), response, right)], step=3, accuracy=0.5)
    return capsys.readouterr().out


@each_output
@pytest.mark.parametrize("place", ["question", "response", "answer"])
def test_the_console_shows_no_control_character(capsys, place, text):
    out = shown(capsys, **{place: f"before {text} after"})
    assert_harmless(out)
    assert "before" in out and len(out) < 6000
    assert "held-out problems right" in out and "WRONG" in out


def test_control_characters_are_shown_as_escapes(capsys):
    for place in ("question", "response", "answer"):
        out = shown(capsys, **{place: "a\x1b[31mb\0c\x07d\x7fe\x9bf\u202eg\ud800h"})
        assert r"a\x1b[31mb\x00c\x07d\x7fe\x9bf\u202eg\ud800h" in out
    assert r"wrong\rright" in shown(capsys, response="wrong\rright")
    assert r"a\tb" in shown(capsys, response="a\tb")


def test_plain_text_is_shown_as_it_is(capsys):
    question, response = "Zoë has 3 €, née 汉字 🎉 \\x1b. How many?", "She has\n3 + 0 = 3\n\n#### 3"
    out = shown(capsys, question=question, response=response, answer="work\n#### 3", right=True)
    assert question in out and "-> right" in out
    lines = [line.strip() for line in out.split("\n")]
    at = lines.index("She has")  # the newlines of a response are newlines
    assert lines[at:at + 4] == ["She has", "3 + 0 = 3", "", "#### 3"]
    assert "(no text)" in shown(capsys, response="")


@pytest.mark.parametrize("place", ["question", "response", "answer"])
def test_long_lines_are_cut_and_say_by_how_much(capsys, place):
    assert "m" * 500 in shown(capsys, **{place: "m" * 500}) and "more" not in shown(capsys, **{place: "m" * 500})
    out = shown(capsys, **{place: "m" * 1734})
    assert "m" * 500 in out and "m" * 501 not in out and "1234 more" in out
    out = shown(capsys, **{place: "m" * MEGABYTE})
    assert sum(map(int, re.findall(r"(\d+) more", out))) == MEGABYTE - 500 and "m" * 501 not in out
    out = shown(capsys, **{place: "m" * 400 + "\n" + "k" * 400})  # lines, not texts
    assert "m" * 400 in out and "k" * 400 in out and "more" not in out
    assert len(shown(capsys, **{place: "m\n" * MEGABYTE})) < 20_000  # nor can many lines fill the screen


def test_a_console_that_knows_ascii_only_does_not_end_the_run(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    program.show([(dict(question="Zoë 🎉", answer="#### 3 €"), "\ufffd", False)], step=0, accuracy=0.0)
    stream.flush()
    assert b"held-out" in stream.buffer.getvalue() and rb"Zo\xeb" in stream.buffer.getvalue()


# --- a whole run, its record and its settings ---

QUICK = ["--preset", "tiny", "--device", "cpu", "--steps", "2", "--eval-every", "1", "--save-every", "0",
         "--prompts-per-step", "2", "--group-size", "2", "--minibatch-size", "4", "--micro-batch-size", "2",
         "--max-new-tokens", "8", "--reward-above", "-1", "--reward-below", "2"]


def run(*arguments):
    return program.train(program.parse_settings([*QUICK, *map(str, arguments)]))


def test_a_run_on_hostile_data_with_hostile_responses(tmp_path, monkeypatch, capsys):
    data = write_problems(tmp_path / "data.jsonl", *[f"x{text[:100]}x" for text in TEXTS.values()],
                          answer="\0\r\n#### 18 \x1b[2J")
    outputs = [*TEXTS.values(), *SURROGATE.values(), "\x1b[2J\r\n#### 18", "\0#### 18"]
    plain, verified = program.sample_rollouts, []

    def hostile(*arguments, **keywords):
        rollout = plain(*arguments, **keywords)
        start = len(verified)
        rollout.texts = [outputs[(start + i) % len(outputs)] for i in range(len(rollout.texts))]
        verified.extend(rollout.texts)
        return rollout

    monkeypatch.setattr(program, "sample_rollouts", hostile)
    rows = run("--train-data", data, "--eval-data", data, "--eval-size", len(TEXTS), "--out", tmp_path / "run")
    assert set(outputs) <= set(verified)
    assert_harmless(capsys.readouterr().out.replace(str(tmp_path), ""))
    lines = (tmp_path / "run" / "metrics.jsonl").read_bytes().splitlines()
    assert [json.loads(line) for line in lines] == rows and len(rows) == 3
    assert rows[-1]["eval_accuracy"] is not None and math.isfinite(rows[-1]["loss"])
    assert max(map(len, lines)) < 2000 and all(line.isascii() and line.decode().isprintable() for line in lines)


def test_a_problem_of_a_megabyte_is_one_clear_line(tmp_path, capsys):
    data = write_problems(tmp_path / "data.jsonl", "short", "m" * MEGABYTE)
    with pytest.raises(SystemExit) as stop:
        run("--train-data", data, "--eval-every", "0", "--out", tmp_path / "run")
    assert stop.value.code == 2 and not (tmp_path / "run").exists()
    assert_one_clear_line(capsys.readouterr().err, "a prompt of 104", "--max-new-tokens")


def test_the_longest_prompt_is_counted_in_tokens(tmp_path, capsys):
    r"""A problem of fewer characters may have more tokens: an emoji is several."""
    data = write_problems(tmp_path / "data.jsonl", "a" + " and" * 600, "\U0001f9ff" * 600)
    with pytest.raises(SystemExit) as stop:
        run("--train-data", data, "--eval-every", "0", "--out", tmp_path / "run")
    assert stop.value.code == 2 and not (tmp_path / "run").exists()
    assert_one_clear_line(capsys.readouterr().err, "prompt", "--max-new-tokens")


def test_a_column_name_reaches_the_console_without_its_escapes(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": "q", "\x1b[2Janswer\r": "#### 1"}) + "\n")
    with pytest.raises(SystemExit) as stop:
        run("--train-data", data, "--eval-every", "0", "--out", tmp_path / "run")
    assert stop.value.code == 2
    assert_one_clear_line(capsys.readouterr().err, "answer")


@each_output
def test_settings_survive_their_file(tmp_path, text):
    settings = program.parse_settings([*QUICK, "--out", str(tmp_path / "run"), "--train-data", text])
    write_json(tmp_path / "config.json", {**dataclasses.asdict(settings), "resume": None})
    written = (tmp_path / "config.json").read_bytes()
    assert written.isascii() and not set(written) & set(range(32)) - {10}
    again = choices.parse_settings(["--resume", str(tmp_path)])
    assert again.train_data == text
    assert {**dataclasses.asdict(again), "resume": None, "out": settings.out} == dataclasses.asdict(settings)


@pytest.mark.parametrize("tail", [b"\0" * 4096, b'{"step": 2, "rew', b'{"step": 2}\0\0\0', b"\x1b[2J\n", b"\r\n\r\n",
                                  b"\xff\xfe\n", b'{"step": 2, "x": "\xed', b"7\n", b"[]\n", b"null\n", b"{}\n",
                                  b'{"ste\n{"step": 2, "loss": 1}\n'])
def test_what_a_crash_leaves_behind_the_metrics_is_cut_off(tmp_path, tail):
    r"""A file system that lost power may end a file in nulls or in bytes of another one."""
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 0, "loss": None}, {"step": 1, "loss": 0.5}]
    good = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(good + tail)
    assert truncate_metrics(path, 5) == rows
    assert path.read_bytes() == good
