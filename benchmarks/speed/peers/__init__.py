"""What score_jax is measured beside; each runs in a virtual environment of its own and imports nothing of score_jax."""
