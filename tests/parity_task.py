"""A task in which a model that knows nothing is right half of the time, graded in words."""

from score_jax.rewards import Outcome, Verdict
from score_jax.tasks.countdown import Countdown, CountdownConfig


class Parity(Countdown):
    """Countdown's problems; right is a response of an even number of characters."""

    Config = CountdownConfig

    def verify(self, problems, responses):
        """The verdicts on responses to these problems."""
        return [Verdict(Outcome.WRONG if len(response) % 2 else Outcome.CORRECT, read=response)
                for response in responses]
