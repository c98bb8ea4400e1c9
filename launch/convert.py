"""Between Hugging Face models and checkpoints: `python launch/convert.py --from=HF_DIR --to=CKPT`, and back."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags, logging

from score_jax.errors import UserError

_FROM = flags.DEFINE_string('from', None, 'A directory with safetensors, or a checkpoint or stage of this project.')
_TO = flags.DEFINE_string('to', None, 'The directory to write, in the other form.')
_DTYPE = flags.DEFINE_string('dtype', None, 'float32, bfloat16 or float16; default: as the parameters are.')
_LIKE = flags.DEFINE_string(
    'like', None, 'To export a stage: a Hugging Face directory whose tokenizer and config.json to go by.')
flags.mark_flags_as_required(['from', 'to'])


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f'not a flag: {" ".join(argv[1:])}')
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_logger().addFilter(lambda record: '/orbax/' not in record.pathname)  # what it warns of is meant
    from score_jax import compilation  # after the flags are read, so that a mistake in them answers at once
    from score_jax.convert import convert
    compilation.keep()
    try:
        like = Path(_LIKE.value) if _LIKE.value else None
        print(convert(Path(_FROM.value), Path(_TO.value), dtype=_DTYPE.value, like=like))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    app.run(main)
