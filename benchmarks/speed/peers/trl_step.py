"""TRL's GRPOTrainer on two turns: a whole step, as its loop takes it.

Two turns are expressed by `rollout_func`, which calls the trainer's own generation once a turn; the second call reads
the first turn again, as TRL's own loop over tools does. `env_mask` keeps the instruction out of the loss. The reward is
given, the KL to a reference is on. Not TRL's defaults: float32 and no gradient checkpointing, which is faster here.
"""

from __future__ import annotations

import os
import sys
import tempfile

os.environ['TRL_EXPERIMENTAL_SILENCE'] = '1'

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.speed import worker
from benchmarks.speed.workloads import Workload


def tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """A word for every token; what ends a response is a token that the model does not have."""
    made = Tokenizer(models.WordLevel({f't{i}': i for i in range(vocab)} | {'<end>': vocab}, unk_token='t0'))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token='<end>', pad_token='t0', unk_token='t0')


class Steps(TrainerCallback):
    """Waits at the start of every step until it is asked for."""

    def __init__(self, found, work: Workload):
        self.line, self.clock, self.work = worker.Line(found), worker.CLOCKS[found.clock], work
        self.rollout, self.turns, self.steps = 0.0, [], 0

    def on_step_begin(self, *_, **__):
        if self.steps and not self.line.wait():
            sys.exit()
        self.steps += 1
        self.line.begin()

    def on_step_end(self, *_, **__):
        self.line.answer({'rollout': self.rollout, 'turns': self.turns, 'tokens': self.work.sampled})

    def sample(self, prompts: list[str], trainer: GRPOTrainer) -> dict:
        """`rollout_func`."""
        began, instruction = self.clock(), self.work.instructions()
        read = [[int(word[1:]) for word in prompt.split()] for prompt in prompts]
        responses, masks, times = [[] for _ in prompts], [[] for _ in prompts], [began]
        for turn in range(self.work.turns):
            for row, mask in zip(responses, masks):
                row += instruction * bool(turn)
                mask += [0] * len(instruction) * bool(turn)
            sampled, _ = trainer._generate_single_turn(
                [a + b for a, b in zip(read, responses)], None, {}, trainer.num_generations)
            for row, mask, new in zip(responses, masks, sampled):
                row += new
                mask += [1] * len(new)
            times.append(self.clock())
        self.rollout, self.turns = times[-1] - began, [b - a for a, b in zip(times, times[1:])]
        return {'prompt_ids': read, 'completion_ids': responses, 'logprobs': None, 'env_mask': masks}


def main(found, work: Workload) -> None:
    torch.set_num_threads(found.threads)
    steps = Steps(found, work)
    verdicts = [sum(row) for row in work.correct()]
    rows = [{'prompt': ' '.join(f't{token}' for token in prompt)} for prompt in work.prompts()]
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=work.rows, num_generations=4, max_steps=1000,
            max_completion_length=work.longest, learning_rate=1e-5, lr_scheduler_type='constant', beta=0.1,
            temperature=1.0, top_k=0, top_p=1.0, adam_beta2=0.99, weight_decay=0.0, max_grad_norm=1.0,
            gradient_checkpointing=False, bf16=work.shape.dtype == 'bfloat16', use_cpu=found.device == 'cpu',
            report_to='none', save_strategy='no', logging_strategy='no', disable_tqdm=True)
        GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(found.folder, dtype=torch.float32), args=config,
            reward_funcs=lambda completions, **_: verdicts[:len(completions)], train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(work.shape.vocab_size), rollout_func=steps.sample, callbacks=[steps]).train()


if __name__ == '__main__':
    FOUND = worker.job()
    main(FOUND, worker.workload(FOUND))
