r"""Several processes, one result: data parallelism by hand, under `torchrun --nproc_per_node=N train.py ...`.

What it teaches. A step of reinforcement learning has three parts that can be split over W processes. One rule for each
makes W processes do what one does, to rounding:

    sample    process k answers prompts k, k + W, ... A response depends on (seed, step, prompt, index in group) only,
              not on its batch, so it is the one that a single process draws. Then every process gets all responses
              (tokens, masks and log-probs: a few MB). So baselines, filters and shuffles are computed from the same
              numbers everywhere, and no process waits for another because a group was dropped.
    update    the groups of a minibatch are dealt out. Each process adds the gradient of its share of ONE sum, divided
              by the counts of the whole minibatch (`aggregate`). Then the gradients of all processes are added up, by
              one all-reduce per optimizer step. (DistributedDataParallel divides by W. That is a mean of means, right
              only where all processes hold equally many tokens. It also starts its all-reduce inside backward.)
    evaluate  process k answers problems k, k + W, ...

Weights and optimizer are the same in every process and get the same gradient, so they stay the same. Only process 0
writes files and prints. Processes on several machines need one run folder that all of them see.

Not here: models that one process cannot hold. integrations/ has trainers that split the weights.
"""

import os

import torch
import torch.distributed as dist

from rollout import concatenate, uniforms


def rank():
    r"""This process's number, 0 where there is only one."""
    return int(os.environ.get("RANK", 0))


def world():
    r"""The number of processes W."""
    return int(os.environ.get("WORLD_SIZE", 1))


def start(device):
    r"""Joins the other processes, by nccl on GPUs and gloo on CPUs. Call it once, before the functions below."""
    if world() > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop():
    if dist.is_initialized():
        dist.destroy_process_group()


def mine(items):
    r"""This process's share of a sequence: items k, k + W, ..."""
    return items[rank() :: world()]


def gather(share):
    r"""The whole sequence, in order, on every process, from the shares that the processes hold (see `mine`)."""
    if world() == 1:
        return list(share)
    shares = [None] * world()
    dist.all_gather_object(shares, list(share))
    whole = [None] * sum(map(len, shares))
    for k, part in enumerate(shares):
        whole[k :: world()] = part
    return whole


def from_first(value):
    r"""Process 0's value, on every process."""
    return gather([value])[0]


def total(tensor):
    r"""The sum of a tensor over the processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(model):
    r"""Adds up the gradients of all processes. A process that had nothing to do adds zeros."""
    waiting = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            waiting.append(dist.all_reduce(parameter.grad, async_op=True))
    for handle in waiting:
        handle.wait()


def over_processes(sample):
    r"""`sample` (rollout.sample_rollouts) for several processes: each answers its share of the prompts, all get all.

    With one process it is `sample` itself.
    """
    if world() == 1:
        return sample

    def shared(model, tokenizer, prompts, group_size, max_new_tokens, *arguments, seed=0, **keywords):
        draws = uniforms(prompts, group_size, max_new_tokens, seed)  # [N, T], the same everywhere
        own = mine(draws.view(len(prompts), group_size, -1)).flatten(0, 1)
        groups = []  # one Rollout for each of this process's prompts; there may be none
        if mine(prompts):
            share = sample(model, tokenizer, mine(prompts), group_size, max_new_tokens, *arguments, uniform=own,
                           **keywords).to("cpu")
            groups = [share.select(range(first, first + group_size)) for first in range(0, len(own), group_size)]
        return concatenate(gather(groups)).to(model.device)

    return shared
