"""The `vllm` engine: vLLM's own engine in this process, fed by hand, with the project's sampler in place of vLLM's.

start.py      an engine of vLLM, started without disturbing the process it lives in
tap.py        the sampler tap: raw logits in, token ids out
driver.py     requests in, generations out; knows nothing of a trainer, so a server can use it too
bounds.py     what the likeliest tokens say of an entropy, where the tap cannot be trusted
selftest.py   whether the tap tells the truth
weights.py    a policy's weights under their names, and into a running model
native.py     vLLM drawing by itself, where the tap is not trusted
forecast.py   what would stop it and how much memory it takes, told before a run
engine.py     the Engine that the trainer uses
"""
