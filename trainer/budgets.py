"""How much memory parts of the trainer allow themselves, in one place so that planning needs no torch."""

CPU_MICROBATCH_TOKENS = 2048  # tokens of one forward pass on a CPU, whatever the config allows: its caches want no more
CPU_CACHE_BYTES = 2 << 30  # of keys and values on a CPU
GPU_CACHE_SHARE = 0.4  # of a GPU's free memory for the same
DECODE_ROWS = 256  # completions sampled at the same time; more only cost memory
DRAWN_BYTES = 64 << 20  # of the float32 logits that tokens are drawn from at once
CHUNK_BYTES = 64 << 20  # of logits at once on a CPU: 341 rows of 49,152 tokens in float32
CHUNK_ROWS = 256  # the fewest of such rows: every chunk adds to a gradient of the size of the whole weight
CHUNK_SHARE = 16  # the part of a GPU's memory for the same: one sixteenth
KEPT_BYTES = 1 << 30  # of logits that the contract "kept" keeps between the passes
PIECES, SHORTEST_PIECE = 4, 128  # attention on a CPU cuts long segments, so that few scores above the diagonal are made
