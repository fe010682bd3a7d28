r"""Tests of reward_math.py: places, numbers, strings, traps, hostile text, and every GSM8K reference solution."""

import json
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_math import extract_answer, is_equivalent, math_reward, verify

GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k"

# One line a group: the response or answer, the gold, and what a careful human grader would say.
RIGHT, WRONG = True, False

PLACES = {  # where the answer is looked for: (response, gold, verdict)
    "hashes": ("16 - 3 - 4 = 9\n9 * 2 = 18\n#### 18", "18", RIGHT),
    "hashes, no space": ("####18", "18", RIGHT),
    "hashes, tabs": ("####\t18\t", "18", RIGHT),
    "five hashes": ("##### 18", "18", RIGHT),
    "three hashes are no marker": ("### 18", "18", WRONG),
    "hashes mid-line": ("so it is #### 18", "18", RIGHT),
    "hashes, text after": ("#### 18\nI hope this helps with your 20 questions.", "18", RIGHT),
    "hashes, windows line end": ("#### 18\r\nDone: 20", "18", RIGHT),
    "last hashes": ("#### 5\nWait.\n#### 18", "18", RIGHT),
    "not the first hashes": ("#### 18\nWait.\n#### 5", "18", WRONG),
    "two hashes on a line": ("#### 5 #### 18", "18", WRONG),
    "two hashes on a line, the same": ("#### 18 #### 18", "18", WRONG),
    "closing hashes": ("#### 18 ####", "18", WRONG),
    "empty hashes": ("#### ", "18", WRONG),
    "empty hashes hide a box": ("\\boxed{18}\n#### ", "18", WRONG),
    "answer on the line below the hashes": ("####\n18", "18", WRONG),
    "hashes before box": ("#### 18\n\\boxed{20}", "18", RIGHT),
    "hashes before a later box": ("#### 18\n\\boxed{20}", "20", WRONG),
    "hashes before phrase": ("The answer is 20.\n#### 18", "18", RIGHT),
    "box in hashes": ("#### \\boxed{18}", "18", RIGHT),
    "box in hashes, math": ("#### $\\boxed{18}$ dollars", "18", RIGHT),
    "phrase in hashes": ("#### The answer is 18", "18", RIGHT),
    "final answer in hashes": ("#### Final Answer: 18", "18", RIGHT),
    "heading": ("#### Step 1: compute\n9 * 2 = 18\n\\boxed{18}", "18", RIGHT),
    "heading, bold": ("#### **Step 2: Add**\nThe answer is 18.", "18", RIGHT),
    "heading, numbered": ("#### 1. Find the total\nSo \\boxed{18}", "18", RIGHT),
    "heading, words": ("#### Solution\nSo \\boxed{18}", "18", RIGHT),
    "heading, final answer": ("#### Final Answer\n\\boxed{18}", "18", RIGHT),
    "heading, answer below": ("#### Answer:\n18", "18", RIGHT),
    "heading, no later place": ("\\boxed{18}\n#### Check", "18", WRONG),
    "heading number is no answer": ("#### Step 1: compute\nThe answer is 18.", "1", WRONG),
    "no heading: hedge": ("#### 18 or 20\n\\boxed{18}", "18", WRONG),
    "no heading: a sentence with a number": ("#### She has 20 left\nThe answer is 18.", "18", WRONG),
    "box": ("Thus \\boxed{18}.", "18", RIGHT),
    "box, space": ("Thus \\boxed {18}.", "18", RIGHT),
    "last box": ("\\boxed{5} no, \\boxed{18}", "18", RIGHT),
    "not the first box": ("\\boxed{18} no, \\boxed{5}", "18", WRONG),
    "boxes on two lines": ("\\boxed{5}\n\\boxed{18}", "18", RIGHT),
    "two boxes joined": ("\\boxed{5} or \\boxed{18}", "18", WRONG),
    "two boxes, comma": ("$\\boxed{5}, \\boxed{18}$", "18", WRONG),
    "two boxes, text": ("\\boxed{5} \\text{ or } \\boxed{18}", "18", WRONG),
    "the same box twice": ("\\boxed{18}, \\boxed{18}", "18", RIGHT),
    "nested boxes": ("\\boxed{\\boxed{18}}", "18", RIGHT),
    "nested braces": ("\\boxed{\\frac{3}{4}}", "0.75", RIGHT),
    "deep braces": ("\\boxed{{{{18}}}}", "18", RIGHT),
    "escaped braces": ("\\boxed{\\{1,2\\}}", "\\{1,2\\}", RIGHT),
    "lone escaped brace": ("\\boxed{\\left\\{ 18 \\right.}", "18", WRONG),
    "empty box": ("\\boxed{}", "18", WRONG),
    "blank box": ("\\boxed{ }", "", WRONG),
    "empty box hides phrase": ("The answer is 18. \\boxed{}", "18", WRONG),
    "open box": ("\\boxed{18", "18", WRONG),
    "open box hides an earlier one": ("\\boxed{18} \\boxed{18", "18", WRONG),
    "box before phrase": ("\\boxed{18} so the answer is 20", "18", RIGHT),
    "box with line breaks": ("\\boxed{\n18\n}", "18", RIGHT),
    "box in phrase": ("The answer is: $\\boxed{5}$.", "5", RIGHT),
    "answer is": ("The answer is 18.", "18", RIGHT),
    "final answer is": ("The final answer is 18.", "18", RIGHT),
    "answer is, upper case": ("THE ANSWER IS 18", "18", RIGHT),
    "answer is, colon": ("The answer is: 18", "18", RIGHT),
    "answer is, line break": ("The answer\nis 18", "18", RIGHT),
    "answer is, blank line": ("The answer is:\n\n18\n", "18", RIGHT),
    "answer is, display math": ("The answer is:\n\n$$\n18\n$$", "18", RIGHT),
    "answer is, display brackets": ("The answer is\n\\[\n18\n\\]", "18", RIGHT),
    "to the end of the sentence": ("The answer is 18. So he has 20 left.", "18", RIGHT),
    "no space after the sentence": ("The answer is 18.So he has 20 left.", "18", RIGHT),
    "decimal is no sentence end": ("The answer is 3.5.", "3.5", RIGHT),
    "decimal is not cut": ("The answer is 3.5.", "3", WRONG),
    "money is no sentence end": ("The answer is $1.50 per pen. He pays 3.", "1.5", RIGHT),
    "leading point": ("The answer is .5.", "1/2", RIGHT),
    "Rs. is no sentence end": ("The answer is Rs. 500.", "500", RIGHT),
    "exclamation": ("The answer is 18! Great.", "18", RIGHT),
    "bold sentence": ("**The answer is 18.** Good.", "18", RIGHT),
    "bold number": ("The answer is **18**.", "18", RIGHT),
    "Answer:": ("Answer: 18", "18", RIGHT),
    "ANSWER:": ("ANSWER: 18", "18", RIGHT),
    "**Answer:**": ("**Answer:** 18", "18", RIGHT),
    "**Answer**:": ("**Answer**: 18", "18", RIGHT),
    "Answer: bold": ("Answer: **18**", "18", RIGHT),
    "Answer:, next line": ("Answer:\n18", "18", RIGHT),
    "Answer: full width": ("Answer：１８", "18", RIGHT),
    "A:": ("Q: how many?\nA: 18", "18", RIGHT),
    "**A:**": ("**A:** 18", "18", RIGHT),
    "A: not at a line start": ("Plan A: 18", "18", WRONG),
    "last phrase": ("The answer is 5. Wait, the answer is 18.", "18", RIGHT),
    "not the first phrase": ("The answer is 18. Wait, the answer is 5.", "18", WRONG),
    "empty phrase hides an earlier one": ("The answer is 18.\nAnswer:", "18", WRONG),
    "answer isn't": ("The answer isn't 18.", "18", WRONG),
    "answer issue": ("The answer issues 18.", "18", WRONG),
    "no marker": ("He has 18 apples.", "18", WRONG),
    "bare number": ("18", "18", WRONG),
    "empty": ("", "18", WRONG),
    "think": ("<think>#### 5</think>#### 18", "18", RIGHT),
    "answer only in think": ("<think>#### 18</think> Done.", "18", WRONG),
    "last think": ("</think>#### 18</think>", "18", WRONG),
    "nothing after think": ("<think>\\boxed{18}</think>", "18", WRONG),
    "think in the middle": ("a</think>\\boxed{5}</think>\nThe answer is 18.", "18", RIGHT),
    "prose": ("The answer is that Tom has 18 apples left.", "18", RIGHT),
    "explained": ("The answer is 18, because 20 - 2 = 18.", "18", RIGHT),
    "explained away": ("The answer is 18, not 20.", "20", WRONG),
    "calculation": ("The answer is 9 * 2 = 18 dollars.", "18", RIGHT),
    "calculator notes": ("#### <<9*2=18>>18", "18", RIGHT),
    "end of turn": ("#### 18<|im_end|>", "18", RIGHT),
    "end of text": ("#### 18</s>", "18", RIGHT),
    "angle brackets": ("#### <18>", "18", RIGHT),
    "template left as it is": ("#### <answer>", "18", WRONG),
}

