"""Every way to attend gives what the formula gives, and its gradients: block by block, and by a device's kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mesh_of, tiny

from score_jax.model import attention, kernels

ROW = np.r_[np.full(90, 1), np.full(70, 2), np.full(60, 3), np.zeros(36)].astype(np.int32)  # and padding


def arrays(rows=2, t=256, s=256, heads=4, kv_heads=2, head_dim=128):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(0, 1, (rows, n, h, head_dim)), jnp.float32) for n, h in (
        (t, heads), (s, kv_heads), (s, kv_heads), (t, heads))]  # the last weighs what comes out


def formula(q, k, v, visible, cap):
    """All scores at once; `visible [B, T, S]`."""
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, axis=2) for x in (k, v))
    scores = jnp.einsum('bthd,bshd->bhts', q, k) / np.sqrt(q.shape[-1])
    scores = cap * jnp.tanh(scores / cap) if cap else scores
    return jnp.einsum('bhts,bshd->bthd', jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf)), v)


def check(run, q, k, v, weights, visible, cap=0.0):
    def weighed(attend):
        def loss(*qkv):
            out = attend(*qkv)
            return jnp.sum(weights * out), out
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    got, expected = weighed(run), weighed(lambda *qkv: formula(*qkv, visible, cap))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


def seen(window=0, segments=None):
    """`[1 or B, T, T]` for tokens over themselves."""
    distance = np.arange(256)[:, None] - np.arange(256)
    visible = (distance >= 0)[None] & ((distance < window) if window else True)
    return visible if segments is None else visible & (segments[:, :, None] == segments[:, None, :])


CASES = [(0, False, 0.0), (100, True, 0.0), (0, True, 3.0), (100, False, 3.0)]


@pytest.mark.parametrize('window, packed, cap', CASES)
@pytest.mark.parametrize('local', [True, False])
def test_blocks_give_what_all_scores_at_once_give(window, packed, cap, local):
    config = tiny(window=window, global_every=2 if window else 1, attention_cap=cap, head_dim=16)
    q, k, v, weights = arrays(head_dim=16)
    segments = np.stack([ROW, ROW[::-1]]) if packed else None
    check(lambda q, k, v: attention.attend(q, k, v, config, local, segments=segments),
          q, k, v, weights, seen(window if local else 0, segments), cap)


def test_queries_on_a_cache_see_the_slots_up_to_their_position():
    q, k, v, weights = arrays(t=200, s=300, head_dim=16)
    positions = np.stack([np.arange(40, 240), np.arange(100, 300)])
    visible = np.arange(300) <= positions[:, :, None]
    check(lambda q, k, v: attention.attend(q, k, v, tiny(head_dim=16), None, positions), q, k, v, weights, visible)


def test_keys_are_seen_by_their_positions():
    q, k, v, weights = arrays(t=200, s=300, head_dim=16)
    positions, seen = np.stack([np.arange(40, 240)] * 2), np.stack([np.arange(300)[::-1], np.arange(300) // 2])
    visible = seen[:, None] <= positions[:, :, None]
    check(lambda q, k, v: attention.attend(q, k, v, tiny(head_dim=16), None, positions, seen=seen),
          q, k, v, weights, visible)


@pytest.mark.parametrize('window, packed, cap', CASES[1:3])
def test_splash_attention_says_the_same(window, packed, cap):
    config = tiny(window=window, global_every=2 if window else 1, attention_cap=cap, head_dim=128)
    q, k, v, weights = arrays()
    segments = np.stack([ROW, ROW[::-1]]) if packed else None
    check(lambda q, k, v: kernels.splash(q, k, v, config, True, segments, interpret=True),
          q, k, v, weights, seen(window, segments), cap)


def check_on_mesh(run, *qkv):
    mesh = mesh_of(2, 1, 2)

    def on_mesh(*qkv):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return run(*qkv)
    placed = jax.device_put(qkv, jax.NamedSharding(mesh, jax.P('data', None, 'model')))
    np.testing.assert_allclose(jax.jit(on_mesh)(*placed), jax.jit(run)(*qkv), atol=1e-5)


def test_splash_attention_on_a_mesh_is_that_of_one_device():
    """Rows and KV heads over the devices."""
    check_on_mesh(
        functools.partial(kernels.splash, config=tiny(head_dim=128), local=None, segments=None, interpret=True),
        *arrays()[:3])


@pytest.mark.parametrize('rows, slots', [(3, 320), (3, 100), (300, 64)])  # several programs a row, a last block, one
@pytest.mark.parametrize('window, local, cap', [(0, None, 0.0), (70, True, 0.0), (70, False, 3.0)])
def test_the_kernel_for_a_token_says_the_same(rows, slots, window, local, cap):
    config = tiny(window=window, global_every=2 if window else 1, attention_cap=cap, head_dim=16)
    q, k, v, _ = arrays(rows, 1, slots, heads=6, head_dim=16)
    positions = np.random.default_rng(1).integers(0, slots, (rows, 1))
    positions[:2, 0] = 0, slots - 1
    visible = np.arange(slots) <= positions[:, :, None]
    if local:
        visible &= np.arange(slots) > positions[:, :, None] - window
    # What is beyond a row's position is not looked at, whatever it is.
    k = jnp.where((np.arange(slots) <= positions)[:, :, None, None], k, 1e9)
    got = jax.jit(lambda *qkv: kernels.decoded(*qkv, config, local, positions, interpret=True))(q, k, v)
    np.testing.assert_allclose(got, formula(q, k, v, visible, cap), atol=2e-5)


@pytest.mark.parametrize('rows, slots', [(3, 320), (300, 128)])  # several programs a row, one
def test_the_kernel_goes_on_at_the_first_slot_behind_the_last(rows, slots):
    config = tiny(window=70, global_every=2, head_dim=16)
    q, k, v, _ = arrays(rows, 1, slots, heads=6, head_dim=16)
    positions = np.random.default_rng(1).integers(0, 5 * slots, (rows, 1))
    positions[:3, 0] = slots - 1, slots, 3 * slots + 5
    newest = positions - (positions - np.arange(slots)) % slots
    visible = (newest >= 0) & (newest > positions - 70)
    assert visible.sum(1).max() == 70 and (np.diff(visible[2]) != 0).sum() == 2 and visible[2, 0] and visible[2, -1]
    for kernel in (functools.partial(kernels.decoded, interpret=True), attention.attend):
        got = jax.jit(lambda *qkv: kernel(*qkv, config, True, positions, wraps=True))(q, k, v)
        np.testing.assert_allclose(got, formula(q, k, v, visible[:, None], 0.0), atol=2e-5)


def test_the_kernel_for_a_token_on_a_mesh_is_that_of_one_device():
    """Rows and KV heads over the devices."""
    check_on_mesh(
        functools.partial(kernels.decoded, config=tiny(head_dim=16), local=None,
                          positions=np.arange(20, 60, 10)[:, None], interpret=True),
        *arrays(4, 1, 64, head_dim=16)[:3])


@pytest.mark.parametrize('backend, capability, changes, found', [
    ('tpu', (0,), {}, kernels.splash), ('tpu', (0,), {'head_dim': 64}, None), ('gpu', (8, 0), {}, kernels.cudnn),
    ('gpu', (9, 0), {'attention_cap': 3.0}, None), ('gpu', (7, 5), {}, None), ('gpu', (0,), {}, None),
    ('cpu', (0,), {}, None)])
def test_a_kernel_is_chosen_by_what_it_takes(monkeypatch, backend, capability, changes, found):
    config = tiny(**{'head_dim': 128, 'dtype': 'bfloat16', **changes})
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    monkeypatch.setattr(kernels, 'compute_capability', lambda: capability)
    q = jnp.zeros((1, 128, 4, config.head_dim), jnp.bfloat16)
    assert kernels.kernel(q, config) is found and kernels.kernel(q[:, :101], config) is None
    assert kernels.decodes(config) == (backend == 'gpu' and capability >= (8, 0))
    assert not kernels.decodes(tiny(head_dim=96, dtype='bfloat16')) and not kernels.decodes(tiny(head_dim=128))
