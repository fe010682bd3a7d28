r"""A run small enough to break and mend: one prompt, 32 responses, a free logit for each. Given; not to be changed.

Response 31 earns 1, the others 0.5 to 0.9. A round samples 8 responses from the present policy and takes 8 steps of
gradient descent on the mean of your loss over them: the first on policy, the last on samples that are 7 steps old.
"""
import torch

REWARDS = torch.cat([torch.linspace(0.5, 0.9, 31), torch.ones(1)]).double()  # [32]


def run(loss, seed, rounds=60, samples=8, updates=8, lr=2.0):
    r"""(E_pi[R], entropy in nats) at the end of a run. loss(log_probs, old_log_probs, rewards), each [8] -> [8]."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(32, dtype=torch.float64)
    for _ in range(rounds):
        old = logits.log_softmax(dim=0)
        y = torch.multinomial(old.exp(), samples, replacement=True, generator=generator)  # [8]
        for _ in range(updates):
            x = logits.clone().requires_grad_()
            total = loss(x.log_softmax(dim=0)[y], old[y], REWARDS[y]).mean()
            logits = logits - lr * torch.autograd.grad(total, x)[0]
    p = logits.softmax(dim=0)
    return (p @ REWARDS).item(), -torch.special.xlogy(p, p).sum().item()
