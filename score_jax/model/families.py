"""The families of open models: their config.json as a `ModelConfig` and back, and what their weights are called.

A family is a row of `FAMILIES`: which keys of its config.json say what, which facts hold for all its models, and what
its tensors are called. `ModelConfig` says all that the decoder needs, so nothing else knows of families.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from score_jax.errors import UserError
from score_jax.model.config import ModelConfig

_KEYS = {  # of config.json -> field of ModelConfig, in every family
    'vocab_size': 'vocab_size', 'hidden_size': 'width', 'num_hidden_layers': 'layers', 'num_attention_heads': 'heads',
    'num_key_value_heads': 'kv_heads', 'head_dim': 'head_dim', 'intermediate_size': 'mlp', 'rms_norm_eps': 'norm_eps',
    'rope_theta': 'rope_base', 'tie_word_embeddings': 'tied'}
_CAPS = {'attn_logit_softcapping': 'attention_cap', 'final_logit_softcapping': 'logit_cap'}
_GEMMA_KEYS = {'query_pre_attn_scalar': 'query_scalar'} | _CAPS
_ROPE_SCALING = {
    'factor': 'rope_factor', 'low_freq_factor': 'rope_low', 'high_freq_factor': 'rope_high',
    'original_max_position_embeddings': 'rope_length'}
_DEFAULTS = {'rope_theta': 1e4, 'tie_word_embeddings': False, 'rms_norm_eps': 1e-6}
# Keys under which a model would compute something else; absent or null, they have these values.
_FIXED = {'attention_bias': False, 'mlp_bias': False, 'use_sliding_window': False, 'use_bidirectional_attention': False,
          'partial_rotary_factor': 1.0, 'quantization_config': None}

_FLOATS = {field.name for field in dataclasses.fields(ModelConfig) if field.type == 'float'}

_NAMES = {  # of our parameters -> tensors, {} the number of the layer
    'embedding': 'model.embed_tokens.weight',
    'layers/attention_norm': 'model.layers.{}.input_layernorm.weight',
    'layers/query': 'model.layers.{}.self_attn.q_proj.weight',
    'layers/query_bias': 'model.layers.{}.self_attn.q_proj.bias',
    'layers/query_norm': 'model.layers.{}.self_attn.q_norm.weight',
    'layers/key': 'model.layers.{}.self_attn.k_proj.weight',
    'layers/key_bias': 'model.layers.{}.self_attn.k_proj.bias',
    'layers/key_norm': 'model.layers.{}.self_attn.k_norm.weight',
    'layers/value': 'model.layers.{}.self_attn.v_proj.weight',
    'layers/value_bias': 'model.layers.{}.self_attn.v_proj.bias',
    'layers/out': 'model.layers.{}.self_attn.o_proj.weight',
    'layers/mlp_norm': 'model.layers.{}.post_attention_layernorm.weight',
    'layers/gate': 'model.layers.{}.mlp.gate_proj.weight',
    'layers/up': 'model.layers.{}.mlp.up_proj.weight',
    'layers/down': 'model.layers.{}.mlp.down_proj.weight',
    'final_norm': 'model.norm.weight',
    'head': 'lm_head.weight',
}
_GEMMA_NAMES = _NAMES | {
    'layers/attention_post_norm': 'model.layers.{}.post_attention_layernorm.weight',
    'layers/mlp_norm': 'model.layers.{}.pre_feedforward_layernorm.weight',
    'layers/mlp_post_norm': 'model.layers.{}.post_feedforward_layernorm.weight',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What tells a family from a plain Llama.

    Attributes:
      keys: further keys of config.json -> fields of `ModelConfig`.
      facts: fields that have this value in all its models.
      defaults: values of keys that its config.json may leave out. One with `sliding_window_pattern` has local layers.
      activation_key: where config.json has the name of the MLP's activation.
      names: our parameters -> tensors.
    """

    architecture: str
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, object] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, object] = dataclasses.field(default_factory=dict)
    activation_key: str = 'hidden_act'
    names: Mapping[str, str] = dataclasses.field(default_factory=lambda: _NAMES)


_GEMMA = dict(activation='gelu', post_norms=True, centered_norms=True, scaled_embedding=True)
_ACTIVATIONS = {'silu': 'silu', 'gelu': 'gelu_pytorch_tanh'}

