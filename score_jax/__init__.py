"""SCoRe (arXiv 2409.12917) in JAX: multi-turn reinforcement learning for self-correction."""
