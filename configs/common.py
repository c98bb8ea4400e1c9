"""What the stages share: every key with its default and its meaning. A stage's own file sets the rest."""

import sys

from ml_collections import ConfigDict

from configs import tasks
from score_jax.settings import SHARED


def shared() -> ConfigDict:
    """The keys that must agree between the stages of one workdir."""
    config = ConfigDict()
    config.seed = 0  # problems, noise and first parameters are functions of it
    config.task = ConfigDict(dict(
        name='countdown',  # which task; configs/tasks.py has the others, each with keys of its own
        numbers=3,  # numbers in a problem
        largest=20,  # each is drawn from 1 to this
        limit=99,  # no target and no step of a generated answer lies outside 0 to this
        test_share=0.35,  # share of all problems that training never sees
        instruction='check :',  # what stands between two attempts; it must not reveal the verdict
    ))
    # Directory of a Hugging Face model that the stage 'base' is then, with its shape and its tokenizer; '' is none.
    config.pretrained = ''
    # File of a SentencePiece model, a tokenizer.json, or a directory with one of them; '' is that of `pretrained`, and
    # without it the task's own: words of Countdown, else bytes.
    config.tokenizer = ''
    config.chat = ''  # format of prompts and instructions: 'gemma', 'qwen', 'llama3', or '' for plain text
    config.model = ConfigDict(dict(  # with `pretrained`, its dtype alone is read
        width=64,  # of the residual stream
        layers=3,  # blocks of attention and MLP
        heads=4,  # query heads
        kv_heads=2,  # key and value heads; each serves heads / kv_heads query heads
        head_dim=16,  # width of a head
        mlp=192,  # hidden width of the gated MLP
        tied=True,  # the output head is the embedding
        rope_base=10_000.0,  # of the rotary positions' wave lengths
        norm_eps=1e-6,  # added to the mean square under the root of a norm
        dtype='float32',  # of activations; parameters are float32
        # What sets families apart; none of it is on here.
        activation='silu',  # of the MLP's gate, or 'gelu' (in its tanh form)
        qkv_bias=False,  # queries, keys and values have a bias
        qk_norm=False,  # queries and keys are normalised in each head
        post_norms=False,  # what attention and MLP give is normalised too
        centered_norms=False,  # norms multiply by 1 + weight
        scaled_embedding=False,  # embeddings are multiplied by the root of width
        query_scalar=0,  # scores are divided by its root; 0: by that of head_dim
        attention_cap=0.0,  # scores become cap * tanh(score / cap); 0: they stay
        logit_cap=0.0,  # so do logits
        window=0,  # positions that a query of a local layer sees, its own included; 0: no layer is local
        global_every=1,  # of so many layers the last is global, the others local
        local_rope_base=0.0,  # rope_base of local layers; 0: the same
        rope_factor=1.0,  # Llama 3.1: rotary pairs that turn slowly turn slower by this factor; 1: none does
        rope_length=8192,  # positions in which a pair's turns are counted:
        rope_low=1.0,  # a pair with fewer turns than this turns slower by all of rope_factor,
        rope_high=4.0,  # one with more than this not at all
    ))
    config.mesh = ConfigDict(dict(  # devices on each axis; -1: all that are left, several are chosen: docs/scale.md
        data=-1,  # each takes rows of its own
        fsdp=-1,  # rows of its own too, and a share of every parameter
        model=-1,  # a share of the heads and of the MLP
        name='',  # of the devices, such as 'v5p-128': what a dry run is for; '' is those that are here
    ))
    return config


def refer(config: ConfigDict, source: ConfigDict) -> ConfigDict:
    """Lets the shared keys of `config` follow those of `source`, also when they are overridden."""
    for key in SHARED:
        if isinstance(source[key], ConfigDict):
            for name in source[key]:
                config[key][name] = source[key].get_ref(name)
        else:
            config[key] = source.get_ref(key)
    return config


def training(stage: str) -> ConfigDict:
    """The keys of every training stage."""
    config = shared()
    config.stage = stage  # the folder in the workdir
    config.optimizer = ConfigDict(dict(
        schedule='linear',  # after the warm-up: 'constant', 'linear' or 'cosine', the latter two to 0
        warmup_steps=10,  # steps in which the rate rises linearly
        adam_b1=0.9,  # decay of the mean of gradients
        adam_b2=0.99,  # decay of the mean of their squares
        adam_eps=1e-8,  # added to the root of the latter
        clip_norm=1.0,  # the gradient's global norm is clipped to this
    ))
    config.head_chunk = 1024  # sampled tokens of a device that the output head is applied to at a time
    config.memory = ConfigDict(dict(  # docs/memory.md says what each of them saves
        params='float32',  # type of the parameters that are trained and, with LoRA, of the base; or 'bfloat16'
        moments='float32',  # type of Adam's two moments; or 'bfloat16'
        remat='products',  # kept of a layer for the backward pass: 'everything', 'products' or 'nothing'; or 'auto'
        accumulate=1,  # parts of the batch whose gradients are added up one after another; 0: as few as fit the memory
    ))
    config.log_every = 25  # steps between two lines on the terminal
    config.save_every = 50  # steps between two checkpoints
    config.keep = 2  # latest checkpoints kept, and the best by reward; older ones are for when the newest is damaged
    config.health = ConfigDict(dict(
        skipped=20,  # updates skipped in a row (no finite loss or gradient, no verdict) after which the stage stops
        stuck_seconds=600.0,  # a part of a step that takes longer is named on the terminal, and as `slow` in metrics
    ))
    config.profile = False  # trace three steps into the stage's folder, and say where their time went
    # Keys that may differ from those with which a stage was begun, such as ('learning_rate', 'optimizer.clip_norm').
    config.allow_changes = ()
    return config


