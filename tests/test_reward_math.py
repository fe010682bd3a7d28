r"""Tests of reward_math.py: places, numbers, strings, traps, hostile text, and every GSM8K reference solution.

The verdict of each case is what a careful person would say who sees only the response and the gold.
"""

import json
import random
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_math import extract_answer, is_equivalent, math_reward, verify

GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k"
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
    "an empty phrase hides nothing": ("The answer is 18.\nAnswer:", "18", RIGHT),
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

RIGHT_RESPONSES = {  # (response, gold)
    "hashes": [
        ("So she makes 9 * 2 = $18 every day.\n\n#### 18 dollars per day", "18"), ("####18.", "18"),
        ("#### $ 18", "18"), ("#### 18$", "18"), ("#### = 18", "18"), ("#### ≈ 18", "18"), ("#### Answer = 18", "18"),
        ("#### The total cost is $1,234.56.", "1234.56"), ("#### \\$5.50", "5.5"), ("#### **$18**", "18"),
        ("#### *18*", "18"), ("#### `18`", "18"), ("#### \"18\"", "18"), ("#### (18)", "18"), ("#### [18]", "18"),
        ("#### 18 (apples)", "18"), ("#### 18 apples (9*2)", "18"), ("#### 18/1", "18"), ("#### 36/2", "18"),
        ("#### 1.8e1", "18"), ("#### 18\n\n#### 18", "18"), ("Step A\n#### 18\nThe answer is 20.", "18"),
        ("#### 1,000,000", "1000000"), ("#### .75", "3/4"), ("#### 75%", "3/4"), ("#### 75%", "75"),
        ("#### 2 1/2", "2.5"), ("#### 2 1/2 hours", "2.5"), ("#### ⅓", "1/3"), ("#### 6/4", "1 1/2"),
        ("#### 1e3", "1000"), ("#### 1E-2", "0.01"), ("#### 1.5 million dollars", "1,500,000"),
        ("#### 3 hundred", "300"), ("#### ５００", "500"), ("#### 5\xa0000", "5000"), ("#### −12", "-12"),
        ("#### 0012", "12"), ("#### 0.0", "0"), ("#### -0.0", "0"), ("#### 12th", "12"),
        ("#### No. 12", "12"), ("#### #12", "12"), ("#### 12 a.m.", "12"), ("#### 3 dozen", "36"),
        ("#### 12 sq. ft.", "12"), ("#### 12 m/s", "12"), ("#### 12 m/s^2", "12"), ("#### 12 ft³", "12"),
        ("#### 12 ¢", "12"), ("#### 12 cents", "12"), ("#### NaN", "nan"), ("#### inf", "\\infty"),
        ("Let's verify: 3 + 4 = 7.\n#### 7\n\nLet me know if you need more help!", "7"), ("#### \u06f1\u06f8", "18"),
        ("#### 18 元", "18"), ("#### 18円", "18"), ("#### 18 евро", "18"), ("#### ¥1,800", "1800"),
        ("#### CHF 18", "18"), ("#### 18 USD", "$18"), ("#### 18 €", "18"), ("#### +5", "5"), ("#### + 5", "5"),
        ("#### <<3+4=7>>7 apples", "7"), ("#### 3 + 4 = <<3+4=7>>7", "7"), ("#### 7 = 3 + 4", "7"),
        ("#### 0.875 = 7/8", "7/8"), ("#### 20% off", "20"), ("#### 20 percent", "0.2"), ("#### 20%", "20.0"),
        ("#### -20%", "-20"), ("#### 0.2%", "0.2"), ("#### 200%", "2"), ("#### 5 million", "5e6"),
        ("#### 5e6", "5 million"), ("#### 5M", "5000000"), ("#### 2.5k", "2500"), ("#### 5 m", "5"),
        ("#### 5 billionaires", "5"), ("\\boxed{18}\n#### 20", "20"), ("#### Answer\n\n\\boxed{18}", "18"),
        ("#### Therefore, the answer is \\boxed{18}.", "18"), ("#### Step 2: 9 * 2\nThe answer is 18", "18"),
        ("#### Verification\n9*2=18\n\n#### Conclusion\n\nThe answer is 18.", "18"), ("</think>\n\n#### 18", "18"),
        ("I think #### 42 is right", "42"), ("####   42   ", "42"), ("#### 42\n\n\n", "42"), ("####42 eggs", "42"),
        ("#### $42.00 per week", "42"), ("#### 42 (forty-two)", "42"), ("#### 42; that is all", "42"),
        ("#### 7/8 (0.875)", "7/8"), ("#### 7 days (1 week)", "7"), ("#### 42, as shown above", "42"),
        ("#### 42, which is 6*7", "42"),
        ("#### The final answer is 42.", "42"), ("#### So the answer: 42", "42"), ("#### Tom pays 42", "42"),
        ("#### ~42", "42"), ("#### maybe 42", "42"), ("#### None", "None"), ("#### 042", "42"), ("#### 42L", "42"),
    ],
    "box": [
        ("The final answer is: $\\boxed{18}$. I hope it is correct.", "18"),
        ("First \\boxed{5}. Then \\boxed{18}.", "18"), ("\\boxed{x=18}", "18"),
        ("\\boxed{x=18 \\text{ apples}}", "18"), ("\\boxed{-18}", "-18"), ("\\boxed{\\text{18}}", "18"),
        ("\\boxed{\\text{ 18 }}", "18"), ("\\boxed{\\$18}", "18"), ("\\boxed{\\text{\\$}18}", "18"),
        ("\\boxed{18\\%}", "18%"), ("\\boxed{0.18}", "18%"), ("\\boxed{\\dfrac{36}{2}}", "18"),
        ("\\boxed{1{,}800}", "1800"), ("\\boxed{1\\,800}", "1800"), ("\\boxed{1800\\;\\mathrm{kg}}", "1800"),
        ("\\boxed{1.8\\cdot10^{3}}", "1800"), ("\\boxed{\\left(\\frac{1}{2},\\,-3\\right)}", "(0.5,-3)"),
        ("\\boxed{(1,2]}", "(1,2]"), ("\\boxed{[1,2]\\cup[3,4]}", "[1,2] \\cup [3,4]"),
        ("\\boxed{\\{3,1,2\\}}", "\\{1,2,3\\}"), ("\\boxed{2\\sqrt{3}}", "2\\sqrt{3}"),
        ("\\boxed{\\frac{3\\pi}{4}}", "\\frac{3 \\pi}{4}"), ("\\boxed{3\\pi/4}", "\\frac{3\\pi}{4}"),
        ("\\boxed{x^2+2x+1}", "x^{2} + 2x + 1"), ("\\boxed{y=x+1}", "y = x+1"), ("\\boxed{\\text{Yes}}", "yes"),
        ("\\boxed{\\textbf{(C)}\\ 18}", "C"), ("\\boxed{\\textbf{(C)}\\ 18}", "18"), ("\\boxed{\\infty}", "\\infty"),
        ("\\boxed{\\text{undefined}}", "undefined"), ("\\boxed{5^\\circ}", "5"), ("\\boxed{5'}", "5"),
        ("\\boxed{3\\frac{1}{4}}", "13/4"), ("\\boxed{3 \\frac14 \\text{ cups}}", "3.25"),
        ("\\boxed{\\frac{a}{b}}", "a/b"), ("\\boxed{-\\frac{1}{2}}", "\\frac{-1}{2}"),
        ("\\boxed{\\frac{6}{8} \\text{ of a pizza}}", "0.75"), ("\\boxed{10^{3}}", "1000"),
        ("\\boxed{2^{10}}", "2^10"), ("\\boxed{\\left[-1, \\frac{1}{2}\\right)}", "[-1,0.5)"),
        ("\\boxed{(-\\infty, 0) \\cup (0, \\infty)}", "(-\\infty,0)\\cup(0,\\infty)"),
        ("\\boxed{\\begin{bmatrix}1\\\\2\\end{bmatrix}}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ("\\boxed{90^\\circ}", "90"), ("\\boxed{90\\text{ degrees}}", "90^\\circ"), ("\\boxed{\\approx 3.14}", "3.14"),
        ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}"), ("\\boxed{\\text{ B }}", "B"), ("\\boxed{B}", "\\text{(B)}"),
        ("\\boxed{6,\\!000}", "6000"), ("\\boxed{6 000}", "6000"), ("\\boxed{\\sqrt[3]{2}}", "\\sqrt[3]{2}"),
        ("\\boxed{x\\in[0,1]}", "[0,1]"), ("\\boxed{1,-2}", "1,-2"), ("\\boxed{\\pm 2}", "\\pm2"),
        ("\\boxed{11\\sqrt{2}}", "11√2"), ("\\boxed{0.5}", "\\frac{1}{2}"), ("\\boxed{e^{2}}", "e^2"),
        ("\\boxed{18}}", "18"), ("{\\boxed{18}}", "18"), ("\\\\boxed{18}", "18"),
        ("\\boxed{18} is the answer. The answer is 20.", "18"), ("#### 20</think>\\boxed{18}", "18"),
        ("$$\\boxed{42}$$", "42"), ("\\[\\boxed{42}\\]", "42"), ("\\boxed{42\\text{ eggs}}.", "42"),
        ("The answer is \\boxed{42} eggs, not \\boxed{41}", "41"),
        ("\\boxed{41} is wrong; \\boxed{42} is right", "42"), ("\\boxed{42} or maybe 43", "42"),
        ("\\boxed{\\frac{84}{2}}", "42"), ("\\boxed{\\$42{,}000}", "42000"), ("\\boxed{42\\,000}", "42000"),
        ("\\boxed{4.2\\times10^4}", "42000"), ("\\boxed{4.2e4}", "42000"), ("\\boxed{42 \\text{ thousand}}", "42000"),
        ("\\boxed{42 \\%}", "42"), ("\\boxed{42 \\, \\text{percent}}", "42\\%"), ("\\boxed{42\\degree}", "42"),
        ("\\boxed{~42~}", "42"), ("\\boxed{\\mathbf{x=42}}", "42"),
    ],
    "phrase": [
        ("### Final Answer: 18", "18"), ("## Answer\n\nThe answer is 18", "18"), ("Final answer: \\(18\\)", "18"),
        ("Final Answer: The final answer is $18$. I hope it is correct.", "18"),
        ("The answer is \\(\\frac{3}{4}\\).", "3/4"), ("The answer is \\[\\frac{3}{4}.\\]", "3/4"),
        ("Therefore, the answer is **$\\frac{1}{2}$**.", "0.5"), ("The correct answer is (B).", "B"),
        ("The correct answer is B: 18 apples.", "B"), ("Answer: (D) 42", "D"), ("Answer: (D) 42", "42"),
        ("The answer is option C", "C"), ("so the answer is 18 years.", "18"),
        ("The answer is 18 and that's final.", "18"), ("The answer is definitely 18.", "18"),
        ("Answer: 18\nAnswer: 20", "20"), ("A: 18\nExplanation: since B: 20", "18"), ("a: 18", "18"),
        ("The answer is\n18", "18"), ("<think>The answer is 20.</think>\nThe answer is 18.", "18"),
        ("The answer is <answer>18</answer>", "18"), ("<answer>18</answer>", "18"), ("| Answer: | 18 |", "18"),
        ("**Step 4: Total**\n\n$9 \\times 2 = 18$\n\n**Final Answer:** $18", "18"), ("**Final Answer: 18**", "18"),
        ("**Final Answer**: \\$18", "18"), ("__Answer:__ 18", "18"), ("> Answer: 18", "18"), ("- Answer: 18", "18"),
        ("1. Answer: 18", "18"), ("The answer is 1,234.", "1234"), ("The answer is 1,234,", "1234"),
        ("The answer is 1,234 and", "1234"), ("The answer is $5.00.", "5"), ("The answer is $5.", "5"),
        ("The answer is (3, -4).", "(3,-4)"), ("The answer is [2, 5).", "[2,5)"),
        ("The answer is {1, 2, 3}.", "\\{1,2,3\\}"), ("The answer is x = 4.", "4"),
        ("The answer is x=4, not x=5.", "4"), ("The answer is \\(x = -4\\).", "-4"), ("The answer is 2/3 cup.", "2/3"),
        ("The answer is 10 PM.", "10"), ("The answer is 10:30 AM.", "10:30 AM"), ("The answer is Friday.", "Friday"),
        ("The answer is \"Friday\".", "Friday"), ("The answer is 7 because 3+4=7", "7"),
        ("The answer is 7, so B is wrong.", "7"), ("The answer is 7 which equals 14/2.", "7"),
        ("The answer is 7 rather than 8", "7"), ("answer is 18?", "18"), ("My answer is 18 😀.", "18"),
        ("The answer is \u202b18\u202c.", "18"), ("The answer is \x0018\x00.", "18"), ("The answer is 18\ud83d", "18"),
        ("The answer is １８．", "18"), ("The answer is 42 dollars. She spent 10.", "42"),
        ("The answer is $42. She spent 10.", "42"), ("The answer is 42.5. Next", "42.5"),
        ("The answer is 42.\nThe question was 43.", "42"), ("answer is 42", "42"), ("Answer is: 42!", "42"),
        ("The answer is: 42\n\nThe answer is: 43", "43"), ("A: The answer is 42.", "42"), ("A: 42 eggs", "42"),
        ("A:42", "42"), ("Answer: forty-two", "forty-two"), ("Answer: 42\n43", "42"), ("Answer: 42.43", "42.43"),
        ("Answer:42,000", "42000"), ("The answer is -42.", "-42"), ("The answer is negative 42.", "-42"),
        ("The answer is 3/4.", "0.75"), ("The answer is 1 3/4.", "1.75"), ("The answer is 1¾.", "7/4"),
        ("The answer is 50%.", "50"), ("The answer is 2 million.", "2000000"),
        ("The answer is 2.5 million people.", "2,500,000"), ("The answer is 12:30 p.m.", "12:30 PM"),
        ("The answer is (1, 2).", "(1,2)"), ("answer is x", "x"), ("THE FINAL ANSWER IS: 42", "42"),
        ("The answer is 42 because 43 is too big", "42"),
    ],
}

