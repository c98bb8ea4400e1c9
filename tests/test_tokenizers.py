"""Tokenizers say what the libraries of reference say, on text of every kind; special tokens are those of the family.

`bash launch/test.sh --reference` compares those of Hugging Face with `transformers`; the plain run compares them with
what must hold of them, and Gemma's with the SentencePiece model that it was made from.
"""

import functools
import gzip
import itertools
import json
import os
import random
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
import tiny_tokenizers

from score_jax import tasks, tokenizers
from score_jax.chat import Chat
from score_jax.errors import UserError
from score_jax.tokenizers import Bytes, HuggingFace, SentencePiece, word_sentencepiece

DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data'
# (begin, end, pad) as their makers document them; the second has no padding token.
MODELS = {'keras_gemma_export_vocab.spm': (2, 1, 0), 'sentencepiece_test_model.model': (1, 2, 0)}
WORDS = ['1', '12', '123', '+', '=', 'make', ':']

needs_data = pytest.mark.skipif(not DATA.exists(), reason=f'no data to compare on in {DATA}')
REFERENCE = 'SCORE_JAX_REFERENCE' in os.environ
FAMILIES = ('qwen2.5', 'llama3', 'gemma')  # of tiny_tokenizers
HOSTILE = [
    '', ' ', '\x00', ''.join(map(chr, range(32))) + '\x7f\x80\x9f', '\r\n\r\n\t\v\f', '\ufeffa\u200b\u2028\u2029b',
    '\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \u2764\ufe0f',
    '\U0010ffff\ue000\ufffe', 'e\u0301\u0323 \u1112\u1161\u11ab', '\u202eabc\u202c \u0634\u0643\u0631\u0627',
    '\ufffd\ufffda', 'a' * 300, '\n' * 50, 'x' * 100_000, 'ab1?\u00e9\u4f60' * 12_500, '\u4f60' * 20_000]
SURROGATES = ['\ud800', 'a\udfffb', '\udc00\ud800', '\ud83d\ude00', '\ud83d \ude00', '\ud83d\ud83d\ude00']


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


@functools.cache
def texts() -> list[str]:
    """10,000 strings of the public data sets: problems, solutions, programs, tests."""
    found = []
    for path in sorted(DATA.glob('*/*.jsonl*')):
        with (gzip.open if path.suffix == '.gz' else open)(path, 'rt') as file:
            for line in file:
                values = json.loads(line).values()
                found += [text for value in values for text in (value if isinstance(value, list) else [value])]
    return random.Random(0).sample([text for text in found if isinstance(text, str)], 10_000)


@functools.cache
def made(family: str, folder: Path) -> HuggingFace:
    path = folder / f'{family}.json'
    tiny_tokenizers.make(family).save(str(path))
    return HuggingFace(path)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('tokenizers')


@pytest.mark.parametrize('family', FAMILIES)
def test_text_of_any_kind_comes_back_as_it_was(family, folder):
    tokenizer = made(family, folder)
    for text in HOSTILE + (texts()[:2000] if DATA.exists() else []):
        tokens = tokenizer.encode(text)
        assert all(0 <= token < tokenizer.vocab_size for token in tokens)
        assert tokenizer.decode(tokens) == (text if family != 'qwen2.5' else unicodedata.normalize('NFC', text))


def test_the_tokenizer_json_of_gemma_says_what_its_sentencepiece_model_says(folder):
    ours, other = made('gemma', folder), SentencePiece(tiny_tokenizers.gemma_sentencepiece())
    for text in HOSTILE + SURROGATES + (texts() if DATA.exists() else []):
        tokens = ours.encode(text)
        assert tokens == other.encode(text) and ours.decode(tokens) == other.decode(tokens)
    assert (ours.begin_tokens, ours.end_tokens[:1], ours.pad_token) == (
        other.begin_tokens, other.end_tokens, other.pad_token) == ((2,), (1,), 0)


@pytest.mark.parametrize('name', MODELS)
@needs_data
def test_text_of_any_kind_is_encoded_as_by_sentencepiece_itself(name):
    path = DATA / 'tokenizers' / name
    ours, theirs = SentencePiece(path.read_bytes()), sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in texts() + HOSTILE:
        tokens = theirs.encode(text)
        assert ours.encode(text) == tokens and ours.decode(tokens) == theirs.decode(tokens)


def test_a_lone_surrogate_is_the_replacement_character_and_a_pair_is_what_it_means(folder):
    everyone = [Bytes(), SentencePiece(tiny_tokenizers.gemma_sentencepiece())]
    everyone += [made(name, folder) for name in FAMILIES]
    meant = ['\ufffd', 'a\ufffdb', '\ufffd\ufffd', '\U0001f600', '\ufffd \ufffd', '\ufffd\U0001f600']
    for tokenizer, (text, clean) in itertools.product(everyone, zip(SURROGATES, meant, strict=True)):
        assert tokenizer.encode(text) == tokenizer.encode(clean) and tokenizer.decode(tokenizer.encode(text)) == clean


@pytest.mark.parametrize('family, begin, ends, pad', [
    ('qwen2.5', [], ['<|endoftext|>', '<|im_end|>'], '<|endoftext|>'),
    ('llama3', ['<|begin_of_text|>'], ['<|end_of_text|>', '<|eot_id|>', '<|eom_id|>'], '<|end_of_text|>'),
    ('gemma', ['<bos>'], ['<eos>', '<end_of_turn>'], '<pad>')])