def reinforce(stage: str) -> ConfigDict:
    """The keys of every stage of reinforcement learning."""
    config = training(stage)
    config.kind = 'reinforce'  # what runs it, see score_jax/run.py
    config.lora = ConfigDict(dict(
        rank=0,  # of the adapters that are trained beside frozen parameters; 0 trains all parameters
        alpha=16.0,  # their products are multiplied by alpha / rank
        targets='layers/(query|key|value|out|gate|up|down)',  # pattern of the parameters that have one
    ))
    config.reference_on_host = False  # it lies in the host's memory, from where each layer is fetched when it is needed
    config.dry_run = False  # print layout, memory and arithmetic for the mesh, of virtual devices, and do nothing
    config.reference = 'base'  # the other side of the KL; may be what start_from may be
    config.before = ConfigDict()  # config of the stage to run first where start_from has no checkpoint
    config.batch = 16  # problems a step; rollouts a step are batch * group.first * group.second
    config.turns = 2  # attempts at each problem; the objective trains the last, or every one of them
    config.group = ConfigDict(dict(
        first=4,  # first attempts at each problem
        second=4,  # second attempts on each first attempt; 1 is the paper's estimator
        later=1,  # third attempts on each second, and so on, where there are more than two turns
    ))
    config.offline = ConfigDict(dict(
        share=0.0,  # of a step's problems: their first attempts are samples of another stage, made once
        source='base',  # that stage, or 'random'
        problems=2000,  # that it is sampled on
        attempts=8,  # first attempts at each of them
    ))
    config.rollout = sampling()
    config.temperature = 1.0  # of the distribution that is sampled from and learned
    config.sample_every = 10  # steps between two groups of transcripts in samples.jsonl
    config.samples = 8  # transcripts in such a group
    return config


def sampling() -> ConfigDict:
    """The keys of `config.rollout`."""
    return ConfigDict(dict(
        max_tokens=12,  # longest response, its end token included; one that does not end is truncated: reward 0
        max_length=64,  # longest row: prompt, responses and instructions together; the cache's size
        chunk=11,  # tokens decoded before the cache grows; widths are multiples of it
    ))


def objective(name: str, **symbols: float) -> ConfigDict:
    """The keys of `config.objective`; `score_jax/objective.py` has the table of names."""
    return ConfigDict(dict(
        name=name,  # row of the table in score_jax/objective.py
        **symbols,  # alpha: progress bonus; beta1, beta2: KL weights, as the table of names uses them
        gamma=0.0,  # discount of the next turn's reward for the tokens of a turn
        kl_estimator='exact',  # over the vocabulary at every token, or 'sampled': the log-ratio, in the reward
        baseline='in_group',  # or 'leave_one_out', 'batch_mean', 'none'; score_jax/objective.py says what each compares
        adaptive_beta2=0.0,  # 0: beta2 stays; else what the KL of the held turns is to cost, over what the others earn
        allow_gamma_hack=False,  # accept gamma * alpha > 1, under which failing turn 1 on purpose pays
    ))


# Presets of the stages of reinforcement learning: `--config=configs/stage1.py:NAME`.
REINFORCE_PRESETS = {
    # The paper's estimator: one second attempt on each first, and the KL as a log-ratio in the reward.
    'paper': {'group.first': 16, 'group.second': 1, 'objective.kl_estimator': 'sampled'},
    # A look at the whole path in seconds, not a result.
    'smoke': {'steps': 20, 'batch': 8, 'save_every': 10, 'log_every': 5},
    **tasks.REINFORCE_PRESETS,
}


def preset(config: ConfigDict, presets: dict[str, dict], name: str) -> ConfigDict:
    """`config` with the values of the preset `name`; '' is none."""
    if name and name not in presets:
        print(f'{name!r} is not a preset of this config; it has {", ".join(presets)}.', file=sys.stderr)
        sys.exit(2)
    values = dict(presets.get(name, {}))
    for section in {'task', 'objective'} & values.keys():  # sections with keys of their own
        config[section] = ConfigDict(values.pop(section))
    config.update_from_flattened_dict(values)
    return config
