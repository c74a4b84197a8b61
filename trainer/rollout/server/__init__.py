"""The rollout server: an engine in a process of its own, and the engine inside the trainer that speaks to it.

frame.py      one message: a JSON header and binary columns
messages.py   requests, generations and chunks as such messages
secret.py     who may connect: both sides prove that they know a token, and neither says it
link.py       a socket that carries messages, and what can go wrong with it
backend.py    what generates inside the server: an engine over a model of its own
host.py       the server: sessions, jobs, life and end
client.py     one authenticated connection of a trainer
weights.py    weights on their way through a folder
broadcast.py  weights on their way through memory
heard.py      what comes while a server generates, on its way to whoever watches
launcher.py   the server process that belongs to a run
engine.py     the Engine that the trainer uses
"""