WRONG_RESPONSES = {  # (response, gold)
    "hashes": [
        ("#### -18", "18"), ("#### 17\n#### 18", "17"), ("#### 1,00,000", "100000"), ("#### 1.000.000", "1000000"),
        ("#### 1,234,5", "12345"), ("#### 3,5", "3.5"), ("#### 0,75", "0.75"), ("#### 75", "0.75"),
        ("#### 2-1/2", "2.5"), ("#### ⅓", "0.33"), ("#### 1/3", "0.3333333333333333"), ("#### 22/7", "\\pi"),
        ("#### $1.5 million", "1.5"), ("#### 5 thousand", "5"), ("#### (12)", "-12"), ("#### --12", "12"),
        ("#### +-12", "-12"), ("#### 12.0.0", "12"), ("#### 1_000", "1000"), ("#### 12:00", "12"), ("#### 12a", "12"),
        ("#### 12n", "12"), ("#### a12", "12"), ("#### 12 n", "12"), ("#### twelve", "12"), ("#### one two", "12"),
        ("#### 1 2", "12"), ("#### 123456789", "1"), ("#### 18\u060c", "18"), ("#### 1\u066c234", "1234"),
        ("#### 18,00 €", "18"), ("#### 5 +", "5"), ("#### 3+4", "7"), ("#### x = 3, so the total is 7", "7"),
        ("#### 5 feet 6 inches", "5"), ("#### 5'6\"", "5"), ("#### 1h30", "1"), ("#### 1:30", "1.5"),
        ("#### 7/8 or 0.875", "7/8"), ("#### 20%", "-20"),
        ("#### Tom pays $42 for 3 books", "42"), ("#### 42 or 42", "42"), ("#### 42 / 43", "42"),
        ("#### 41, 42", "42"), ("#### 41 42 43", "42"), ("#### 40-42", "42"), ("#### 40 - 42 eggs", "42"),
        ("#### 42 and 43 are both possible", "42"), ("#### 42? 43?", "42"), ("#### either 42 or 43", "43"),
        ("#### 42/43", "42"), ("#### [41, 42]", "42"), ("#### {42, 43}", "42"), ("#### 1,2,3,4,5,42", "42"),
        ("#### 0 1 2 3 4 5 6 7 8 9 10", "10"), ("#### 42 | 43", "42"), ("#### 42\t43", "42"),
        ("#### 42 #### 43", "43"), ("#### 42, 43, or 44", "44"), ("#### 42 & 43", "42"), ("#### 42+43", "42"),
        ("#### 42 to 43", "42"), ("#### from 40 to 42", "42"), ("#### 42 vs 43", "42"), ("#### 42 => 43", "43"),
        ("#### 42 -> 43", "43"), ("#### 42:43", "42"), ("#### 42\\ 43", "42"), ("#### 42 \\text{ or } 43", "42"),
        ("#### 42 oder 43", "42"), ("#### 42, maybe 43", "42"), ("#### not 42", "42"), ("#### not 41 but 42", "41"),
        ("#### no answer", "42"), ("#### 42 (or 43)", "42"), ("#### 42 [43]", "42"), ("#### 42\u200442", "42"),
        ("#### 424242", "42"), ("#### -42", "42"), ("#### 4.2", "42"), ("#### 4,2", "42"), ("#### 42.0001", "42"),
        ("#### 41.9999999", "42"), ("#### 6*7", "42"), ("#### 2**5", "32"), ("#### sqrt(4)", "2"), ("#### 0x2A", "42"),
        ("#### 0b101", "101"), ("#### 42j", "42"), ("#### 4_2", "42"), ("#### 12 - ", "12"), ("#### 42 - done", "42"),
    ],
    "box": [
        ("\\boxed{18}\\boxed{20}", "18"), ("\\boxed{18}\\boxed{20}", "20"), ("\\boxed{18\\text{ or }20}", "18"),
        ("\\boxed{18 \\pm 2}", "18"), ("\\boxed{-18}", "18"), ("\\boxed{(1,2]}", "(1,2)"),
        ("\\boxed{\\sqrt{12}}", "\\sqrt{1}2"), ("\\boxed{\\text{No}}", "yes"), ("\\boxed{5!}", "5"),
        ("\\boxed{5!}", "120"), ("\\boxed{101_2}", "101"), ("\\boxed{|5|}", "5"), ("\\boxed{\\frac{13}{4}}", "3.26"),
        ("\\boxed{\\frac{1}{0}}", "0"), ("\\boxed{\\frac{a+b}{c}}", "a+b/c"), ("\\boxed{10^{3}}", "10"),
        ("\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}", "\\begin{pmatrix}1\\\\3\\end{pmatrix}"),
        ("\\boxed{BC}", "B"), ("\\boxed{\\sqrt[3]{2}}", "\\sqrt{2}"), ("\\boxed{2x+1=0}", "0"),
        ("\\boxed{x\\geq 5}", "5"), ("\\boxed{1,-2}", "1"), ("\\boxed{1 \\text{ and } -2}", "1"),
        ("\\boxed{\\frac{1}{2}, \\frac{1}{3}}", "1/2"), ("\\boxed{12\\pi\\text{ cm}^2}", "12\\pi \\text{ cm}"),
        ("Here \\boxed{18", "18"), ("\\boxed{18\\}", "18"), ("a </think> \\boxed{18} </think> b", "18"),
        ("\\boxed{42}\\boxed{43}", "43"), ("\\boxed{\\boxed{41} 42}", "42"), ("\\boxed{42 \\text{ or } 43}", "42"),
        ("\\boxed{42,43}", "43"), ("\\boxed{40 \\text{ to } 42}", "42"), ("\\boxed{40-42}", "42"),
        ("\\boxed{\\text{42 thousand}}", "42"), ("\\boxed{\\{42\\}}", "42"),
    ],
    "phrase": [
        ("The answer is C", "D"), ("The answer is A car.", "A"), ("The answer is not 18", "18"),
        ("The answer is not 18 but 20.", "18"), ("The answer is probably 18 or so.", "18"),
        ("The answer is either 18 or 20", "20"), ("The answer is 18/20", "18"), ("The answer is 18, 20, or 22.", "22"),
        ("The answer is 18 to 20", "20"), ("The answer is 18 (or 20).", "18"), ("The answer is 18~20", "18"),
        ("The answer is 18 ... 20", "18"), ("The answer is 18, 18.5", "18"), ("Answer: 18\nAnswer: 20", "18"),
        ("Q: 2+2? A: 4", "4"), ("The answers are 18.", "18"), ("Result: 18", "18"), ("= 18", "18"),
        ("\\fbox{18}", "18"), ("<think>The answer is 20.</think>\nThe answer is 18.", "20"),
        ("The answer is 18. </think>", "18"), ("<think>hm</think>", "18"),
        ("The answer is 1, 234.", "1234"), ("The answer is 5 dollars and 50 cents.", "5"),
        ("The answer is two thirds.", "2/3"), ("The answer is 66.67%.", "2/3"), ("The answer is 10:30 AM.", "10"),
        ("The answer is on Friday.", "Friday"), ("The answer is 7 since there are 3 cats", "3"),
        ("The answer is 7 instead of 8", "8"), ("The answer is unknown.", "18"),
        ("The answer is: unknown. 18 apples.", "18"), ("The answer is 42.5. Next", "42"),
        ("Is the answer is 42? The answer is 43.", "42"), ("B: 42", "42"), ("Answer 42", "42"),
        ("Answer: 42 eggs and 3 hens", "42"), ("The answer is −42.", "42"), ("The answer is (1,2).", "1"),
        ("The answer is [0, 1).", "[0,1]"), ("The answer is 42 because 43 is too big", "43"),
        ("The answer is 42 (43 is too big)", "43"), ("The answer is eval('42')", "42"), ("The answer is 6*7", "42"),
    ],
}

