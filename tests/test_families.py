"""What config.json says of a model is what the decoder computes, and what it cannot compute is refused."""

import copy
import math

import jax
import pytest
from family_configs import CONFIGS, TYPES, varied
from helpers import tiny

from score_jax import model as lm
from score_jax.errors import UserError
from score_jax.model import families

# The keys that decide what is computed, as the families' published models have them, with the size they are known by.
GEMMA2_2B = dict(
    model_type='gemma2', vocab_size=256000, hidden_size=2304, num_hidden_layers=26, num_attention_heads=8,
    num_key_value_heads=4, head_dim=256, intermediate_size=9216, rms_norm_eps=1e-6, rope_theta=10000.0,
    attn_logit_softcapping=50.0, final_logit_softcapping=30.0, query_pre_attn_scalar=256, sliding_window=4096,
    hidden_activation='gelu_pytorch_tanh', hidden_act='gelu_pytorch_tanh', attention_bias=False)
GEMMA3_270M = dict(
    model_type='gemma3_text', vocab_size=262144, hidden_size=640, num_hidden_layers=18, num_attention_heads=4,
    num_key_value_heads=1, head_dim=256, intermediate_size=2048, rms_norm_eps=1e-6, rope_theta=1e6,
    rope_local_base_freq=10000.0, rope_scaling=None, attn_logit_softcapping=None, final_logit_softcapping=None,
    query_pre_attn_scalar=256, sliding_window=512, hidden_activation='gelu_pytorch_tanh',
    use_bidirectional_attention=False, layer_types=(['sliding_attention'] * 5 + ['full_attention']) * 3)
QWEN25_15B = dict(
    model_type='qwen2', vocab_size=151936, hidden_size=1536, num_hidden_layers=28, num_attention_heads=12,
    num_key_value_heads=2, intermediate_size=8960, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True,
    hidden_act='silu', use_sliding_window=False, sliding_window=32768, max_window_layers=21)
QWEN3_06B = dict(
    model_type='qwen3', vocab_size=151936, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16,
    num_key_value_heads=8, head_dim=128, intermediate_size=3072, rms_norm_eps=1e-6, rope_theta=1000000,
    tie_word_embeddings=True, hidden_act='silu', attention_bias=False, rope_scaling=None)
LLAMA31_8B = dict(
    model_type='llama', vocab_size=128256, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, intermediate_size=14336, rms_norm_eps=1e-5, rope_theta=500000.0, tie_word_embeddings=False,
    hidden_act='silu', mlp_bias=False, attention_bias=False, pretraining_tp=1,
    rope_scaling=dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192,
                      rope_type='llama3'))
LLAMA32_1B = LLAMA31_8B | dict(
    hidden_size=2048, num_hidden_layers=16, head_dim=64, intermediate_size=8192, tie_word_embeddings=True,
    rope_scaling=LLAMA31_8B['rope_scaling'] | dict(factor=32.0))
PUBLISHED = [
    (GEMMA2_2B, 2_614_341_888), (GEMMA3_270M, 268_098_176), (QWEN25_15B, 1_543_714_304), (QWEN3_06B, 596_049_920),
    (LLAMA31_8B, 8_030_261_248), (LLAMA32_1B, 1_235_814_400)]


@pytest.mark.parametrize('values, size', PUBLISHED)
def test_a_published_model_has_as_many_parameters_as_it_is_known_for(values, size):
    config = families.from_json(values, 'bfloat16')
    declared = jax.tree.leaves(lm.declare(config), is_leaf=lambda x: hasattr(x, 'stddev'))
    assert sum(math.prod(param.shape) for param in declared) == size


def test_gemma_2_is_read_with_what_its_file_leaves_out():
    config = families.from_json(GEMMA2_2B, 'bfloat16')
    assert config.tied and config.local == (True, False) * 13 and config.window == 4096
    assert config.attention_cap == 50 and config.logit_cap == 30 and config.query_scalar == 256


def test_gemma_3_is_read_with_two_rope_bases_and_no_caps():
    config = families.from_json(GEMMA3_270M, 'bfloat16')
    assert config.local == ((True,) * 5 + (False,)) * 3
    assert (config.rope_base, config.local_rope_base) == (1e6, 1e4)
    assert (config.attention_cap, config.logit_cap) == (0, 0)
    older = {k: v for k, v in GEMMA3_270M.items() if k != 'layer_types'} | {'sliding_window_pattern': 6}
    assert families.from_json(older, 'bfloat16') == config