NO_ANSWER = [  # two answers in one place, or none: extract_answer gives None
    "#### 18 or 20", "#### 18 and 20", "#### 18, 20", "#### 18 / 20 / 22 or 5", "#### 5-10", "#### 5 - 10",
    "#### 5–10 apples",
    "#### 5 to 10", "#### between 5 and 10", "#### 3, 4, 5", "#### 1 2 3 4 5 6 7 8 9", "#### 18; 20", "#### 18 | 20",
    "#### 3 apples and 4 oranges", "#### $18-$20", "#### x = 5 or x = 6", "#### x = 5, y = 6", "#### 18 or more",
    "#### A or B", "#### 1,23", "#### 0, 1, 2, 3, 4, 5, 6, 7, 8, 9", "#### 18 #### 20", "####", "#### ...", "#### **",
    "#### $",
    "#### 🎉", "\\boxed{5 \\text{ or } 6}", "\\boxed{1, 2}", "\\boxed{5} or \\boxed{6}", "\\boxed{}", "\\boxed{5",
    "\\boxed{?}",
    "The answer is 18 or 20.", "The answer is between 5 and 10.", "The answer is 18 and 20.", "Answer:",
    "The answer is.",
    "I do not know", "", "   ", "</think>", "#### 18</think>", "{18}", "boxed{18}",
]

