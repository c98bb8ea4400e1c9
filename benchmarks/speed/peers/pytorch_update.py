"""Scoring and update in plain PyTorch, as it is and under torch.compile, on transformers' own model.

The same loss as score_jax's: REINFORCE with the sampled log-ratio to the reference in the reward, a baseline of the
batch's mean, Adam after clipping. The head is applied to sampled columns alone, and no log-softmax of all tokens is
kept. Attention is torch's scaled dot product, Adam is fused. Where the rows are updated in parts, each part has a
baseline of its own, which saves a pass. The variant `again` computes layers again in the backward pass.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from benchmarks.speed import worker
from benchmarks.speed.workloads import Workload

ALPHA, BETA1, RATE, CLIP = 10.0, 0.1, 1e-5, 1.0


def advantages(correct, penalty):
    """By row and turn, from verdicts and KL penalties."""
    before = torch.cat([torch.zeros_like(correct[:, :1]), correct[:, :-1]], dim=1)
    bonus = torch.tensor([0.0] + [ALPHA] * (correct.shape[1] - 1), device=correct.device)
    returns = correct + bonus * (correct - before) - penalty
    return returns - returns.mean(0)


def updating(found, work: Workload):
    """A repetition of scoring and update."""
    torch.set_num_threads(found.threads)
    device = 'cuda' if found.device == 'gpu' else 'cpu'

    def load(dtype):
        model = AutoModelForCausalLM.from_pretrained(found.folder, dtype=dtype).to(device)
        return model.to(getattr(torch, work.shape.dtype)) if dtype == torch.bfloat16 else model
    policy, reference = load(torch.float32), load(torch.bfloat16).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(policy.parameters(), lr=RATE, betas=(0.9, 0.99), eps=1e-8, fused=True)
    tokens = torch.tensor(work.trajectories(), device=device)
    correct = torch.tensor(work.correct(), device=device)
    columns = torch.cat([torch.arange(*own, device=device) for own in work.own()])

    def score(model, tokens):
        hidden = model.model(tokens, use_cache=False).last_hidden_state[:, columns - 1]
        logits = model.lm_head(hidden).float()
        chosen = logits.gather(-1, tokens[:, columns, None])[..., 0]
        return chosen - torch.logsumexp(logits, dim=-1)

    def loss(tokens, correct):
        with torch.no_grad():
            reference_log_probs = score(reference, tokens)
        log_probs = score(policy, tokens).view(len(tokens), work.turns, -1)
        penalty = BETA1 * (log_probs.detach() - reference_log_probs.view_as(log_probs)).sum(-1)
        return -(advantages(correct, penalty) * log_probs.sum(-1)).sum(-1).mean()

    if 'compiled' in found.variant:
        loss = torch.compile(loss, dynamic=False)

    if 'again' in found.variant:
        policy.gradient_checkpointing_enable()
        policy.train()

    def once(rows: int = work.rows) -> dict:
        optimizer.zero_grad(set_to_none=True)
        value, size = 0.0, -(-rows // work.parts)
        for start in range(0, rows, size):
            part = slice(start, start + size)
            with torch.autocast(device, torch.bfloat16, enabled=work.shape.dtype == 'bfloat16'):
                own = loss(tokens[part], correct[part]) * (len(tokens[part]) / rows)
            own.backward()
            value += own.item()
        if rows < work.rows:
            return {}  # to get warm; the parameters stay
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
        optimizer.step()
        peak = {'peak': torch.cuda.max_memory_allocated()} if device == 'cuda' else {}
        return {'grad_norm': norm.item(), 'loss': value, 'whole': True} | peak

    return once, once if 'compiled' in found.variant else lambda: once(2 * work.parts)


if __name__ == '__main__':
    FOUND = worker.job()
    worker.serve(FOUND, *updating(FOUND, worker.workload(FOUND)))
