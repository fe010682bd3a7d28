r"""Mistakes that the graders were not written from: {exercise: [(what a true message says, a pattern; the answer)]}.

They only test the graders; an entry that a grader was changed for belongs in wrong_answers.py. The pattern is what a
person found true in the message. `log_probs` is p, `old_log_probs` o, `advantages` a, `ref_log_probs` ref.
"""

import re
from fractions import Fraction

import model_answers as model
import torch


def _groups(r, G):
    return r.reshape(-1, G)


def _last_line(response):
    last = response.rstrip().split("\n")[-1]
    return last.split("####")[1].strip() or None if "####" in last else None


def _strict_marker(response):
    found = re.findall(r"#### (\S+)$", response.split("</think>")[-1], re.M)
    return found[-1] if found else None


def _or_first(response):
    said = response.split("</think>")[-1]
    if "####" not in said:
        return None
    return said.split("####")[-1].split("\n")[0].split(" or ")[0].strip() or None


def _no_strip(response):
    said = response.split("</think>")[-1]
    answer = said.rpartition("####")[2].split("\n")[0] if "####" in said else ""
    return answer if answer.strip() and " or " not in answer else None


def _number(text):
    try:
        return Fraction(text.strip().replace("$", "").replace(",", "").rstrip("."))
    except (ValueError, ZeroDivisionError):
        return None


def _numbers_only(answer, gold):
    a, b = _number(answer), _number(gold)
    return a is not None and a == b


def _none_is_none(answer, gold):
    return _number(answer) == _number(gold)


def _keeps_comma(answer, gold):
    a, b = _number(answer.replace(",", "x")), _number(gold.replace(",", "x"))
    return a == b if a is not None and b is not None else answer == gold != ""


def _keeps_dollar(answer, gold):
    a, b = _number(answer.replace("$", "x")), _number(gold.replace("$", "x"))
    return a == b if a is not None and b is not None else answer == gold != ""


def _empty_equal(answer, gold):
    a, b = _number(answer), _number(gold)
    return a == b if a is not None and b is not None else answer == gold


def _as_ints(answer, gold):
    a, b = _number(answer), _number(gold)
    return int(a) == int(b) if a is not None and b is not None else answer == gold != ""


def _length(correct, lengths, G, half=0.5, equal=0.0, flip=False, share=False):
    n = lengths.double().reshape(-1, G)
    low, high = n.amin(1, keepdim=True), n.amax(1, keepdim=True)
    lam = half - (n - low) / ((high if share else high - low).clamp(min=1))
    lam = torch.where(high > low, lam, equal).reshape(-1)
    right = ~correct.bool() if flip else correct.bool()
    return torch.where(right, lam, lam.clamp(max=0))


def _lp(logits, sequences, mask, temperature, keep=True):
    T = mask.shape[1]
    lp = (logits[:, -T - 1:-1] / temperature).log_softmax(-1).gather(2, sequences[:, -T:, None])[..., 0]
    return torch.where(mask, lp, 0.0) if keep else lp


def _kl_sum(kl, p, ref, mass=True):
    a, b = (ref, p) if kl.endswith("fkl") else (p, ref)
    return (a.exp() * (a - b)).sum() + ((b.exp() - a.exp()).sum() if kl[0] == "u" and mass else 0)


def _s(p, o, mask):
    return torch.where(mask, p - o.detach(), 0.0).sum(1)


def _bisect(old, rewards, tau, stop, centre=True, iterations=100):
    r"""rho and lam of log rho + lam rho = A/tau by bisection; stop(pi, rho) > 0 asks for a larger lam."""
    a = (rewards - (old * rewards).sum() * centre).double() / tau
    low, high = torch.zeros((), dtype=torch.float64), torch.tensor(1e3, dtype=torch.float64)
    for _ in range(iterations):
        lam = (low + high) / 2
        bottom, top = torch.full_like(a, -2e3), torch.full_like(a, 2e3)
        for _ in range(100):
            s = (bottom + top) / 2
            small = s + lam * s.exp() < a
            bottom, top = torch.where(small, s, bottom), torch.where(small, top, s)
        low, high = (lam, high) if stop(old * s.exp(), s.exp()) > 0 else (low, lam)
    return old * s.exp(), lam


