r"""Grade-school word problems in GSM8K's format, made from 48 hand-written situations.

    python tiny/problems.py            prints one problem of each situation, with the teacher's usual mistake

A situation is a question, its steps, the ranges of its numbers, and the mistake that the unreliable teacher of
`tiny/make.py` makes in it. In a step, `[b*c]` is a calculation: it is written out as GSM8K does,
`3*4=<<3*4=12>>12`, and its results are called x, y, z, w from the first step to the last.

    question   {n} has {a} {t} and buys {b} bags with {c} {t} in each. How many {t} does {n} have now?
    steps      The bags hold [b*c] {t}.   /   {n} has [a+x] {t}.
    ranges     a 10-60  b 2-9  c 2-12
    mistake    1+      in step 1 the operation becomes + (the bags hold 3+4=7 apples)
               early   the last step is left out

Every answer is an exact positive whole number, on the mistaken path too, and the two final answers differ.

No number tuple of a situation is in both splits: a hash of (situation, numbers) decides which split the tuple
belongs to, so a test problem is never a training problem with other names.
"""

import hashlib
import random
import re

NAMES = """Ava Ben Carla David Elena Farid Grace Hugo Ines Jamal Kofi Lena Maya Noah Olga Pedro Quinn Rosa Samir Tara
Umar Vera Wendy Yusuf Zoe Anya Bruno Chloe Diego Emma Felix Gita Hana Ivan Julia Kenji Lucia Milan Nora Oscar""".split()

THINGS = """apples pears plums shells stamps coins cards marbles stickers beads buttons pencils books stones ribbons
badges nuts figs eggs cakes muffins toys balloons flowers candles bottles pins crayons magnets tickets""".split()

