"""Small but real tokenizers, made as those of the families are, and chat templates that do what theirs do."""

import io
import json
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

# What cuts text into words before bytes are merged; Llama 3 has up to three digits in one, Qwen 2 and 3 one alone.
_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r'\s+(?!\S)|\s+').replace('%d', 'DIGITS')
_TEXT = '''What is the sum of 12 and 345? Solve the problem step by step, then write the result at the end.
user system assistant model Natalia sold clips to 48 of her friends in April, and then half as many clips in May.
    def add(first, second):
        return first + second  # the sum of both
The answer isn't 17: it's 3 * 5 + 4 = 19. La réponse est là, où l’été finit. Ответ: пять. 答案是三。\n\n'''
LLAMA3 = [
    '<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>', '<|eom_id|>']
QWEN = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']

# A turn is the same in each version of a family; what stands before the first is not.
_TURNS = '''{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + CONTENT + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}'''
_HEADERS = '''{%- for m in messages %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}'''
_DATES = '''{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}
    {%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Today Date: ' + date_string + '\\n\\n' }}
{{- '<|eot_id|>' }}
'''
TEMPLATES = {
    'qwen2.5': '''{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
''' + _TURNS.replace('CONTENT', 'm.content'),
    # All turns but the last lose what they thought.
    'qwen3': _TURNS.replace(
        'CONTENT', "(m.content.split('</think>')[-1].lstrip('\\n') if m.role == 'assistant' else m.content)"),
    'llama3': '{{- bos_token }}\n' + _HEADERS,
    'llama3.2': _DATES + _HEADERS,
    'gemma': '''{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
    {%- set role = 'model' if m['role'] == 'assistant' else m['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}''',
}
FAMILY = {'qwen2.5': 'qwen', 'qwen3': 'qwen', 'llama3': 'llama3', 'llama3.2': 'llama3', 'gemma': 'gemma'}


def byte_level(special: list[str], digits: int, begin: str = '') -> tokenizers.Tokenizer:
    """Byte pairs merged within words, as GPT-2, Qwen and Llama 3 have it; the special tokens have the last ids."""
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = None if begin else normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_SPLIT.replace('DIGITS', str(digits))), 'isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator([_TEXT], trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    made.add_special_tokens(special)
    if begin:
        made.post_processor = processors.TemplateProcessing(
            single=f'{begin} $A', special_tokens=[(begin, made.token_to_id(begin))])
    return made


def gemma_sentencepiece() -> bytes:
    """A SentencePiece model of byte pairs that falls back to bytes, with the special tokens of Gemma and their ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXT.splitlines()), model_writer=model, model_type='bpe', vocab_size=420,
        byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece='<pad>', eos_piece='<eos>',
        bos_piece='<bos>', user_defined_symbols=['<start_of_turn>', '<end_of_turn>', '\n', '\n\n', '▁▁', '▁▁▁▁'],
        add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name='identity', minloglevel=2)
    return model.getvalue()


def gemma(model_proto: bytes) -> tokenizers.Tokenizer:
    """The tokenizer.json of a SentencePiece model, as Gemma publishes both."""
    model = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
    pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    ranked = sorted((i for i, piece in enumerate(pieces) if not model.is_control(i) and not model.is_byte(i)),
                    key=lambda i: -model.get_score(i))
    merges = [pair for i in ranked for pair in sorted(
        ((pieces[i][:at], pieces[i][at:]) for at in range(1, len(pieces[i]))
         if pieces[i][:at] in vocab and pieces[i][at:] in vocab), key=lambda pair: [vocab[part] for part in pair])]
    made = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token='<unk>', fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(' ', '▁')
    made.pre_tokenizer = pre_tokenizers.Split(' ', 'merged_with_previous')
    made.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(['<pad>', '<eos>', '<bos>', '<unk>', '<start_of_turn>', '<end_of_turn>'])
    made.add_tokens(['\n', '\n\n', '▁▁', '▁▁▁▁'])
    return made


def make(family: str) -> tokenizers.Tokenizer:
    """The tokenizer.json of a row of `TEMPLATES`."""
    if family == 'gemma':
        return gemma(gemma_sentencepiece())
    if family.startswith('llama3'):
        return byte_level(LLAMA3, digits=3, begin='<|begin_of_text|>')
    return byte_level(QWEN, digits=1)


def write(directory: Path, family: str, *, inside: bool = True) -> Path:
    """Tokenizer and chat template of a row of `TEMPLATES`, the template `inside` tokenizer_config.json or beside it."""
    directory.mkdir(exist_ok=True, parents=True)
    make(family).save(str(directory / 'tokenizer.json'))
    begin = {'llama3': '<|begin_of_text|>', 'gemma': '<bos>'}.get(FAMILY[family])
    values = {'bos_token': begin, 'tokenizer_class': 'PreTrainedTokenizerFast'}
    if inside:
        values['chat_template'] = TEMPLATES[family]
    else:
        (directory / 'chat_template.jinja').write_text(TEMPLATES[family])
    (directory / 'tokenizer_config.json').write_text(json.dumps(values))
    return directory