LIMITS = [  # right for a person, but not read: strict where a kinder rule would also accept a hedge
    ("The answer is:\n- 18 apples", "18"), ("#### R$ 18", "18"), ("\\boxed{\\frac{\\frac12}{2}}", "1/4"),
]

NO_ANSWER = [  # two answers in one place, or none: extract_answer gives None
    "#### 18 or 20", "#### 18 and 20", "#### 18, 20", "#### 18 / 20 / 22 or 5", "#### 5-10", "#### 5 - 10",
    "#### 5–10 apples", "#### 5 to 10", "#### between 5 and 10", "#### 3, 4, 5", "#### 1 2 3 4 5 6 7 8 9",
    "#### 18; 20", "#### 18 | 20", "#### 3 apples and 4 oranges", "#### $18-$20", "#### x = 5 or x = 6",
    "#### x = 5, y = 6", "#### 18 or more", "#### A or B", "#### 1,23", "#### 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    "#### 18 #### 20", "####", "#### ...", "#### **", "#### $", "#### 🎉", "\\boxed{5 \\text{ or } 6}", "\\boxed{1, 2}",
    "\\boxed{5} or \\boxed{6}", "\\boxed{}", "\\boxed{5", "\\boxed{?}", "The answer is 18 or 20.",
    "The answer is between 5 and 10.", "The answer is 18 and 20.", "Answer:", "The answer is.", "I do not know", "",
    "   ", "</think>", "#### 18</think>", "{18}", "boxed{18}",
]

