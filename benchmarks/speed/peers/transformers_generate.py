"""transformers' `generate`: two turns with its cache carried over, or read again from the start.

The cache is static or dynamic, `forward` as it is or under torch.compile; docs/speed.md says which is the fastest.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, StaticCache, StoppingCriteria

from benchmarks.speed import worker
from benchmarks.speed.workloads import Workload


class StopAt(StoppingCriteria):
    """Ends each row when its response is so long."""

    def __init__(self, prompt: int, lengths: list[int], device: str):
        self.ends = prompt + torch.tensor(lengths, device=device)

    def __call__(self, tokens, scores, **_):
        return tokens.shape[1] >= self.ends


def sampling(found, work: Workload):
    """A repetition of the rollout; seconds and tokens by turn."""
    torch.set_num_threads(found.threads)
    device, clock = 'cuda' if found.device == 'gpu' else 'cpu', worker.CLOCKS[found.clock]
    model = AutoModelForCausalLM.from_pretrained(found.folder, dtype=getattr(torch, work.shape.dtype)).to(device).eval()
    if 'compiled' in found.variant:
        model.forward = torch.compile(model.forward)
    config = GenerationConfig(
        max_new_tokens=work.longest, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
        eos_token_id=None, use_cache=True)
    prompts = torch.tensor(work.prompts(), device=device)
    instruction = torch.tensor([work.instructions()] * work.rows, device=device)
    stops = [StopAt(work.prompt, work.stop_at, device)] if work.stops else []

    def new_cache():
        if 'static' in found.variant:
            return StaticCache(config=model.config, max_cache_len=work.length)
        return DynamicCache(config=model.config)

    @torch.inference_mode()
    def once(turns: int = work.turns) -> dict:
        tokens, cache, times = prompts, new_cache(), [clock()]
        for turn in range(turns):
            if turn:
                tokens = torch.cat([tokens, instruction], dim=1)
            if turn and 'again' in found.variant:
                cache = new_cache()
            tokens = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), past_key_values=cache, generation_config=config,
                stopping_criteria=stops)
            if device == 'cuda':
                torch.cuda.synchronize()
            times.append(clock())
        sampled = tokens.shape[1] - work.prompt - (turns - 1) * work.instruction
        assert sampled == turns * work.longest, sampled
        peak = {'peak': torch.cuda.max_memory_allocated()} if device == 'cuda' else {}
        return {'tokens': work.sampled, 'turns': [b - a for a, b in zip(times, times[1:])]} | peak

    def warm() -> dict:
        if 'compiled' in found.variant:
            return once()
        config.max_new_tokens = 4
        tokens = model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=config)
        config.max_new_tokens = work.longest
        return {'tokens': tokens.numel()}
    return once, warm


if __name__ == '__main__':
    FOUND = worker.job()
    worker.serve(FOUND, *sampling(FOUND, worker.workload(FOUND)))