FAMILIES = {  # by model_type
    'llama': Family(architecture='LlamaForCausalLM'),
    'qwen2': Family(architecture='Qwen2ForCausalLM', facts=dict(qkv_bias=True)),
    'qwen3': Family(architecture='Qwen3ForCausalLM', facts=dict(qk_norm=True), defaults=dict(head_dim=128)),
    'gemma2': Family(
        architecture='Gemma2ForCausalLM', keys=_GEMMA_KEYS, facts=_GEMMA, activation_key='hidden_activation',
        defaults=dict(
            tie_word_embeddings=True, head_dim=256, query_pre_attn_scalar=256, attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0, sliding_window=4096, sliding_window_pattern=2),
        names=_GEMMA_NAMES),
    'gemma3_text': Family(
        architecture='Gemma3ForCausalLM', keys=_GEMMA_KEYS | {'rope_local_base_freq': 'local_rope_base'},
        facts=_GEMMA | dict(qk_norm=True), activation_key='hidden_activation',
        defaults=dict(
            tie_word_embeddings=True, head_dim=256, query_pre_attn_scalar=256, sliding_window=4096,
            sliding_window_pattern=6, rope_theta=1e6, rope_local_base_freq=1e4),
        names=_GEMMA_NAMES),
}


def family_of(config: ModelConfig) -> str:
    """The `model_type` of the first family whose config.json can say all of `config`.

    Raises:
      UserError: none can.
    """
    for model_type in FAMILIES:
        try:
            if _read(_write(config, model_type), config.dtype) == config:
                return model_type
        except UserError:
            continue
    raise UserError(
        f'config.model is {config}, which is a model of none of the families {", ".join(FAMILIES)}; set the values of '
        'one of them to export it.')


def from_json(values: Mapping, dtype: str) -> ModelConfig:
    """The `ModelConfig` of a config.json, of this file or of an older or newer `transformers`.

    Raises:
      UserError: names the key that is missing, or whose value this decoder does not compute.
    """
    return _read(_flat_rope(values), dtype)


def to_json(config: ModelConfig, like: Mapping = ()) -> dict:
    """A config.json for `config`; what that does not say (special tokens, lengths) is taken from the one in `like`.

    Raises:
      UserError: `config` is of no family, or `like` of another one.
    """
    model_type = family_of(config)
    values = dict(like)
    if values.get('model_type', model_type) != model_type:
        raise UserError(
            f"the config.json to go by is of a {values['model_type']}, but the parameters are those of a {model_type}; "
            'name a directory of the same family.')
    replaced = {'rope_parameters', 'rope_scaling', 'dtype', 'layer_types', 'sliding_window', 'sliding_window_pattern'}
    return {key: value for key, value in values.items() if key not in replaced} | _write(config, model_type)


def _flat_rope(values: Mapping) -> dict:
    """config.json with `rope_theta` and `rope_scaling`, where newer ones have all that in `rope_parameters`."""
    values = dict(values)
    rope = values.pop('rope_parameters', None)
    if not rope:
        return values
    if 'full_attention' in rope:
        local = rope.get('sliding_attention') or {}
        if local.get('rope_type', 'default') != 'default':
            raise UserError(f'rope_parameters.sliding_attention is {local}; only rope_type default is known there.')
        values['rope_local_base_freq'] = local.get('rope_theta')
        rope = rope['full_attention']
    return values | {'rope_theta': rope.get('rope_theta'), 'rope_scaling': rope}


