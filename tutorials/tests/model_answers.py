r"""The exercises as a good student does them: the graders must pass these, and mutants.py makes mistakes from them.

For teachers. Each answer is short and stands alone; the project's own functions, which check their arguments, are in
exercises/reference.py.
"""

from fractions import Fraction

import torch


# --- ex01 ---

def extract_answer(response):
    said = response.rpartition("</think>")[2]
    before, marker, rest = said.rpartition("####")
    answer = rest.split("\n")[0].strip()
    if marker == "" or answer == "" or " or " in answer:
        return None
    return answer


def is_equivalent(answer, gold):
    def number(text):
        try:
            return Fraction(text.strip().replace("$", "").replace(",", "").rstrip("."))
        except (ValueError, ZeroDivisionError):
            return None

    a, b = number(answer), number(gold)
    if a is None or b is None:
        return answer.strip() == gold.strip() and answer.strip() != ""
    return a == b


def math_reward(response, gold, format_bonus=0.0):
    if not 0 <= format_bonus < 1:
        raise ValueError("format_bonus must be in [0, 1)")
    answer = extract_answer(response)
    if answer is None:
        return 0.0
    return 1.0 if is_equivalent(answer, gold) else format_bonus


def length_reward(correct, lengths, group_size):
    n = lengths.float().reshape(-1, group_size)
    low = n.amin(dim=1, keepdim=True)
    high = n.amax(dim=1, keepdim=True)
    lam = 0.5 - (n - low) / (high - low).clamp(min=1)
    lam = torch.where(high > low, lam, 0.0).reshape(-1)
    return torch.where(correct.bool(), lam, lam.clamp(max=0))


# --- ex02 ---