# question | steps, one a line | ranges | mistake
SITUATIONS = [
    block.strip().split("\n")
    for block in """
{n} has {a} {t} and buys {b} bags with {c} {t} in each. How many {t} does {n} have now?
The bags hold [b*c] {t}.
{n} has [a+x] {t}.
a 10-60 b 2-9 c 3-12
1+

{n} has {a} {t} and gives {b} {t} to each of {c} friends. How many {t} are left?
{n} gives away [b*c] {t}.
There are [a-x] {t} left.
a 40-99 b 2-9 c 2-9
2+

A box holds {a} {t}. {n} fills {b} boxes and then sells {c} {t}. How many {t} remain?
The boxes hold [a*b] {t}.
There remain [x-c] {t}.
a 4-12 b 3-9 c 2-20
early

{n} collects {a} {t} in the morning and {b} in the evening, and packs them in bags of {c}. How many bags are filled?
{n} collects [a+b] {t}.
They fill [x/c] bags.
a 8-40 b 8-40 c 2-9
early

{n} reads {a} pages a day for {b} days. The book has {c} pages. How many pages are left to read?
{n} reads [a*b] pages.
There are [c-x] pages left.
a 4-12 b 3-9 c 50-90
1+

A ticket costs ${a} and a drink costs ${b}. {n} buys {c} tickets and one drink. How much does {n} pay?
The tickets cost [a*c] dollars.
{n} pays [x+b] dollars.
a 4-12 b 2-9 c 2-9
2-

{n} saves ${a} a week for {b} weeks and wants a bike for ${c}. How much more money is needed?
{n} saves [a*b] dollars.
{n} needs [c-x] dollars more.
a 2-9 b 3-9 c 40-75
2+

{n} bakes {a} trays of {b} {t} and eats {c} of them. The rest is shared by {d} guests. How many {t} does each guest get?
{n} bakes [a*b] {t}.
There remain [x-c] {t}.
Each guest gets [y/d] {t}.
a 3-9 b 4-12 c 2-12 d 2-9
early

{n} has {a} {t}. {m} has {b} times as many. How many {t} do they have together?
{m} has [a*b] {t}.
Together they have [a+x] {t}.
a 2-19 b 2-12
early

{m} has {a} {t}. {n} has {b} fewer. How many {t} do they have together?
{n} has [a-b] {t}.
Together they have [a+x] {t}.
a 30-80 b 5-25
1+

{m} has {a} {t}. {n} has {b} more. How many {t} do they have together?
{n} has [a+b] {t}.
Together they have [a+x] {t}.
a 12-70 b 3-30
early

A farmer picks {a} rows of {b} pumpkins. {c} are rotten, the others sell for ${d} each, and seeds cost ${e}. How much does the farmer gain?
The farmer picks [a*b] pumpkins.
There are [x-c] good ones.
They sell for [y*d] dollars.
The farmer gains [z-e] dollars.
a 2-6 b 3-6 c 4-20 d 2-6 e 3-20
3+

{n} runs {a} km every weekday and {b} km on Saturday. {m} runs {d} km a week. How many km more does {n} run in {c} weeks than {m} in one?
On weekdays {n} runs [a*5] km.
In a week {n} runs [x+b] km.
In {c} weeks {n} runs [y*c] km.
{n} runs [z-d] km more.
a 2-6 b 3-9 c 2-4 d 4-25
early

A bus carries {a} people. At a stop {b} get off and {c} get on. How many people are on the bus now?
There are [a-b] people after {b} get off.
There are [x+c] people now.
a 30-80 b 5-25 c 3-28
early

A hall has {a} rows of {b} seats. {c} people sit down. How many seats are empty?
The hall has [a*b] seats.
There are [x-c] empty seats.
a 5-9 b 6-12 c 8-28
2+

{n} earns ${a} an hour and works {b} hours. Then {n} spends ${c} on food. How much money is left?
{n} earns [a*b] dollars.
There are [x-c] dollars left.
a 6-12 b 3-9 c 4-17
1+

{n} buys {a} {t} for ${b} each and pays with ${c}. How much change does {n} get?
The {t} cost [a*b] dollars.
The change is [c-x] dollars.
a 3-9 b 2-12 c 40-75
2+

{n} cuts a rope of {a} m into {b} equal parts and sews {c} parts together. How long is the sewn rope?
Each part is [a/b] m long.
The sewn rope is [x*c] m long.
a 12-96 b 3-9 c 2-8
early

{a} {t} are shared by {b} children. {n}, one of them, already had {c}. How many {t} does {n} have now?
Each child gets [a/b] {t}.
{n} has [x+c] {t}.
a 12-96 b 3-9 c 12-40
1-

{n} plants {a} trees a day for {b} days, but {c} trees die. Then {n} plants {d} more. How many trees are there?
{n} plants [a*b] trees.
There remain [x-c] trees.
There are [y+d] trees.
a 3-9 b 3-9 c 2-9 d 5-30
2+

A shop has {a} {t}. It sells {b} on Monday and {c} on Tuesday. How many {t} does it still have?
It sells [b+c] {t}.
It still has [a-x] {t}.
a 40-75 b 4-25 c 4-25
2+

A tank holds {a} litres. {n} uses {b} litres a day for {c} days and then adds {d} litres. How many litres are in it?
{n} uses [b*c] litres.
There remain [a-x] litres.
Then there are [y+d] litres.
a 40-80 b 3-9 c 3-9 d 5-40
early

{n} draws {a} pictures with {b} {t} in each, and {m} draws {c} {t}. How many {t} do they draw in all?
{n} draws [a*b] {t}.
In all they draw [x+c] {t}.
a 3-9 b 3-12 c 5-40
1+

A class of {a} children forms teams of {b}. Each team needs {c} balls. How many balls are needed?
There are [a/b] teams.
They need [x*c] balls.
a 12-72 b 3-9 c 2-9
2+

{n} picks {a} {t} and {m} picks {b}. They eat {c} and put the rest into jars of {d}. How many jars do they fill?
They pick [a+b] {t}.
There remain [x-c] {t}.
They fill [y/d] jars.
a 10-40 b 10-40 c 2-12 d 2-9
early

A train has {a} cars with {b} seats each, and {c} people stand. All seats are taken. How many people are on the train?
The seats hold [a*b] people.
There are [x+c] people.
a 4-9 b 6-12 c 8-40
early

{n} has ${a}. A shirt costs ${b} and a hat costs ${c}. How much money is left after buying both?
Both cost [b+c] dollars.
There are [a-x] dollars left.
a 40-90 b 8-30 c 5-25
1-

{n} walks {a} km to school and the same way back, on {b} days. {m} walks {c} km in all. How many km do they walk together?
Each day {n} walks [a*2] km.
{n} walks [x*b] km.
Together they walk [y+c] km.
a 2-6 b 2-9 c 5-40
early

A baker makes {a} loaves and sells {b} boxes of {c} loaves. How many loaves are left?
The baker sells [b*c] loaves.
There are [a-x] loaves left.
a 50-90 b 3-9 c 4-12
1+

{n} stacks {a} {t} in each of {b} piles and has {c} left over. {m} adds {d}, and they share all equally. How many {t} does each get?
The piles hold [a*b] {t}.
{n} has [x+c] {t}.
There are [y+d] {t}.
Each gets [z/2] {t}.
a 3-9 b 3-9 c 2-9 d 10-40
early

A cook uses {a} eggs for each cake. From {b} eggs the cook makes cakes and sells each for ${c}. How much does the cook get?
The cook makes [b/a] cakes.
The cook gets [x*c] dollars.
a 2-9 b 12-72 c 3-12
2+

{n} buys {a} packs of {b} pens and {c} packs of {d} pencils. How many pens and pencils does {n} buy?
There are [a*b] pens.
There are [c*d] pencils.
In all there are [x+y].
a 2-9 b 3-9 c 2-9 d 3-9
3-

{n} buys {a} chairs for ${b} each and {c} lamps for ${d} each. How much does {n} pay in all?
The chairs cost [a*b] dollars.
The lamps cost [c*d] dollars.
In all {n} pays [x+y] dollars.
a 2-9 b 4-12 c 2-9 d 3-9
early

A field gives {a} sacks of {b} kg. {n} keeps {c} kg and sells the rest at ${d} a kg. How much money does {n} get?
The field gives [a*b] kg.
{n} sells [x-c] kg.
{n} gets [y*d] dollars.
a 2-6 b 4-8 c 3-12 d 2-5
2+

{n} scores {a} points in each of {b} games, and {m} scores {c} points in all. By how many points does {n} lead?
{n} scores [a*b] points.
{n} leads by [x-c] points.
a 6-12 b 4-9 c 5-23
2+

A pool is {a} m long. {n} swims {b} lengths today and {c} lengths tomorrow. How many m does {n} swim?
{n} swims [b+c] lengths.
That is [x*a] m.
a 5-12 b 2-6 c 2-6
2+

A library has {a} shelves of {b} books. It lends {c} books and gets {d} back. How many books are on the shelves?
It has [a*b] books.
There remain [x-c] books.
There are [y+d] books.
a 4-9 b 6-12 c 8-20 d 2-7
early

{n} has {a} {t}, loses {b}, and then doubles what is left. How many {t} does {n} have?
There remain [a-b] {t}.
{n} has [x*2] {t}.
a 20-60 b 3-15
early

Half of the {a} {t} belong to {n}, who gives {b} of them to {m}. How many {t} does {n} keep?
{n} owns [a/2] {t}.
{n} keeps [x-b] {t}.
a 24-90 b 2-11
2+

{n} works {a} hours on each of {b} days and {c} hours on Sunday, for ${d} an hour. How much does {n} earn?
On the {b} days {n} works [a*b] hours.
In all {n} works [x+c] hours.
{n} earns [y*d] dollars.
a 2-6 b 2-5 c 2-6 d 3-6
3+

A zoo has {a} monkeys and {b} times as many birds. {c} birds fly away. How many animals are left?
There are [a*b] birds.
There remain [x-c] birds.
In all there are [a+y] animals.
a 4-12 b 3-9 c 2-9
early

{n} fills {a} vases with {b} roses each, from a bunch of {c} roses. {m} takes {d} of the others. How many roses are left?
The vases hold [a*b] roses.
There are [c-x] other roses.
There are [y-d] roses left.
a 3-9 b 3-9 c 50-80 d 3-19
3+

A garden is {a} m long and {b} m wide. {n} puts a fence around it. How many m of fence are needed?
Length and width are [a+b] m.
The fence is [x*2] m long.
a 10-60 b 4-35
early

{n} has {a} {t}, and {m} has {b}. They put them together and share them equally. How many does each get?
Together they have [a+b] {t}.
Each gets [x/2] {t}.
a 10-60 b 10-60
early

A phone costs ${a}. {n} pays ${b} now and the rest in {c} equal payments. How much is each payment?
The rest is [a-b] dollars.
Each payment is [x/c] dollars.
a 30-70 b 5-29 c 2-9
1+

{n} makes {a} chains of {b} {t}, and {m} makes {c} chains of {d}. How many more {t} does {n} use?
{n} uses [a*b] {t}.
{m} uses [c*d] {t}.
{n} uses [x-y] {t} more.
a 6-9 b 7-12 c 2-5 d 3-7
3+

{n} buys {a} kg of rice at ${b} a kg and a pan for ${c}, and pays with ${d}. How much change does {n} get?
The rice costs [a*b] dollars.
Both cost [x+c] dollars.
The change is [d-y] dollars.
a 2-9 b 2-9 c 5-20 d 40-90
early

A team of {a} workers lays {b} tiles each in an hour. They work {c} hours, and {d} tiles break. How many tiles are good?
In an hour they lay [a*b] tiles.
They lay [x*c] tiles.
There are [y-d] good tiles.
a 2-6 b 3-6 c 2-5 d 3-11
2+
""".strip().split("\n\n")
]

