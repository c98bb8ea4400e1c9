"""Memory of the conversion both ways, of a model in the shape of Gemma 2 2B: `python -m benchmarks.convert`.

It makes the model of random bits in a temporary folder, which needs 16 GB of disk; --layers=N makes a smaller one. Each
way is run as a user would, in a process of its own, whose peak the kernel tells. What comes back is compared bit by
bit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors

from score_jax import hf, model, shards

ROOT = Path(__file__).resolve().parents[1]
GB = 1e9


def shape(layers: int) -> model.ModelConfig:
    """That of Gemma 2 2B, which has 26 layers."""
    return model.ModelConfig(
        vocab_size=256_000, width=2304, layers=layers, heads=8, kv_heads=4, head_dim=256, mlp=9216, tied=True,
        rope_base=1e4, norm_eps=1e-6, dtype='bfloat16', activation='gelu', post_norms=True, centered_norms=True,
        scaled_embedding=True, query_scalar=256, attention_cap=50.0, logit_cap=30.0, window=4096, global_every=2)


def make(directory: Path, config: model.ModelConfig) -> int:
    """A directory of safetensors with random bits, bfloat16; returns their bytes."""
    rng = np.random.default_rng(0)
    entries = [shards.Entry(tensor.name, tensor.shape, shards.DTYPES['BF16'])
               for group in hf.tensors(config).values() for tensor in group]

    def arrays() -> Iterator[np.ndarray]:
        for entry in entries:
            bits = rng.integers(0, 2**16, entry.shape, np.uint16) & 0xBFFF  # none is infinite
            yield bits.view(entry.dtype)
    directory.mkdir()
    shards.write(directory, entries, arrays(), hf.SHARD_BYTES)
    (directory / 'config.json').write_text(json.dumps(hf.config_json(config) | {'torch_dtype': 'bfloat16'}))
    return sum(entry.nbytes for entry in entries)


def convert(source: Path, target: Path) -> tuple[float, float, float]:
    """GB at the peak, seconds, and CPU seconds of `launch/convert.py`."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, ROOT / 'launch/convert.py', f'--from={source}', f'--to={target}'])
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f'the conversion of {source} failed')
    return used.ru_maxrss * 1024 / GB, time.monotonic() - began, used.ru_utime + used.ru_stime


def tensors(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of each, in the order of their names."""
    where = {}
    for path in directory.glob('*.safetensors'):
        file = safetensors.safe_open(path, framework='np', backend='pread')
        where |= {name: file for name in file.keys()}
    for name in sorted(where):
        yield name, where[name].get_tensor(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--layers', type=int, default=26)
    parser.add_argument('--folder', default=tempfile.gettempdir(), help='where the temporary folder is made')
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix='score_jax-convert-') as folder:
        source, checkpoint, back = (Path(folder) / name for name in ('hf', 'checkpoint', 'back'))
        size = make(source, shape(given.layers)) / GB
        print(f'model   {size:6.2f} GB')
        for name, pair in {'import': (source, checkpoint), 'export': (checkpoint, back)}.items():
            peak, seconds, cpu = convert(*pair)
            print(f'{name}  {peak:6.2f} GB at its peak, {peak / size:.2f} of the model; {seconds:.0f} s, {cpu:.0f} of '
                  'CPU', flush=True)
        for (name, a), (other, b) in zip(tensors(source), tensors(back), strict=True):
            if name != other or a.dtype != b.dtype or a.tobytes() != b.tobytes():
                raise SystemExit(f'{name} came back as another one')
        print('every tensor came back to the bit')


if __name__ == '__main__':
    main()
