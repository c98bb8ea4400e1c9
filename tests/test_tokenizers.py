"""The SentencePiece wrapper says what sentencepiece says; the word model has one token a word; bytes are any text."""

import itertools
import json
from pathlib import Path

import pytest
import sentencepiece

from score_jax import tasks, tokenizers
from score_jax.errors import UserError
from score_jax.tokenizers import Bytes, SentencePiece, word_sentencepiece

DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data'
# (begin, end, pad) as their makers document them; the second has no padding token.
MODELS = {'keras_gemma_export_vocab.spm': (2, 1, 0), 'sentencepiece_test_model.model': (1, 2, 0)}
WORDS = ['1', '12', '123', '+', '=', 'make', ':']

needs_data = pytest.mark.skipif(not DATA.exists(), reason=f'no data to compare on in {DATA}')


def lines(count: int) -> list[str]:
    with (DATA / 'gsm8k' / 'test.jsonl').open() as file:
        return [text for line in itertools.islice(file, count) for text in json.loads(line).values()]


@needs_data
@pytest.mark.parametrize('name', MODELS)
def test_text_is_encoded_and_decoded_as_by_sentencepiece_itself(name):
    path = DATA / 'tokenizers' / name
    ours, theirs = SentencePiece(path.read_bytes()), sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in [*lines(60), '', ' two  spaces ', 'caf\u00e9 \u4f60\u597d']:
        tokens = ours.encode(text)
        assert tokens == theirs.encode(text)
        assert ours.decode(tokens) == theirs.decode(tokens)


@needs_data
@pytest.mark.parametrize('name, special', MODELS.items())
def test_special_tokens_are_those_of_the_model_and_have_no_text(name, special):
    tokenizer = SentencePiece((DATA / 'tokenizers' / name).read_bytes())
    begin, end, pad = special
    assert (tokenizer.begin_tokens, tokenizer.end_tokens, tokenizer.pad_token) == ((begin,), (end,), pad)
    tokens = tokenizer.encode('a text')
    assert not {begin, end} & set(tokens)
    assert tokenizer.decode([begin, *tokens, end]) == tokenizer.decode(tokens)


@needs_data
@pytest.mark.parametrize('name, size', list(zip(MODELS, (290, 1000))))
def test_every_token_is_below_the_vocabulary_size(name, size):
    tokenizer = SentencePiece((DATA / 'tokenizers' / name).read_bytes())
    assert tokenizer.vocab_size == size
    assert all(0 <= token < size for text in lines(60) for token in tokenizer.encode(text))


def test_each_word_of_a_word_model_is_one_token_of_its_own():
    tokenizer = word_sentencepiece(WORDS)
    tokens = [tokenizer.encode(word) for word in WORDS]
    assert all(len(word_tokens) == 1 for word_tokens in tokens)
    assert len({token for token, in tokens}) == len(WORDS)


def test_a_word_model_keeps_words_apart_and_in_order():
    tokenizer = word_sentencepiece(WORDS)
    text = '123 + 12 + 1 + 1 = 137 make :'.replace('137', '1 12 123')
    assert len(tokenizer.encode(text)) == len(text.split())
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_other_words_fall_back_to_characters():
    tokenizer = word_sentencepiece(WORDS)
    tokens = tokenizer.encode('321')
    assert len(tokens) > 1 and tokenizer.decode(tokens).endswith('321')


def test_a_word_model_is_the_same_every_time():
    assert word_sentencepiece(WORDS).encode('12 make 321') == word_sentencepiece(WORDS).encode('12 make 321')


def test_the_special_tokens_of_a_word_model_are_four_and_have_no_text():
    tokenizer = word_sentencepiece(WORDS)
    special = {*tokenizer.begin_tokens, *tokenizer.end_tokens, tokenizer.pad_token}
    assert len(special) == 3 and not special & set(tokenizer.encode(' '.join(WORDS)))
    tokens = tokenizer.encode('1 + 12')
    assert tokenizer.decode([*tokenizer.begin_tokens, *tokens, *tokenizer.end_tokens, tokenizer.pad_token]) == '1 + 12'
    assert all(isinstance(tokenizer.decode([token]), str) for token in range(tokenizer.vocab_size))


def test_bytes_bring_back_any_text_and_special_tokens_have_none():
    tokenizer = Bytes()
    for text in ('', 'a + b', 'naïve Σ 東京 \U0001f600', '\x00\n\r\t'):
        tokens = tokenizer.encode(text)
        assert all(0 <= token < 256 for token in tokens)
        assert tokenizer.decode([*tokenizer.begin_tokens, *tokens, *tokenizer.end_tokens, tokenizer.pad_token]) == text
    assert tokenizer.decode([0xe6, 0x9d]) == '\ufffd' and len({256, 257, 258} | set(range(256))) == tokenizer.vocab_size


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    path = tmp_path / 'tokenizer.model'
    with pytest.raises(UserError, match='config.tokenizer is .* cannot be read .No such file'):
        tokenizers.load(str(path))
    path.write_text('{"model": "bpe"}')
    with pytest.raises(UserError, match='cannot be read .it is no SentencePiece model'):
        tokenizers.load(str(path))


@needs_data
def test_any_task_reads_and_writes_with_the_tokenizer_of_a_model():
    section = dict(name='countdown', numbers=3, largest=9, limit=40, test_share=0.3, instruction='again :')
    task = tasks.make(section, str(DATA / 'tokenizers' / 'keras_gemma_export_vocab.spm'))
    problem, = task.problems('train', 1, seed=0, step=0)
    tokens = tasks.prompt_tokens(task, problem)
    assert task.tokenizer.vocab_size == 290 and tokens[0] == 2
    assert task.tokenizer.decode(tokens) == task.prompt(problem) and len(tokens) <= task.longest_prompt('train')