EQUAL = [  # (answer, gold), read both ways round
    ("18", "18"), ("18.", "18"), ("18.0", "18"), ("18.00", "18"), (" 18 ", "18"), ("+18", "18"), ("018", "18"),
    ("007", "7"),
    ("-0", "0"), ("0.0", "0"), (".5", "0.5"), ("5.", "5"), ("-3", "-3"), ("−3", "-3"), ("–3", "-3"), ("- 3", "-3"),
    ("negative 3", "-3"), ("1,234", "1234"), ("10,000,000", "10000000"), ("1,234.50", "1234.5"), ("1{,}234", "1234"),
    ("\\$1{,}234", "1234"), ("1\\,234", "1234"), ("1,\\!234", "1234"), ("1\u202f234", "1234"), ("10 000", "10000"),
    ("$18", "18"), ("\\$18", "18"), ("$18$", "18"), ("18 $", "18"), ("£18", "18"), ("€18", "18"), ("¥18", "18"),
    ("US$18", "18"),
    ("-$18", "-18"), ("$-18", "-18"), ("18 USD", "18"), ("USD 18", "18"), ("Rs. 18", "18"), ("18 dollars", "$18"),
    ("18 apples", "18"), ("18apples", "18"), ("18 km/h", "18"), ("18km", "18"), ("5 hours", "5"), ("5 hrs", "5 hours"),
    ("18 cm^2", "18"), ("18 cm²", "18"), ("18\\text{ cm}^2", "18"), ("18 m", "18"), ("18\\,\\mathrm{m}", "18"),
    ("18°", "18"),
    ("18^\\circ", "18"), ("18^{\\circ}", "18"), ("18°C", "18"), ("18 years old", "18"), ("18-year-old", "18"),
    ("18 個", "18"),
    ("18 🎉", "18"), ("✅ 18", "18"), ("1８", "18"), ("١٨", "18"), ("\u200f18\u200f", "18"), ("1\u200b8", "18"),
    ("3/4", "0.75"), ("3 / 4", "0.75"), ("2/4", "1/2"), ("-3/4", "-0.75"), ("\\frac{3}{4}", "3/4"),
    ("\\dfrac34", "3/4"),
    ("\\tfrac{3}{4}", "3/4"), ("\\frac34", "3/4"), ("\\frac 3 4", "3/4"), ("\\frac3{4}", "3/4"),
    ("-\\frac{3}{4}", "-3/4"),
    ("\\frac{-3}{4}", "-3/4"), ("\\frac{3}{-4}", "-3/4"), ("\\frac{1,000}{2}", "500"), ("\\frac{1.5}{3}", "0.5"),
    ("¾", "3/4"),
    ("1 1/2", "1.5"), ("1\\frac{1}{2}", "3/2"), ("1\\frac12", "3/2"), ("1½", "1.5"), ("-1\\frac{1}{2}", "-1.5"),
    ("1 1/2 cups", "1.5"), ("3⁄4", "3/4"), ("1.5e3", "1500"), ("1.5E+3", "1500"), ("15e-1", "1.5"),
    ("1.5 × 10^3", "1500"),
    ("1.5 \\times 10^{3}", "1500"), ("1.5 \\cdot 10^3", "1500"), ("1.5×10³", "1500"), ("1.5 x 10^3", "1500"),
    ("10^6", "1000000"),
    ("10⁻³", "0.001"), ("2 \\times 10^{-3}", "0.002"), ("2 million", "2,000,000"), ("$2.5 million", "2500000"),
    ("2 million people", "2000000"), ("3 thousand", "3000"), ("1.2 billion", "1200000000"), ("$5k", "5000"),
    ("50%", "50"), ("50", "50%"), ("50\\%", "50"), ("50 percent", "50"), ("50 %", "50%"), ("50%", "0.5"),
    ("50%", "1/2"),
    ("12.5%", "12.5"), ("\\text{18}", "18"), ("\\text{18 apples}", "18"), ("\\mathbf{18}", "18"), ("{18}", "18"),
    ("(18)", "18"),
    ("**18**", "18"), ("`18`", "18"), ("\\(18\\)", "18"), ("\\[18\\]", "18"), ("\\boxed{18}", "18"),
    ("x=5", "5"), ("x = 5", "5"), ("f(2) = 5", "5"), ("a + b = 5", "5"), ("Total: 18", "18"),
    ("Total = 18 apples", "18"),
    ("9 * 2 = 18", "18"), ("\\$18.00", "18"), ("18\\%", "18"), ("\\angle ABC = 50^\\circ", "50"), ("(C) 18", "18"),
    ("x \\approx 18", "18"), ("18 (eighteen)", "18"), ("about 18", "18"), ("18 dollars", "18 USD"), ("18,", "18"),
    ("18:", "18"),
    # strings
    ("Monday", "monday"), ("\\text{Monday}", "Monday"), ("**Monday**", "Monday"), ("Monday.", "Monday"),
    ("New York", "new  york"),
    ("(A)", "A"), ("A", "(A)"), ("A.", "A"), ("(a)", "A"), ("\\text{(A)}", "A"), ("Option B", "B"), ("C) 18", "C"),
    ("\\sqrt{2}", "\\sqrt2"), ("√2", "\\sqrt{2}"), ("sqrt(2)", "\\sqrt{2}"), ("2\\sqrt{3}", "2 \\sqrt 3"),
    ("\\pi", "π"),
    ("\\frac{\\sqrt{3}}{2}", "\\sqrt{3}/2"), ("\\frac{\\pi}{2}", "π/2"), ("\\dfrac{x+1}{2}", "\\frac{x + 1}{2}"),
    ("x^{2}+1", "x^2 + 1"), ("y = 2x + 3", "2x+3"), ("\\left(x+1\\right)", "(x+1)"), ("12:30", "12:30"),
    ("12:30 PM", "12:30 pm"),
    ("3:4", "3 : 4"), ("2024-01-05", "2024-01-05"), ("1/0", "1/0"), ("\\infty", "∞"), ("twelve", "Twelve"),
    ("3i", "3i"),
    # tuples, intervals, sets
    ("(1,2)", "(1, 2)"), ("(1.0, 2)", "(1,2)"), ("(\\frac12, 3)", "(0.5, 3)"), ("\\left(1, 2\\right)", "(1,2)"),
    ("[0,1)", "[0, 1)"),
    ("(0, \\infty)", "(0,∞)"), ("(-\\infty, 3]", "(-∞,3]"), ("(1,234)", "(1, 234)"), ("\\{1,2\\}", "\\{2, 1\\}"),
    ("{1,2}", "\\{1,2\\}"),
    ("((1,2),3)", "((1, 2), 3)"), ("(-\\infty,1)\\cup(2,\\infty)", "(-\\infty, 1) \\cup (2, \\infty)"), ("1, 2", "1,2"),
    ("(x, y) = (1, 2)", "(1,2)"), ("(1,2),(3,4)", "(1, 2), (3, 4)"),
    ("\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
    ("18 or 20", "18 or 20"),
]

UNEQUAL = [  # (answer, gold), read both ways round
    ("", ""), ("", "18"), (" ", " "), ("$", "$"), ("{}", "{}"), (".", "."), ("1", "18"), ("8", "18"), ("180", "18"),
    ("181", "18"),
    ("-7", "7"), ("−7", "7"), ("–7", "7"), ("- 7", "7"), ("negative 7", "7"), ("-$7", "7"), ("1,23", "123"),
    ("12,34", "1234"),
    ("1,2345", "12345"), ("0,123", "123"), ("1,2", "1.2"), ("1,2", "12"), ("1.234.567", "1234567"), ("1 23", "123"),
    ("0.333", "1/3"), ("0.33333333333333333333", "1/3"), ("18.0000001", "18"), ("17.9999999999999999999", "18"),
    ("3.14", "\\pi"),
    ("1/0", "0"), ("0/0", "0"), ("1/0", "1"), ("3/4", "34"), ("3/4", "4/3"), ("1 1/2", "11/2"), ("1½", "11/2"),
    ("10³", "103"),
    ("5²", "52"), ("5²", "5"), ("18!", "18"), ("18x", "18"), ("18 x", "18"), ("2xy", "2"), ("2\\pi", "2"), ("2π", "2"),
    ("π", "3.14"),
    ("3i", "3"), ("\\sqrt{2}", "2"), ("√2", "2"), ("2√3", "2"), ("log 8", "8"), ("ln 2", "2"), ("\\sin 30", "30"),
    ("2^3", "8"),
    ("2^3", "2"), ("2**3", "23"), ("9**9**9", "999"), ("x+5", "5"), ("x-5", "-5"), ("x - 5", "-5"), ("x - 5", "5"),
    ("18-x", "18"),
    ("18/x", "18"), ("2x = 10", "10"), ("x^2 = 5", "5"), ("x > 5", "5"), ("x \\le 5", "5"), ("\\pm 3", "3"),
    ("x = 5", "y = 5"),
    ("x=5, y=6", "6"), ("at least 18", "18"), ("more than 18", "18"), ("not 18", "18"), ("18 or more", "18"),
    ("half of 18", "18"),
    ("18 and a half", "18"), ("18 squared", "18"), ("18+", "18"), ("18 + 2", "18"), ("18 - 2", "18"), ("20 - 2", "18"),
    ("9*2", "18"),
    ("18 or 20", "18"), ("18 and 20", "20"), ("18, 20", "18"), ("5-10", "5"), ("5-10", "-10"), ("5 to 10", "10"),
    ("3 4 5", "3"),
    ("12:30", "12"), ("12:30", "30"), ("3.5.2", "3.5"), ("0x12", "0"), ("0x12", "12"), ("CO2", "2"), ("x2", "2"),
    ("1e5x", "100000"),
    ("1e999999999", "1"), ("1e999999999", "0"), ("0e999999999", "1"), ("2e", "2"), ("2 million", "2"), ("5k", "5"),
    ("$2M", "2"),
    ("0.5", "50"), ("0.5%", "50%"), ("5%", "0.5"), ("5 hours", "5 minutes"), ("18 km", "18 miles"), ("5 pm", "5 am"),
    ("January 5", "February 5"), ("5 ft 6 in", "5"), ("5 hours 30 minutes", "5"), ("~~18~~ 20", "18"),
    ("18 out of 20", "18"),
    ("eighteen apples", "18"), ("nan", "0"), ("inf", "1"), ("None", "0"), ("true", "1"), ("٣", "8"),
    ("Monday", "Tuesday"), ("Mon", "Monday"), ("Monday", "Mon"), ("A", "B"), ("(A)", "(B)"), ("A", "apple"),
    ("B) 18", "C"),
    ("\\frac{1}{2}x", "\\frac{1}{2x}"), ("x+1", "x-1"), ("\\sqrt{3}", "\\sqrt{13}"), ("x^{10}", "x^1"),
    ("2024-01-05", "2024-05-01"),
    ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("[0,1)", "[0,1]"), ("[0,1)", "(0,1)"), ("(1,2)", "(1,2,3)"),
    ("(1,2)", "1,2"),
    ("(1,2)", "12"), ("(1,234)", "1234"), ("(1,2)", "\\{1,2\\}"), ("\\{1,2\\}", "\\{1,3\\}"), ("\\{1,1\\}", "\\{1\\}"),
    ("1, 2", "1"),
    ("(1, 2)", "1"), ("(-\\infty,1)\\cup(2,\\infty)", "(-\\infty,1)"), ("()", "()"),
]

HOSTILE = {
    "open parentheses": "(" * 500_000, "open braces": "{" * 500_000, "closed braces": "}" * 500_000,
    "boxes": "\\boxed{" * 70_000,
    "boxes with spaces": "\\boxed " * 70_000, "hashes": "#" * 500_000, "hash markers": "#### " * 100_000,
    "hash lines": "#### 1\n" * 70_000, "headings": "#### Step\n" * 50_000 + "\\boxed{1}",
    "digits": "#### " + "9" * 500_000,
    "digits in a box": "\\boxed{" + "9" * 500_000 + "}", "digits in a sentence": "The answer is " + "9" * 500_000,
    "spaces": " " * 500_000,
    "answer and spaces": "answer" + " " * 500_000 + "is 5", "answers": "answer " * 70_000,
    "answer is": "the answer is " * 35_000,
    "A: on one line": "A: " * 160_000, "answer: on one line": "answer: " * 60_000, "stars between": "*****A:" * 70_000,
    "answer: lines": "answer:\n" * 60_000, "A: lines": "A:\n" * 160_000, "line breaks": "\n" * 500_000,
    "stars": "*" * 500_000,
    "stars and A": "*" * 500_000 + "A:", "full stops": "answer is " + "." * 500_000, "backslashes": "\\" * 500_000,
    "dollars": "answer is " + "$" * 500_000, "thoughts": "</think>" * 60_000,
    "no marker": "lorem ipsum 18 dolor " * 24_000,
    "emoji": "🎉" * 500_000, "nulls": "\0" * 500_000, "surrogates": "\ud800" * 500_000,
    "right to left": "\u202e" * 500_000,
    "commas": "#### " + "1," * 450, "nested brackets": "#### " + "(" * 490 + ")" * 490,
    "deep tuples": "#### " + "(1," * 300 + ")" * 90,
    "fractions": "#### " + "\\frac{" * 140 + "1" + "}{2}" * 40, "roots": "#### " + "\\sqrt{" * 120 + "}" * 120,
    "groups": "#### " + "{" * 490 + "}" * 490, "frac digits": "#### " + "\\frac" * 190,
    "sets": "#### \\{" + "1," * 480 + "\\}",
    "equals": "#### " + "x=" * 490, "letters": "#### " + "a" * 990, "letters and spaces": "#### " + "a " * 490,
    "signs": "#### " + "-" * 990,
    "threes": "#### 1" + ",234" * 240, "threes, broken": "#### 1" + ",234" * 240 + "5",
    "spaces in a number": "#### 1" + " " * 980 + "/",
    "ligatures": "#### " + "\ufdfa" * 990, "powers": "#### 9**9**9**9**9", "exponent": "#### 1e999999999",
    "exponents": "#### " + "1e9" * 300,
    "tiny": "#### 1e-999999999", "power of ten": "#### 10^{99999999999}", "zero denominator": "#### 1/0",
    "scales": "#### 9 " + "trillion " * 105,
    "code": "#### __import__('os').system('true')", "tags": "#### " + "<" * 990, "notes": "#### " + "<<" * 495,
    "parts": "#### " + "or " * 300,
    "because": "#### 1 " + "because " * 110, "not": "#### " + ", not" * 190,
}


@pytest.mark.parametrize(("response", "gold", "verdict"), PLACES.values(), ids=PLACES.keys())
def test_place(response, gold, verdict):
    assert verify(response, gold) is verdict
    assert math_reward(response, gold) == float(verdict)


@pytest.mark.parametrize("response", NO_ANSWER)
def test_no_answer(response):
    assert extract_answer(response) is None
    for gold in ("18", "20", "5", "10", "1", "3", ""):
        assert not verify(response, gold)


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal(answer, gold):
    assert is_equivalent(answer, gold) is True
    assert is_equivalent(gold, answer) is True
    assert verify("\\boxed{" + answer + "}", gold) is True
    assert verify("So:\n#### " + answer, "Some steps: 3 + 4 = 7\n#### " + gold) is True


@pytest.mark.parametrize(("answer", "gold"), UNEQUAL)
def test_unequal(answer, gold):
    assert is_equivalent(answer, gold) is False
    assert is_equivalent(gold, answer) is False
    assert verify("\\boxed{" + answer + "}", gold) is False


@pytest.mark.parametrize(("response", "answer"), [
    ("#### 18", "18"), ("#### -3\n", "-3"), ("#### 1,234 apples", "1,234 apples"), ("#### **18**", "18"),
    ("#### 18.", "18"),
    ("\\boxed{\\frac{3}{4}}", "\\frac{3}{4}"), ("\\boxed{ 18 }", "18"), ("$\\boxed{x = 5}$", "x = 5"),
    ("\\boxed{(1, 2)}", "(1, 2)"),
    ("The answer is 18.", "18"), ("The answer is $18$.", "18"), ("Answer: 3.50 each. Next.", "3.50 each"),
    ("A: Monday", "Monday"),
    ("The answer is 18, because 20 - 2 = 18.", "18"), ("#### 12:30", "12:30"), ("#### 2024-01-05", "2024-01-05"),
    ("#### [0,1)", "[0,1)"), ("\\boxed{x^2 - 5}", "x^2 - 5"), ("\\boxed{3 - 2i}", "3 - 2i"),
])
def test_extracted_text(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize("value", [None, b"#### 18", b"", 18, 1.5, True, [], ["#### 18"], {}, object(), float("nan")])
def test_other_types_are_no_text(value):
    assert extract_answer(value) is None
    assert verify(value, "18") is False
    assert math_reward(value, "18") == 0.0
    assert is_equivalent(value, "") is False
    assert verify("#### 18", value) is (value == 18 and isinstance(value, int))  # a small int is a gold


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_quick_and_never_right(text):
    start = time.perf_counter()
    for response in (text, text + "\n\\boxed{", "The answer is " + text[:2000]):
        answer = extract_answer(response)
        assert answer is None or isinstance(answer, str)
        assert verify(response, "123456789") is False
    assert is_equivalent(text, "123456789") is False
    assert is_equivalent("123456789", text) is False
    assert verify("#### 18", text) is (text.endswith("18") and len(text) < 10)
    extract_answer(text, lenient=True)
    # Measured in the milliseconds; the bound only has to tell that from a hang.
    assert time.perf_counter() - start < 8


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(["#### ", "\\boxed{", "}", "{", "(", ")", "[", ",", "1", "18", "-", ".", "/", "%", "$",
        "\\frac", "\\", " or ", "\n",
                              "answer is ", "Answer:", "A:", "</think>", "e9", "^", "10", "**", "½", "²", "x", "=",
                              " ", "million", "\\text{",
                              "\ud800", "\0", "🎉", "⦃", "⦄", "<<", ">>", "|", "\\{", "\\}", "\\sqrt", "≈", "٣", "&"]),
                              max_size=30).map("".join)),
    st.sampled_from(["18", "-3", "\\frac{1}{2}", "(1, 2)", "Monday", "", "x=5", "50%", "A"]))