# Numbers stay below 100, as a one-million-parameter model has to learn its arithmetic in minutes.
LARGEST = 99


def compute(left, operation, right):
    r"""The exact value of one calculation, or None where it is not a whole number from 1 to LARGEST."""
    if operation == "/":
        value = left // right if left % right == 0 else 0
    else:
        value = {"+": left + right, "-": left - right, "*": left * right}[operation]
    return value if 1 <= value <= LARGEST else None


def solve(steps, numbers, mistake=None):
    r"""Works the steps through: returns (lines, answer), with GSM8K's `<<...>>` annotations, or None if not exact.

    `mistake` is None for the right solution, "early" to leave out the last step, "2+" to make step 2 an addition.
    """
    values, lines = dict(numbers), []
    if mistake == "early":
        steps, mistake = steps[:-1], None
    for i, (step, result_name) in enumerate(zip(steps, "xyzw"), start=1):
        left, operation, right = re.search(r"\[(\w+)(.)(\w+)\]", step).groups()
        if mistake and mistake[0] == str(i):
            operation = mistake[1]
        left, right = (values[v] if v in values else int(v) for v in (left, right))
        result = compute(left, operation, right)
        if result is None:
            return None
        values[result_name] = result
        calculation = f"{left}{operation}{right}"
        lines.append(re.sub(r"\[.*\]", f"{calculation}=<<{calculation}={result}>>{result}", step))
    return lines, result


