"""Entropy-controlled reinforcement learning of language models, as a library and a program of its own."""
