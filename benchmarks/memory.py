"""The update's memory as planned and as compiled, in the shape of Gemma 2 2B: `python -m benchmarks.memory`.

Nothing is allocated: shapes are abstract, and the compiler says what it would allot on one virtual CPU. Names of rows
run those alone. It takes up to a minute a row, and as much memory as a compiler needs.
"""

import math
import sys
import time

from score_jax import model, objective, plan, rollout, sharding
from score_jax.learner import Learner, MemoryConfig
from score_jax.lora import LoraConfig
from score_jax.optimizer import OptimizerConfig

GIB = 2**30
OPTIMIZER = OptimizerConfig(
    steps=100, learning_rate=1e-5, schedule='constant', warmup_steps=0, adam_b1=0.9, adam_b2=0.99, adam_eps=1e-8,
    clip_norm=1.0)
OBJECTIVE = objective.resolve(
    'stage2', turns=2, gamma=0.0, kl_estimator='exact', baseline='leave_one_out', adaptive_beta2=0.0,
    allow_gamma_hack=False, alpha=10.0, beta1=0.1)
LORA = LoraConfig(rank=16, alpha=16.0, targets='layers/(query|key|value|out|gate|up|down)')
ROWS = {
    'products': {},
    'products, f32': {'dtype': 'float32'},
    'nothing': {'remat': 'nothing'},
    'nothing, T=1024': {'remat': 'nothing', 'length': 1024},
    'nothing, V=32k': {'remat': 'nothing', 'vocab': 32_000},
    'nothing, V=32k, T=1024': {'remat': 'nothing', 'vocab': 32_000, 'length': 1024},
    'nothing, accumulate=4': {'remat': 'nothing', 'accumulate': 4},
    'nothing, bf16 state': {'remat': 'nothing', 'params': 'bfloat16', 'moments': 'bfloat16'},
    'nothing, LoRA, bf16 base': {'remat': 'nothing', 'params': 'bfloat16', 'lora': LORA},
    'nothing, shared turns, f32': {'remat': 'nothing', 'dtype': 'float32', 'forks': (2, 2)},
    'nothing, reference on host': {'remat': 'nothing', 'on_host': True},
}


def work(
    vocab=256_000, length=2048, rows=8, forks=(2, 1), dtype='bfloat16', lora=None, on_host=False,
    **memory) -> plan.Work:
    """A step of `rows` rows of `length` tokens."""
    config = model.ModelConfig(
        vocab_size=vocab, width=2304, layers=26, heads=8, kv_heads=4, head_dim=256, mlp=9216, tied=True, rope_base=1e4,
        norm_eps=1e-6, dtype=dtype, activation='gelu', post_norms=True, centered_norms=True, scaled_embedding=True,
        query_scalar=256, attention_cap=50.0, logit_cap=30.0, window=4096, global_every=2)
    kept = MemoryConfig(**{'params': 'float32', 'moments': 'float32', 'remat': 'products', 'accumulate': 1} | memory)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=1, model=1))
    sampler = rollout.RolloutConfig(
        turns=2, max_tokens=length // 4, max_length=length, temperature=1.0, chunk=256, end_tokens=(1,), pad_token=0)
    return plan.Work(
        learner=Learner(config, OPTIMIZER, mesh, 512, kept, lora), sampler=sampler, objective=OBJECTIVE, forks=forks,
        batch=rows // math.prod(forks), prompt=length // 4, instruction=length // 4, reference_on_host=on_host)


def main(names) -> None:
    print(f'{"GiB":28} {"arguments":>10} {"planned":>8} {"temporary":>10} {"planned":>8} {"ratio":>6}')
    for name in names or ROWS:
        began, row = time.monotonic(), work(**ROWS[name])
        compiled = plan.lower_update(row).compile().memory_analysis()
        planned = plan.plan(row)
        always, update = sum(planned.always.values()), sum(planned.update.values())
        print(f'{name:28} {compiled.argument_size_in_bytes / GIB:10.1f} {always / GIB:8.1f} '
              f'{compiled.temp_size_in_bytes / GIB:10.1f} {update / GIB:8.1f} '
              f'{compiled.temp_size_in_bytes / update:6.2f}   {time.monotonic() - began:.0f} s', flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