def test_any_text(text, gold):
    answer = extract_answer(text)
    assert answer is None or isinstance(answer, str) and answer.strip()
    for lenient in (False, True):
        assert isinstance(verify(text, gold, lenient=lenient), bool)
    assert is_equivalent(text, gold) is is_equivalent(gold, text)
    assert math_reward(text, gold) == float(verify(text, gold))
    if answer is not None:
        assert is_equivalent(answer, answer)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.fractions(max_denominator=10**6), st.fractions(max_denominator=10**6))
def test_numbers_are_exact(a, b):
    sign = "-" if a < 0 else ""
    whole, rest = divmod(abs(a), 1)
    forms = [f"{a}", f"{a.numerator}/{a.denominator}", f"{sign}\\frac{{{abs(a.numerator)}}}{{{a.denominator}}}",
             f"{a.numerator:,}/{a.denominator}", f"\\dfrac{{{3 * a.numerator}}}{{{3 * a.denominator}}}"]
    if whole and rest:
        forms += [f"{sign}{whole} {rest}", f"{sign}{whole}\\frac{{{rest.numerator}}}{{{rest.denominator}}}"]
    for form in forms:
        assert verify(f"#### {form}", str(a))
        assert verify(f"\\boxed{{{form}}}", str(b)) is (a == b)
        if a:
            assert not is_equivalent(form, str(-a))


