"""How much memory parts of the trainer allow themselves; apart from them, so that planning needs no torch. Bytes."""

CPU_MICROBATCH_TOKENS = 2048  # of one forward pass on a CPU, whatever the config allows: its caches want no more
CPU_CACHE_BYTES = 2 << 30  # of keys and values on a CPU
GPU_CACHE_SHARE = 0.4  # of a GPU's free memory for the same
HEAD_BYTES = 96 << 20  # of logits at once on a CPU: 512 rows of 49,152 tokens in float32
