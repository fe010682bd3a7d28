r"""Common wrong answers, by exercise: (what is wrong with it, the answer). For graders and teachers; no solutions here.

The graders run these on their own cases to recognise a mistake (see grading.py): it is named where the results are the
same in every case. check_graders.py shows that each is rejected with its own message. An answer that is here was seen
in a trainer or is an obvious slip, and the graders' facts (a sign, a factor, the terms of a gradient, which events) say
less about it than its message.
"""

import re
from fractions import Fraction

import torch


def _grouped(rewards, group_size):
    return rewards.reshape(-1, group_size)


def _k3(x):  # of a log-ratio
    return x.exp() - 1 - x


def _first_marker(response):
    return response.split("####")[1].split("\n")[0].strip() if "####" in response else None


def _last_number(response):
    return (re.findall(r"-?\d+(?:\.\d+)?", response) or [None])[-1]


def _digits_only(response):
    marker = response.rpartition("</think>")[2].rpartition("####")
    found = re.search(r"\d+", marker[2].split("\n")[0]) if marker[1] else None
    return None if found is None or " or " in marker[2] else found[0]


def _marker(response, think=True, empty=None, several=None):
    response = response.rpartition("</think>")[2] if think else response
    _, marker, rest = response.rpartition("####")
    answer = rest.split("\n")[0].strip()
    if not marker:
        return None
    return several if " or " in answer and several != "keep" else answer or empty


def _to_end(response):
    _, marker, rest = response.rpartition("</think>")[2].rpartition("####")
    return rest.strip() or None if marker and " or " not in rest else None


def _as_float(answer, gold, tolerance):
    try:
        a, b = (float(eval(x.replace("$", "").replace(",", ""), {"__builtins__": {}})) for x in (answer, gold))
        return abs(a - b) <= tolerance
    except Exception:
        return answer == gold != ""


def _first_number(answer, gold):
    a, b = (re.match(r"-?[\d,]*\.?\d+(/[1-9]\d*)?", x.strip().lstrip("$")) for x in (answer, gold))
    return Fraction(a[0].replace(",", "")) == Fraction(b[0].replace(",", "")) if a and b else answer == gold != ""


def _strip_to_digits(answer, gold):
    a, b = (re.sub(r"[^\d./]", "", x).rstrip(".") for x in (answer, gold))
    return a == b


def _length_lambda(lengths, group_size):
    length = lengths.double().reshape(-1, group_size)
    low, high = length.amin(1, keepdim=True), length.amax(1, keepdim=True)
    return torch.where(high > low, 0.5 - (length - low) / (high - low).clamp(min=1), 0.0).reshape(-1)


def _length_whole_batch(correct, lengths, group_size):
    lam = _length_lambda(lengths, len(lengths))
    return torch.where(correct.bool(), lam, lam.clamp(max=0))


def _padded(rows, pad, left=True, mask_by_token=False):
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(r)) + r if left else r + [pad] * (longest - len(r)) for r in rows])
    ones = [[0] * (longest - len(r)) + [1] * len(r) if left else [1] * len(r) + [0] * (longest - len(r)) for r in rows]
    return ids, (ids != pad).long() if mask_by_token else torch.tensor(ones)


def _ended(tokens, eos_ids):
    return torch.isin(tokens, torch.tensor(eos_ids)).long()


def _token_log_probs(logits, sequences, mask, shift=1):
    width = mask.shape[1]
    part = logits[:, -width - 1:-1] if shift else logits[:, -width:]
    return part.log_softmax(-1).gather(2, sequences[:, -width:, None]).squeeze(2)


def _drawn(log_probs, uniform, strict=True):
    cumulative = log_probs.exp().cumsum(-1)
    less = cumulative < uniform[:, None] if strict else cumulative <= uniform[:, None]
    return less.sum(-1)


def _standardised(rewards, group_size, epsilon=0.0, correction=1, dim=1):
    grouped = _grouped(rewards, group_size)
    deviation = grouped - grouped.mean(dim, keepdim=True)
    std = (deviation.square().sum(dim, keepdim=True) / torch.tensor(grouped.shape[dim] - correction)).sqrt()
    return (deviation / (std + epsilon)).reshape(-1)


def _zeros_for_equal(rewards, group_size, advantages):
    grouped = _grouped(rewards, group_size)
    equal = (grouped == grouped[:, :1]).all(1).repeat_interleave(group_size)
    return torch.where(equal, 0.0, advantages)


def _masked(x, mask):
    return torch.where(mask, x, 0.0)


def _swapped_kl(kl, log_p, log_ref):
    return _kl(kl, log_ref, log_p)


def _kl(kl, log_p, log_ref, mass=1):
    a, b = (log_ref, log_p) if kl.endswith("fkl") else (log_p, log_ref)  # KL(a || b)
    plain = (a.exp() * (a - b)).sum()
    return plain + mass * (b.exp() - a.exp()).sum() if kl.startswith("u") else plain


def _part(rewards, group_size, tau, mean=True, outside=None):
    r = _grouped(rewards, group_size) / tau
    log_sum = r.logsumexp(1, keepdim=True) - (torch.tensor(float(group_size)).log() if mean else 0.0)
    return (_grouped(rewards, group_size) - (tau if outside is None else outside) * log_sum).reshape(-1)