def test_gold_forms():
    for gold in ("18", "#### 18", "He has 2 * 9 = <<2*9=18>>18 apples.\n#### 18", "\\boxed{18}", "$18$",
        "$\\boxed{18}$", " 18\n", 18):
        assert verify("#### 18", gold) is True
        assert verify("#### 19", gold) is False
    for gold in ("", " ", "#### ", "\\boxed{}", None):
        for response in ("#### ", "\\boxed{}", "####", "", "#### 18"):
            assert verify(response, gold) is False


def test_a_list_is_right_only_against_the_same_list():
    assert verify("\\boxed{1, 2}", "1, 2") and verify("#### x = 1 or x = 2", "x=1 or x=2")
    assert not verify("\\boxed{1, 2}", "1") and not verify("\\boxed{1, 2, 3}", "1, 2") and not verify("\\boxed{2, 1}",
        "1, 2")
    assert extract_answer("\\boxed{1, 2}") is None


def test_lenient_takes_the_last_number_and_is_never_the_reward():
    assert verify("He has 5 and then 18 apples.", "18", lenient=True)
    assert extract_answer("first 5, then -1,234.50 dollars", lenient=True) == "-1,234.50"
    assert extract_answer("18 </think> no number", lenient=True) is None
    assert extract_answer("#### 18 or 20", lenient=True) is None, "a marker was there"
    assert extract_answer("#### 18 and then 20", lenient=True) == extract_answer("#### 18 and then 20")
    assert verify("#### 18\nthen 20", "18", lenient=True)
    assert math_reward("He has 5 and then 18 apples.", "18") == 0.0