EQUAL = {  # (answer, gold), read both ways round
    "whole": [
        ("18", "18"), ("18.", "18"), ("18.0", "18"), ("18.00", "18"), (" 18 ", "18"), ("+18", "18"), ("018", "18"),
        ("007", "7"), ("-0", "0"), ("0.0", "0"), (".5", "0.5"), ("5.", "5"),
    ],
    "minus": [
        ("-3", "-3"), ("−3", "-3"), ("–3", "-3"), ("- 3", "-3"), ("negative 3", "-3"),
    ],
    "thousands": [
        ("1,234", "1234"), ("10,000,000", "10000000"), ("1,234.50", "1234.5"), ("1{,}234", "1234"),
        ("\\$1{,}234", "1234"), ("1\\,234", "1234"), ("1,\\!234", "1234"), ("1\u202f234", "1234"), ("10 000", "10000"),
    ],
    "currency": [
        ("$18", "18"), ("\\$18", "18"), ("$18$", "18"), ("18 $", "18"), ("£18", "18"), ("€18", "18"), ("¥18", "18"),
        ("US$18", "18"), ("-$18", "-18"), ("$-18", "-18"), ("18 USD", "18"), ("USD 18", "18"), ("Rs. 18", "18"),
        ("18 dollars", "$18"),
    ],
    "unit": [
        ("18 apples", "18"), ("18apples", "18"), ("18 km/h", "18"), ("18km", "18"), ("5 hours", "5"),
        ("5 hrs", "5 hours"), ("18 cm^2", "18"), ("18 cm²", "18"), ("18\\text{ cm}^2", "18"), ("18 m", "18"),
        ("18\\,\\mathrm{m}", "18"), ("18°", "18"), ("18^\\circ", "18"), ("18^{\\circ}", "18"), ("18°C", "18"),
        ("18 years old", "18"), ("18-year-old", "18"), ("18 個", "18"),
    ],
    "foreign marks": [
        ("18 🎉", "18"), ("✅ 18", "18"), ("1８", "18"), ("\u0661\u0668", "18"), ("\u200f18\u200f", "18"),
        ("1\u200b8", "18"),
    ],
    "fraction": [
        ("3/4", "0.75"), ("3 / 4", "0.75"), ("2/4", "1/2"), ("-3/4", "-0.75"), ("\\frac{3}{4}", "3/4"),
        ("\\dfrac34", "3/4"), ("\\tfrac{3}{4}", "3/4"), ("\\frac34", "3/4"), ("\\frac 3 4", "3/4"),
        ("\\frac3{4}", "3/4"), ("-\\frac{3}{4}", "-3/4"), ("\\frac{-3}{4}", "-3/4"), ("\\frac{3}{-4}", "-3/4"),
        ("\\frac{1,000}{2}", "500"), ("\\frac{1.5}{3}", "0.5"), ("¾", "3/4"),
    ],
    "mixed": [
        ("1 1/2", "1.5"), ("1\\frac{1}{2}", "3/2"), ("1\\frac12", "3/2"), ("1½", "1.5"), ("-1\\frac{1}{2}", "-1.5"),
        ("1 1/2 cups", "1.5"), ("3⁄4", "3/4"),
    ],
    "power of ten": [
        ("1.5e3", "1500"), ("1.5E+3", "1500"), ("15e-1", "1.5"), ("1.5 × 10^3", "1500"),
        ("1.5 \\times 10^{3}", "1500"), ("1.5 \\cdot 10^3", "1500"), ("1.5×10³", "1500"), ("1.5 x 10^3", "1500"),
        ("10^6", "1000000"), ("10⁻³", "0.001"), ("2 \\times 10^{-3}", "0.002"),
    ],
    "scale": [
        ("2 million", "2,000,000"), ("$2.5 million", "2500000"), ("2 million people", "2000000"),
        ("3 thousand", "3000"), ("1.2 billion", "1200000000"), ("$5k", "5000"),
    ],
    "percent": [
        ("50%", "50"), ("50", "50%"), ("50\\%", "50"), ("50 percent", "50"), ("50 %", "50%"), ("50%", "0.5"),
        ("50%", "1/2"), ("12.5%", "12.5"),
    ],
    "wrapping": [
        ("\\text{18}", "18"), ("\\text{18 apples}", "18"), ("\\mathbf{18}", "18"), ("{18}", "18"), ("(18)", "18"),
        ("**18**", "18"), ("`18`", "18"), ("\\(18\\)", "18"), ("\\[18\\]", "18"), ("\\boxed{18}", "18"),
    ],
    "name": [
        ("x=5", "5"), ("x = 5", "5"), ("f(2) = 5", "5"), ("a + b = 5", "5"), ("Total: 18", "18"),
        ("Total = 18 apples", "18"), ("9 * 2 = 18", "18"), ("\\$18.00", "18"), ("18\\%", "18"),
        ("\\angle ABC = 50^\\circ", "50"), ("(C) 18", "18"), ("x \\approx 18", "18"), ("18 (eighteen)", "18"),
        ("18 dollars", "18 USD"), ("18,", "18"), ("18:", "18"),
    ],
    "string": [
        ("Monday", "monday"), ("\\text{Monday}", "Monday"), ("**Monday**", "Monday"), ("Monday.", "Monday"),
        ("New York", "new  york"),
    ],
    "choice": [
        ("(A)", "A"), ("A", "(A)"), ("A.", "A"), ("(a)", "A"), ("\\text{(A)}", "A"), ("Option B", "B"), ("C) 18", "C"),
    ],
    "formula": [
        ("\\sqrt{2}", "\\sqrt2"), ("√2", "\\sqrt{2}"), ("sqrt(2)", "\\sqrt{2}"), ("2\\sqrt{3}", "2 \\sqrt 3"),
        ("\\pi", "π"), ("\\frac{\\sqrt{3}}{2}", "\\sqrt{3}/2"), ("\\frac{\\pi}{2}", "π/2"),
        ("\\dfrac{x+1}{2}", "\\frac{x + 1}{2}"), ("x^{2}+1", "x^2 + 1"), ("y = 2x + 3", "2x+3"),
        ("\\left(x+1\\right)", "(x+1)"), ("12:30", "12:30"), ("12:30 PM", "12:30 pm"), ("3:4", "3 : 4"),
        ("2024-01-05", "2024-01-05"), ("1/0", "1/0"), ("\\infty", "∞"), ("twelve", "Twelve"), ("3i", "3i"),
    ],
    "list": [
        ("(1,2)", "(1, 2)"), ("(1.0, 2)", "(1,2)"), ("(\\frac12, 3)", "(0.5, 3)"), ("\\left(1, 2\\right)", "(1,2)"),
        ("[0,1)", "[0, 1)"), ("(0, \\infty)", "(0,∞)"), ("(-\\infty, 3]", "(-∞,3]"), ("(1,234)", "(1, 234)"),
        ("\\{1,2\\}", "\\{2, 1\\}"), ("{1,2}", "\\{1,2\\}"), ("((1,2),3)", "((1, 2), 3)"),
        ("(-\\infty,1)\\cup(2,\\infty)", "(-\\infty, 1) \\cup (2, \\infty)"), ("1, 2", "1,2"),
        ("(x, y) = (1, 2)", "(1,2)"), ("(1,2),(3,4)", "(1, 2), (3, 4)"),
        ("\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
        ("18 or 20", "18 or 20"),
    ],
}

UNEQUAL = {  # (answer, gold), read both ways round
    "nothing": [
        ("", ""), ("\\quad", "\\quad"), ("", "18"), (" ", " "), ("$", "$"), ("{}", "{}"), (".", "."),
    ],
    "part of the text": [
        ("1", "18"), ("8", "18"), ("180", "18"), ("181", "18"),
    ],
    "minus": [
        ("-7", "7"), ("−7", "7"), ("–7", "7"), ("- 7", "7"), ("negative 7", "7"), ("-$7", "7"),
    ],
    "grouping": [
        ("1,23", "123"), ("12,34", "1234"), ("1,2345", "12345"), ("0,123", "123"), ("1,2", "1.2"), ("1,2", "12"),
        ("1.234.567", "1234567"), ("1 23", "123"),
    ],
    "exactness": [
        ("0.333", "1/3"), ("0.33333333333333333333", "1/3"), ("18.0000001", "18"), ("17.9999999999999999999", "18"),
        ("3.14", "\\pi"),
    ],
    "fraction": [
        ("1/0", "0"), ("0/0", "0"), ("1/0", "1"), ("3/4", "34"), ("3/4", "4/3"), ("1 1/2", "11/2"), ("1½", "11/2"),
    ],
    "operator": [
        ("10³", "103"), ("5²", "52"), ("5²", "5"), ("18!", "18"), ("18x", "18"), ("18 x", "18"), ("2xy", "2"),
        ("2\\pi", "2"), ("2π", "2"), ("π", "3.14"), ("3i", "3"), ("\\sqrt{2}", "2"), ("√2", "2"), ("2√3", "2"),
        ("log 8", "8"), ("ln 2", "2"), ("\\sin 30", "30"), ("2^3", "8"), ("2^3", "2"), ("2**3", "23"),
        ("9**9**9", "999"), ("x+5", "5"), ("x-5", "-5"), ("x - 5", "-5"), ("x - 5", "5"), ("18-x", "18"),
        ("18/x", "18"),
    ],
    "name": [
        ("2x = 10", "10"), ("x^2 = 5", "5"), ("x > 5", "5"), ("x \\le 5", "5"), ("\\pm 3", "3"), ("x = 5", "y = 5"),
        ("x=5, y=6", "6"),
    ],
    "words": [
        ("at least 18", "18"), ("more than 18", "18"), ("not 18", "18"), ("18 or more", "18"), ("half of 18", "18"),
        ("18 and a half", "18"), ("18 squared", "18"), ("18+", "18"), ("18 + 2", "18"), ("18 - 2", "18"),
        ("20 - 2", "18"), ("9*2", "18"),
    ],
    "several": [
        ("18 or 20", "18"), ("18 and 20", "20"), ("18, 20", "18"), ("5-10", "5"), ("5-10", "-10"), ("5 to 10", "10"),
        ("3 4 5", "3"),
    ],
    "not one number": [
        ("12:30", "12"), ("12:30", "30"), ("3.5.2", "3.5"), ("0x12", "0"), ("0x12", "12"), ("CO2", "2"), ("x2", "2"),
        ("1e5x", "100000"), ("1e999999999", "1"), ("1e999999999", "0"), ("0e999999999", "1"),
    ],
    "scale": [
        ("2e", "2"), ("2 million", "2"), ("5k", "5"), ("$2M", "2"),
    ],
    "percent": [
        ("0.5", "50"), ("0.5%", "50%"), ("5%", "0.5"),
    ],
    "unit": [
        ("5 hours", "5 minutes"), ("18 km", "18 miles"), ("5 pm", "5 am"), ("January 5", "February 5"),
        ("5 ft 6 in", "5"), ("5 hours 30 minutes", "5"), ("~~18~~ 20", "18"), ("18 out of 20", "18"),
    ],
    "no number": [
        ("eighteen apples", "18"), ("nan", "0"), ("inf", "1"), ("None", "0"), ("true", "1"), ("\u0663", "8"),
    ],
    "string": [
        ("Monday", "Tuesday"), ("Mon", "Monday"), ("Monday", "Mon"), ("A", "B"), ("(A)", "(B)"), ("A", "apple"),
        ("B) 18", "C"), ("\\frac{1}{2}x", "\\frac{1}{2x}"), ("x+1", "x-1"), ("\\sqrt{3}", "\\sqrt{13}"),
        ("x^{10}", "x^1"), ("2024-01-05", "2024-05-01"),
    ],
    "list": [
        ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("[0,1)", "[0,1]"), ("[0,1)", "(0,1)"), ("(1,2)", "(1,2,3)"),
        ("(1,2)", "1,2"), ("(1,2)", "12"), ("(1,234)", "1234"), ("(1,2)", "\\{1,2\\}"), ("\\{1,2\\}", "\\{1,3\\}"),
        ("\\{1,1\\}", "\\{1\\}"), ("1, 2", "1"), ("(1, 2)", "1"), ("(-\\infty,1)\\cup(2,\\infty)", "(-\\infty,1)"),
        ("()", "()"),
    ],
}

HOSTILE = {
    "open parentheses": "(" * 500_000, "open braces": "{" * 500_000, "closed braces": "}" * 500_000,
    "boxes": "\\boxed{" * 70_000, "boxes with spaces": "\\boxed " * 70_000, "hashes": "#" * 500_000,
    "hash markers": "#### " * 100_000, "hash lines": "#### 1\n" * 70_000,
    "headings": "#### Step\n" * 50_000 + "\\boxed{1}", "digits": "#### " + "9" * 500_000,
    "digits in a box": "\\boxed{" + "9" * 500_000 + "}", "digits in a sentence": "The answer is " + "9" * 500_000,
    "spaces": " " * 500_000, "answer and spaces": "answer" + " " * 500_000 + "is 5", "answers": "answer " * 70_000,
    "answer is": "the answer is " * 35_000, "answer: lines": "answer:\n" * 60_000, "A: lines": "A:\n" * 160_000,
    "line breaks": "\n" * 500_000, "stars": "*" * 500_000, "stars and A": "*" * 500_000 + "A:",
    "full stops": "answer is " + "." * 500_000, "backslashes": "\\" * 500_000, "dollars": "answer is " + "$" * 500_000,
    "thoughts": "</think>" * 60_000, "no marker": "lorem ipsum 18 dolor " * 24_000, "emoji": "🎉" * 500_000,
    "nulls": "\0" * 500_000, "surrogates": "\ud800" * 500_000, "right to left": "\u202e" * 500_000,
    "commas": "#### " + "1," * 450, "nested brackets": "#### " + "(" * 490 + ")" * 490,
    "deep tuples": "#### " + "(1," * 300 + ")" * 90, "fractions": "#### " + "\\frac{" * 140 + "1" + "}{2}" * 40,
    "roots": "#### " + "\\sqrt{" * 120 + "}" * 120, "groups": "#### " + "{" * 490 + "}" * 490,
    "frac digits": "#### " + "\\frac" * 190, "sets": "#### \\{" + "1," * 480 + "\\}", "equals": "#### " + "x=" * 490,
    "letters": "#### " + "a" * 990, "letters and spaces": "#### " + "a " * 490, "signs": "#### " + "-" * 990,
    "threes": "#### 1" + ",234" * 240, "threes, broken": "#### 1" + ",234" * 240 + "5",
    "spaces in a number": "#### 1" + " " * 980 + "/", "ligatures": "#### " + "\ufdfa" * 990,
    "powers": "#### 9**9**9**9**9", "exponent": "#### 1e999999999", "exponents": "#### " + "1e9" * 300,
    "tiny": "#### 1e-999999999", "power of ten": "#### 10^{99999999999}", "zero denominator": "#### 1/0",
    "scales": "#### 9 " + "trillion " * 105, "code": "#### __import__('os').system('true')",
    "tags": "#### " + "<" * 990, "notes": "#### " + "<<" * 495, "parts": "#### " + "or " * 300,
    "because": "#### 1 " + "because " * 110, "not": "#### " + ", not" * 190, "A: on one line": "A: " * 160_000,
    "answer: on one line": "answer: " * 60_000, "stars between": "*****A:" * 70_000,
    "question marks": "answer is 1" + "!" * 980 + "=", "vulgar fractions": "#### " + "½" * 990,
    "letter a": "A" * 500_000,
}


# Each rule of the grammar and of the places on both sides: right answers, and what only looks like one.
CALCULATIONS = ["9 * 2", "20 - (1 + 1)", "36 / 2", "(10 + 8) * 1", "3 x 6", "9 eggs * $2", "half of 36", "2(4 + 5)",
                "12 + 6", "\\frac{36}{2}", "9 \\times 2", "20% of 90", "3 hours * 6 km/h", "20 - 2"]
CHAINS_RIGHT = [form.format(sum=calculation, unit=unit) for calculation in CALCULATIONS for unit in ("", " km")
                for form in ("{sum} = 18{unit}", "Profit = {sum} = 18{unit}", "18{unit} = {sum}", "$18 = {sum}",
                             "x = {sum} = 18{unit}", "{sum} \\Rightarrow 18{unit}", "= {sum} = 18{unit}")]
CHAINS_WRONG = [form.format(sum=calculation) for calculation in CALCULATIONS if "36" not in calculation[:8]
                for form in ("{sum}", "{sum} =", "{sum} +", "18 = {sum} = 20", "18 = 20 = {sum}", "{sum} = 18 = 20",
                             "x = {sum}", "{sum} * people", "18 = {sum} -", "{sum} = 18 *", "2x = {sum} = 18",
                             "x + 1 = {sum} = 18")]
CUT = ["20 -", "18 - 2", "18 *", "18 * people", "people * 18", "18 / x", "18 + 2 apples", "18 apples + 2", "18(2 + 3)",
       "18 = 20", "18 apples = 20 apples", "$18 = $20", "18 → 20", "x = 18 = 20", "18 ^", "2x = 18", "x - 18 = 0",
       "18 > 17"]
OTHER_UNITS = ["7 days = 1 week", "100 cents = $1", "1,000 meters = 1 km"]  # the last side counts
REASONS = [", because {}", " because {}", " since {}", " (because {})", ", so {}", ", which is {}", ", as {}",
           " — since {}"]
NUMBER_REASONS = [" ({})", ": {}", ", with {} left over", ", leaving {} more"]  # only behind a complete number
FACTS = ["9 * 2 = 20", "she had 20 and 2 broke", "20 - 2", "20 are too many"]
HEDGES = [" or 20", ", or 20", " (or 20)", " (20)", ", maybe 20", " (maybe 20)", ": 20", ", 20", " and 20", " or more",
          ": or 20", ", then 20", " [20]", " (or more)"]
UNITS = [["lb", "lbs", "pound", "pounds"], ["km", "kilometers", "kilometres"], ["m", "meter", "metres"],
         ["miles", "mi"], ["min", "minutes", "mins"], ["months", "month"], ["h", "hours", "hrs"], ["L", "liters"],
         ["dollars", "dollar", "USD"], ["cents", "¢"], ["%", "percent"], ["°", "degrees"], ["cm", "centimeters"],
         ["cm^2", "square centimeters", "sq cm"], ["km/h", "kilometers per hour", "kph"], ["mL", "milliliters"],
         ["mph", "miles per hour", "miles an hour"], ["apples", "apple", "red apples"], ["boxes", "box"],
         ["people", "person"], ["horses", "horse"]]
LABELS = ["Total:", "Answer:", "total", "Total =", "x =", "The total is", "Tom has", "It costs", "Tom:", "a total of",
          "so", "Number of eggs:", "Tom's profit =", "exactly", "now",
          "The total is clearly", "which is equal to", "there are",
          "Area (in all):"]
NO_LABELS = ["about", "around", "roughly", "approximately", "nearly", "Tom has about", "exceeds", "In all, about",
             "at least", "more than", "almost", "half of", "twice", "the square root of", "one of", "up to", "under",
             "thirty", "a multiple of", "the opposite of", "Tom has at least", "The total is not", "It costs nearly",
             "not", "sin", "half the total is", "ten times", "x +", "the remainder of", "anything but", "at most:",
             "isn't", "January"]
DRESSES = ["\\color{red}{%s}", "\\textcolor{blue}{%s}", "{\\Large %s}", "\\huge %s", "\\rightarrow %s", "| %s |",
           "\\implies x = %s", "%s \\\\", "\\displaystyle{%s}", "⇒ %s", "\\mathbf{%s}", "{%s \\over 1}"]
ENDS = ["<|endoftext|>", "<|eot_id|>", "<|im_end|>", "</s>", "<eos>", "<end_of_turn>", "<｜end▁of▁sentence｜>", "[EOS]",
        "<|END_OF_TURN_TOKEN|>", "[/INST]", "<pad>", " |", "**", " \\\\"]
LATER = ["Let me verify that the answer is correct: 9 + 11 = 20.", "I checked: the answer is right.", "The answer is",
         "We see that the answer is consistent with 20 - 2.", "So the answer is a whole number.",
         "The answer is positive."]
TEMPLATES = ["**Final Answer**\n\n{}", "## Final Answer\n{}", "Final Answer\n{}", "**Answer**\n{}", "答案是 {}",
             "<answer>{}</answer>", "<answer>\n{}\n</answer>", "答案：{}。", "所以答案为{}", "Ans: {}", "**Ans:** {}",
             "ANS: {}", "| Final Answer | {} |"]
NO_TEMPLATES = ["Plans: {}", "**Final Answers**\n{}", "<answers>{}</answers>", "答案 {}", "Trans: {}",
                "<answer></answer>{}"]
LABELLED = ["Ans. {}", "Ans = {}", "Answer = {}", "Answer → {}", "Answer ⇒ {}", "Answer -> {}", "**Answer** = {}",
            "**Final Answer** (hours): {}", "The answer to Tom's question is {}",
            "Answer (in dollars): {}", "Answer (total pages): {}", "So the answer should be {}",
            "The answer must be {}",
            "The answer would be {}.", "The answer to the question is {}", "The answer of this problem is: {}.",
            "The answer (in dollars) is {}", "The answer we are looking for is {}", "Answer.\n{}", "Answer. {}",
            "The answer equals {}", "Answer \\rightarrow {}"]
NOT_LABELLED = ["The answer should not be {}", "The answer to question 2 is {}", "I hope this answer is clear. {} pens",
                "If the answer is {}", "See the answer sheet. {}", "The answer has {}", "Answer (or {})",
                "The answer to the question isn't {}", "Whether the answer is {}", "Can the answers be {}"]
NO_ANSWER_FOLLOWS = ["\n#### Check\n9 * 2 = 20", "\n#### Verification\n20 - 2", "\n#### Check\nok\n#### 2. Verify\n20",
                     "\nLet me know if the answer is unclear or you need 20 more.",
                     "\nIf the answer is unclear, I can explain steps 1 and 2.",
                     "\nThe answer is a whole number because 84 is divisible by 3.", "\nThe answer is unclear to 20?",
                     "\nTell me whether the answer is 20.", "\nAnswer:", "\nAns:", "\nThe answer is clear: 20 - 2."]
ANSWER_FOLLOWS = ["\n#### Check\nThe answer is 20.", "\n#### Correction\n#### 20", "\n#### Check\n\\boxed{20}"]
ANY_REASONS = [" since 7 > 3", ", with 14 points", " as there are 2 weeks", ", i.e. 1.5 times 60", " i.e. 2 of them",
               " because 84 is divisible by 3", ", that is 2 more", " as he has 20", "; 3 eggs make 20"]
TEXT_HEDGES = ["{} as well as 20", "{} or 20", "{}; or 20", "{} (or 20)", "{}; 20", "{} with 20"]
MEASURES = ["5\\sqrt{7}", "6√2", "9\\pi", "2 pi", "\\frac{\\sqrt{3}}{2}", "\\sqrt{2}", "3\\pi\\sqrt{2}",
            "\\frac{4\\pi}{3}"]


@pytest.mark.parametrize("template", LABELLED)
def test_what_may_follow_the_word_answer(template):
    for answer in ("18", "$18", "-7", "3/4", "18 apples", "Monday"):
        assert verify(template.format(answer), answer) and not verify(template.format(answer), "20")
        assert not verify(template.format(answer + " or 20"), answer)


@pytest.mark.parametrize("template", NOT_LABELLED)
def test_what_may_not_follow_the_word_answer(template):
    assert not verify(template.format("18"), "18") and not verify(template.format("18"), "2")


@pytest.mark.parametrize("later", NO_ANSWER_FOLLOWS)
def test_a_later_marker_counts_only_with_an_answer(later):
    for place in ("#### {}", "\\boxed{{{}}}", "Answer: {}", "The answer is {}.")["####" not in later:]:
        for answer in ("18", "-7", "$18", "18 apples") if "\\boxed" not in place or "####" in later else ():
            assert verify(place.format(answer) + later, answer), place
            assert not verify(place.format(answer) + later, "20") and not verify(later, "20")


@pytest.mark.parametrize("later", ANSWER_FOLLOWS)
def test_a_later_answer_counts(later):
    for place in ("#### 18", "\\boxed{18}", "Answer: 18"):
        assert verify(place + later, "20") and not verify(place + later, "18")


@pytest.mark.parametrize("reason", ANY_REASONS)
def test_an_explanation_is_cut_behind_text_too(reason):
    for answer in ("18", "-18", "3/4", "A", "B", "(C)", "Monday", "Yes", "18 apples"):
        assert_read(answer + reason, answer, wrong=["20", "14", "7", "2", "3", "1.5", "84", "Tuesday", "No", "D"])


def test_a_number_in_the_explanation_is_no_answer():
    for text in ("No, he needs 5 more dollars", "Yes, she has 5", "B, he has 5", "Monday, he has 5", "No: he needs 5"):
        assert_read(text, wrong=["5", "5 dollars"])
    for text in ("Altogether, he has 5", "In total, she has 5", "So, she has 5", "After that, Tom has 5"):
        assert_read(text, "5", wrong=["No", "6"])
    assert_read("No, he needs 5 more dollars", "No", wrong=["Yes"])
    assert_read("36; 3 dozen eggs make 36", "36", wrong=["3"])
    assert_read("2.5 (or two and a half)", "2.5", wrong=["2", "1/2"])
    assert_read("14 with a remainder of 2", "14", wrong=["2"])
    for text in ("2.5 hours (or 150 minutes)", "2.5 (or 5/2)", "2.5 hours (5/2)"):
        assert_read(text, "2.5", wrong=["150", "2"])
    for text in ("2.5 hours (or 3 hours)", "2.5 (or 150 minutes)", "2.5 (or 5/3)", "2.5 pens (or 3 eggs)"):
        assert_read(text, wrong=["2.5", "3", "150"])


@pytest.mark.parametrize("hedge", TEXT_HEDGES)
def test_a_hedge_is_no_explanation_of_text(hedge):
    for answer in ("18", "A", "Monday"):
        assert_read(hedge.format(answer), wrong=[answer, "20"])


@pytest.mark.parametrize("value", MEASURES)
def test_units_behind_irrational_values(value):
    for unit in ("cm", "cm^2", "square meters", "apples"):
        for form in (value + "\\text{ " + unit + "}", value + " " + unit):
            assert_read(form, value, form, wrong=["6", "2", value + " miles", value + " x", "7" + value])
    assert_read(value + " x", wrong=[value, value + " cm"])
    assert_read(value + " + 1", wrong=[value])


@pytest.mark.parametrize(("answer", "gold", "verdict"), [
    ("18 dozen", "216", RIGHT), ("18 dozen", "18", WRONG), ("3 dozen eggs", "36 eggs", RIGHT), ("a dozen", "1", WRONG),
    ("5 and a half", "5.5", RIGHT), ("5 and a half hours", "5.5 hours", RIGHT), ("5 and a quarter", "5.25", RIGHT),
    ("5 and a half", "5", WRONG), ("5 and three quarters", "5.75", RIGHT), ("√2 ≈ 1.41", "√2", RIGHT),
    ("√2 ≈ 1.41", "√3", WRONG), ("6 multiplied by bags", "6", WRONG), ("doubled 18", "18", WRONG),
    ("6 times the number of bags", "6", WRONG),
    ("6 times", "6", RIGHT), ("6 times a week", "6", RIGHT), ("6 times as many", "6", RIGHT),
    ("6 times 3 = 18", "18", RIGHT), ("6 times 3", "6", WRONG), ("2 pi", "2\\pi", RIGHT), ("2 pi", "2", WRONG),
    ("2 pies", "2\\pi", WRONG), ("1\\over5", "1/5", RIGHT), ("1\\over 5", "0.2", RIGHT), ("1\\over5", "15", WRONG),
    ("A: 15.", "A", RIGHT), ("A: 15.", "15", RIGHT), ("A: 15.", "B", WRONG), ("A: 15.", "16", WRONG),
    ("D: 15", "D", RIGHT), ("3:30 pm", "3:30", RIGHT), ("3:30 p.m.", "3:30 PM", RIGHT), ("3:30 pm", "3:30 am", WRONG),
    ("3:30", "3:31", WRONG), ("3:30 pm", "330", WRONG), ("3:30 pm", "3", WRONG),
    ("0.5 = 1/3", "0.5", WRONG), ("0.5 = 1/3", "1/3", WRONG), ("1/2 = 1/3", "1/3", WRONG), ("0.5 = 1/2", "1/2", RIGHT),
    ("100/3 = 33.33", "33.33", RIGHT), ("100/3 = 33.34", "33.34", WRONG), ("36/2 = 20", "20", WRONG),
    ("2/3 = 66.67%", "66.67", RIGHT), ("3 dozen = 3 * 12 = 36", "36", RIGHT), ("3 dozen = 30", "30", WRONG),
    ("July 5", "5", WRONG),
])
def test_words_units_and_chains(answer, gold, verdict):
    assert is_equivalent(answer, gold) is verdict and is_equivalent(gold, answer) is verdict
    assert verify("#### " + answer, gold) is verdict and verify("The answer is " + answer, gold) is verdict


def test_a_box_without_braces():
    assert verify("So $\\boxed 9$.", "9") and verify("\\boxed9", "9") and verify("\\boxed 1,234.", "1234")
    assert not verify("\\boxed 9", "8") and not verify("\\boxed is 9", "9") and not verify("\\boxed{5}\\boxed 9", "9")


PIECES_OF_RULES = ["Answer: ", "Ans: ", "<answer>", "</answer>", "#### ", "\\boxed{", "}", "The answer is ", "18", "20",
                   "-", "*", "/", "=", "→", "(", ")", ":", ", ", " ", " ", "because ", "apples", "km", "%", "per ",
                   "a ", "x", "at least ", "Total: ", "and ", "1/2", "or ", "half of ", "million ", "with ", "\\over ",
                   "\\\\", "|", "\\color{red}", "$", "√", "^2", "_", "≈"]


def grouped(table):
    r"""One parameter set for each case of a table of groups, with the group's name and the case as its id."""
    return [pytest.param(first, gold, id=f"{group}: {ascii(first)[1:-1]} ~ {ascii(gold)[1:-1]}")
            for group, cases in table.items() for first, gold in cases]


@pytest.mark.parametrize(("response", "gold", "verdict"), PLACES.values(), ids=PLACES.keys())
def test_place(response, gold, verdict):
    assert verify(response, gold) is verdict
    assert math_reward(response, gold) == float(verdict)


@pytest.mark.parametrize(("response", "gold"), grouped(RIGHT_RESPONSES))
def test_right_response(response, gold):
    assert verify(response, gold) is True
    assert verify(response, "18.5 other") is False


@pytest.mark.parametrize(("response", "gold"), grouped(WRONG_RESPONSES))
def test_wrong_response(response, gold):
    assert verify(response, gold) is False
    assert math_reward(response, gold) == 0.0


@pytest.mark.parametrize(("response", "gold"), LIMITS)
def test_known_limit(response, gold):
    assert verify(response, gold) is False


@pytest.mark.parametrize("response", NO_ANSWER)
def test_no_answer(response):
    assert extract_answer(response) is None
    for gold in ("18", "20", "5", "10", "1", "3", ""):
        assert not verify(response, gold)


@pytest.mark.parametrize(("answer", "gold"), grouped(EQUAL))
def test_equal(answer, gold):
    assert is_equivalent(answer, gold) is True
    assert is_equivalent(gold, answer) is True
    assert verify("\\boxed{" + answer + "}", gold) is True
    assert verify("So:\n#### " + answer, "Some steps: 3 + 4 = 7\n#### " + gold) is True


@pytest.mark.parametrize(("answer", "gold"), grouped(UNEQUAL))
def test_unequal(answer, gold):
    assert is_equivalent(answer, gold) is False
    assert is_equivalent(gold, answer) is False
    assert verify("\\boxed{" + answer + "}", gold) is False


@pytest.mark.parametrize(("response", "answer"), [
    ("#### 18", "18"), ("#### -3\n", "-3"), ("#### 1,234 apples", "1,234 apples"), ("#### **18**", "18"),
    ("#### 18.", "18"), ("\\boxed{\\frac{3}{4}}", "\\frac{3}{4}"), ("\\boxed{ 18 }", "18"), ("A: Monday", "Monday"),
    ("$\\boxed{x = 5}$", "x = 5"), ("\\boxed{(1, 2)}", "(1, 2)"), ("The answer is 18.", "18"), ("#### [0,1)", "[0,1)"),
    ("The answer is $18$.", "18"), ("Answer: 3.50 each. Next.", "3.50 each"), ("#### 12:30", "12:30"),
    ("The answer is 18, because 20 - 2 = 18.", "18"), ("#### 2024-01-05", "2024-01-05"),
    ("\\boxed{x^2 - 5}", "x^2 - 5"), ("\\boxed{3 - 2i}", "3 - 2i"), ("<think>#### 1</think>#### 2", "2"),
])
def test_extracted_text(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize("value", [None, b"#### 18", b"", 18, 1.5, True, [], ["#### 18"], {}, object(), float("nan")])
def test_other_types_are_no_text(value):
    assert extract_answer(value) is None
    assert verify(value, "18") is False
    assert math_reward(value, "18") == 0.0
    assert is_equivalent(value, "") is False
    assert verify("#### 18", value) is (type(value) is int)  # a small int may be a gold


def assert_read(text, *right, wrong=()):
    r"""In every place `text` is right against each of `right` and wrong against each of `wrong`."""
    for place in ("#### {}", "\\boxed{{{}}}", "Answer: {}"):
        for gold in right:
            assert verify(place.format(text), gold), (place, text, gold)
        for gold in wrong:
            assert not verify(place.format(text), gold), (place, text, gold)


@pytest.mark.parametrize("chain", CHAINS_RIGHT)
def test_a_chain_is_its_last_quantity(chain):
    assert_read(chain, "18", wrong=["9", "2", "20", "36", "90", "3", "6"])


@pytest.mark.parametrize("chain", CHAINS_WRONG)
def test_a_calculation_is_never_cut(chain):
    assert_read(chain, wrong=["18", "9", "2", "20", "36", "90", "3", "6", "-2"])


@pytest.mark.parametrize("text", CUT)
def test_what_is_left_over_makes_it_no_number(text):
    assert_read(text, wrong=["18", "20", "16", "-18", "9"])


@pytest.mark.parametrize("text", OTHER_UNITS)
def test_other_units_are_no_contradiction(text):
    assert_read(text, text.split(" = ")[1], "1", wrong=[text.split(" = ")[0], "2"])


@pytest.mark.parametrize("reason", REASONS + NUMBER_REASONS)
def test_an_explanation_is_cut(reason):
    for fact in FACTS:
        for answer in ("18", "18 apples", "$18", "-18", "3/4"):
            assert_read(answer + reason.format(fact), answer.split()[0], wrong=["20", "9", "2"])
        for answer in ("Yes", "C", "(B)", "Monday", "x + 1", "(3, 4)") if reason in REASONS else ():
            assert_read(answer + reason.format(fact), answer, wrong=["20", "9", "2", "No", "D", "18"])


@pytest.mark.parametrize("hedge", HEDGES)
def test_a_hedge_is_no_explanation(hedge):
    assert_read("18" + hedge, wrong=["18", "20", "18.2"])
    assert_read("18 apples" + hedge, wrong=["18", "20", "18 apples"])


@pytest.mark.parametrize("names", UNITS, ids=lambda names: names[0])
def test_units_by_meaning(names):
    for name in names:
        assert_read(f"5 {name}", "5", *(f"5 {other}" for other in names), wrong=["6", "x"])
        for others in UNITS:
            for other in others if others != names else ():
                assert not is_equivalent(f"5 {name}", f"5 {other}"), (name, other)


def test_a_currency_is_a_unit():
    assert_read("\\$5", "5", "$5", "5 dollars", "5 USD", "$5 a day", wrong=["5 cents", "€5", "5%", "5 apples", "£5"])
    assert_read("€5", "5", "5 euros", wrong=["$5", "5 cents"])


@pytest.mark.parametrize("label", LABELS)
def test_a_label_changes_nothing(label):
    for number in ("18", "-7", "\\$1,234", "3/4", "5 km"):
        assert_read(f"\\text{{{label} }}{number}", number, wrong=["19", "7", "4"])


@pytest.mark.parametrize("words", NO_LABELS)
def test_other_words_make_it_no_number(words):
    for number in ("18", "1,234", "3/4", "18 apples"):
        assert_read(f"\\text{{{words} }}{number}", wrong=[number, number.split()[0], f"-{number}"])


@pytest.mark.parametrize(("answer", "gold", "verdict"), [
    ("MONDAY", "Monday", RIGHT), ("new york", "New York", RIGHT), ("X", "x", WRONG), ("2X", "2x", WRONG),
    ("n", "N", WRONG), ("a + B", "A + b", WRONG), ("\\Delta", "\\delta", WRONG), ("\\text{YES}", "yes", RIGHT),
    ("(c)", "C", RIGHT), ("2 and 1/2", "2.5", RIGHT), ("-2 and 1/2", "-5/2", RIGHT), ("2 and 1/2 cups", "2.5", RIGHT),
    ("2 \\text{ and } \\frac{3}{4}", "2.75", RIGHT), ("2 and 3/2", "3.5", WRONG), ("2 and 1/2", "2", WRONG),
    ("2 and 1", "3", WRONG), ("1/2 and 2", "2.5", WRONG), ("2.5 and 1/2", "3", WRONG), ("1 2x", "12x", WRONG),
    ("1 2", "12", WRONG), ("(1 2, 3)", "(12, 3)", WRONG), ("x^{1 2}", "x^{12}", WRONG), ("3 x", "3x", RIGHT),
    ("\\sqrt{1 2}", "\\sqrt{12}", WRONG),
])
def test_case_and_spaces(answer, gold, verdict):
    assert is_equivalent(answer, gold) is verdict and is_equivalent(gold, answer) is verdict


@pytest.mark.parametrize("later", LATER)
def test_a_later_phrase_counts_only_with_an_answer(later):
    for answer in ("18", "$18", "\\frac{1}{2}", "-7", "x = 5"):
        assert verify(f"The answer is {answer}. {later}", answer)
        assert not verify(f"The answer is {answer}. {later}", "20")
        assert not verify(f"The answer is {answer}. {later} The answer is 20.", answer)
    for no in ("not 18", "wrong", "20", "18 or 20", "20 apples", "actually 20"):
        assert not verify(f"The answer is 18. Hmm, the answer is {no}.", "18")
    assert verify("The answer is Monday. I checked that the answer is correct.", "Monday")
    assert not verify("The answer is Monday. Sorry, the answer is Tuesday.", "Monday")


@pytest.mark.parametrize("template", TEMPLATES)
def test_more_places(template):
    for answer, gold in (("18", "18"), ("-7", "-7"), ("18 apples", "18"), ("$1,234", "$1234"), ("\\frac{3}{4}", "0.75"),
                         ("C", "C"), ("9 * 2 = 18", "18"), ("18, because 20 - 2 = 18", "18")):
        assert verify(template.format(answer), gold), answer
        assert not verify(template.format(answer), "20")
    assert not verify(template.format("18 or 20"), "18") and not verify(template.format(""), "18")


@pytest.mark.parametrize("template", NO_TEMPLATES)
def test_no_places(template):
    assert not verify(template.format("18"), "18")


@pytest.mark.parametrize("dress", DRESSES)
def test_formatting_changes_nothing(dress):
    for place in ("#### {}", "Answer: {}") + ("Answer: ${}$", "\\boxed{{{}}}") * ("|" not in dress):
        assert verify(place.format(dress % "18"), "18") and not verify(place.format(dress % "20"), "18")


@pytest.mark.parametrize("end", ENDS)
def test_an_end_mark_changes_nothing(end):
    for place in ("#### {}", "Answer: {}", "The answer is {}."):
        for answer in ("18", "Monday", "5 km"):
            assert verify(place.format(answer) + end, answer) and not verify(place.format(answer) + end, "20")


def test_fuzz_of_the_rules():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(PIECES_OF_RULES, k=rng.randrange(1, 25)))
        answer = extract_answer(text)
        assert answer is None or answer.strip()
        for gold in ("18", "20 km", "x", "1/2"):
            assert verify(text, gold) in (True, False) and is_equivalent(text, gold) is is_equivalent(gold, text)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_quick_and_never_right(text):
    gold = "123456789"
    calls = (extract_answer, lambda text: extract_answer(text, lenient=True), lambda text: verify(text, gold),
             lambda text: verify(gold, text), lambda text: is_equivalent(gold, text),
             lambda text: math_reward(text, gold, format_bonus=0.5))
    for response in (text, "The answer is " + text, "\\boxed{" + text[:990] + "}"):
        for call in calls:
            start = time.thread_time()  # of this thread alone, whatever else the machine does
            result = call(response)
            assert time.thread_time() - start < 1.0  # 0.04 s was measured: the bound has only to tell that from a hang
            assert result is None or isinstance(result, str) or result in (False, 0.0, 0.5)


PIECES = r"""#### \boxed{ } { ( ) [ , 1 18 - . / % $ \frac \ or answer Answer: A: = </think> e9 ^ 10 ** ½ ² x million
    \text{ 🎉 ⦃ ⦄ << >> | \{ \} \sqrt ≈ ٣ & #""".split() + [" ", "\n", "\ud800", "\0", "answer is ", "#### ", " or "]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
       st.sampled_from(["18", "-3", "\\frac{1}{2}", "(1, 2)", "Monday", "", "x=5", "50%", "A"]))
