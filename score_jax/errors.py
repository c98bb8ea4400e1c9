"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Bad input: one sentence that names the key or path, the value, and what would work.

    Raised before any device work; `launch/main.py` prints it alone and exits with code 2.
    """