@pytest.mark.parametrize("bonus", [0.0, 0.1, 0.5, 0.99, 0])
def test_a_right_answer_beats_every_wrong_one(bonus):
    right = [math_reward(text, "18", format_bonus=bonus) for text in ("#### 18", "\\boxed{18}",
        "The answer is 18 apples", "A: $18.00")]
    formed = [math_reward(text, "18", format_bonus=bonus) for text in ("#### 19", "\\boxed{-18}",
        "The answer is Monday.")]
    unformed = [math_reward(text, "18", format_bonus=bonus) for text in ("18", "", "#### 18 or 20", "\\boxed{18", None)]
    assert set(right) == {1.0} and set(formed) == {float(bonus)} and set(unformed) == {0.0}
    assert min(right) > max(formed + unformed)
    assert all(type(reward) is float for reward in right + formed + unformed)


@pytest.mark.parametrize("bonus", [1, 1.0, 2, -0.1, float("nan"), float("inf"), "0.1", None])
def test_a_bonus_as_large_as_being_right_is_refused(bonus):
    with pytest.raises(ValueError, match="format_bonus"):
        math_reward("#### 18", "18", format_bonus=bonus)


def test_threads():
    cases = list(PLACES.values())
    failures = []

    def work():
        for response, gold, verdict in cases * 3:
            if verify(response, gold) is not verdict:
                failures.append(response)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(("name", "size"), [("train", 7473), ("test", 1319)])
def test_every_gsm8k_solution_has_its_own_answer_and_no_other(name, size):
    path = GSM8K / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"no GSM8K file at {path}")
    solutions = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    golds = [solution.split("#### ")[1].strip() for solution in solutions]
    values = [int(gold.replace(",", "")) for gold in golds]  # every gold of this data set is a whole number
    assert len(solutions) == size
    for i, (solution, gold, value) in enumerate(zip(solutions, golds, values)):
        other = next(j for j in range(i + 1, i + size) if values[j % size] != value) % size
        assert verify(solution, gold) and verify(solution, solution) and verify(f"\\boxed{{{value}}}", solution)
        assert not verify(solution, golds[other]) and not verify(solution, solutions[other])
        assert not verify(solution, str(value + 1)) and not (value and verify(solution, str(-value)))