def test_any_text(text, gold):
    answer = extract_answer(text)
    assert answer is None or isinstance(answer, str) and answer.strip()
    for lenient in (False, True):
        assert isinstance(verify(text, gold, lenient=lenient), bool)
    assert is_equivalent(text, gold) is is_equivalent(gold, text)
    assert math_reward(text, gold) == float(verify(text, gold))


@settings(max_examples=100, deadline=None, derandomize=True)
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


def test_forms_of_the_gold():
    whole = "He has 2 * 9 = <<2*9=18>>18 apples.\n#### 18"
    for gold in ("18", "#### 18", whole, "\\boxed{18}", "$18$", "$\\boxed{18}$", " 18\n", 18):
        assert verify("#### 18", gold) is True
        assert verify("#### 19", gold) is False
    assert verify("#### 18", "A: " + whole) and not verify("#### 19", "A. " + whole)
    for gold in ("", " ", "#### ", "\\boxed{}", None):
        for response in ("#### ", "\\boxed{}", "####", "", "#### 18"):
            assert verify(response, gold) is False


def test_a_list_is_right_only_against_the_same_list():
    assert verify("\\boxed{1, 2}", "1, 2")
    assert verify("#### x = 1 or x = 2", "x=1 or x=2")
    for gold in ("1", "2", "2, 1", "1, 2, 3", "(1, 2)"):
        assert not verify("\\boxed{1, 2}", gold)
    assert extract_answer("\\boxed{1, 2}") is None