def _s(log_probs, old_log_probs, mask):
    return _masked(log_probs - old_log_probs.detach(), mask).sum(1)


def _pmd(log_probs, old_log_probs, advantages, mask, tau, sign=1, scale=None, weight=None):
    s = sign * _s(log_probs, old_log_probs, mask) * (1.0 if weight is None else weight)
    return (advantages.detach() - tau * s).square() * (1 / (2 * tau) if scale is None else scale)


def _part_policy(old_probs, rewards, tau):
    return (old_probs.double().log() + rewards.double() / tau).softmax(0)


def _rpg(log_probs, old_log_probs, advantages, beta, ref_log_probs):
    r"""(log_p, w, l, q, A) as the right answer would have them."""
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    log_p, log_old, log_ref = log_probs.double(), old_log_probs.detach().double(), ref.detach().double()
    return log_p, (log_p - log_old).exp(), log_p - log_ref, (log_ref - log_old).exp(), advantages.detach()


def _rpg_wrong(formula):
    r"""formula(log_p, w, l, q, A, beta) with everything else as it should be."""
    def answer(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
        log_p, w, l, q, a = _rpg(log_probs, old_log_probs, advantages, beta, ref_log_probs)
        return formula(log_p, w, l, q, a, beta)
    return answer


def _ignores_reference(formula):
    def answer(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
        log_p, w, l, q, a = _rpg(log_probs, old_log_probs, advantages, beta, None)
        return formula(log_p, w, l, q, a, beta)
    return answer


_RKL = lambda log_p, w, l, q, a, beta: w * (-a + beta * l)  # noqa: E731
_URKL = lambda log_p, w, l, q, a, beta: -w * a + beta * (w * l - w)  # noqa: E731
_UFKL = lambda log_p, w, l, q, a, beta: -w * a + beta * (w - q * l - q)  # noqa: E731
_KILLED = "clamp bounds the log-ratio and kills its gradient: the events that are furthest away stop moving. No clamp."
_REFERENCE = "ref_log_probs is ignored: l and q are those of the sampler. Where a reference is given, use it."


def _ratio(log_probs, old_log_probs):
    return (log_probs - old_log_probs.detach()).exp()


def _dual(log_probs, old_log_probs, advantages, beta, eps_low, eps_high, c, detach=True, dual=True, decide=False,
          swap=False):
    log_w = log_probs - old_log_probs.detach()
    w, a = log_w.exp(), advantages.detach()
    a_hat = a - beta * (log_w.detach() if detach else log_w)
    clipped_w = w.clamp(1 - eps_low, 1 + eps_high)
    clipped = torch.minimum(-w * a_hat, -clipped_w * a_hat) if swap else torch.maximum(-w * a_hat, -clipped_w * a_hat)
    if not dual:
        return clipped
    return torch.where((a if decide else a_hat) >= 0, clipped, torch.minimum(clipped, -c * a_hat))


def _gspo(log_probs, old_log_probs, advantages, mask, eps_low, eps_high, kind):
    log_w = _masked(log_probs - old_log_probs.detach(), mask)
    n = mask.sum(1)
    log_w = -log_w if kind == "inverse" else log_w
    s = {"sum": log_w.sum(1).exp(), "padding": log_w.mean(1).exp(),
         "arithmetic": _masked(log_w.exp(), mask).sum(1) / n, }.get(
             kind, (log_w.sum(1) / n).exp())
    return -(torch.maximum if kind == "swapped" else torch.minimum)(s * advantages, s.clamp(1 - eps_low,
        1 + eps_high) * advantages)


def _bisected(old, rewards, tau, too_small, centre=None):
    r"""pmd_mean_policy by two bisections; too_small(pi_t, rho): lam must rise."""
    a = (rewards - ((old * rewards).sum() if centre is None else centre)).double() / tau
    low, high = torch.zeros((), dtype=torch.float64), a.max()
    for _ in range(60):
        lam, bottom, top = (low + high) / 2, torch.full_like(a, -1.1e3), torch.full_like(a, 1.1e3)
        for _ in range(60):
            s = (bottom + top) / 2
            bottom, top = torch.where(s + lam * s.exp() < a, s, bottom), torch.where(s + lam * s.exp() < a, top, s)
        low, high = (lam, high) if too_small(old, s.exp()) else (low, lam)
    return old * s.exp(), lam


WRONG = {
    # --- ex01 ---
    "extract_answer": [
        ("it takes the FIRST #### and not the last: a model that corrects itself is judged by what it took back.",
         _first_marker),
        ("it takes the last number of the text, marker or not: any text that ends in a number has an answer.",
         _last_number),
        ("it keeps digits only: the minus sign, the decimals and the denominator are lost, and -7 is read as 7.",
         _digits_only),
        ("it gives \"\" where there is nothing behind the marker: that is no answer, so None.",
         lambda response: _marker(response, empty="")),
        ("it goes on after the end of the line: the sentence behind the answer becomes part of it.", _to_end),
    ],
    "is_equivalent": [
        ("it looks for one text inside the other: \"\" is part of everything, and 18 is part of 118.",
         lambda answer, gold: answer in gold or gold in answer),
        ("it compares the texts: 18.00, $18 and 1,000 are numbers.", lambda answer, gold: answer == gold != ""),
        ("it compares with a tolerance: 0.333 is not 1/3. Use exact fractions.",
         lambda answer, gold: _as_float(answer, gold, 1e-3)),
        ("it evaluates the text: 2**3 is not the answer 8, and eval runs whatever a model writes.",
         lambda answer, gold: _as_float(answer, gold, 0.0)),
        ("it reads the number at the beginning and drops the rest: 90 - 40 is a calculation, not 90.", _first_number),
        ("it throws away all that is no digit: -7 becomes 7, and two texts without digits become equal.",
         _strip_to_digits),
    ],
    "math_reward": [
        ("a right answer gets the bonus on top: 1.0 and nothing more.",
         lambda response, gold, format_bonus=0.0: _reward(response, gold, format_bonus, on_top=True)),
        ("every response gets the bonus, also one without a readable answer: that is 0.0.",
         lambda response, gold, format_bonus=0.0: _reward(response, gold, format_bonus, always=True)),
        ("the bonus is left out: a wrong answer that can be read gets format_bonus.",
         lambda response, gold, format_bonus=0.0: _reward(response, gold, 0.0 * _checked(format_bonus))),
    ],
    "length_reward": [
        ("a short WRONG answer is rewarded: where wrong it is min(0, lambda).",
         lambda correct, lengths, group_size: _length_lambda(lengths, group_size)),
        ("wrong answers get 0: long wrong answers are penalised too, with min(0, lambda).",
         lambda correct, lengths, group_size: torch.where(correct.bool(), _length_lambda(lengths, group_size), 0.0)),
        ("min and max are taken over the whole batch: the lengths of another prompt say nothing about this one.",
         _length_whole_batch),
    ],
    # --- ex02 ---
    "pad_left": [
        ("it pads on the right: the last token of a short prompt would be padding, and its response would follow that.",
         lambda rows, pad: _padded(rows, pad, left=False)),
        ("the mask is built from `token != pad`: a pad token inside a prompt is masked. Use the lengths.",
         lambda rows, pad: _padded(rows, pad, mask_by_token=True)),
    ],
    "positions": [
        ("it counts padding: the first real token must have position 0 wherever it stands.",
         lambda attention_mask: torch.arange(attention_mask.shape[1]).expand_as(attention_mask)),
        ("it counts from 1: the first real token has position 0.", lambda attention_mask: attention_mask.cumsum(1)),
        ("padding has position -1, which is outside every table of positions: clamp at 0.",
         lambda attention_mask: attention_mask.cumsum(1) - 1),
    ],
    "response_mask": [
        ("what stands between the first eos and the second is counted: count the eos tokens strictly before a "
         "position.",
         lambda tokens, eos_ids: _ended(tokens, eos_ids).cumsum(1) <= 1),
        ("the first eos itself is not counted: the model would never learn to stop.",
         lambda tokens, eos_ids: _ended(tokens, eos_ids).cumsum(1) == 0),
        ("tokens after the first eos are counted, only the eos tokens are left out.",
         lambda tokens, eos_ids: _ended(tokens, eos_ids) == 0),
        ("it goes to the LAST eos: what stands behind the first one is garbage.", lambda tokens, eos_ids: (
            lambda e: (e.flip(1).cumsum(1).flip(1) > 0) | (e.sum(1, keepdim=True) == 0))(_ended(tokens, eos_ids))),
        ("it knows only the first of eos_ids: a chat model ends its turn with another token than a document.",
         lambda tokens, eos_ids: (lambda e: e.cumsum(1) - e == 0)(_ended(tokens, eos_ids[:1]))),
        ("all tokens are counted, those behind the first eos too.",
         lambda tokens, eos_ids: torch.ones_like(tokens, dtype=torch.bool)),
        ("a row without an eos counts nothing: it was cut off, and its tokens were sampled like any others.",
         lambda tokens, eos_ids: (lambda e: (e.cumsum(1) - e == 0) & (e.sum(1, keepdim=True) > 0))(
             _ended(tokens, eos_ids))),
    ],
    "response_log_probs": [
        ("these are logits: log_softmax is missing, so that the probabilities do not sum to one.",
         lambda logits, sequences, mask, temperature: _masked((logits / temperature)[:, -mask.shape[1] - 1:-1].gather(
             2, sequences[:, -mask.shape[1]:, None]).squeeze(2), mask)),
        ("off by one: the logits at a position are the distribution of the NEXT token, that of y_t stands one before.",
         lambda logits, sequences, mask, temperature: _masked(
             _token_log_probs(logits / temperature, sequences, mask, shift=0), mask)),
        ("the temperature is left out: that is another policy than the one that was sampled.",
         lambda logits, sequences, mask, temperature: _masked(_token_log_probs(logits, sequences, mask), mask)),
        ("log-probs are divided by the temperature after the softmax: they no longer sum to one. Divide the logits.",
         lambda logits, sequences, mask, temperature: _masked(
             _token_log_probs(logits, sequences, mask) / temperature, mask)),
        ("logits are multiplied by the temperature: a high one must flatten the distribution. Divide.",
         lambda logits, sequences, mask, temperature: _masked(
             _token_log_probs(logits * temperature, sequences, mask), mask)),
        ("there is something else than 0 outside the mask: a sum over the row would count the padding.",
         lambda logits, sequences, mask, temperature: _token_log_probs(logits / temperature, sequences, mask)),
        ("these are probabilities: the logarithm is missing.", lambda logits, sequences, mask, temperature: _masked(
            _token_log_probs(logits / temperature, sequences, mask).exp(), mask)),
    ],
    "inverse_cdf": [
        ("it takes the most probable token: that is greedy decoding, no draw.",
         lambda log_probs, uniform: log_probs.argmax(-1)),
        ("log-probs are added up: exp is missing.",
         lambda log_probs, uniform: (log_probs.cumsum(-1) <= uniform[:, None]).sum(-1).clamp(
             max=log_probs.shape[1] - 1)),
        ("off by one: it draws the last token whose cumulative probability is below u, and not the one after it.",
         lambda log_probs, uniform: (_drawn(log_probs, uniform, strict=False) - 1).clamp(min=0)),
    ],
    # --- ex03 ---
    "reinforce_loss": [
        ("advantages run along the tokens and not along the responses: make them [N, 1].",
         lambda log_probs, advantages: -advantages.detach() * log_probs),
        ("it weighs probabilities and not log-probabilities: the gradient is off by the factor pi of each event.",
         lambda log_probs, advantages: -advantages.reshape(-1, *[1] * (log_probs.dim() - 1)).detach()
         * log_probs.exp()),
    ],
    "group_mean_advantages": [
        ("the mean is that of the whole batch: an easy prompt would lift the bar of a hard one.",
         lambda rewards, group_size: rewards - rewards.mean()),
        ("groups are read across: reshape(group_size, -1) mixes prompts. Make it reshape(-1, group_size).",
         lambda rewards, group_size: (lambda r: (r - r.mean(0)).reshape(-1))(rewards.reshape(group_size, -1))),
        ("the response's own reward is left out: this is leave-one-out, G/(G-1) times the group mean's.",
         lambda rewards, group_size: (lambda r: ((r - r.mean(1, keepdim=True)) * group_size
                                                 / max(group_size - 1, 1)).reshape(-1))(_grouped(rewards, group_size))),
        ("it is divided by the standard deviation: that is GRPO's, and weighs prompts by their difficulty.",
         lambda rewards, group_size: _standardised(rewards, group_size).nan_to_num(0.0)),
        ("nothing is subtracted: these are the rewards.", lambda rewards, group_size: rewards),
    ],
    "leave_one_out_advantages": [
        ("the sum of the others is divided by G: there are G - 1 others.",
         lambda rewards, group_size: (lambda r: (r - (r.sum(1, keepdim=True) - r) / group_size).reshape(-1))(
             _grouped(rewards, group_size))),
        ("the sum over the whole group is divided by G - 1: one's own reward must be taken out of the sum.",
         lambda rewards, group_size: (lambda r: (r - r.sum(1, keepdim=True) / (group_size - 1)).reshape(-1))(
             _grouped(rewards, group_size))),
        ("the others are those of the whole batch: only the same prompt's compare.",
         lambda rewards, group_size: rewards - (rewards.sum() - rewards) / (len(rewards) - 1)),
    ],
    "grpo_advantages": [
        ("the standard deviation is missing: this is the group-mean advantage.",
         lambda rewards, group_size: (lambda r: (r - r.amin(1, keepdim=True) - (r - r.amin(1, keepdim=True)).mean(
             1, keepdim=True)).reshape(-1))(_grouped(rewards, group_size))),
        ("an epsilon is added to the standard deviation: small spreads get smaller advantages, and none is needed.",
         lambda rewards, group_size: _zeros_for_equal(rewards, group_size, _standardised(
             rewards, group_size, 1e-4).nan_to_num(0.0))),
        ("it is divided by the variance and not by its square root.",
         lambda rewards, group_size: _zeros_for_equal(rewards, group_size, _standardised(
             rewards, group_size).square() / (rewards - _grouped(rewards, group_size).mean(1).repeat_interleave(
                 group_size)))),
    ],
    "token_mean": [
        ("padding is counted: the sum is right, but it is divided by all N * T places.",
         lambda losses, mask, num_tokens=None: _masked(losses, mask).sum() / (
             mask.numel() if num_tokens is None else num_tokens)),
        ("the mask is ignored: the padding's losses are in the sum.",
         lambda losses, mask, num_tokens=None: losses.nan_to_num(0.0).sum() / (
             mask.sum() if num_tokens is None else num_tokens)),
        ("it is a mean of the responses' means (GRPO's): tokens of long responses count less. One sum, one number.",
         lambda losses, mask, num_tokens=None: (_masked(losses, mask).sum(1) / mask.sum(1)).mean()),
        ("num_tokens is ignored: microbatches with different numbers of tokens no longer add up to the minibatch.",
         lambda losses, mask, num_tokens=None: _masked(losses, mask).sum() / mask.sum()),
    ],
    "dr_grpo_mean": [
        ("1/|o| is kept: a token of a long response weighs less, which is what Dr. GRPO takes out.",
         lambda losses, mask, max_new_tokens: (_masked(losses, mask).sum(1) / mask.sum(1)).mean()),
        ("it is divided by the sampled tokens (token-mean): a number that the lengths change. A constant.",
         lambda losses, mask, max_new_tokens: _masked(losses, mask).sum() / mask.sum()),
        ("N is missing: the sum must be over the number of responses too.",
         lambda losses, mask, max_new_tokens: _masked(losses, mask).sum() / max_new_tokens),
        ("max_new_tokens is missing: this is the mean over responses of their sums.",
         lambda losses, mask, max_new_tokens: _masked(losses, mask).sum() / len(mask)),
        ("it is divided by the width of this batch, the longest response sampled: use max_new_tokens.",
         lambda losses, mask, max_new_tokens: _masked(losses, mask).sum() / mask.numel()),
    ],
    # --- ex04 ---
    "k2": [
        ("the factor 1/2 is missing: the gradient is twice that of the KL.",
         lambda log_p, log_q: (log_p - log_q).square()),
        ("the square is missing: this is k1, whose expected gradient as a loss is 0.",
         lambda log_p, log_q: log_p - log_q),
        ("it squares a difference of probabilities: log-ratios are asked for.",
         lambda log_p, log_q: (log_p.exp() - log_q.exp()).square() / 2),
    ],
    "k3": [
        ("the direction is swapped: it is p/q - 1 - log(p/q). At samples of p the ratio is q/p.",
         lambda log_p, log_q: _k3(log_p - log_q)),
        ("the -1 is missing: two equal policies would have a KL of 1.",
         lambda log_p, log_q: torch.expm1(log_q - log_p) + 1 - (log_q - log_p)),
        ("the sign of the logarithm is wrong: q/p - 1 + log(q/p) can be negative.",
         lambda log_p, log_q: torch.expm1(log_q - log_p) + (log_q - log_p)),
        ("this is k1.", lambda log_p, log_q: log_p - log_q),
        ("this is k2: close to k3 for small ratios, but biased.", lambda log_p, log_q: (log_p - log_q).square() / 2),
    ],
    "divergence": [
        ("ufkl and urkl are exchanged: ufkl has the reference in front.", lambda kl, log_p, log_ref: _kl(
            {"ufkl": "urkl", "urkl": "ufkl"}.get(kl, kl), log_p, log_ref)),
        ("forward and reverse are swapped: fkl is KL(ref || p), the expectation is under ref.", _swapped_kl),
        ("the mass terms are missing: ufkl and urkl are then fkl and rkl.",
         lambda kl, log_p, log_ref: _kl(kl, log_p, log_ref, mass=0)),
        ("the sign of the mass term is wrong: UKL(a || b) has + sum (b - a), and is never negative.",
         lambda kl, log_p, log_ref: _kl(kl, log_p, log_ref, mass=-1)),
    ],
    "corrected_grpo_penalty": [
        ("the importance weight is missing: this is GRPO's penalty as commonly written, biased off policy.",
         lambda log_probs, old_log_probs, ref_log_probs: _k3(ref_log_probs.detach() - log_probs)),
        ("w is detached: the value is right, but the gradient is not the reverse KL's. It must flow through w too.",
         lambda log_probs, old_log_probs, ref_log_probs: _ratio(log_probs, old_log_probs).detach()
         * _k3(ref_log_probs.detach() - log_probs)),
        ("k3 is detached: the gradient must flow through it too.",
         lambda log_probs, old_log_probs, ref_log_probs: _ratio(log_probs, old_log_probs)
         * _k3(ref_log_probs.detach() - log_probs).detach()),
        ("k3's ratio is upside down: it is pi_ref/pi_theta, not pi_theta/pi_ref.",
         lambda log_probs, old_log_probs, ref_log_probs: _ratio(log_probs, old_log_probs)
         * _k3(log_probs - ref_log_probs.detach())),
        ("w is upside down: it is pi_theta/pi_old.", lambda log_probs, old_log_probs, ref_log_probs: (
            old_log_probs.detach() - log_probs).exp() * _k3(ref_log_probs.detach() - log_probs)),
    ],
    # --- ex05 ---
    "pmd_part_policy": [
        ("log pi_t is divided by tau too: (log pi + r) / tau. Only the reward is.",
         lambda old_probs, rewards, tau: ((old_probs.log() + rewards) / tau).softmax(0)),
        ("the sign of r is wrong: good responses become less likely.",
         lambda old_probs, rewards, tau: (old_probs.log() - rewards / tau).softmax(0)),
        ("rewards are multiplied by tau: a small tau must make the step large. Divide.",
         lambda old_probs, rewards, tau: (old_probs.log() + rewards * tau).softmax(0)),
        ("old_probs is left out: the step starts from pi_t, not from the uniform policy.",
         lambda old_probs, rewards, tau: (rewards / tau).softmax(0)),
        ("Z is missing: the probabilities do not sum to one.",
         lambda old_probs, rewards, tau: old_probs * ((rewards - rewards.max()) / tau).exp()),
        ("the logarithm of old_probs is missing inside the softmax.",
         lambda old_probs, rewards, tau: (old_probs + rewards / tau).softmax(0)),
    ],
    "pmd_part_advantages": [
        ("it is the log of the SUM: log G is missing. The baseline is off by tau log G.",
         lambda rewards, group_size, tau: _part(rewards, group_size, tau, mean=False)),
        ("tau in front of the logarithm is missing.",
         lambda rewards, group_size, tau: _part(rewards, group_size, tau, outside=1.0)),
        ("this is PMD-mean's, r minus the mean: the limit for large tau.",
         lambda rewards, group_size, tau: (lambda r: (r - r.mean(1, keepdim=True)).reshape(-1))(
             _grouped(rewards, group_size))),
        ("rewards are not divided by tau inside the exponential.",
         lambda rewards, group_size, tau: (lambda r: (r - tau * (r.logsumexp(1, keepdim=True) - torch.tensor(
             float(group_size)).log())).reshape(-1))(_grouped(rewards, group_size))),
        ("the mean is over the whole batch: only the same prompt's rewards estimate its Z.",
         lambda rewards, group_size, tau: _part(rewards, len(rewards), tau)),
    ],
    "pmd_loss": [
        ("this is (tau/2) (A - s)^2: A must be divided by tau, or s multiplied by it.",
         lambda log_probs, old_log_probs, advantages, mask, tau: tau / 2 * (advantages - _s(
             log_probs, old_log_probs, mask)).square()),
        ("squares are taken token by token and then added: a response is one event, its log-ratio is one sum.",
         lambda log_probs, old_log_probs, advantages, mask, tau: _masked((advantages[:, None] - tau * (
             log_probs - old_log_probs.detach())).square(), mask).sum(1) / (2 * tau)),
        ("the sign of s is wrong: it is A - tau s, so that a response that became likely is held back.",
         lambda log_probs, old_log_probs, advantages, mask, tau: _pmd(
             log_probs, old_log_probs, advantages, mask, tau, sign=-1)),
        ("s is the mean over tokens: a response is one event, its log-ratio is the sum.",
         lambda log_probs, old_log_probs, advantages, mask, tau: _pmd(
             log_probs, old_log_probs, advantages, mask, tau, weight=1 / mask.sum(1))),
        ("the mask is ignored: padding is part of s.",
         lambda log_probs, old_log_probs, advantages, mask, tau: (advantages - tau * (
             log_probs - old_log_probs.detach()).nan_to_num(0.0).sum(1)).square() / (2 * tau)),
        ("it uses the ratio w and not its logarithm.",
         lambda log_probs, old_log_probs, advantages, mask, tau: (advantages - tau * _s(
             log_probs, old_log_probs, mask).exp()).square() / (2 * tau)),
    ],
    "pmd_mean_policy": [
        ("lam has run to the upper end of its range, max(A)/tau: the outer bisection goes the wrong way (E[rho] falls "
         "as "
         "lam rises), or its condition always holds.",
         lambda old_probs, rewards, tau: _bisected(old_probs, rewards, tau, lambda old, rho: (old * rho).sum() < 1)),
        ("the mean of rho is uniform over the outcomes: it must be under pi_t, E_{pi_t}[rho] = 1.",
         lambda old_probs, rewards, tau: _bisected(old_probs, rewards, tau, lambda old, rho: rho.mean() > 1)),
        ("the mean reward is uniform over the outcomes: A = r - E_{pi_t}[r].",
         lambda old_probs, rewards, tau: _bisected(old_probs, rewards - rewards.mean() + (old_probs * rewards).sum(),
                                                   tau,
                                                   lambda old, rho: (old * rho).sum() > 1, centre=rewards.mean())),
        ("this is PMD-part's step, pi_t exp(r/tau) / Z, with lam = 0: the term lam rho is left out.",
         lambda old_probs, rewards, tau: (_part_policy(old_probs, rewards, tau), torch.zeros((), dtype=torch.float64))),
        ("rho is exp(A/tau), not normalised: lam = 0 and the probabilities do not sum to one.",
         lambda old_probs, rewards, tau: (old_probs * ((rewards - (old_probs * rewards).sum()) / tau).exp(),
                                          torch.zeros((), dtype=torch.float64))),
        ("the probabilities are right, but lam is KL(pi || pi_t): it is KL(pi_t || pi).",
         lambda old_probs, rewards, tau: _mean_policy(old_probs, rewards, tau, "reverse")),
        ("the rewards stand where the advantages belong: A = r - E_{pi_t}[r]. Then lam is off by E[r]/tau.",
         lambda old_probs, rewards, tau: _mean_policy(old_probs, rewards, tau, "rewards")),
        ("the probabilities are right, but lam is multiplied by tau.",
         lambda old_probs, rewards, tau: _mean_policy(old_probs, rewards, tau, "tau")),
        ("it returns the ratio rho: pi is pi_t times rho.",
         lambda old_probs, rewards, tau: _mean_policy(old_probs, rewards, tau, "ratio")),
    ],
    # --- ex06 ---
    "rkl_loss": [
        ("the weight w of the KL term is missing: samples of pi_old must be weighted in it as in the reward.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: -w * a + beta * l)),
        ("the sign of the KL is wrong: divergence is rewarded.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: w * (-a - beta * l))),
        ("the log-ratio is detached: the weight lacks beta w, the 1 of l + 1.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: w * (-a + beta * l.detach()))),
        ("the mass term is in it: this is URKL, whose weight has l and not l + 1.", _rpg_wrong(_URKL)),
        ("this is the forward KL: -w A - beta q log pi_theta.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: -w * a - beta * q * log_p)),
        ("the reward's importance weight is missing.", _rpg_wrong(lambda log_p, w, l, q, a, beta: -a * log_p
                                                                  + beta * w * l)),
        (_REFERENCE, _ignores_reference(_RKL)),
        (_KILLED, _rpg_wrong(lambda log_p, w, l, q, a, beta: w * (-a + beta * l.clamp(-10, 10)))),
    ],
    "ufkl_loss": [
        ("the mass term w is missing: this is FKL, and off its weight by beta w.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: -w * a + beta * (-q * l - q))),
        ("the KL has the weight w: the forward KL is an expectation under pi_ref, its weight is q.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: -w * a + beta * (w - w * l - q))),
        ("the sign of the log-ratio is wrong: w + q l - q.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: -w * a + beta * (w + q * l - q))),
        ("q is left out: the log-ratio is not weighted by pi_ref/pi_old. (It is 1 only where the sampler is the "
         "reference.)", _rpg_wrong(lambda log_p, w, l, q, a, beta: -w * a + beta * (w - l - 1))),
        ("this is the reverse one, URKL.", _rpg_wrong(_URKL)),
        ("the sign of the penalty is wrong: divergence is rewarded.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: -w * a - beta * (w - q * l - q))),
        (_REFERENCE, _ignores_reference(_UFKL)),
    ],
    "urkl_loss": [
        ("the mass term -w is missing: this is RKL, whose weight has l + 1 and not l.", _rpg_wrong(_RKL)),
        ("the sign of the mass term is wrong: the weight is off by 2 beta w.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: -w * a + beta * (w * l + w))),
        ("the sign of the KL is wrong: divergence is rewarded.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: -w * a - beta * (w * l - w))),
        ("the KL is not weighted: k2 = l^2 / 2 has the right gradient on policy only. It needs w.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: -w * a + beta * l.square() / 2)),
        ("this is the forward one, UFKL.", _rpg_wrong(_UFKL)),
        ("w is detached: no gradient but that of l is left.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: -w.detach() * a + beta * w.detach() * (l - 1))),
        (_REFERENCE, _ignores_reference(_URKL)),
    ],
    "reinforce_urkl_loss": [
        ("the weight is not detached: the gradient flows through w and l as well as through log pi_theta.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: -w * (a - beta * l) * log_p)),
        ("the weight is RKL's, with l + 1: URKL's has l.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: -(w * (a - beta * (l + 1))).detach() * log_p)),
        ("w is missing: right on policy only.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: -(a - beta * l).detach() * log_p)),
        ("the sign of the KL is wrong: divergence is rewarded.",
         _rpg_wrong(lambda log_p, w, l, q, a, beta: -(w * (a + beta * l)).detach() * log_p)),
        (_REFERENCE, _ignores_reference(lambda log_p, w, l, q, a, beta: -(w * (a - beta * l)).detach() * log_p)),
    ],
    # --- ex07 ---
    "ppo_clip_loss": [
        ("min and max are swapped: it clips where the event should move and moves it where it should be still.",
         lambda log_probs, old_log_probs, advantages, eps_low, eps_high: (lambda w: -torch.maximum(
             w * advantages, w.clamp(1 - eps_low, 1 + eps_high) * advantages))(_ratio(log_probs, old_log_probs))),
        ("the ratio is clipped for both signs of A: where A < 0 and w is large the event must still move back.",
         lambda log_probs, old_log_probs, advantages, eps_low, eps_high:
         -_ratio(log_probs, old_log_probs).clamp(1 - eps_low, 1 + eps_high) * advantages),
        ("there is no clip.", lambda log_probs, old_log_probs, advantages, eps_low, eps_high:
         -_ratio(log_probs, old_log_probs) * advantages),
        ("eps_low and eps_high are swapped.", lambda log_probs, old_log_probs, advantages, eps_low, eps_high: (
            lambda w: -torch.minimum(w * advantages, w.clamp(1 - eps_high, 1 + eps_low) * advantages))(
                _ratio(log_probs, old_log_probs))),
        ("w is upside down: it is pi_theta/pi_old.",
         lambda log_probs, old_log_probs, advantages, eps_low, eps_high: (lambda w: -torch.minimum(
             w * advantages, w.clamp(1 - eps_low, 1 + eps_high) * advantages))(
                 (old_log_probs.detach() - log_probs).exp())),
    ],
    "dual_clip_loss": [
        ("Ahat is not detached (Algorithm 1 as printed): the weight of an event is off by beta w.",
         lambda *args: _dual(*args, detach=False)),
        ("the dual clip is missing: a bad event that became likely has a loss without bound. min(that, -c Ahat).",
         lambda *args: _dual(*args, dual=False)),
        ("the sign of A decides: it is that of Ahat, the advantage with the KL in it.",
         lambda *args: _dual(*args, decide=True)),
        ("min and max are swapped in the first clip.", lambda *args: _dual(*args, swap=True)),
        ("beta is left out: Ahat is A.", lambda log_probs, old_log_probs, advantages, beta, eps_low, eps_high, c: _dual(
            log_probs, old_log_probs, advantages, 0.0, eps_low, eps_high, c)),
        ("the sign of the KL is wrong: Ahat is A - beta log w.",
         lambda log_probs, old_log_probs, advantages, beta, eps_low, eps_high, c: _dual(
             log_probs, old_log_probs, advantages, -beta, eps_low, eps_high, c)),
        ("eps_low and eps_high are swapped.",
         lambda log_probs, old_log_probs, advantages, beta, eps_low, eps_high, c: _dual(
             log_probs, old_log_probs, advantages, beta, eps_high, eps_low, c)),
    ],
    "gspo_loss": [
        ("every token's ratio is clipped and then averaged: that is GRPO's clip. GSPO clips the one ratio s.",
         lambda log_probs, old_log_probs, advantages, mask, eps_low, eps_high: (lambda w, a: -_masked(torch.minimum(
             w * a, w.clamp(1 - eps_low, 1 + eps_high) * a), mask).sum(1) / mask.sum(1))(
                 _ratio(log_probs, old_log_probs), advantages[:, None])),
        ("min and max are swapped: it clips where the response should move and moves it where it should be still.",
         lambda *args: _gspo(*args, kind="swapped")),
        ("s is upside down: the ratio is pi_theta/pi_old.", lambda *args: _gspo(*args, kind="inverse")),
        ("s is the product of the token ratios: 1/|o| is missing.", lambda *args: _gspo(*args, kind="sum")),
        ("|o| counts the padding: divide by the tokens of the response.", lambda *args: _gspo(*args, kind="padding")),
        ("s is the arithmetic mean of the ratios: it is the geometric one, the exp of the mean of the logarithms.",
         lambda *args: _gspo(*args, kind="arithmetic")),
    ],
    # --- ex08 ---
    "certificate": [
        ("the responses are averaged as if all were as likely: they are sampled from pi_old, so weigh with it.",
         lambda loss, objective, logits, old_logits: _certificate(loss, objective, logits, old_logits, "uniform")),
        ("the responses are weighed with pi_theta: they are sampled from pi_old.",
         lambda loss, objective, logits, old_logits: _certificate(loss, objective, logits, old_logits, "theta")),
        ("it takes the gradient at the log-probs and not at the logits: the softmax is left out.",
         lambda loss, objective, logits, old_logits: _certificate(loss, objective, logits, old_logits, "free")),
        ("the sign: a loss is minimised and J maximised, so that g + grad J is 0 for a right loss.",
         lambda loss, objective, logits, old_logits: _certificate(loss, objective, logits, old_logits, "sign")),
        ("the sampler's probabilities are differentiated too: they are constants.",
         lambda loss, objective, logits, old_logits: _certificate(loss, objective, logits, old_logits, "moving")),
        ("the error is absolute: divide by | grad J |.",
         lambda loss, objective, logits, old_logits: _certificate(loss, objective, logits, old_logits, "absolute")),
        ("it compares the lengths of the two gradients: their directions may differ.",
         lambda loss, objective, logits, old_logits: _certificate(loss, objective, logits, old_logits, "lengths")),
        ("it is divided by | g |, the loss's own gradient: divide by | grad J |.",
         lambda loss, objective, logits, old_logits: _certificate(loss, objective, logits, old_logits, "own")),
    ],
}


def _other_w(formula, w_of):
    def answer(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
        log_p, _, l, q, a = _rpg(log_probs, old_log_probs, advantages, beta, ref_log_probs)
        return formula(log_p, w_of(log_p, old_log_probs.detach().double()), l, q, a, beta)
    return answer


for _name, _formula in (("rkl_loss", _RKL), ("ufkl_loss", _UFKL), ("urkl_loss", _URKL), (
        "reinforce_urkl_loss", lambda log_p, w, l, q, a, beta: -(w * (a - beta * l)).detach() * log_p)):
    WRONG[_name] += [
        ("w is pi_theta itself: it is not divided by pi_old.", _other_w(_formula, lambda p, old: p.exp())),
        ("w is a log-ratio: exp is missing.", _other_w(_formula, lambda p, old: p - old)),
        ("w is upside down: it is pi_theta/pi_old.", _other_w(_formula, lambda p, old: (old - p).exp())),
    ]


def _checked(bonus):
    if not 0 <= bonus < 1:
        raise ValueError("bonus")
    return bonus


def _reward(response, gold, bonus, on_top=False, always=False, check=True):
    from reward_math import extract_answer, is_equivalent

    bonus = _checked(bonus) if check else bonus
    answer = extract_answer(response)
    if answer is not None and is_equivalent(answer, gold):
        return 1.0 + bonus if on_top else 1.0
    return float(bonus) if always or answer is not None else 0.0


def _mean_policy(old_probs, rewards, tau, mistake):
    from pmd_mean import pmd_mean_policy

    probs, lam = pmd_mean_policy(old_probs, rewards, tau)
    if mistake == "reverse":
        return probs, (probs * (probs / old_probs).log()).nan_to_num(0.0).sum()
    if mistake == "rewards":
        return probs, lam + (old_probs * rewards).sum() / tau
    if mistake == "tau":
        return probs, lam * tau
    return probs / old_probs, lam


def _certificate(loss, objective, logits, old_logits, mistake):
    x = (logits.log_softmax(0) if mistake == "free" else logits).clone().requires_grad_()
    log_probs, old = x if mistake == "free" else x.log_softmax(0), old_logits.log_softmax(0)
    weight = {"uniform": torch.full_like(old, 1 / len(old)), "theta": log_probs.detach().exp(),
              "moving": log_probs.exp()}.get(mistake, old.exp())
    g = torch.autograd.grad((weight * loss(log_probs, old)).sum(), x, retain_graph=True)[0]
    wanted = torch.autograd.grad(objective(log_probs), x)[0]
    error = (g - wanted if mistake == "sign" else g + wanted).norm()
    error = g.norm() - wanted.norm() if mistake == "lengths" else error
    return abs(error / {"absolute": 1.0, "own": g.norm()}.get(mistake, wanted.norm())).item()
