r"""What this project uses of transformers beyond its documented interface, each piece by itself.

A failure here says that the installed release changed it, and names the one place that relies on it.
"""

import copy

import pytest
import torch
import transformers
from transformers.cache_utils import Cache, StaticLayer

from rollout import FixedLayer, InPlaceLayer

RELEASE = f"transformers {transformers.__version__} changed this (written for 5.23); it is used by "


def layers(length=3, room=2):
    r"""Keys and values [2, 1, length + room, 1] that count 0, 1, 2, ... along the sequence."""
    buffer = torch.zeros(2, 1, length + room, 1)
    buffer[:, :, :length, 0] = torch.arange(length, dtype=torch.float)
    return buffer, buffer.clone()


def test_a_cache_may_be_made_of_layers_of_one_s_own():
    keys, values = layers()
    cache = Cache(layers=[InPlaceLayer(keys, values, 3)])
    assert cache.get_seq_length() == 3, RELEASE + "rollout.prefill"
    new = torch.full((2, 1, 1, 1), 9.0)
    seen = cache.update(new, new, 0)
    assert [x.flatten(1).tolist() for x in seen] == 2 * [2 * [[0, 1, 2, 9]]], RELEASE + "rollout.InPlaceLayer.update"
    assert cache.get_mask_sizes(1, 0) == (5, 0), RELEASE + "rollout.InPlaceLayer (the mask covers one token more)"
    cache.batch_select_indices(torch.tensor([1]))
    assert cache.layers[0].keys.shape == (1, 1, 4, 1), RELEASE + "rollout.InPlaceLayer.batch_select_indices"


def test_a_static_layer_can_start_in_the_middle():
    layer = FixedLayer(*layers(), 3)
    assert isinstance(layer, StaticLayer) and layer.is_compileable, RELEASE + "rollout.FixedLayer"
    assert int(layer.get_seq_length()) == 3, RELEASE + "rollout.FixedLayer (cumulative_length)"
    new = torch.full((2, 1, 1, 1), 9.0, dtype=torch.float64)
    keys, _ = layer.update(new, new)
    assert keys.flatten(1).tolist() == 2 * [[0, 1, 2, 9, 0]], RELEASE + "rollout.FixedLayer.update"
    assert keys.dtype == torch.float32


def test_an_attention_function_of_one_s_own_is_given_the_decoder_s_arguments(tiny):
    model, seen = copy.deepcopy(tiny[0]), []

    def attention(module, query, key, value, attention_mask, **options):
        seen.append((query.shape, attention_mask.shape, options["blocks"]))
        return query.transpose(1, 2), None

    transformers.AttentionInterface.register("of a test", attention)
    model.set_attn_implementation("of a test")
    unused = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    model.get_decoder()(input_ids=torch.arange(5)[None], attention_mask=unused, use_cache=False, blocks="these")
    assert seen == 4 * [((1, 4, 5, 32), (1, 1, 1, 1), "these")], RELEASE + "scoring.packed_attention"


@pytest.mark.parametrize("name", ["get_decoder", "get_output_embeddings", "activation_checkpointing_enable"])
def test_the_model_has_what_is_asked_of_it(tiny, name):
    assert hasattr(tiny[0], name), RELEASE + "scoring.py and plumbing/model.py"


def test_gradient_checkpointing_recomputes_in_training_mode(tiny):
    model, calls = copy.deepcopy(tiny[0]), []
    model.activation_checkpointing_enable()
    model.train()
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model(input_ids=torch.arange(4)[None], use_cache=False).logits.sum().backward()
    assert len(calls) == 2, RELEASE + "plumbing/model.py"