def _rpg(formula):
    def answer(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
        ref = old_log_probs if ref_log_probs is None else ref_log_probs
        p, o, ref = log_probs.double(), old_log_probs.detach().double(), ref.detach().double()
        return formula(p, (p - o).exp(), p - ref, (ref - o).exp(), advantages.detach(), beta)
    return answer


def _gspo(p, o, a, mask, low, high, power=1.0, which=None):
    log_w = torch.where(mask, p - o.detach(), 0.0)
    s = (power * log_w.sum(1) / mask.sum(1)).exp()
    clipped = s.clamp(1 - low, 1 + high)
    return -torch.maximum(s * a, clipped * a) if which == "max" else -(clipped * a) if which == "both" else \
        -torch.minimum(s * a, clipped * a)


UNSEEN = {
    "extract_answer": [
        ("ends with its line|end of the line|last line", _last_line),
        ("[Ss]paces|nothing|####   18", _strict_marker),
        ("two answers|hedge| or ", _or_first),
        ("[Ss]paces", _no_strip),
        ("no answer|None|empty",
         lambda response: response.split("</think>")[-1].split("####")[-1].split("\n")[0].strip()),
    ],
    "is_equivalent": [
        ("same text|Paris", _numbers_only),
        ("without a number|[Tt]wo texts|no number", _none_is_none),
        ("comma", _keeps_comma),
        ("currency|\\$", _keeps_dollar),
        ("empty", _empty_equal),
        ("1.8|decimal|exact|0.333|rounded|integer", _as_ints),
    ],
    "math_reward": [
        ("right|bonus", lambda response, gold, format_bonus=0.0: __import__("wrong_answers")._reward(
            response, gold, format_bonus) * (1 - format_bonus)),
        ("negative|bonus outside|refused", lambda response, gold, format_bonus=0.0: __import__(
            "wrong_answers")._reward(response, gold, max(format_bonus, 0.0))),
        ("bool|int|True|type", lambda response, gold, format_bonus=0.0: __import__("wrong_answers")._reward(
            response, gold, format_bonus) == 1),
    ],
    "length_reward": [
        ("wrong.*right|correct.*swapped|upside|right and wrong", lambda c, n, G: _length(c, n, G, flip=True)),
        ("divided by|max - min|longest", lambda c, n, G: _length(c, n, G, share=True)),
        ("0\\.5|constant|same amount", lambda c, n, G: _length(c, n, G, half=1.0)),
        ("shape", lambda c, n, G: _length(c, n, G).reshape(-1, G)),
    ],
    "pad_left": [
        ("wrong order", lambda rows, pad: __import__("wrong_answers")._padded(rows, pad)[::-1]),
        ("mask|upside|1 at real", lambda rows, pad: (lambda x: (x[0], 1 - x[1]))(
            __import__("wrong_answers")._padded(rows, pad))),
        ("zero|pad token|pads with", lambda rows, pad: __import__("wrong_answers")._padded(rows, 0)),
        ("bool|dtype", lambda rows, pad: (lambda x: (x[0], x[1].bool()))(__import__("wrong_answers")._padded(rows,
            pad))),
    ],
    "positions": [
        ("cumsum|rows|axis|dim", lambda m: (m.cumsum(0) - 1).clamp(min=0)),
        ("padding", lambda m: (m.cumsum(1) - 1) * m + (1 - m)),
        ("float|dtype", lambda m: (m.cumsum(1) - 1).clamp(min=0).float()),
    ],
    "response_mask": [
        ("dtype|bool", lambda t, eos: (lambda e: (e.cumsum(1) - e == 0).float())(
            torch.isin(t, torch.tensor(eos)).long())),
        ("axis|column|other rows|dim", lambda t, eos: (lambda e: e.cumsum(0) - e == 0)(
            torch.isin(t, torch.tensor(eos)).long())),
        ("upside|inverted|opposite|not the response", lambda t, eos: ~(lambda e: e.cumsum(1) - e == 0)(
            torch.isin(t, torch.tensor(eos)).long())),
    ],
    "response_log_probs": [
        ("sign", lambda z, s, m, tau: -_lp(z, s, m, tau)),
        ("prompt|response|first", lambda z, s, m, tau: torch.where(m, (z[:, :m.shape[1]] / tau).log_softmax(-1).gather(
            2, s[:, 1:1 + m.shape[1], None])[..., 0], 0.0)),
        ("axis|dim|vocabulary", lambda z, s, m, tau: torch.where(m, (z[:, -m.shape[1] - 1:-1] / tau).log_softmax(
            1).gather(2, s[:, -m.shape[1]:, None])[..., 0], 0.0)),
    ],
    "inverse_cdf": [
        ("last|past the end|beyond|upside|1 - u|reverse", lambda lp, u: (lp.exp().cumsum(-1) <= 1 - u[:,
            None]).sum(-1)),
        ("exp|cumul", lambda lp, u: (lp.exp() <= u[:, None]).sum(-1)),
        ("shape", lambda lp, u: (lp.exp().cumsum(-1) <= u[:, None]).sum(-1, keepdim=True)),
    ],
    "reinforce_loss": [
        ("mean|one loss|shape", lambda p, a: (-a.reshape(-1, *[1] * (p.dim() - 1)).detach() * p).mean()),
        ("factor|T|length|1/3|0.333", lambda p, a: -a.reshape(-1, *[1] * (p.dim() - 1)).detach() * p / (
            p.shape[1] if p.dim() > 1 else 1)),
        ("missing|A |advantages|1 everywhere", lambda p, a: -p),
    ],
    "group_mean_advantages": [
        ("min|lowest", lambda r, G: (_groups(r, G) - _groups(r, G).amin(1, keepdim=True)).reshape(-1)),
        ("shape", lambda r, G: _groups(r, G) - _groups(r, G).mean(1, keepdim=True)),
    ],
    "leave_one_out_advantages": [
        ("twice|one's own|own reward|factor", lambda r, G: (lambda x: (x - (x.sum(1, keepdim=True) - 2 * x) / (
            G - 1)).reshape(-1))(_groups(r, G))),
        ("sign", lambda r, G: (lambda x: ((x.sum(1, keepdim=True) - x) / (G - 1) - x).reshape(-1))(_groups(r, G))),
        ("the largest of its group", lambda r, G: (lambda x: (x - x.amax(1, keepdim=True)).reshape(-1))(_groups(r, G))),
        ("the mean of its group has the factor 0", lambda r, G: r * 1.0),
    ],
    "grpo_advantages": [
        ("mean", lambda r, G: (lambda x: torch.where(x.amax(1, keepdim=True) > x.amin(1, keepdim=True), x / x.std(
            1, keepdim=True, correction=min(1, G - 1)), 0.0).reshape(-1))(_groups(r, G))),
        ("other rows", lambda r, G: torch.where(r.max() > r.min(), (r - r.mean()) / r.std(), 0.0) if len(r) > 2 or G > 1
            else torch.zeros(len(r))),
        ("range|spread|max - min|standard deviation", lambda r, G: (lambda x: ((x - x.mean(1, keepdim=True)) / (
            x.amax(1, keepdim=True) - x.amin(1, keepdim=True)).clamp(min=1e-12) * (x.amax(1, keepdim=True) > x.amin(
                1, keepdim=True))).reshape(-1))(_groups(r, G))),
    ],
    "token_mean": [
        ("responses|N|rows|number of responses", lambda x, m, n=None: torch.where(m, x, 0.0).sum() / len(m)),
        ("divided|sum", lambda x, m, n=None: torch.where(m, x, 0.0).sum()),
        ("shape", lambda x, m, n=None: torch.where(m, x, 0.0).sum(1) / (m.sum() if n is None else n)),
        ("num_tokens|twice|factor", lambda x, m, n=None: torch.where(m, x, 0.0).sum() / (m.sum() + (n or 0))),
    ],
    "dr_grpo_mean": [
        ("longest|max_new_tokens|width", lambda x, m, L: torch.where(m, x, 0.0).sum() / (len(m) * m.sum(1).max())),
        ("place of padding", lambda x, m, L: x.nan_to_num(0.0).sum() / (len(m) * L)),
        ("sum|divided|factor", lambda x, m, L: torch.where(m, x, 0.0).sum()),
    ],
    "k2": [
        ("sign of log", lambda p, q: (p - q).abs() / 2),
        ("q/p has the factor -1", lambda p, q: (q - p).expm1() - (q - p)),
    ],
    "k3": [
        ("p/q|upside|ratio", lambda p, q: (p - q).expm1() - (q - p)),
        ("1 has the factor 0", lambda p, q: (q - p).expm1()),
        ("factor|half|0.5|2 everywhere", lambda p, q: ((q - p).expm1() - (q - p)) / 2),
    ],
    "divergence": [
        ("shape|sum", lambda kl, p, ref: (lambda a, b: a.exp() * (a - b) + (b.exp() - a.exp() if kl[0] == "u" else 0))(
            *((ref, p) if kl.endswith("fkl") else (p, ref)))),
        ("1 has the factor 1 and needs 0", lambda kl, p, ref: ((ref - p) if kl.endswith("fkl") else (
            p - ref)).sum() + (0 if kl[0] != "u" else (p.exp() - ref.exp()).sum() * (1 if kl == "ufkl" else -1))),
        ("factor 0.125 and needs 1|1/len", lambda kl, p, ref: _kl_sum(kl, p, ref) / len(p)),
    ],
    "corrected_grpo_penalty": [
        ("k1|mass|1 everywhere|constant|w l|beta|factor", lambda p, o,
         ref: (p - o.detach()).exp() * (p - ref.detach())),
        ("w l\\^2", lambda p, o, ref: (p - o.detach()).exp() * (p - ref.detach()).square() / 2),
        ("gradient|log_probs|detach|k3", lambda p, o, ref: (lambda x: (p - o.detach()).exp() * (x.expm1() - x))(
            ref.detach() - p.detach())),
        ("no use of o", lambda p, o, ref: (p - ref.detach()).exp() * (lambda x: x.expm1() - x)(ref.detach() - p)),
    ],
    "pmd_part_policy": [
        ("log|logarithm", lambda old, r, tau: (old.log() + r / tau).log_softmax(0)),
    ],
    "pmd_part_advantages": [
        ("sign", lambda r, G, tau: (tau * ((_groups(r, G) / tau).logsumexp(1, keepdim=True) - torch.tensor(
            float(G)).log()) - _groups(r, G)).reshape(-1)),
        ("best|max|largest", lambda r, G, tau: (_groups(r, G) - _groups(r, G).amax(1, keepdim=True)).reshape(-1)),
        ("exp|logarithm|log", lambda r, G, tau: (_groups(r, G) - tau * (_groups(r, G) / tau).softmax(1).mean(
            1, keepdim=True)).reshape(-1)),
        ("r has the factor 2|divided by tau", lambda r, G, tau: (_groups(r, G) / tau - (_groups(r, G) / tau).logsumexp(
            1, keepdim=True) + torch.tensor(float(G)).log()).reshape(-1)),
    ],
    "pmd_loss": [
        ("length|\\|o\\||divided", lambda p, o, a, m, tau: (a.detach() - tau * _s(p, o, m)).square() / (
            2 * tau) / m.sum(1)),
        ("tau s has the factor 0", lambda p, o, a, m, tau: -(a.detach() * _s(p, o, m))),
        ("detach|gradient|s ", lambda p, o, a, m, tau: -(a.detach() - tau * _s(p, o, m)).detach() * torch.where(
            m, p, 0.0).sum(1)),
    ],
    "pmd_mean_policy": [
        ("equation of each rho", lambda old, r, tau: _bisect(old, r, 1.0, lambda p, rho: p.sum() - 1)),
        ("equation of each rho", lambda old, r, tau: _bisect(old, -r, tau, lambda p, rho: p.sum() - 1)),
        ("do not sum to one", lambda old, r, tau: _bisect(
            old, r, tau, lambda p, rho: p.sum() - 1, iterations=12)),
    ],
    "rkl_loss": [
        ("beta q|UFKL|FKL|forward", _rpg(lambda p, w, l, q, a, beta: -w * a + beta * (w - q * l - q))),
        ("detach|w A|weight", _rpg(lambda p, w, l, q, a, beta: w.detach() * (-a + beta * l))),
        ("beta w|constant|mass|l \\+ 1", _rpg(lambda p, w, l, q, a, beta: -w * (a - beta * (l + 1)))),
        ("half|k2|square|beta w l", _rpg(lambda p, w, l, q, a, beta: w * (-a + beta * l.square() / 2))),
    ],
    "ufkl_loss": [
        ("constant|gradient.*right|value", _rpg(lambda p, w, l, q, a, beta: -w * a + beta * (w - q * l))),
        ("detach|beta w|mass", _rpg(lambda p, w, l, q, a, beta: -w * a + beta * (w.detach() - q * l - q))),
        ("beta q|weight|q", _rpg(lambda p, w, l, q, a, beta: -w * a + beta * w * (w - q * l - q))),
        ("k3|upside|ratio|1 ", _rpg(lambda p, w, l, q, a, beta: -w * a + beta * (l.exp() - 1 - l))),
    ],
    "urkl_loss": [
        ("weight|w A|importance", _rpg(lambda p, w, l, q, a, beta: -a * p + beta * (w * l - w))),
        ("beta", _rpg(lambda p, w, l, q, a, beta: -w * a + w * l - w)),
        ("k3|unweighted|beta w l|weight", _rpg(lambda p, w, l, q, a, beta: -w * a + beta * ((-l).expm1() + l))),
    ],
    "reinforce_urkl_loss": [
        ("detach|l ", _rpg(lambda p, w, l, q, a, beta: -w.detach() * (a - beta * l) * p)),
        ("detach|w ", _rpg(lambda p, w, l, q, a, beta: -w * (a - beta * l.detach()) * p)),
        ("log|missing|value", _rpg(lambda p, w, l, q, a, beta: -(w * (a - beta * l)).detach() * p.exp())),
        ("value|constant|log", _rpg(lambda p, w, l, q, a, beta: -(w * (a - beta * l)).detach() * l)),
    ],
    "ppo_clip_loss": [
        ("one-sided|lower|eps_low|both sides", lambda p, o, a, lo, hi: (lambda w: -torch.minimum(
            w * a, w.clamp(max=1 + hi) * a))((p - o.detach()).exp())),
        ("wrong only where A > 0 and w below 1 - eps_low", lambda p, o, a, lo, hi: (lambda w: -torch.minimum(
            w * a, w.clamp(-lo, hi) * a))(p - o.detach())),
        ("A > 0 and w inside the clip", lambda p, o, a, lo, hi: (lambda w: -torch.minimum(
            w * a, w.clamp(1 - lo, 1 + lo) * a))((p - o.detach()).exp())),
        ("A|advantage", lambda p, o, a, lo, hi: (lambda w: -torch.minimum(w, w.clamp(1 - lo, 1 + hi)) * a)(
            (p - o.detach()).exp())),
    ],
    "dual_clip_loss": [
        ("w|weight|-c Ahat|maximum", lambda p, o, a, beta, lo, hi, c: (lambda w, h: torch.maximum(torch.maximum(
            -w * h, -w.clamp(1 - lo, 1 + hi) * h), -c * h))((p - o.detach()).exp(), a - beta * (p - o).detach())),
        ("wrong only where Ahat", lambda p, o, a, beta, lo, hi, c: (lambda w, h: torch.where(h >= 0, torch.maximum(
            -w * h, -w.clamp(1 - lo, 1 + hi) * h), torch.minimum(torch.maximum(-w * h, -w.clamp(1 - lo, 1 + hi) * h),
                                                               -c * h)))(
            (p - o.detach()).exp(), a - beta * ((p - o).detach() + 1))),
        ("wrong only where Ahat > 0", lambda p, o, a, beta, lo, hi, c: (lambda w, h: torch.minimum(torch.maximum(
            -w * h, -w.clamp(1 - lo, 1 + hi) * h), -c * h))((p - o.detach()).exp(), a - beta * (p - o).detach())),
    ],
    "gspo_loss": [
        ("clip|min and max|swapped", lambda *x: _gspo(*x, which="max")),
        ("both|clip|sign", lambda *x: _gspo(*x, which="both")),
        ("upside|sign|old", lambda *x: _gspo(*x, power=-1.0)),
        ("clip", lambda p, o, a, m, lo, hi: -(torch.where(m, p - o.detach(), 0.0).sum(1) / m.sum(1)).exp() * a),
    ],
}


def _one_lam(old_probs, rewards, tau):
    a = (rewards - (old_probs * rewards).sum()) / tau
    low, high = torch.full_like(a, -2e3), torch.full_like(a, 2e3)
    for _ in range(80):
        s = (low + high) / 2
        low, high = torch.where(s + s.exp() < a, s, low), torch.where(s + s.exp() < a, high, s)
    return old_probs * s.exp(), torch.ones((), dtype=torch.float64)


def _running_mean(rewards, group_size):
    grouped = _groups(rewards, group_size)
    return (grouped - grouped.cumsum(1) / torch.arange(1, group_size + 1)).reshape(-1)


def _batch_std(rewards, group_size):
    grouped = _groups(rewards, group_size)
    equal = grouped.amax(1, keepdim=True) == grouped.amin(1, keepdim=True)
    return torch.where(equal, 0.0, (grouped - grouped.mean(1, keepdim=True)) / rewards.std()).reshape(-1)


def _part_of_others(rewards, group_size, tau):
    grouped, e = _groups(rewards, group_size), (_groups(rewards, group_size) / tau).exp()
    return (grouped - tau * ((e.sum(1, keepdim=True) - e) / (group_size - 1)).log()).reshape(-1)


def _cut_above_c(p, o, a, beta, low, high, c):
    w, a_hat = (p - o.detach()).exp(), (a - beta * (p - o)).detach()
    return torch.maximum(-w * a_hat, -w.clamp(1 - low, 1 + high) * a_hat) * (w < c)


def _log_clip(p, o, a, mask, low, high):
    g = torch.where(mask, p - o.detach(), 0.0).sum(1) / mask.sum(1)
    return -torch.minimum(g.exp() * a, g.clamp(-low, high).exp() * a)


FRESH = {  # written last: 15 were named before the cases of token_mean and dr_grpo_mean got more responses, then 17
    "length_reward": lambda c, n, G: (lambda lam: torch.where(c.bool(), lam, lam.clamp(min=0)))(_length(
        torch.ones_like(c), n, G)),
    "response_mask": lambda t, eos: torch.isin(t, torch.tensor(eos)).long().cumsum(1).roll(1, 1) == 0,
    "response_log_probs": lambda z, s, mask, tau: _lp(z, s, mask, tau * tau),
    "positions": lambda mask: (mask.cumsum(1) * mask - 1).clamp(min=0).flip(1),
    "reinforce_loss": lambda p, a: -(a - a.mean()).detach().reshape(-1, *[1] * (p.dim() - 1)) * p,
    "group_mean_advantages": _running_mean,
    "leave_one_out_advantages": lambda r, G: (lambda x: ((x - x.mean(1, keepdim=True)) * (G - 1) / G).reshape(-1))(
        _groups(r, G)),
    "grpo_advantages": _batch_std,
    "token_mean": lambda x, m, n=None: torch.where(m, x, 0.0).sum() / (len(m) * m.sum(1).max()),
    "dr_grpo_mean": lambda x, m, L: (torch.where(m, x, 0.0).sum(1) / m.sum(1).clamp(min=1)).mean() / L,
    "k3": lambda p, q: ((q - p).exp() - 1).square() / 2,
    "divergence": lambda kl, p, ref: _kl_sum(kl, p, ref) / 0.6931471805599453,
    "corrected_grpo_penalty": lambda p, o, ref: (p - o.detach()).exp().clamp(max=2) * (lambda x: x.expm1() - x)(
        ref.detach() - p),
    "pmd_part_policy": lambda old, r, tau: (lambda x: x / x.sum())(old * (1 + r / tau)),
    "pmd_part_advantages": _part_of_others,
    "pmd_loss": lambda p, o, a, mask, tau: (a.detach() / mask.sum(1) - tau * _s(p, o, mask)).square() / (2 * tau),
    "pmd_mean_policy": _one_lam,
    "rkl_loss": _rpg(lambda p, w, l, q, a, beta: -w * a + beta * q * l),
    "ufkl_loss": _rpg(lambda p, w, l, q, a, beta: -w * a + beta * (w - q * l - 1)),
    "urkl_loss": _rpg(lambda p, w, l, q, a, beta: -(1 - beta) * w * a + beta * (w * l - w)),
    "reinforce_urkl_loss": _rpg(lambda p, w, l, q, a, beta: -(w * (a - beta * l)).detach() * w.log()),
    "ppo_clip_loss": lambda p, o, a, low, high: -(p - o.detach()).exp() * a.detach().clamp(-high, high),
    "dual_clip_loss": _cut_above_c,
    "gspo_loss": _log_clip,
    "new_loss": lambda p, o, a, tau, lam: (lambda w: -w * a.detach() + tau * w * w.log() + tau * lam * (
        w - 1).square())((p - o.detach()).exp()),
}


# --- a second set, written from the stubs alone: 62 % were named when it was first tried, and 5 of 61 were accepted.
# Where the first message was true in other words than expected, the pattern was changed to match it ---

def _said(response):
    return response.rpartition("</think>")[2]


def _gsm8k_regex(response):
    found = re.findall(r"#### (-?[0-9.,]+)", _said(response))
    return found[-1] if found else None


def _first_think(response):
    said = response.split("</think>", 1)[-1]
    before, marker, rest = said.rpartition("####")
    return rest.split("\n")[0].strip() or None if marker and " or " not in rest.split("\n")[0] else None


def _compares(parse):
    def answer(answer, gold):
        try:
            return parse(answer) == parse(gold)
        except (ValueError, ZeroDivisionError):
            return answer.strip() == gold.strip() != ""
    return answer


def _divides(answer, gold):
    try:
        return Fraction(_clean(answer).rstrip(".")) == Fraction(_clean(gold).rstrip("."))
    except ValueError:
        return answer.strip() == gold.strip() != ""


def _clean(text):
    return text.strip().replace("$", "").replace(",", "")


def _same_text(response, gold, format_bonus=0.0):
    if not 0 <= format_bonus < 1:
        raise ValueError("format_bonus must be in [0, 1)")
    said = model.extract_answer(response)
    return 0.0 if said is None else 1.0 if said == gold else format_bonus


def _late_check(response, gold, format_bonus=0.0):
    said = model.extract_answer(response)
    if said is None:
        return 0.0
    if model.is_equivalent(said, gold):
        return 1.0
    return model.math_reward(response, gold, format_bonus)


def _short(correct, lengths, group_size, transposed=False, sign=1.0):
    n = lengths.float().reshape(group_size, -1).T if transposed else lengths.float().reshape(-1, group_size)
    low, high = n.amin(1, keepdim=True), n.amax(1, keepdim=True)
    lam = torch.where(high > low, sign * (0.5 - (n - low) / (high - low).clamp(min=1)), 0.0)
    lam = (lam.T if transposed else lam).reshape(-1)
    return torch.where(correct.bool(), lam, lam.clamp(max=0))


def _shortest_right(correct, lengths, group_size):
    n, right = lengths.float().reshape(-1, group_size), correct.bool().reshape(-1, group_size)
    low = torch.where(right, n, torch.inf).amin(1, keepdim=True)
    low = torch.where(low.isinf(), n.amin(1, keepdim=True), low)
    high = n.amax(1, keepdim=True)
    lam = torch.where(high > low, 0.5 - (n - low) / (high - low).clamp(min=1), 0.0).reshape(-1)
    return torch.where(correct.bool(), lam, lam.clamp(max=0))


def _padded(rows, pad, extra=0, turn=1, longest=max):
    width = longest(len(row) for row in rows) + extra
    rows = [row[-width:] for row in rows]
    ids = [[pad] * (width - len(row)) + row[::turn] for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def _first_by_argmax(tokens, eos_ids):
    first = torch.isin(tokens, torch.tensor(eos_ids)).int().argmax(1, keepdim=True)
    return torch.arange(tokens.shape[1]) <= first


def _column(a, p):
    return a.detach().reshape(-1, *[1] * (p.dim() - 1))


def _std_of(deviation):
    def answer(rewards, group_size):
        grouped = _groups(rewards, group_size)
        equal = grouped.amax(1, keepdim=True) == grouped.amin(1, keepdim=True)
        d = grouped - grouped.mean(1, keepdim=True)
        return torch.where(equal, 0.0, d / torch.where(equal, 1.0, deviation(d, group_size))).reshape(-1)
    return answer


def _ppo(ratio=lambda p, o: (p - o).exp(), bounds=lambda low, high: (1 - low, 1 + high), sign=-1):
    def answer(p, o, a, eps_low, eps_high):
        w, a = ratio(p, o.detach()), a.detach()
        return sign * torch.minimum(w * a, w.clamp(*bounds(eps_low, eps_high)) * a)
    return answer


def _cut_above_one_plus_c(p, o, a, beta, low, high, c):
    return model.dual_clip_loss(p, o, a, beta, low, high, 1 + c)


def _gspo_by(mean, clip=lambda s, low, high: s.clamp(1 - low, 1 + high)):
    def answer(p, o, a, mask, low, high):
        s = mean(torch.where(mask, p - o.detach(), 0.0), mask)
        return -torch.minimum(s * a.detach(), clip(s, low, high) * a.detach())
    return answer


def _certify(at_old=False, size=lambda x: x.norm()):
    def answer(loss, objective, logits, old_logits):
        x = (old_logits if at_old else logits).clone().requires_grad_()
        old, p = old_logits.log_softmax(0), x.log_softmax(0)
        got = torch.autograd.grad((old.exp() * loss(p, old)).sum(), x, retain_graph=True)[0]
        wanted = torch.autograd.grad(objective(p), x)[0]
        return (size(got + wanted) / size(wanted)).item()
    return answer


def _not_centred(old_probs, rewards, tau):
    return _bisect(old_probs, rewards, tau, lambda probs, rho: probs.sum() - 1, centre=False)


def _new(formula):
    def answer(log_probs, old_log_probs, advantages, tau, lam):
        log_w = log_probs - old_log_probs.detach()
        return formula(log_w.exp(), log_w, advantages.detach(), tau, lam)
    return answer


SECOND = {
    "extract_answer": [
        ("numbers? only|no number|text", _gsm8k_regex),
        ("LAST </think>", _first_think),
        ("comma|changed|as it stands", lambda response: (lambda x: x and x.replace(",", ""))(
            model.extract_answer(response))),
        ("\\bor\\b", lambda response: None if " or " in response else model.extract_answer(response)),
    ],
    "is_equivalent": [
        ("fraction|3/4", _compares(lambda text: float(_clean(text)))),
        ("\\.5|[Ll]eading|decimal point", _compares(lambda text: Fraction(_clean(text).strip(".")))),
        ("zero|ZeroDivision|1/0", _divides),
    ],
    "math_reward": [
        ("same number|equivalent|as text|1,000|18\\.0", _same_text),
        ("bonus outside|refuse|ValueError", _late_check),
    ],
    "length_reward": [
        ("wrong axis", lambda c, n, G: _short(c, n, G, transposed=True)),
        ("lambda where right has the factor -1", lambda c, n, G: _short(c, n, G, sign=-1.0)),
        ("shortest is wrong", _shortest_right),
    ],
    "pad_left": [
        ("wide|column|shape|longest", lambda rows, pad: _padded(rows, pad, extra=1)),
        ("order|revers|backward", lambda rows, pad: _padded(rows, pad, turn=-1)),
        ("shape|shortest|cut", lambda rows, pad: _padded(rows, pad, longest=min)),
    ],
    "positions": [
        ("padding", lambda m: (torch.arange(m.shape[1]) - (1 - m).sum(1, keepdim=True)).clamp(min=0)),
        ("go down", lambda m: (m.flip(1).cumsum(1).flip(1) - 1).clamp(min=0)),
        ("one place too late", lambda m: (m.cumsum(1) - 2).clamp(min=0)),
    ],
    "response_mask": [
        ("without an eos|cut off|no eos", _first_by_argmax),
        ("one|behind", lambda t, eos: (lambda e: e.cumsum(1) - e - e.roll(1, 1) * (torch.arange(t.shape[1]) > 0) <= 0)(
            torch.isin(t, torch.tensor(eos)).long())),
    ],
    "response_log_probs": [
        ("makes no use of s\\b", lambda z, s, m, tau: torch.where(
            m, (z[:, -m.shape[1] - 1:-1] / tau).log_softmax(-1).amax(-1), 0.0)),
    ],
    "inverse_cdf": [
        ("gives 3 everywhere", lambda lp, u: (lp.cumsum(-1) <= u[:, None]).sum(-1)),
    ],
    "reinforce_loss": [
        ("A < 0|negative|positive", lambda p, a: -_column(a.clamp(min=0), p) * p),
        ("only where A < 0", lambda p, a: -_column(a.abs(), p) * p),
    ],
    "group_mean_advantages": [
        ("largest of its group has the factor 0.5", lambda r, G: (lambda x: (x - x.quantile(
            0.5, dim=1, keepdim=True)).reshape(-1))(_groups(r, G))),
        ("sign", lambda r, G: (lambda x: (x.mean(1, keepdim=True) - x).reshape(-1))(_groups(r, G))),
        ("mean .*itself|reward.*factor 0|baseline", lambda r, G: (lambda x: x.mean(1, keepdim=True).expand_as(
            x).reshape(-1))(_groups(r, G))),
    ],
    "leave_one_out_advantages": [
        ("one other|order|next|before|neighbour", lambda r, G: (lambda x: (x - x.roll(1, 1)).reshape(-1))(
            _groups(r, G))),
    ],
    "grpo_advantages": [
        ("divided by", _std_of(lambda d, G: d.abs().mean(1, keepdim=True))),
        ("divided by", _std_of(lambda d, G: 1 + (d.square().sum(1, keepdim=True) / (G - 1)).sqrt())),
    ],
    "token_mean": [
        ("mask|padding|outside", lambda x, m, n=None: torch.where(m, 0.0, x).nansum() / (n or m.sum())),
        ("1/len", lambda x, m, n=None: torch.where(m, x, 0.0).sum() / (m.sum() if n is None else len(m) * n)),
    ],
    "dr_grpo_mean": [
        ("len.*- 1", lambda x, m, L: torch.where(m, x, 0.0).sum() / (max(len(m) - 1, 1) * L)),
    ],
    "k2": [
        ("weight|p everywhere|factor|probabilit", lambda p, q: p.exp() * (p - q).square() / 2),
    ],
    "k3": [
        ("gradient|detach", lambda p, q: (q - p).detach().expm1() - (q - p)),
    ],
    "divergence": [
        ("p has the factor .* needs 0", lambda kl, p, ref: model.divergence(kl, p.log_softmax(0), ref.log_softmax(0))),
        ("mass|ufkl|factor", lambda kl, p, ref: model.divergence(kl, p, ref) if kl != "ufkl" else _kl_sum(
            "fkl", p, ref) + (ref.exp() - p.exp()).sum()),
    ],
    "corrected_grpo_penalty": [
        ("w|log|term", lambda p, o, ref: (p - o.detach()).exp() * (ref.detach() - p).expm1() - (ref.detach() - p)),
    ],
    "pmd_loss": [
        ("tau|factor|scale", lambda p, o, a, m, tau: (a.detach() - tau * _s(p, o, m)).square() / 2),
    ],
    "pmd_mean_policy": [
        ("mean|E_|baseline|centred|A ", _not_centred),
    ],
    "kl_weight": [
        ("beta|KL|q", lambda kl, a, beta, w, l, q: w * a),
        ("fkl|q", lambda kl, a, beta, w, l, q: w * (a + beta * q) if kl == "fkl" else model.kl_weight(
            kl, a, beta, w, l, q)),
        ("rkl|1|beta w", lambda kl, a, beta, w, l, q: w * (a - beta * l) if kl == "rkl" else model.kl_weight(
            kl, a, beta, w, l, q)),
        ("sign|beta", lambda kl, a, beta, w, l, q: 2 * w * a - model.kl_weight(kl, a, beta, w, l, q)),
    ],
    "rkl_loss": [
        ("beta|KL|l", _rpg(lambda p, w, l, q, a, beta: -w * a + beta * (w * l).detach())),
    ],
    "urkl_loss": [
        ("w|mass", _rpg(lambda p, w, l, q, a, beta: -w * a + beta * (w * l - w.detach()))),
    ],
    "ufkl_loss": [
        ("w|mass", _rpg(lambda p, w, l, q, a, beta: -w * a - beta * q * l)),
    ],
    "ppo_clip_loss": [
        ("1|clip|eps", _ppo(bounds=lambda low, high: (-low, high))),
        ("sign", _ppo(sign=1)),
        ("inside the clip .gives -1.5", _ppo(ratio=lambda p, o: 1 + p - o)),
    ],
    "dual_clip_loss": [
        ("c", _cut_above_one_plus_c),
    ],
    "gspo_loss": [
        ("is still and should move", _gspo_by(lambda g, m: g.exp().amax(1))),
        ("eps|clip|below|1", _gspo_by(lambda g, m: (g.sum(1) / m.sum(1)).exp(), lambda s, low, high: s.clamp(
            max=1 + high))),
        ("^A/.o. has the factor 1|, A/.o. has the factor 1", _gspo_by(lambda g, m: 1 + g.sum(1) / m.sum(1))),
    ],
    "certificate": [
        ("square|norm", _certify(size=lambda x: x.square().sum())),
        ("old_logits|point|logits", _certify(at_old=True)),
    ],
    "new_advantages": [
        ("gradient|\\(G-1\\)/G|factor|std", lambda r, G: model.grpo_advantages(r, G)),
        ("factor|twice|2", lambda r, G: 2 * model.new_advantages(r, G)),
    ],
    "new_loss": [
        ("tau", _new(lambda w, log_w, a, tau, lam: -w * a + tau * (w * log_w - w) + tau * lam / 2 * (w - 1).square())),
        ("lam", _new(lambda w, log_w, a, tau, lam: -w * a + tau * w * log_w + lam / 2 * (w - 1).square())),
        ("A|w", _new(lambda w, log_w, a, tau, lam: -a * log_w + tau * w * log_w + tau * lam / 2 * (w - 1).square())),
    ],
}