def split_of(situation, numbers):
    r"""'test' for one number tuple in five of each situation, else 'train': a fixed hash, so no tuple is in both."""
    digest = hashlib.sha256(repr((situation, sorted(numbers.items()))).encode()).digest()
    return "test" if digest[0] < 256 // 5 else "train"


def make_problem(situation, rng, split):
    r"""One problem of the situation as a dict: question, answer (GSM8K's format) and mistaken (the teacher's answer).

    Draws numbers until both paths are exact, the answers differ, and the tuple belongs to `split`.
    """
    question, *steps, ranges, mistake = SITUATIONS[situation]
    names, spans = ranges.split()[::2], ranges.split()[1::2]
    while True:
        numbers = {v: rng.randint(*map(int, span.split("-"))) for v, span in zip(names, spans)}
        right, wrong = solve(steps, numbers), solve(steps, numbers, mistake)
        if right and wrong and right[1] != wrong[1] and split_of(situation, numbers) == split:
            break
    n, m = rng.sample(NAMES, 2)
    words = dict(numbers, n=n, m=m, t=rng.choice(THINGS))
    right, wrong = ("\n".join(lines + [f"#### {answer}"]).format(**words) for lines, answer in (right, wrong))
    return {"question": question.format(**words), "answer": right, "mistaken": wrong}


def make_split(split, per_situation, seed):
    r"""`per_situation` problems of each situation, no question twice, in random order: a list of dicts."""
    rng = random.Random(f"{seed} {split}")
    problems = {}
    for situation in range(len(SITUATIONS)):
        wanted = len(problems) + per_situation
        while len(problems) < wanted:
            problem = make_problem(situation, rng, split)
            problems[problem["question"]] = problem
    problems = list(problems.values())
    rng.shuffle(problems)
    return problems


if __name__ == "__main__":
    rng = random.Random(0)
    for situation in range(len(SITUATIONS)):
        problem = make_problem(situation, rng, "train")
        mistaken = problem["mistaken"].replace("\n", " / ")
        print(f"--- {situation}\n{problem['question']}\n{problem['answer']}\n  mistaken: {mistaken}")
