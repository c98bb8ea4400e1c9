"""A chat format gives the tokens of its family's own template; the second attempt stands behind the exact first."""

import itertools
import json
import os
import re

import jax
import numpy as np
import pytest
import tiny_tokenizers
from helpers import mesh_of, random_params, tiny
from tiny_tokenizers import FAMILY, TEMPLATES

from score_jax import chat, rollout, tasks, tokenizers
from score_jax.chat import FORMATS, Chat
from score_jax.errors import UserError
from score_jax.tokenizers import SentencePiece

REFERENCE = 'SCORE_JAX_REFERENCE' in os.environ
TEXTS = ['What is 2 + 3?', '  é 🙂\n\n  spaced  ', 'a<|im_end|>b <eos>', '']
FIRST, AGAIN = 'It is 6.', 'Look again.'
LAYOUT = {  # of a first attempt and what leads on to the second
    'qwen2.5': '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n2 + 3?<|im_end|>\n'
               '<|im_start|>assistant\nIt is 6.<|im_end|>\n<|im_start|>user\nLook again.<|im_end|>\n'
               '<|im_start|>assistant\n',
    'qwen3': '<|im_start|>user\n2 + 3?<|im_end|>\n'
             '<|im_start|>assistant\nIt is 6.<|im_end|>\n<|im_start|>user\nLook again.<|im_end|>\n'
             '<|im_start|>assistant\n',
    'llama3': '<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n2 + 3?<|eot_id|>'
              '<|start_header_id|>assistant<|end_header_id|>\n\nIt is 6.<|eot_id|>'
              '<|start_header_id|>user<|end_header_id|>\n\nLook again.<|eot_id|>'
              '<|start_header_id|>assistant<|end_header_id|>\n\n',
    'gemma': '<bos><start_of_turn>user\n2 + 3?<end_of_turn>\n<start_of_turn>model\nIt is 6.<end_of_turn>\n'
             '<start_of_turn>user\nLook again.<end_of_turn>\n<start_of_turn>model\n',
}
LAYOUT['llama3.2'] = LAYOUT['llama3'].replace(
    '<|begin_of_text|>',
    '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('chats')


@pytest.fixture(scope='module')
def chats(folder) -> dict[str, Chat]:
    """Of each template, in a directory of its name."""
    made = {}
    for family, inside in zip(TEMPLATES, itertools.cycle((True, False))):
        directory = tiny_tokenizers.write(folder / family, family, inside=inside)
        made[family] = chat.chat(tokenizers.load(str(directory)), FAMILY[family], directory)
    return made


def spelled(folder, family: str, tokens) -> str:
    """The text of tokens, special ones by their names."""
    file = folder / family / 'tokenizer.json'
    return tiny_tokenizers.tokenizers.Tokenizer.from_file(str(file)).decode(list(tokens), skip_special_tokens=False)


@pytest.mark.parametrize('family', TEMPLATES)
def test_a_conversation_is_laid_out_as_the_family_does(family, chats, folder):
    one = chats[family]
    tokens = [*one.prompt('2 + 3?'), *one.encode(FIRST), one.close_token, *one.instruction(AGAIN)]
    assert spelled(folder, family, tokens) == LAYOUT[family]
    assert one.end_tokens[0] == one.close_token and set(one.end_tokens) >= set(tokenizers.load(
        str(folder / family)).end_tokens)


@pytest.mark.parametrize('family', TEMPLATES)
def test_what_a_person_writes_is_text_alone_and_special_tokens_have_none(family, chats):
    one = chats[family]
    special = {one.close_token, *one.end_tokens, *one.begin_tokens}
    plain = [token for token in one.prompt('x') if token in special]
    for text in TEXTS:
        tokens = one.prompt(text)
        assert [token for token in tokens if token in special] == plain
        assert re.sub(r'\s', '', text) in re.sub(r'\s', '', one.decode(tokens))
    assert one.decode([*one.encode(FIRST), one.close_token]) == FIRST


def test_a_sentencepiece_model_gives_the_tokens_of_the_tokenizer_json_made_of_it(chats, folder):
    ours = chat.chat(SentencePiece(tiny_tokenizers.gemma_sentencepiece()), 'gemma', folder / 'gemma')
    for text in TEXTS[:2]:
        assert ours.prompt(text) == chats['gemma'].prompt(text)
        assert ours.instruction(text) == chats['gemma'].instruction(text)
    assert (ours.end_tokens, ours.pad_token) == (chats['gemma'].end_tokens, chats['gemma'].pad_token)
    assert ours.decode([*ours.encode(FIRST), ours.close_token]) == FIRST


QWEN = TEMPLATES['qwen3']
REWRITES = {
    'the first turn is left out': (
        'qwen3', 'qwen', "{%- set messages = messages[-1:] %}\n" + QWEN, 'another way'),
    'answers lose their last letter': (
        'qwen3', 'qwen', QWEN.replace("m.content.split('</think>')[-1].lstrip('\\n')", 'm.content[:-1]'),
        'another way'),
    'thoughts are left out where the family keeps them': (
        'gemma', 'gemma',
        TEMPLATES['gemma'].replace("m['content'] | trim", "(m['content'].split('</think>')[-1]) | trim"),
        'another way'),
    'thoughts are replaced': (
        'qwen3', 'qwen', QWEN.replace(".lstrip('\\n')", " | replace('It', 'He')"), 'another way'),
}
DIFFERS = {
    'other text between the turns': (
        'qwen3', 'qwen', QWEN.replace('<|im_end|>\\n', '<|im_end|>'), "2 + 3?<|im_end|><|im_start|>assistant"),
    'thinking is turned off by words of its own': (
        'qwen3', 'qwen', QWEN.replace('assistant\\n', 'assistant\\n<think>\\n\\n</think>\\n\\n'), '<think>'),
    'no begin token': ('gemma', 'gemma', TEMPLATES['gemma'].replace('{{ bos_token }}\n', ''), 'another way'),
    'an example before the first turn': (
        'qwen3', 'qwen', "{{- '<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHo<|im_end|>\\n' }}\n" + QWEN,
        'Hi'),
    'it raises': ('qwen3', 'qwen', "{{ 1 // 0 }}", 'cannot be rendered'),
    'it refuses': ('qwen3', 'qwen', "{{ raise_exception('no chat here') }}", 'no chat here'),
    'it is no template': ('qwen3', 'qwen', "{% for %}", 'cannot be rendered'),
    'it reaches for the program': ('qwen3', 'qwen', "{{ ''.__class__.__mro__ }}", 'cannot be rendered'),
    'another family': ('qwen3', 'gemma', QWEN, 'the tokenizer has no <start_of_turn> and no <end_of_turn>'),
    'no such format': ('qwen3', 'mistral', QWEN, "must be one of gemma, qwen, llama3, or ''"),
}


@pytest.mark.parametrize('family, name, source, named', (REWRITES | DIFFERS).values(), ids=REWRITES | DIFFERS)
def test_a_template_that_rewrites_history_or_differs_is_refused_in_one_sentence(family, name, source, named, tmp_path):
    directory = tiny_tokenizers.write(tmp_path, family, inside=False)
    (directory / 'chat_template.jinja').write_text(source)
    with pytest.raises(UserError) as error:
        chat.chat(tokenizers.load(str(directory)), name, directory)
    assert '\n' not in str(error.value) and named in str(error.value)


def test_qwen3_keeps_what_a_first_attempt_thought_which_its_template_would_drop(chats, folder):
    """The exact tokens stand; what the template does to earlier turns is known and left undone."""
    one, thought = chats['qwen3'], '<think>\nTwo, three.\n</think>\n\nIt is 5.'
    tokens = [*one.prompt('2 + 3?'), *one.encode(thought), one.close_token, *one.instruction(AGAIN)]
    assert thought in spelled(folder, 'qwen3', tokens)


def test_a_model_without_a_template_has_no_opening(tmp_path):
    directory = tiny_tokenizers.write(tmp_path, 'qwen2.5', inside=False)
    (directory / 'chat_template.jinja').unlink()
    one = chat.chat(tokenizers.load(str(directory)), 'qwen', directory)
    assert 'helpful' not in one.decode(one.prompt('x'))
    assert chat.suited(tokenizers.load(str(directory)), directory) == ''


def test_the_template_is_found_where_models_have_it(tmp_path):
    for name, values in [
            ('tokenizer_config.json', [{'name': 'tool_use', 'template': 'b'}, {'name': 'default', 'template': 'a'}]),
            ('chat_template.json', 'a')]:
        (tmp_path / name).write_text(json.dumps({'chat_template': values}))
        assert chat.template(tmp_path) == (tmp_path / name, 'a')
    (tmp_path / 'chat_template.jinja').write_text('c')
    assert chat.template(tmp_path)[1] == 'c'


def test_a_chat_needs_the_tokenizer_of_a_model():
    section = dict(name='countdown', numbers=3, largest=9, limit=40, test_share=0.3, instruction='again :')
    with pytest.raises(UserError, match="config.chat is 'qwen', but the tokenizer is the task's own"):
        tasks.make(section, '', 'qwen')


def test_a_tokenizer_without_a_template_is_held_to_that_of_the_model(tmp_path, capsys):
    section = dict(name='countdown', numbers=3, largest=9, limit=40, test_share=0.3, instruction='again :')
    model = tiny_tokenizers.write(tmp_path / 'model', 'qwen2.5')
    file = tmp_path / 'tokenizer.json'
    file.write_bytes((model / 'tokenizer.json').read_bytes())
    alone, held = (tasks.make(section, str(file), 'qwen', place).tokenizer.prompt('x') for place in ('', str(model)))
    assert held == tasks.make(section, '', 'qwen', str(model)).tokenizer.prompt('x') != alone
    assert capsys.readouterr().out.count('is not confirmed by a chat template') == 1
    (model / 'chat_template.jinja').write_text(TEMPLATES['qwen2.5'].replace('<|im_end|>', '<|endoftext|>'))
    with pytest.raises(UserError, match='lays out a chat in another way'):
        tasks.make(section, str(file), 'qwen', str(model))


@pytest.mark.parametrize('family', ['gemma', 'qwen2.5'])
def test_the_second_turn_stands_behind_the_exact_first_which_is_closed_if_it_was_not(family, chats, folder):
    """Rows that ended with the token of the chat, with the other one, and that were cut short."""
    one = chats[family]
    config = tiny(vocab_size=one.vocab_size)
    close, other = one.end_tokens[:2]
    given = [[*one.encode('so'), close], [*one.encode('so'), other], one.encode('so so'), one.encode('so so so')[:4]]
    sampling = rollout.RolloutConfig(
        turns=2, max_tokens=6, max_length=256, temperature=1.0, chunk=32, end_tokens=one.end_tokens,
        pad_token=one.pad_token, close_token=one.close_token)
    trajectory = rollout.sample(
        jax.tree.map(jax.numpy.asarray, random_params(config)), config, sampling, mesh_of(1, 1, 1),
        [one.prompt('x')] * 4, one.instruction(AGAIN), forks=(1, 1), seed=0, step=0, given=given)
    for row, first in enumerate(given):
        tokens, turn = np.asarray(trajectory.tokens[row]), np.asarray(trajectory.turn[row])
        before = [*one.prompt('x'), *first, *([] if first[-1] == close else [close]), *one.instruction(AGAIN)]
        assert tokens[:len(before)].tolist() == before
        assert (turn == 2).nonzero()[0][0] == len(before)
        assert not turn[len(one.prompt('x')) + len(first):len(before)].any()
        assert spelled(folder, family, tokens[:len(before)]).endswith(
            chat.FORMATS[FAMILY[family]].end + '\n' + spelled(folder, family, one.instruction(AGAIN)).lstrip('\n'))
    assert np.asarray(trajectory.truncated)[:, 0].tolist() == [False, False, True, True]


def test_a_row_that_must_be_closed_counts_towards_the_length():
    sampling = rollout.RolloutConfig(
        turns=2, max_tokens=6, max_length=20, temperature=1.0, chunk=4, end_tokens=(1,), pad_token=0, close_token=1)
    sampling.check_length(5, 2)
    with pytest.raises(UserError, match='need 21'):
        sampling.check_length(6, 2)


def test_every_format_has_the_places_for_role_and_text():
    for form in FORMATS.values():
        assert '{role}' in form.open and form.turn('user').count('{text}') == 1 and '{role}' not in form.turn('user')


if REFERENCE:
    @pytest.mark.parametrize('family', TEMPLATES)
    def test_prompts_are_those_of_transformers(family, chats, folder):
        """But for the clock, which transformers gives to templates and we do not."""
        import transformers
        theirs = transformers.AutoTokenizer.from_pretrained(folder / family)
        for text in ('What is 2 + 3?', 'é 🙂\n\nspaced  out'):
            asked = [{'role': 'user', 'content': text}]
            options = dict(add_generation_prompt=True, tokenize=True, return_dict=False, date_string='26 Jul 2024')
            ours = chats[family].prompt(text)
            assert theirs.apply_chat_template(asked, **options) == ours
            said = [*asked, {'role': 'assistant', 'content': FIRST}, {'role': 'user', 'content': AGAIN}]
            assert theirs.apply_chat_template(said, **options) == [
                *ours, *chats[family].encode(FIRST), chats[family].close_token, *chats[family].instruction(AGAIN)]