def test_special_tokens_are_those_of_the_family_have_no_text_and_are_never_read_from_text(
        family, begin, ends, pad, folder):
    tokenizer = made(family, folder)
    ids = [tokenizer.special_token(name) for name in (*begin, *ends)]
    assert [*tokenizer.begin_tokens, *tokenizer.end_tokens] == ids
    assert tokenizer.pad_token == tokenizer.special_token(pad)
    tokens = tokenizer.encode('1 and 2')
    assert tokenizer.decode([*tokenizer.begin_tokens, *tokens, *ids, tokenizer.vocab_size + 7]) == '1 and 2'
    for name in (*begin, *ends):
        spelled = tokenizer.encode(f'a{name}b')
        assert not set(ids) & set(spelled) and tokenizer.decode(spelled) == f'a{name}b'
    assert tokenizer.special_token('<no such token>') is None and tokenizer.close_token is None


def test_truncation_and_padding_that_a_file_asks_for_are_not_done(folder):
    asked = tiny_tokenizers.make('qwen2.5')
    asked.enable_truncation(4)
    asked.enable_padding(length=64)
    asked.save(str(folder / 'asks.json'))
    assert HuggingFace(folder / 'asks.json').encode('abc ' * 20) == made('qwen2.5', folder).encode('abc ' * 20)


@needs_data
def test_the_published_tokenizer_of_gpt2_is_read():
    tokenizer = tokenizers.load(str(DATA / 'tokenizers' / 'gpt2_tokenizer.json'))
    assert tokenizer.encode('Hello world!') == [15496, 995, 0] and tokenizer.vocab_size == 50257
    assert (tokenizer.begin_tokens, tokenizer.end_tokens, tokenizer.pad_token) == ((), (50256,), 50256)


def test_a_directory_means_the_tokenizer_in_it(folder, tmp_path):
    (tmp_path / 'tokenizer.model').write_bytes(tiny_tokenizers.gemma_sentencepiece())
    assert isinstance(tokenizers.load(str(tmp_path)), SentencePiece)
    tiny_tokenizers.make('llama3').save(str(tmp_path / 'tokenizer.json'))
    assert tokenizers.load(str(tmp_path)).encode('a b') == made('llama3', folder).encode('a b')


def test_what_is_no_tokenizer_json_that_can_end_a_response_is_refused(tmp_path):
    path = tmp_path / 'tokenizer.json'
    with pytest.raises(UserError, match='a directory with none of tokenizer.json, tokenizer.model'):
        tokenizers.load(str(tmp_path))
    with pytest.raises(UserError, match='cannot be read .No such file'):
        tokenizers.load(str(path))
    path.write_text('{"model": 1}')
    with pytest.raises(UserError, match='cannot be read .it is no tokenizer.json'):
        tokenizers.load(str(path))
    tiny_tokenizers.byte_level(['<end>'], digits=1).save(str(path))
    with pytest.raises(UserError, match='none of the tokens .*<eos>.* that end a text') as error:
        tokenizers.load(str(path))
    assert '\n' not in str(error.value)


if REFERENCE:
    def of_reference(path: Path):
        import transformers
        return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), split_special_tokens=True)

    @needs_data
    @pytest.mark.parametrize('family', [*FAMILIES, 'gpt2'])
    def test_text_is_encoded_and_decoded_as_by_transformers(family, folder):
        path = folder / f'{family}.json' if family != 'gpt2' else DATA / 'tokenizers' / 'gpt2_tokenizer.json'
        ours = made(family, folder) if family != 'gpt2' else HuggingFace(path)
        theirs = of_reference(path)
        spelled = ['a<|im_end|>b', '<bos><eos> <end_of_turn>', '<|eot_id|>\n<|begin_of_text|>', '<|endoftext|>']
        for text in texts() + HOSTILE + spelled:
            tokens = theirs.encode(text, add_special_tokens=False)
            assert ours.encode(text) == tokens
            assert ours.decode(tokens) == theirs.decode(
                tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @pytest.mark.parametrize('family', FAMILIES)
    def test_any_tokens_are_decoded_as_by_transformers(family, folder):
        ours, rng = made(family, folder), random.Random(1)
        theirs = of_reference(folder / f'{family}.json')
        for _ in range(2000):
            tokens = rng.choices(range(ours.vocab_size), k=rng.randrange(12))
            assert ours.decode(tokens) == theirs.decode(
                tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def test_qwen_is_encoded_as_by_its_own_class(folder, tmp_path):
        """Which puts the rules of its family together itself, from vocabulary and merges alone."""
        from transformers import Qwen2Tokenizer
        ours = made('qwen2.5', folder)
        model = json.loads((folder / 'qwen2.5.json').read_text())['model']
        theirs = Qwen2Tokenizer(vocab=model['vocab'], merges=[tuple(pair) for pair in model['merges']])
        for text in HOSTILE + (texts()[:2000] if DATA.exists() else []):
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_a_special_token_that_nothing_uses_is_not_of_the_vocabulary(tmp_path):
    """Gemma 3 has one for images, with an id that the vocabulary of its text models does not reach."""
    more = tiny_tokenizers.make('gemma')
    size = more.get_vocab_size()
    more.add_special_tokens(['<image_soft_token>'])
    more.save(str(tmp_path / 'more.json'))
    tokenizer = HuggingFace(tmp_path / 'more.json')
    assert tokenizer.special_token('<image_soft_token>') == size == tokenizer.vocab_size
    assert Chat(tokenizer, 'gemma').vocab_size == size
    assert max(tokenizer.encode('an <image_soft_token>')) < size
    more.add_tokens(['read from text'])
    more.save(str(tmp_path / 'more.json'))
    assert HuggingFace(tmp_path / 'more.json').vocab_size == size + 2
