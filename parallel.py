r"""Several processes, one result: data parallelism by hand, under `torchrun --nproc_per_node=N train.py ...`.

What it teaches. A step of reinforcement learning has three parts that can be split over W processes, and one rule each
that makes W processes do what one does, to rounding:

    sample    process k answers prompts k, k + W, ... A response depends on (seed, step, prompt, index in group) only,
              never on its batch, so it is the one that a single process draws. Then every process is sent all of them
              (tokens, masks and log-probs: a few MB), so that baselines, filters and shuffles are computed from the
              same numbers everywhere. No process can then wait for another because a group was dropped or is long.
    update    the groups of a minibatch are dealt out. Each process adds the gradient of its share of ONE sum, divided
              by the counts of the whole minibatch (`aggregate`), and the gradients are added up: an all-reduce once
              per optimizer step. (DistributedDataParallel divides by W and so takes a mean of means, right only where
              all processes hold equally many tokens; it also starts its all-reduce inside backward.)
    evaluate  problem k, k + W, ...

Weights and optimizer are the same in every process and get the same gradient, so they stay the same. With `--shard`
(FSDP2, torch's `fully_shard`) each process keeps 1/W of weights, gradients and optimizer state instead; a layer's
weights are put together when it is needed, and all of them while sampling. Only process 0 writes files and the console.

Not here: anything beyond data parallelism (see integrations/ for trainers that have it). Processes on several machines
must see one folder for the run.
"""

import contextlib
import os
import types

import torch
import torch.distributed as dist


def rank():
    r"""This process's number, 0 where there is only one."""
    return int(os.environ.get("RANK", 0))


def world():
    r"""The number of processes W."""
    return int(os.environ.get("WORLD_SIZE", 1))


def start(device):
    r"""Joins the other processes, nccl on GPUs, gloo on CPUs: once, before any other function here is used."""
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
    r"""The sequence whose shares the processes hold (see `mine`), whole and in order, on every process."""
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
    r"""Adds up the gradients of all processes; one that had nothing to do adds zeros. Shards are summed already."""
    if world() == 1 or is_sharded(model):
        return
    waiting = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            waiting.append(dist.all_reduce(parameter.grad, async_op=True))
    for handle in waiting:
        handle.wait()


def is_sharded(module):
    return hasattr(module, "unshard")


def local(parameter):
    r"""This process's part of a parameter."""
    return getattr(parameter, "to_local", lambda: parameter)()


def shard(model, scorer):
    r"""Splits a model's weights over the processes, layer by layer (FSDP2), in place.

    scorer: a function (model, ...) that runs the model otherwise than through its forward; it becomes the method
    `model.scorer`, before and after which FSDP2 puts the weights together and apart.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for layer in [m for m in model.modules() if type(m).__name__ in (model._no_split_modules or ())]:
        fully_shard(layer)
    fully_shard(model)
    for module in model.modules():
        if is_sharded(module):
            module.set_gradient_divide_factor(1.0)  # a sum, as the denominators are global
            module.set_force_sum_reduction_for_comms(True)  # which gloo has, too
    model.scorer = types.MethodType(scorer, model)
    register_fsdp_forward_method(model, "scorer")


@contextlib.contextmanager
def whole_weights(model):
    r"""`with whole_weights(model):` every process holds all weights, for decoding, which needs them at every token."""
    shards = [module for module in model.modules() if is_sharded(module)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def state_dicts(model, optimizer=None):
    r"""(weights, optimizer state), put together from the shards on the CPU of process 0; all processes must call."""
    if not is_sharded(model):
        return model.state_dict(), optimizer.state_dict() if optimizer else None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=whole)
    once = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}  # tied weights have two names
    return ({name: tensor for name, tensor in weights.items() if name in once},
            get_optimizer_state_dict(model, optimizer, options=whole) if optimizer else None)


def load_weights(model, weights):
    r"""Gives a model whole weights, of which a sharded one keeps its part."""
    if not is_sharded(model):
        model.load_state_dict(weights)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))


def load_optimizer(model, optimizer, state):
    r"""Gives an optimizer the state that `state_dicts` returned, read by every process."""
    if not is_sharded(model):
        optimizer.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))