@pytest.mark.parametrize('values, theta', [(values, values['rope_theta']) for values, _ in PUBLISHED])
def test_newer_files_with_rope_parameters_say_the_same(values, theta):
    newer = {k: v for k, v in values.items() if k not in ('rope_theta', 'rope_scaling', 'rope_local_base_freq')}
    rope = (values.get('rope_scaling') or {'rope_type': 'default'}) | {'rope_theta': theta}
    if values['model_type'] == 'gemma3_text':
        rope = {'full_attention': rope, 'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4}}
    assert families.from_json(newer | {'rope_parameters': rope}, 'float32') == families.from_json(values, 'float32')


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_is_written_as_its_family_and_read_back(name):
    written = families.to_json(CONFIGS[name])
    assert written['model_type'] == TYPES[name.split('-')[0]]
    assert families.from_json(written, 'float32') == CONFIGS[name]


@pytest.mark.parametrize('name, changes', [
    ('gemma2-tied', dict(attention_cap=0.0, logit_cap=0.0)), ('gemma2-tied', dict(window=0, global_every=1)),
    ('gemma3-tied', dict(window=0, global_every=1, local_rope_base=0.0)), ('gemma3-tied', dict(global_every=8)),
    ('qwen2-tied', dict(rope_factor=4.0))])
def test_a_family_without_one_of_its_facts_is_written_and_read_back(name, changes):
    config = varied(name, **changes)
    assert families.from_json(families.to_json(config), 'float32') == config


def test_the_default_decoder_is_a_llama():
    assert families.family_of(tiny()) == 'llama'


def test_a_mixture_of_families_cannot_be_exported():
    with pytest.raises(UserError, match='none of the families llama, qwen2'):
        families.to_json(varied('llama-tied', qkv_bias=True, post_norms=True))


def test_special_tokens_and_lengths_are_kept_and_facts_replaced():
    like = GEMMA3_270M | dict(eos_token_id=[1, 106], max_position_embeddings=32768, dtype='bfloat16')
    written = families.to_json(CONFIGS['gemma3-tied'], like)
    assert written['eos_token_id'] == [1, 106] and written['max_position_embeddings'] == 32768
    assert families.from_json(written, 'float32') == CONFIGS['gemma3-tied'] and 'dtype' not in written
    with pytest.raises(UserError, match='of a gemma3_text, but the parameters are those of a qwen2'):
        families.to_json(CONFIGS['qwen2-tied'], like)


@pytest.mark.parametrize('values, change, message', [
    (LLAMA32_1B, dict(model_type='mamba'), "model_type is 'mamba'; families known here are llama, qwen2"),
    (LLAMA32_1B, dict(attention_bias=True), 'attention_bias is True'),
    (LLAMA32_1B, dict(hidden_act='relu'), "hidden_act is 'relu'"),
    (LLAMA32_1B, dict(hidden_size=None), 'hidden_size is None'),
    (LLAMA32_1B, dict(hidden_size='2048'), "hidden_size is '2048'"),
    (LLAMA32_1B, dict(num_attention_heads=None), 'num_attention_heads is None'),
    (LLAMA32_1B, dict(rope_scaling=dict(rope_type='yarn', factor=4.0)), "rope_scaling is .*yarn"),
    (LLAMA32_1B, dict(quantization_config=dict(bits=4)), 'quantization_config is'),
    (QWEN25_15B, dict(use_sliding_window=True), 'use_sliding_window is True'),
    (QWEN25_15B, dict(layer_types=['sliding_attention'] * 28), 'layer_types has'),
    (GEMMA2_2B, dict(layer_types=['full_attention', 'sliding_attention'] * 13), 'layer_types is'),
    (GEMMA2_2B, dict(layer_types=['sliding_attention', 'full_attention']), 'layer_types is'),
    (GEMMA2_2B, dict(hidden_activation='gelu'), "hidden_activation is 'gelu'"),
    (GEMMA2_2B, dict(sliding_window='4096'), "sliding_window is '4096'"),
    (GEMMA2_2B, dict(hidden_size=2304.5), 'hidden_size is 2304.5; it must be a whole number'),
    (LLAMA32_1B, dict(rope_scaling=[1]), r'rope_scaling is \[1\]')])
def test_what_the_decoder_would_not_compute_is_refused(values, change, message):
    with pytest.raises(UserError, match=message):
        families.from_json(copy.deepcopy(values) | change, 'float32')
