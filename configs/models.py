"""Presets for open models: `--config=configs/stage1.py:NAME --config.pretrained=DIRECTORY`; stage2.py, evaluate.py too.

The directory is that of a Hugging Face model tuned to chat; for one that was not, add `--config.chat=''`. What the
paper gives is the paper's (optimiser, learning rate, steps, batch, alpha, beta1, beta2, temperature): of its steps each
stage has half, and its batch counts rollouts. The rest is not given there: groups, lengths, warm-up.
An update works on the batch in as few parts as fit the devices' memory (`config.memory.accumulate`). The models of 7
and 9 billion parameters are laid out for devices of 16 GB: 64 of them or more, or 8 for adapters (`-lora`);
docs/scale.md has the proofs.
"""

from configs import tasks

_LEAD = '\n\nSolution:'  # leads on to the answer where there is no chat that does
_MATHS = dict(
    prompt=tasks.TASKS['math']['prompt'].removesuffix(_LEAD).replace('Problem: ', ''),
    instruction=tasks.TASKS['math']['instruction'].removesuffix(_LEAD))
_SCHOOL = tasks.TASKS['gsm8k'] | _MATHS | dict(max_prompt=512)
_MATH = tasks.TASKS['math'] | _MATHS | dict(max_prompt=1280)  # which is all of MATH500
_MODELS = {
    'math-gemma2-2b': ('gemma', '/path/to/gemma-2-2b-it', _MATH),
    'math-qwen2.5-1.5b': ('qwen', '/path/to/Qwen2.5-1.5B-Instruct', _MATH),
    'mbpp-qwen2.5-coder-1.5b': (
        'qwen', '/path/to/Qwen2.5-Coder-1.5B-Instruct',
        tasks.TASKS['mbpp'] | dict(prompt='{problem}\n\nWrite the program between ```python and ```.')),
    'gsm8k-qwen2.5-0.5b': ('qwen', '/path/to/Qwen2.5-0.5B-Instruct', _SCHOOL),
    'colab-gemma3-270m-lora': ('gemma', '/path/to/gemma-3-270m-it', _SCHOOL),
    'math-gemma2-9b': ('gemma', '/path/to/gemma-2-9b-it', _MATH),
    'math-gemma2-9b-lora': ('gemma', '/path/to/gemma-2-9b-it', _MATH),
    'math-qwen2.5-7b': ('qwen', '/path/to/Qwen2.5-7B-Instruct', _MATH),
    'math-qwen2.5-7b-lora': ('qwen', '/path/to/Qwen2.5-7B-Instruct', _MATH),
}
# The longest prompt and two turns fit into max_length.
_LONG = {'rollout.max_tokens': 768, 'rollout.max_length': 3072, 'rollout.chunk': 256}
_SHORT = {'rollout.max_tokens': 320, 'rollout.max_length': 1280, 'rollout.chunk': 128}
_CODE = {'rollout.max_tokens': 512, 'rollout.max_length': 3328, 'rollout.chunk': 256}
_ROLLOUT = {name: _LONG for name in _MODELS if name.startswith('math')} | {
    'mbpp-qwen2.5-coder-1.5b': _CODE, 'gsm8k-qwen2.5-0.5b': _SHORT, 'colab-gemma3-270m-lora': _SHORT}
_GROUP = {'group.first': 4, 'group.second': 2, 'optimizer.schedule': 'constant', 'log_every': 5}
_PAPER = {'learning_rate': 5e-6, 'steps': 1500, 'batch': 64, 'memory.accumulate': 0, **_GROUP}
_STAGE = {
    'math-gemma2-2b': _PAPER, 'math-qwen2.5-1.5b': _PAPER,
    'mbpp-qwen2.5-coder-1.5b': {'learning_rate': 1e-5, 'steps': 750, 'batch': 16, 'memory.accumulate': 0, **_GROUP},
    'gsm8k-qwen2.5-0.5b': _PAPER | {'steps': 500, 'batch': 32},
    'colab-gemma3-270m-lora': _PAPER | {
        'learning_rate': 1e-4, 'steps': 100, 'batch': 8, 'lora.rank': 16, 'lora.alpha': 32.0,
        'memory.params': 'bfloat16'},
}
_LARGE = _PAPER | {'mesh.model': 4, 'memory.remat': 'nothing', 'group.second': 1}
_LARGE_LORA = _LARGE | {
    'learning_rate': 1e-4, 'batch': 8, 'lora.rank': 16, 'lora.alpha': 32.0, 'memory.params': 'bfloat16'}
_LARGE_NAMES = ('math-gemma2-9b', 'math-qwen2.5-7b')
for _name in _LARGE_NAMES:
    _STAGE |= {_name: _LARGE, f'{_name}-lora': _LARGE_LORA}
_STAGE['math-gemma2-9b-lora'] = _LARGE_LORA | {'batch': 4}  # keys and values of a token are six times those of Qwen
_BETA2 = {name: 0.25 if name.startswith('mbpp') else 0.1 for name in _MODELS}

SHARED_PRESETS = {
    name: {
        'task': task, 'pretrained': directory, 'chat': chat, 'model.dtype': 'bfloat16'}
    for name, (chat, directory, task) in _MODELS.items()}
STAGE1_PRESETS = {
    name: shared | _ROLLOUT[name] | _STAGE[name] | {'objective.beta1': 0.01, 'objective.beta2': _BETA2[name]}
    for name, shared in SHARED_PRESETS.items()}
STAGE2_PRESETS = {
    name: shared | _ROLLOUT[name] | _STAGE[name] | {'objective.alpha': 10.0, 'objective.beta1': 0.01}
    for name, shared in SHARED_PRESETS.items()}
# Greedy, as in the paper, on MATH500, HumanEval and 1,280 of the 1,319 test problems of GSM8K.
_MEASURED = {
    'math': {'problems': 500}, 'mbpp': {'split': 'humaneval', 'problems': 164}, 'colab': {'problems': 256}}
EVALUATE_PRESETS = {
    name: shared | _ROLLOUT[name] | {
        'temperatures': (0.0,), 'batch': 16 if name.startswith(_LARGE_NAMES) else 64, 'problems': 1280}
    | _MEASURED.get(name.partition('-')[0], {}) | {
        key: text.removesuffix('\n\nFeedback:').removesuffix('\n\nReview:').removesuffix(_LEAD)
        for key, text in tasks.EVALUATE_PRESETS['mbpp-tiny' if name.startswith('mbpp') else 'math-tiny'].items()
        if key.startswith('self_refine.')}
    for name, shared in SHARED_PRESETS.items()}
