"""A rollout server from a shell: `python -m trainer.rollout.server CONFIG [options]`.

CONFIG is a run's config (TOML or JSON): its `model`, `sampling` and `resources.cpu_threads` say what to serve. A run
that starts its own server does this by itself. For a server on another host, which runs may use one after the other:

    python -m trainer.rollout.server run.toml --host 0.0.0.0 --port 7000 --weights-root /shared/runs

The token goes to the trainers' hosts by hand, readable by their user alone. Nothing on the wire is encrypted: use a
network you trust, or a tunnel.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from trainer.attempt import prepare_environment
from trainer.config import load
from trainer.errors import ResourceError, TrainerError
from trainer.rollout.server import secret
from trainer.rollout.server.launcher import Card


def main(arguments: list[str] | None = None) -> int:
    """Serve until the end; return the exit code (0 ended well, 2 could not start)."""
    options = parser().parse_args(arguments)
    try:
        _serve(options)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if options.card:
            field, resource = getattr(error, "field", ""), isinstance(error, ResourceError)
            Card(pid=os.getpid(), error=str(error), field=field, resource=resource).write(options.card)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    raw = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser("python -m trainer.rollout.server", description=__doc__, formatter_class=raw)
    found.add_argument("config", type=Path)
    found.add_argument("--host", default="127.0.0.1", help="address to listen on; only this machine by default")
    found.add_argument("--port", type=int, default=0, help="0 lets the system choose")
    found.add_argument("--token-file", type=Path, help=f"made where absent; default ${secret.VARIABLE} or in the home")
    found.add_argument("--weights-root", type=Path, action="append", default=[], help="where weights may be read from")
    found.add_argument("--linger", type=float, default=0, help="seconds without a trainer before it ends; 0 is never")
    found.add_argument("--card", type=Path, help="file that says where the server listens, or why it does not")
    return found


def _serve(options: argparse.Namespace) -> None:
    config = load(options.config)
    prepare_environment(config)
    from transformers.utils import logging

    from trainer.models import resolve
    from trainer.rollout.server.backend import backend
    from trainer.rollout.server.host import Server, listen
    from trainer.rollout.server.weights import digest

    logging.disable_progress_bar()
    file = options.token_file or secret.declared()
    token = secret.read(file) if file.exists() else secret.make(file)
    listener = listen(options.host, options.port)  # before the model: a wrong address is said at once
    model = digest(resolve(config.model.source).path)
    server = Server(
        backend(config), config.sampling.engine, token, model, roots=options.weights_root, linger=options.linger
    )
    signal.signal(signal.SIGTERM, lambda *_: server.end("SIGTERM"))
    host, port = listener.getsockname()[:2]
    print(f"serving {config.model.source} with {config.sampling.engine} on {host}:{port}, token in {file}", flush=True)
    if options.card:
        Card(pid=os.getpid(), address=f"{host}:{port}").write(options.card)
    server.serve(listener)


if __name__ == "__main__":
    sys.exit(main())
