"""The keys of a small run that several files of tests start: as they are the same, what one compiles serves all."""

MODEL = {
    'model.width': 16, 'model.layers': 1, 'model.heads': 2, 'model.kv_heads': 1, 'model.head_dim': 8, 'model.mlp': 16,
    'task.largest': 9, 'task.limit': 40}
SAMPLING = {'rollout.max_tokens': 6, 'rollout.max_length': 48, 'rollout.chunk': 32}
TRAINING = {'steps': 6, 'batch': 8, 'optimizer.warmup_steps': 2}
BASE = TRAINING | {'practice_steps': 0}
REINFORCE = TRAINING | SAMPLING | {'group.first': 2, 'group.second': 2}
EVALUATE = SAMPLING | {'problems': 40, 'batch': 40, 'samples': 5}


def under(section: str, values: dict) -> dict:
    """The values of a section."""
    return {f'{section}.{key}': value for key, value in values.items()}
