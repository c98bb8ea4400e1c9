"""What is sampled is what the model says, turn after turn, whatever the chunk, the padding and the group."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import decoder_logits, log_softmax, mesh_of, random_params, tiny

from score_jax import decode, rollout
from score_jax import model as lm
from score_jax.errors import UserError
from score_jax.rollout import RolloutConfig, turn_noise
from score_jax.sampling import draw

PROMPTS = [[1], [2, 3, 4, 5], [6, 7, 1], [3, 3]]
INSTRUCTION = [5, 0, 6]
END = 0  # also a token of the instruction: only a sampled one ends a response


LOCAL = dict(window=3, global_every=2)  # the first of two layers


def model_of(*, tied=True, local=False, **_):
    return tiny(tied=tied, **LOCAL if local else {})


@functools.cache
def sampled(
    *, tied=True, local=False, forks=(1, 1), seed=6, step=0, params_seed=0, prompts=None, given=None, stop_at=None,
    on_turn=None, mesh=(1, 1, 1), **changes):
    """A rollout on the host: prompts of 1 to 4 tokens, responses of 1 to 5."""
    values = dict(
        turns=2, max_tokens=5, max_length=32, temperature=0.8, chunk=16, end_tokens=(END, 4), pad_token=7) | changes
    config, mesh = model_of(tied=tied, local=local), mesh_of(*mesh)
    params = jax.device_put(random_params(config, params_seed), lm.shardings(config, mesh))
    trajectory = rollout.sample(
        params, config, RolloutConfig(**values), mesh,
        PROMPTS if prompts is None else [list(p) for p in prompts], INSTRUCTION, forks=forks, seed=seed, step=step,
        given=given and [list(response) for response in given], stop_at=stop_at, on_turn=on_turn)
    return jax.tree.map(np.asarray, trajectory)


def written(trajectory):
    """Everything but what fills the unused columns, cut to the longest row."""
    width = trajectory.length.max()
    tokens = np.where(np.arange(trajectory.tokens.shape[1]) < trajectory.length[:, None], trajectory.tokens, -1)
    return [x[:, :width] for x in (tokens, trajectory.turn, trajectory.log_probs)] + [
        trajectory.length, trajectory.truncated]


@pytest.mark.parametrize('forks', [(1, 1), (2, 2)])
def test_a_cache_of_full_size_from_the_start_changes_nothing(monkeypatch, forks):
    """As where a kernel reads what a row has filled alone; without forks turn 2 is then read in place."""
    expected = sampled(forks=forks)
    slots, of = [], rollout.decode_turn
    monkeypatch.setattr(rollout, 'decodes', lambda model: True)
    monkeypatch.setattr(rollout, 'decode_turn', lambda static, params, flight, **more: (
        slots.append(flight.cache[0].room) or of(static, params, flight, **more)))
    got = sampled.__wrapped__(forks=forks)
    assert slots == [64, 64]
    for a, b in zip(written(got), written(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)



def assert_same(a, b):
    for x, y in zip(written(a), written(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def first_attempts(trajectory):
    masks = trajectory.turn == 1
    return [(tokens[own].tolist(), log_probs[own].tolist())
            for tokens, log_probs, own in zip(trajectory.tokens, trajectory.log_probs, masks)]


VARIANTS = [
    dict(), dict(chunk=4, pad_token=4), dict(chunk=3, pad_token=END), dict(forks=(2, 3)),
    dict(tied=False, temperature=0.0), dict(local=True, chunk=4), dict(local=True, chunk=1, forks=(2, 3))]


@pytest.mark.parametrize('variant', VARIANTS, ids=str)
def test_log_probs_are_those_of_a_fresh_pass_over_the_exact_tokens(variant):
    trajectory, config = sampled(**variant), model_of(**variant)
    params, temperature = random_params(config), variant.get('temperature', 0.8)
    for row in range(len(trajectory.tokens)):
        tokens = trajectory.tokens[row, :trajectory.length[row]]
        logits = decoder_logits(params, config, tokens)
        own = np.flatnonzero(trajectory.turn[row])
        law = log_softmax(logits / (temperature or 1))[own - 1]
        np.testing.assert_allclose(trajectory.log_probs[row, own], law[range(len(own)), tokens[own]], atol=1e-4)
        if temperature == 0:
            np.testing.assert_array_equal(tokens[own], law.argmax(-1))


@pytest.mark.parametrize('variant', VARIANTS, ids=str)
def test_every_row_is_prompt_response_instruction_response(variant):
    trajectory, forks = sampled(**variant), variant.get('forks', (1, 1))
    limit, ends, pad = 5, (END, 4), variant.get('pad_token', 7)
    prompts = [p for p in PROMPTS for _ in range(forks[0] * forks[1])]
    assert trajectory.tokens.shape[0] == len(prompts) and trajectory.tokens.shape[1] % variant.get('chunk', 16) == 0
    for prompt, tokens, turn, log_probs, length, truncated in zip(
        prompts, trajectory.tokens, trajectory.turn, trajectory.log_probs, trajectory.length, trajectory.truncated,
        strict=True):
        first, second = tokens[turn == 1].tolist(), tokens[turn == 2].tolist()
        row = prompt + first + INSTRUCTION + second
        assert tokens.tolist() == row + [pad] * (len(tokens) - len(row)) and length == len(row)
        turns = [0] * len(prompt) + [1] * len(first) + [0] * len(INSTRUCTION) + [2] * len(second)
        assert turn.tolist() == turns + [0] * (len(tokens) - len(row))
        for response, cut in zip((first, second), truncated, strict=True):
            assert 1 <= len(response) <= limit and not set(response[:-1]) & set(ends)
            assert cut == (response[-1] not in ends) and (len(response) == limit or not cut)
        assert (log_probs[turn == 0] == 0).all() and (log_probs[turn > 0] < 0).all()


def test_the_rows_above_are_ragged():
    trajectory = sampled(forks=(2, 3))
    lengths = [np.sum(trajectory.turn == turn, axis=1) for turn in (1, 2)]
    assert all(len(set(x.tolist())) > 2 for x in lengths)
    assert all(0 < cut.sum() < len(cut) for cut in trajectory.truncated.T)


@pytest.mark.parametrize('variant', [dict(chunk=4, pad_token=4), dict(chunk=3, pad_token=END)], ids=str)
def test_neither_chunk_nor_padding_changes_what_is_sampled(variant):
    assert_same(sampled(**variant), sampled())


@pytest.mark.parametrize('forks', [(1, 1), (2, 3)])
def test_rows_that_are_done_make_room_and_nothing_else_changes(forks, monkeypatch):
    """Of 16 rows and more those that are done are parked, in both turns, once after another."""
    def rollout_of(fewest):
        sizes, of = [], decode.decode
        monkeypatch.setattr(decode, '_FEWEST', fewest)
        monkeypatch.setattr(decode, 'decode', lambda *args: sizes.append(len(args[2].row)) or of(*args))
        trajectory = sampled.__wrapped__(
            forks=forks, prompts=tuple(map(tuple, PROMPTS * 4)), max_tokens=8, max_length=40, chunk=2)
        monkeypatch.undo()
        return trajectory, sizes
    (all_along, sizes), (parked, fewer) = rollout_of(1000), rollout_of(2)
    assert_same(parked, all_along)
    first, second = 16 * forks[0], 16 * forks[0] * forks[1]
    assert set(sizes) == {first, second}
    at = next(i for i in range(1, len(fewer)) if fewer[i] > fewer[i - 1])
    for turn, rows in ((fewer[:at], first), (fewer[at:], second)):
        assert sorted(turn, reverse=True) == turn and turn[0] == rows and len(set(turn)) > 2


def test_a_response_stops_where_it_is_told_to():
    stops = [1, 5, 2, 3]
    cut, free = sampled.__wrapped__(stop_at=stops, end_tokens=(9,)), sampled(end_tokens=(9,))
    for turn in (1, 2):
        assert np.sum(cut.turn == turn, axis=1).tolist() == stops and cut.truncated[:, turn - 1].all()
    for (tokens, _), (longer, _), stop in zip(first_attempts(cut), first_attempts(free), stops):
        assert tokens == longer[:stop]


@pytest.mark.parametrize('given', [False, True])
@pytest.mark.parametrize('chunk', [1, 4])
def test_a_local_layer_keeps_no_more_than_it_sees(monkeypatch, chunk, given):
    """Prompts longer than that, ragged rows that are parked, a second turn, and first attempts that are given."""
    prompts = tuple(tuple((i + j) % 8 for j in range(1 + 3 * i)) for i in range(4)) * 2
    slots, of = [], decode.decode
    monkeypatch.setattr(decode, '_FEWEST', 2)
    monkeypatch.setattr(decode, 'decode', lambda *args: (
        slots.append([cache.keys.shape[-1] for cache in args[2].cache]) or of(*args)))

    def all_of(**more):
        slots.clear()
        return sampled.__wrapped__(local=True, prompts=prompts, chunk=chunk, forks=(1, 2), max_tokens=6, **more)
    more = {'given': firsts(all_of(), (1, 2))[:4] + ((),) * 4} if given else {}
    got = all_of(**more)
    (local, whole), most = np.transpose(slots), LOCAL['window'] + (6 if given else len(INSTRUCTION))
    assert local.max() == -(-most // chunk) * chunk < 20 < whole.max()
    monkeypatch.setattr(rollout, 'local_slots', lambda *_: None)
    assert_same(got, all_of(**more))
    assert slots and all(a == b for a, b in slots)


def test_a_local_layer_keeps_the_same_on_eight_devices():
    more = dict(local=True, prompts=tuple((1,) * n for n in (1, 12, 9, 4)), chunk=4)
    assert_same(sampled(**more, mesh=(2, 2, 2)), sampled(**more))


def test_a_row_does_not_depend_on_its_neighbours():
    alone, beside = sampled(prompts=((1,),)), sampled()
    length = alone.length[0]
    np.testing.assert_array_equal(alone.tokens[0, :length], beside.tokens[0, :length])
    np.testing.assert_allclose(alone.log_probs[0, :length], beside.log_probs[0, :length], atol=1e-5)


def test_forks_share_their_first_attempt_and_nothing_else():
    few, many = sampled(forks=(2, 1)), sampled(forks=(2, 3))
    assert first_attempts(many) == [attempt for attempt in first_attempts(few) for _ in range(3)]
    assert len({str(attempt) for attempt in first_attempts(few)}) > len(PROMPTS)
    seconds = [tuple(t[m]) for t, m in zip(many.tokens, many.turn == 2)]
    assert sum(len(set(seconds[i:i + 3])) for i in range(0, len(seconds), 3)) > len(seconds) * 0.7


def test_a_cache_that_short_responses_leave_too_wide_stays_as_wide():
    trajectory = sampled(prompts=((1,),), chunk=5, end_tokens=tuple(range(8)))
    assert trajectory.length.tolist() == [1 + 1 + len(INSTRUCTION) + 1] and not trajectory.truncated.any()


def firsts(trajectory, forks) -> tuple:
    """The first attempts of a rollout, one for each of P * K1."""
    return tuple(tuple(tokens) for tokens, _ in first_attempts(trajectory)[::forks[1]])


@pytest.mark.parametrize('every', [1, 2], ids=['all', 'every second one'])
@pytest.mark.parametrize('forks, chunk', [((1, 1), 16), ((2, 3), 4)])
def test_given_what_it_would_have_sampled_it_goes_on_as_if_it_had(forks, chunk, every):
    plain = sampled(forks=forks, chunk=chunk)
    responses = firsts(plain, forks)
    given = tuple(response if i % every == 0 else () for i, response in enumerate(responses))
    seen = {}
    trajectory = sampled(forks=forks, chunk=chunk, given=given, on_turn=lambda turn, t: seen.update({turn: t}))
    of_given = np.repeat([bool(response) for response in given], forks[1])
    marked = np.where((plain.turn == 1) & of_given[:, None], -1, plain.turn)
    log_probs = np.where(marked < 0, 0, plain.log_probs)
    assert_same(trajectory, plain.replace(turn=marked, log_probs=log_probs))
    np.testing.assert_array_equal(seen[1].truncated[:, 0], plain.truncated[::forks[1], 0])


def test_given_anything_else_turn_2_is_sampled_under_it():
    given = ((3, 6, END), (2, 2, 2, 2, 2), (1, 4), (END,))
    trajectory, params, config = sampled(given=given), random_params(tiny()), tiny()
    assert trajectory.truncated[:, 0].tolist() == [False, True, False, False]
    for row, (prompt, first) in enumerate(zip(PROMPTS, given, strict=True)):
        tokens, turn = trajectory.tokens[row, :trajectory.length[row]], trajectory.turn[row, :trajectory.length[row]]
        before = [*prompt, *first, *INSTRUCTION]
        assert tokens[:len(before)].tolist() == before and (turn[len(before):] == 2).all()
        own = np.flatnonzero(turn == 2)
        law = log_softmax(decoder_logits(params, config, tokens) / 0.8)[own - 1]
        np.testing.assert_allclose(trajectory.log_probs[row, own], law[range(len(own)), tokens[own]], atol=1e-4)


def test_first_attempts_that_do_not_fit_are_refused():
    for given in (((1, END),) * 3, ((1,) * 6,) * 4):
        with pytest.raises(UserError, match=f'{len(given)} first attempts of up to {len(given[0])} tokens.* 4 rows'):
            sampled(given=given)


def test_each_turn_is_handed_out_when_it_is_done():
    seen = {}
    trajectory = sampled(forks=(2, 3), on_turn=lambda turn, t: seen.update({turn: t}))
    assert sorted(seen) == [1, 2] and all(isinstance(x, np.ndarray) for x in jax.tree.leaves(seen))
    assert_same(seen[2], trajectory)
    assert len(seen[1].tokens) == len(PROMPTS) * 2 and (seen[1].turn < 2).all()
    assert [a for a in first_attempts(seen[1]) for _ in range(3)] == first_attempts(trajectory)
    np.testing.assert_array_equal(np.repeat(seen[1].truncated[:, 0], 3), trajectory.truncated[:, 0])


def test_one_turn_is_the_first_of_two():
    one = sampled(turns=1, forks=(1,))
    assert first_attempts(one) == first_attempts(sampled())
    assert one.truncated.shape[1] == one.turn.max() == 1


def test_a_rollout_is_a_function_of_seed_and_step():
    assert_same(sampled.__wrapped__(), sampled())
    for other in (dict(seed=1), dict(step=1)):
        assert first_attempts(sampled(**other)) != first_attempts(sampled())


def test_noise_is_a_function_of_seed_step_turn_and_row_alone():
    noise = {at: np.asarray(turn_noise(*at, 64, 16)) for at in [(0, 0, 1), (0, 0, 2), (0, 1, 1), (0, 1, 2), (1, 0, 1)]}
    np.testing.assert_array_equal(noise[0, 0, 1], turn_noise(0, 0, 1, 64, 16))
    np.testing.assert_array_equal(noise[0, 0, 1][:5, :3], turn_noise(0, 0, 1, 5, 3))
    everything = np.concatenate(list(noise.values()))  # [5 * 64 rows, 16]
    assert everything.min() >= 0 and everything.max() < 1
    correlation = np.corrcoef(everything)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.95  # no row is another's again
    by_column = np.corrcoef([x.ravel() for x in noise.values()])
    assert np.abs(by_column - np.eye(5)).max() < 5 / np.sqrt(64 * 16)
    assert len(np.unique(everything)) > 0.999 * everything.size


@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0])
def test_inverse_cdf_samples_the_law(temperature):
    """Midpoints of n equal parts of [0, 1] fall on each token in proportion to its probability."""
    n, logits = 4096, np.array([-np.inf, 0.3, -np.inf, 2.0, -1.0, -30.0, 1.1, -np.inf], np.float32)
    uniform = (np.arange(n, dtype=np.float32) + 0.5) / n
    token, log_prob = draw(np.tile(logits, (n, 1)), uniform, temperature)
    law = log_softmax(logits.astype(float) / temperature)
    counts = np.bincount(token, minlength=len(logits))
    np.testing.assert_allclose(counts / n, np.exp(law), atol=1.01 / n)
    np.testing.assert_allclose(log_prob, law[token], atol=1e-5)


def test_greedy_takes_the_likeliest_token_and_its_log_prob():
    logits = np.random.default_rng(0).normal(size=(32, 9)).astype(np.float32)
    token, log_prob = draw(logits, np.full(32, 0.999, np.float32), 0.0)
    np.testing.assert_array_equal(token, logits.argmax(-1))
    np.testing.assert_allclose(log_prob, log_softmax(logits).max(-1), atol=1e-5)


@pytest.mark.parametrize('vocab', [5, 64, 300, 384, 1024, 4096])  # 300: a block is left over; 384: smaller ones
def test_a_token_of_probability_zero_is_never_drawn(vocab):
    """At uniform numbers 0, nearly 1 and next to where a token of probability zero begins."""
    rng = np.random.default_rng(vocab)
    logits = np.where(rng.random(vocab) < 0.5, -np.inf, 2 * rng.normal(size=vocab)).astype(np.float32)
    logits[[0, 1, -1]] = -np.inf, 0.0, -np.inf
    cumulative = np.asarray(jax.jit(lambda x: jnp.cumsum(jax.nn.softmax(x)))(logits), np.float64)
    starts = np.round(2**23 * cumulative[np.isinf(logits)] / cumulative[-1])[:, None] + np.arange(-1, 2)
    uniform = np.append(rng.permutation(starts.ravel())[:500] / 2**23, [0, 1]).clip(0, 1 - 2**-23)
    token, log_prob = draw(np.tile(logits, (len(uniform), 1)), uniform.astype(np.float32), 1.0)
    assert np.isfinite(logits[token]).all() and np.isfinite(log_prob).all()


def test_what_cannot_be_sampled_is_refused():
    for change, message in [
        (dict(max_length=10), 'max_length is 10, but a prompt of 4 tokens.*need 17'),
        (dict(max_tokens=0), 'max_tokens = 0'), (dict(temperature=-1.0), 'temperature is -1.0'),
        (dict(forks=(2,)), r'forks is \(2,\), but config.rollout.turns is 2')]:
        with pytest.raises(UserError, match=message):
            sampled(**change)


def test_each_gap_may_have_an_instruction_of_its_own():
    config, gaps = tiny(), [[5, 0, 6], [3]]

    def rollout_with(instruction):
        return jax.tree.map(np.asarray, rollout.sample(
            random_params(config), config, RolloutConfig(
                turns=3, max_tokens=5, max_length=32, temperature=0.8, chunk=16, end_tokens=(END, 4), pad_token=7),
            mesh_of(1, 1, 1), PROMPTS, instruction, forks=(1, 1, 1), seed=6, step=0))

    assert_same(rollout_with([5, 0, 6]), rollout_with([[5, 0, 6]] * 2))
    trajectory = rollout_with(gaps)
    for prompt, tokens, turn, length in zip(PROMPTS, trajectory.tokens, trajectory.turn, trajectory.length):
        responses = [tokens[turn == t].tolist() for t in (1, 2, 3)]
        assert tokens[:length].tolist() == prompt + responses[0] + gaps[0] + responses[1] + gaps[1] + responses[2]
    with pytest.raises(UserError, match='1 instructions are given, but config.rollout.turns is 3; give 2'):
        rollout_with([[5, 0, 6]])