def _read(values: Mapping, dtype: str) -> ModelConfig:
    model_type = values.get('model_type')
    if model_type not in FAMILIES:
        raise UserError(f'model_type is {model_type!r}; families known here are {", ".join(FAMILIES)}.')
    family = FAMILIES[model_type]
    given = {key: value for key, value in values.items() if value is not None or key in _CAPS}  # null is no cap there
    values = _DEFAULTS | dict(family.defaults) | given
    _check_fixed(values, family)

    def number(key):
        value = values.get(key) or 0 if key in _CAPS else values.get(key)
        if not isinstance(value, (int, float)):
            raise UserError(f'{key} is {value!r}; config.json of a {model_type} must have a number there.')
        return value

    values.setdefault('num_key_value_heads', number('num_attention_heads'))
    values.setdefault('head_dim', number('hidden_size') // number('num_attention_heads'))
    fields = {field: number(key) for key, field in (_KEYS | family.keys).items()}
    fields |= {field: float(value) for field, value in fields.items() if field in _FLOATS}
    for key, field in (_KEYS | family.keys).items():
        if field not in _FLOATS | {'tied'}:
            if fields[field] != int(fields[field]):
                raise UserError(f'{key} is {fields[field]!r}; it must be a whole number.')
            fields[field] = int(fields[field])
    fields |= _layers_read(values, fields) | _rope_read(values.get('rope_scaling'))
    return ModelConfig(**fields | dict(family.facts, dtype=dtype))


def _check_fixed(values: Mapping, family: Family) -> None:
    """Refuses values under which a model would compute something else than its family does here."""
    activation = _ACTIVATIONS[family.facts.get('activation', 'silu')]
    for key, value in (_FIXED | {family.activation_key: activation}).items():
        if values.get(key, value) != value:
            raise UserError(f'{key} is {values[key]!r}; {values["model_type"]} is only known here with {value!r}.')


def _layers_read(values: Mapping, fields: Mapping) -> dict:
    """Which layers are local: `layer_types` names each, an older config.json has `sliding_window_pattern`."""
    local = fields.get('local_rope_base', 0.0)
    if 'sliding_window_pattern' not in values:  # no layer of this family is local
        if set(values.get('layer_types', ())) - {'full_attention'}:
            raise UserError(
                f"layer_types has {sorted(set(values['layer_types']))}; {values['model_type']} is only known here with "
                'full_attention.')
        return {}
    every = values['sliding_window_pattern']
    types = values.get('layer_types')
    if types:
        every = types.index('full_attention') + 1 if 'full_attention' in types else len(types) + 1
        if types != _layer_types(every, len(types)) or len(types) != fields['layers']:
            raise UserError(
                f'layer_types is {types}; known are num_hidden_layers = {fields["layers"]} entries in which every n-th '
                'is full_attention and the others sliding_attention.')
    if not isinstance(values['sliding_window'], int):
        raise UserError(f'sliding_window is {values["sliding_window"]!r}; it must be a whole number of positions.')
    if every == 1:
        return {'window': 0, 'global_every': 1, 'local_rope_base': 0.0}
    return {'window': values['sliding_window'], 'global_every': every, 'local_rope_base': local}


def _rope_read(scaling: Mapping | None) -> dict:
    if scaling is not None and not isinstance(scaling, Mapping):
        raise UserError(f'rope_scaling is {scaling!r}; it must be an object or null.')
    kind = (scaling or {}).get('rope_type', (scaling or {}).get('type', 'default'))
    if kind == 'default':
        return {}
    if kind != 'llama3' or not _ROPE_SCALING.keys() <= scaling.keys():
        raise UserError(
            f'rope_scaling is {dict(scaling)}; known are none and rope_type llama3 with {", ".join(_ROPE_SCALING)}.')
    return {'rope_factor': float(scaling['factor']), 'rope_low': float(scaling['low_freq_factor']),
            'rope_high': float(scaling['high_freq_factor']), 'rope_length': scaling['original_max_position_embeddings']}


def _layer_types(every: int, layers: int) -> list[str]:
    return ['sliding_attention' if (i + 1) % every else 'full_attention' for i in range(layers)]


def _write(config: ModelConfig, model_type: str) -> dict:
    """The config.json of `config` as a model of that family; it may say less than `config` does."""
    family = FAMILIES[model_type]
    values = {key: getattr(config, field) for key, field in (_KEYS | family.keys).items()}
    values |= {key: values[key] or None for key in _CAPS if key in values}
    if 'query_pre_attn_scalar' in values:
        values['query_pre_attn_scalar'] = config.query_scalar or config.head_dim
    values['rope_scaling'] = None
    if config.rope_factor != 1:
        values['rope_scaling'] = {'rope_type': 'llama3'} | {
            key: getattr(config, field) for key, field in _ROPE_SCALING.items()}
    if 'sliding_window_pattern' in family.defaults:
        values |= {
            'sliding_window_pattern': config.global_every, 'sliding_window': config.window or None,
            'layer_types': _layer_types(config.global_every, config.layers)}
    return values | {
        'model_type': model_type, 'architectures': [family.architecture], 'torch_dtype': config.dtype,
        family.activation_key: _ACTIVATIONS[config.activation]}