def pad_left(rows, pad):
    longest = max(len(row) for row in rows)
    ids = [[pad] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def positions(attention_mask):
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def response_mask(tokens, eos_ids):
    eos = torch.isin(tokens, torch.tensor(eos_ids)).long()
    return eos.cumsum(dim=1) - eos == 0


def response_log_probs(logits, sequences, mask, temperature):
    width = mask.shape[1]
    log_p = (logits[:, -width - 1:-1] / temperature).log_softmax(dim=-1)
    chosen = log_p.gather(2, sequences[:, -width:, None]).squeeze(2)
    return torch.where(mask, chosen, 0.0)


def inverse_cdf(log_probs, uniform):
    cumulative = log_probs.double().exp().cumsum(dim=1)
    return (cumulative <= uniform[:, None]).sum(dim=1)


# --- ex03 ---

def reinforce_loss(log_probs, advantages):
    a = advantages.detach()
    if log_probs.dim() == 2:
        a = a[:, None]
    return -a * log_probs


def group_mean_advantages(rewards, group_size):
    r = rewards.reshape(-1, group_size)
    return (r - r.mean(dim=1, keepdim=True)).reshape(-1)


def leave_one_out_advantages(rewards, group_size):
    r = rewards.reshape(-1, group_size)
    others = (r.sum(dim=1, keepdim=True) - r) / (group_size - 1)
    return (r - others).reshape(-1)


def grpo_advantages(rewards, group_size):
    r = rewards.reshape(-1, group_size)
    deviation = r - r.mean(dim=1, keepdim=True)
    variance = deviation.square().sum(dim=1, keepdim=True) / max(group_size - 1, 1)
    equal = r.amax(dim=1, keepdim=True) == r.amin(dim=1, keepdim=True)
    return torch.where(equal, 0.0, deviation / variance.sqrt()).reshape(-1)


def token_mean(losses, mask, num_tokens=None):
    total = torch.where(mask, losses, 0.0).sum()
    if num_tokens is None:
        num_tokens = mask.sum()
    return total / num_tokens


def dr_grpo_mean(losses, mask, max_new_tokens):
    return torch.where(mask, losses, 0.0).sum() / (len(mask) * max_new_tokens)


# --- ex04 ---

def k2(log_p, log_q):
    return (log_p - log_q).square() / 2


def k3(log_p, log_q):
    x = log_q - log_p
    return torch.expm1(x) - x


def divergence(kl, log_p, log_ref):
    p = log_p.exp()
    ref = log_ref.exp()
    if kl == "fkl":
        return (ref * (log_ref - log_p)).sum()
    if kl == "ufkl":
        return (ref * (log_ref - log_p) + p - ref).sum()
    if kl == "rkl":
        return (p * (log_p - log_ref)).sum()
    return (p * (log_p - log_ref) + ref - p).sum()


def corrected_grpo_penalty(log_probs, old_log_probs, ref_log_probs):
    w = (log_probs - old_log_probs.detach()).exp()
    x = ref_log_probs.detach() - log_probs
    return w * (torch.expm1(x) - x)


# --- ex05 ---

def pmd_part_policy(old_probs, rewards, tau):
    return (old_probs.log() + rewards / tau).softmax(dim=0)


def pmd_part_advantages(rewards, group_size, tau):
    r = rewards.reshape(-1, group_size)
    log_mean = (r / tau).logsumexp(dim=1, keepdim=True) - torch.tensor(group_size).log()
    return (r - tau * log_mean).reshape(-1)


def pmd_loss(log_probs, old_log_probs, advantages, mask, tau):
    s = torch.where(mask, log_probs - old_log_probs.detach(), 0.0).sum(dim=1)
    return tau / 2 * (advantages.detach() / tau - s).square()


def pmd_mean_policy(old_probs, rewards, tau):
    old = old_probs.double()
    a = (rewards - (old * rewards).sum()).double() / tau
    low = torch.zeros((), dtype=torch.float64)
    high = a.max()
    for _ in range(100):
        lam = (low + high) / 2
        bottom = torch.full_like(a, -1.1e3)
        top = torch.full_like(a, 1.1e3)
        for _ in range(100):
            s = (bottom + top) / 2
            small = s + lam * s.exp() < a
            bottom = torch.where(small, s, bottom)
            top = torch.where(small, top, s)
        if (old * s.exp()).sum() > 1:
            low = lam
        else:
            high = lam
    return old * s.exp(), lam


# --- ex06 ---

def kl_weight(kl, advantages, beta, w, l, q):
    if kl == "fkl":
        return w * advantages + beta * q
    if kl == "rkl":
        return w * (advantages - beta * (l + 1))
    if kl == "ufkl":
        return w * advantages - beta * (w - q)
    return w * (advantages - beta * l)


def rkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    w = (log_probs.double() - old_log_probs.detach().double()).exp()
    l = log_probs.double() - ref.detach().double()
    return w * (-advantages.detach() + beta * l)


def ufkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    w = (log_probs.double() - old_log_probs.detach().double()).exp()
    q = (ref.detach().double() - old_log_probs.detach().double()).exp()
    l = log_probs.double() - ref.detach().double()
    return -w * advantages.detach() + beta * (w - q * l - q)


def urkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    w = (log_probs.double() - old_log_probs.detach().double()).exp()
    l = log_probs.double() - ref.detach().double()
    return -w * advantages.detach() + beta * (w * l - w)


def reinforce_urkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    w = (log_probs.double() - old_log_probs.double()).exp()
    l = log_probs.double() - ref.double()
    weight = w * (advantages - beta * l)
    return -weight.detach() * log_probs


# --- ex07 ---

def ppo_clip_loss(log_probs, old_log_probs, advantages, eps_low, eps_high):
    w = (log_probs - old_log_probs.detach()).exp()
    a = advantages.detach()
    return -torch.minimum(w * a, w.clamp(1 - eps_low, 1 + eps_high) * a)


def dual_clip_loss(log_probs, old_log_probs, advantages, beta, eps_low, eps_high, c):
    log_w = log_probs - old_log_probs.detach()
    w = log_w.exp()
    a_hat = (advantages - beta * log_w).detach()
    clipped = torch.maximum(-w * a_hat, -w.clamp(1 - eps_low, 1 + eps_high) * a_hat)
    return torch.where(a_hat >= 0, clipped, torch.minimum(clipped, -c * a_hat))


def gspo_loss(log_probs, old_log_probs, advantages, mask, eps_low, eps_high):
    log_w = torch.where(mask, log_probs - old_log_probs.detach(), 0.0)
    s = (log_w.sum(dim=1) / mask.sum(dim=1)).exp()
    a = advantages.detach()
    return -torch.minimum(s * a, s.clamp(1 - eps_low, 1 + eps_high) * a)


# --- ex08 ---

def certificate(loss, objective, logits, old_logits):
    old = old_logits.log_softmax(dim=0)
    x = logits.clone().requires_grad_()
    log_probs = x.log_softmax(dim=0)
    expected = (old.exp() * loss(log_probs, old)).sum()
    got = torch.autograd.grad(expected, x, retain_graph=True)[0]
    wanted = torch.autograd.grad(objective(log_probs), x)[0]
    return ((got + wanted).norm() / wanted.norm()).item()


def collapsing_loss(log_probs, old_log_probs, rewards):
    return -rewards * log_probs


def mended_loss(log_probs, old_log_probs, rewards):
    w = (log_probs - old_log_probs).exp()
    return -w * (rewards - rewards.mean()) + 0.1 * (log_probs - old_log_probs).square()


def new_advantages(rewards, group_size):
    r = rewards.reshape(-1, group_size)
    others = (r.sum(dim=1, keepdim=True) - r) / (group_size - 1)
    return (r - others).reshape(-1)


def new_loss(log_probs, old_log_probs, advantages, tau, lam):
    log_w = log_probs - old_log_probs.detach()
    w = log_w.exp()
    return -w * advantages.detach() + tau * w * log_w + tau * lam / 2 * (w - 1).square()
