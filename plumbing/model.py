r"""The model of a run: its device, its precision, and loading it without dropout."""

import os
from pathlib import Path

import torch

from plumbing import parallel
from plumbing.settings import fail
from rollout import check_model


def device_of(settings):
    r"""The device of this process. `auto` and `cuda` give each process of a machine its own CUDA device.

    `auto` takes Apple's MPS for the gsm8k preset only, and not for several processes, which share nothing there.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))  # of torchrun: this process's number on its machine
    if settings.device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local)
        large = settings.preset == "gsm8k" and parallel.world() == 1
        return torch.device("mps" if large and torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.empty(0, device=settings.device).device
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {settings.device} cannot be used here: {str(error).strip().splitlines()[0][:200]}")
    if device.type == "mps" and parallel.world() > 1:
        fail("--device mps is for one process: start train.py without torchrun, or give --device cpu")
    return torch.device("cuda", local) if settings.device == "cuda" else device


def product_dtype(settings):
    r"""Of the decoder's products: what was asked for; else bfloat16 on a CUDA device that has it, float32 elsewhere."""
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    on_cuda = device_of(settings).type == "cuda"
    return torch.bfloat16 if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32


def recomputes_old_log_probs(settings):
    r"""In 16 bits, decoding with a cache and reading at once differ by more than rounding of float32: read again."""
    if settings.old_log_probs == "auto":
        return product_dtype(settings) != torch.float32 or settings.importance_weights != "off"
    return settings.old_log_probs == "recomputed"


def autocast(settings):
    r"""Matrix products in `product_dtype`; the weights stay float32."""
    dtype = product_dtype(settings)
    enabled = dtype != torch.float32
    return torch.autocast(device_of(settings).type, dtype=dtype if enabled else None, enabled=enabled)


def grad_scaler(settings):
    r"""In float16 the loss is multiplied before backward, as gradients below 6e-8 would be 0 there. Else a no-op.

    The factor, at first 65,536, halves after a gradient that overflows and doubles after 2,000 that do not.
    """
    device = device_of(settings)
    scaler = torch.amp.GradScaler(device.type, enabled=product_dtype(settings) == torch.float16)
    scaler.scale(torch.zeros((), device=device))  # makes its state: a process may have no microbatch of a minibatch
    return scaler


def overflowed(scaler):
    r"""Ends an update for the scaler: True where the scaled gradient was not finite, and its factor could be halved."""
    factor = scaler.get_scale()
    scaler.update()
    return factor > max(1, scaler.get_scale())


def head_precision(settings):
    r"""Of the head's float32 products: "high", that is TF32, on CUDA beside the coarser bfloat16; else "highest"."""
    beside_bfloat16 = product_dtype(settings) == torch.bfloat16
    return "high" if beside_bfloat16 and device_of(settings).type == "cuda" else "highest"


def precision(settings):
    r"""What the matrix products are computed in, for the console."""
    head = ""
    if device_of(settings).type == "cuda":
        head = ", the head's in TF32" if head_precision(settings) == "high" else " without TF32"
    return f"{str(product_dtype(settings)).removeprefix('torch.')} products{head}"


def load_model(settings, source):
    r"""(model, tokenizer) through AutoModelForCausalLM, in float32 and without dropout, on the device."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if (source.startswith((".", os.sep)) or Path(source).exists()) and not (Path(source) / "config.json").is_file():
        fail(f"no model at {source}: give a Hugging Face model directory or a hub name with --model")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        config = transformers.AutoConfig.from_pretrained(source)
        # With dropout the policy that is updated would not be the policy that sampled. Some models keep the rates as
        # numbers and apply them by a function. Only in the configuration can all of them be set to 0.
        for name, value in vars(config.get_text_config()).items():
            if "drop" in name and isinstance(value, float):
                setattr(config.get_text_config(), name, 0.0)
        model = transformers.AutoModelForCausalLM.from_pretrained(source, config=config, dtype=torch.float32)
    except Exception as error:  # transformers raises many kinds; each means that the model cannot be loaded
        fail(f"cannot load the model {source}: {(str(error).strip() or repr(error)).splitlines()[0][:200]}")
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable()
        model.train()  # transformers recomputes in training mode only
    model.to(device_of(settings))
    torch.set_float32_matmul_precision(head_precision(settings))
    try:
        check_model(model, tokenizer, settings.decode)
    except ValueError as error:
        fail(error)
    return model, tokenizer
