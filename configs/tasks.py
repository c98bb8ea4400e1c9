"""Tasks over problems in words, each a section `config.task`, and presets that run them with a tiny model.

`--config=configs/stage1.py:gsm8k-tiny --config.task.data_dir=FOLDER` shows the whole path in a minute: the model starts
from random parameters and knows nothing, so its rewards are 0.
"""

# Neither tells whether the first answer was right.
_LOOK_AGAIN = '\n\nGo through the solution above once more. It may be right, or there may be a mistake in it. '
_MATHS = dict(
    data_dir='',  # folder that has the files of the data set; '' downloads them
    prompt=(  # what turn 1 is asked; {problem} is where the problem goes
        'Solve the problem step by step. Write the result into \\boxed{} at the end.\n\n'
        'Problem: {problem}\n\nSolution:'),
    instruction=(  # what stands between two attempts; it must not reveal the verdict
        f'{_LOOK_AGAIN}Write the whole solution anew, with the result in \\boxed at the end.\n\nSolution:'),
    form='boxed',  # where a response gives its answer: 'boxed', 'final_answer', '####' or 'any' of them
    max_prompt=1024,  # tokens; problems with a longer prompt are left out, and counted
    workers=2,  # processes that grade
    seconds=1.8,  # the longest that grading one response may take
)
_CODE = dict(
    data_dir='',
    prompt='{problem}\n\n',
    instruction=(
        f'{_LOOK_AGAIN.replace("solution", "program")}Write the whole program anew, between ```python and ```.\n\n'),
    examples=(2, 3, 4),  # ids of MBPP's own examples, 1 to 10, that stand solved before every problem
    shown_tests=3,  # tests of MBPP that the model sees, which say what its function is called; it is graded by all
    layers=('no_new_privs', 'landlock', 'seccomp', 'rlimits'),  # of the sandbox; where one is missing no program is run
    max_prompt=2048,
    workers=2,
    seconds=45.0,  # the sandbox itself stops a program after 6 s of its own, or 20 in all
)
TASKS = {
    'gsm8k': dict(name='gsm8k', **_MATHS),
    'math': dict(name='math', **_MATHS),
    'mbpp': dict(name='mbpp', **_CODE),
    'humaneval': dict(name='humaneval', **_CODE | {'examples': ()}),
    'jsonl': dict(
        name='jsonl',
        train='',  # file of one JSON object a line, with 'problem', 'answer' and, if you like, 'level'
        test='',  # the same for problems that are only measured
        grade='maths',  # 'maths': equal in value; 'exact': letter for letter
        **{key: value for key, value in _MATHS.items() if key != 'data_dir'}),
}


_TINY = {
    'model.width': 32, 'model.layers': 2, 'model.heads': 4, 'model.kv_heads': 2, 'model.head_dim': 8, 'model.mlp': 64}
_ROLLOUT = {'rollout.max_tokens': 32, 'rollout.max_length': 768, 'rollout.chunk': 256}
_STAGE = {
    'reference': 'random', 'steps': 3, 'learning_rate': 1e-4, 'batch': 4, 'group.first': 2, 'group.second': 2,
    'optimizer.warmup_steps': 0, 'log_every': 1, 'save_every': 3, 'sample_every': 1, 'samples': 2}
_EVALUATE = {'methods': ('stage1', 'stage2'), 'problems': 20, 'batch': 10, 'samples': 5}
# What Self-Refine asks for where a model reads words: feedback, and then a refined answer.
_REFINE_MATHS = {
    'self_refine.feedback': (
        '\n\nRead the solution above as a strict teacher would. Go through it step by step and say what is right, what '
        'is wrong and what is missing; leave solving the problem anew for later.\n\nFeedback:'),
    'self_refine.refine': (
        '\n\nNow solve the problem again, and heed the feedback. Write the whole solution, with the result in \\boxed '
        'at the end.\n\nSolution:')}
_REFINE_CODE = {
    'self_refine.feedback': (
        '\n\nReview the program above. Say what it does wrong, and for which inputs, or that it is right; leave '
        'writing another program for later.\n\nReview:'),
    'self_refine.refine': (
        '\n\nNow write the whole program again, and heed the review. Put it between ```python and ```.\n\n')}
_SHORT = {'max_prompt': 512}
_TASKS = {
    'gsm8k-tiny': TASKS['gsm8k'] | _SHORT,
    'math-tiny': TASKS['math'] | _SHORT,
    'mbpp-tiny': TASKS['mbpp'] | _SHORT | {'examples': ()},
    'jsonl-tiny': TASKS['jsonl'] | _SHORT,
}
# The whole path with a model that knows nothing, in a minute: `--config=configs/stage1.py:NAME`.
SHARED_PRESETS = {name: {'task': task, **_TINY} for name, task in _TASKS.items()}
REINFORCE_PRESETS = {name: values | _ROLLOUT | _STAGE for name, values in SHARED_PRESETS.items()}
EVALUATE_PRESETS = {
    name: values | _ROLLOUT | _EVALUATE | (_REFINE_CODE if name == 'mbpp-tiny' else _REFINE_MATHS)
    for name, values in SHARED_PRESETS.items()}
EVALUATE_PRESETS['mbpp-tiny'] |= {'split': 'humaneval'}