def test_lenient_takes_the_last_number_and_is_never_the_reward():
    assert verify("He has 5 and then 18 apples.", "18", lenient=True)
    assert extract_answer("first 5, then -1,234.50 dollars", lenient=True) == "-1,234.50"
    assert extract_answer("18 </think> no number", lenient=True) is None
    assert extract_answer("#### 18 or 20", lenient=True) is None  # there is a marker
    assert extract_answer("#### 18\nthen 20", lenient=True) == "18"
    assert verify("He has 5 and then 18 apples.", "18") is False
    assert math_reward("He has 5 and then 18 apples.", "18") == 0.0


@pytest.mark.parametrize("bonus", [0.0, 0.1, 0.5, 0.99, 0])
def test_a_right_answer_beats_every_wrong_one(bonus):
    right, formed, unformed = ([math_reward(text, "18", format_bonus=bonus) for text in texts] for texts in (
        ("#### 18", "\\boxed{18}", "The answer is 18 apples", "A: $18.00"),
        ("#### 19", "\\boxed{-18}", "The answer is Monday."),
        ("18", "", "#### 18 or 20", "\\boxed{18", None)))
    assert set(right) == {1.0} and set(formed) == {float(bonus)} and set(unformed) == {0.0}
    assert min(right) > max(formed + unformed)
    assert all(type(reward) is float for reward in right + formed + unformed)


@pytest.mark.parametrize("bonus", [1, 1.0, 2, -0.1, float("nan"), float("inf"), "0.1", None])
def test_a_bonus_as_large_as_being_right_is_refused(bonus):
    with pytest.raises(ValueError, match="format_bonus"):
        math_reward("#### 18", "18", format_bonus=bonus)


def test_threads():
    failures = []

    def work():
        for response, gold, verdict in list(PLACES.values()) * 3:
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
        pytest.skip(f"no GSM8K file {name}.jsonl in the folder shared/data/gsm8k beside the project")
    solutions = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    golds = [solution.split("#### ")[1].strip() for solution in solutions]
    values = [int(gold.replace(",", "")) for gold in golds]  # every gold of this data set is a whole number
    assert len(solutions) == size
    for i, (solution, gold, value) in enumerate(zip(solutions, golds, values)):
        other = next(j % size for j in range(i + 1, i + size) if values[j % size] != value)
        assert verify(solution, gold) and verify(f"\\boxed{{{value}}}", solution)
        assert not verify(solution, golds[other]) and not verify(solution, str(value + 1))
