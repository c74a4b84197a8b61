"""One attempt at a run folder: read its config, set the process up, train, and leave exit.json as the last word.

Heavy libraries are imported here only after the config is known, because thread counts must be set before them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import traceback
from pathlib import Path

from trainer.config import RunConfig, load
from trainer.errors import ConfigError, TrainerError
from trainer.events import LIVE_PROCESSES, Exit, RunFolder
from trainer.last_words import first_to_fail, forget, write_exit
from trainer.stream import LiveStream, Silent, Stream, last_event

ATTEMPT = "ISENTROPE_ATTEMPT"  # set by a supervisor that counts attempts itself


def run_attempt(path: Path) -> int:
    """Train the run in a folder, resuming by itself; return the exit code (0 ended well, 1 failed, 2 no such run)."""
    folder = RunFolder(path)
    try:
        if not folder.config.is_file():
            raise ConfigError(f"{path} is no run folder: config.json is missing; make one with `trainer run`")
        config = load(folder.config)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        if path.is_dir():
            write_exit(folder, Exit(status="failed", reason=str(error), field=getattr(error, "field", ""), code=2))
        return 2
    processes = config.resources.gpus or config.resources.processes
    if processes > 1 and "WORLD_SIZE" not in os.environ:
        return _launch(folder, processes)
    prepare_environment(config)
    return _attempt(folder, config, number(folder))


def number(folder: RunFolder) -> int:
    """Return this attempt's number: the supervisor's, else one more than the last in the event file."""
    declared = os.environ.get(ATTEMPT, "")
    if declared.isdigit() and int(declared):
        return int(declared)
    last = last_event(folder.events)
    return last["attempt"] + 1 if last else 1


def prepare_environment(config: RunConfig) -> None:
    """Set what libraries read when they are imported: threads, quiet logs."""
    threads = str(config.resources.cpu_threads)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = threads
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # repeatable GEMMs on a GPU


def _launch(folder: RunFolder, processes: int) -> int:
    """Start one process for each GPU or CPU share and wait; signals go to the whole process group."""
    forget(folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    code = subprocess.run([*command, "-m", "trainer", str(folder.path)], check=False).returncode
    if not folder.exit.exists() and (said := first_to_fail(folder)):  # the main process was ended before it could speak
        write_exit(folder, said)
    return code


def _attempt(folder: RunFolder, config: RunConfig, attempt: int) -> int:
    import torch

    torch.set_num_threads(config.resources.cpu_threads)
    from transformers.utils import logging

    from trainer.distributed import World
    from trainer.loop import Trainer, listen_to_signals

    logging.disable_progress_bar()
    world = World(cpu=not config.resources.gpus)
    stream: Silent = Silent()
    trainer = None
    try:
        if world.main:
            forget(folder)
            stream = Stream(folder, attempt)
        elif world.rank < LIVE_PROCESSES:
            stream = LiveStream(folder, world.rank)
        trainer = Trainer(folder, config, attempt, stream, world)
        listen_to_signals(trainer)
        status, reason = trainer.run()
        stream.emit("finished", trainer.done, status=status, reason=reason)
        ended = Exit(status=status, reason=reason, attempt=attempt)  # type: ignore[arg-type]
    except Exception as error:  # whatever it was, the run folder must say so
        ended = failure(error, attempt)
        if not world.main:
            write_exit(folder, ended, rank=world.rank)
        elif not isinstance(error, TrainerError):  # what another process left behind by failing, perhaps
            ended = first_to_fail(folder) or ended
        with contextlib.suppress(OSError, TrainerError):  # the disk may be what failed
            stream.emit("failed", trainer.done if trainer else 0, reason=ended.reason, field=ended.field)
    finally:
        if trainer:
            trainer.close()
    if world.main:
        with contextlib.suppress(OSError):
            stream.close()
        write_exit(folder, ended)
        print(f"{ended.status}: {ended.reason}", flush=True)
    if ended.status == "failed":  # other processes may wait in a collective that this one has left
        return _leave(world.size, ended.code)
    world.close()
    return ended.code


def _leave(processes: int, code: int) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    if processes > 1:
        os._exit(code)
    return code


def failure(error: Exception, attempt: int) -> Exit:
    """Return what exit.json says of an exception; the traceback goes to the log where the error was not foreseen."""
    if isinstance(error, TrainerError):
        field = getattr(error, "field", "")
        reason = str(error) if field in str(error) else f"{field}: {error}"
    else:
        traceback.print_exception(error)
        first = (str(error) or "no message").splitlines()[0]
        reason = f"{type(error).__name__}: {first[:500]}; the log has the traceback"
    return Exit(status="failed", reason=reason, field=getattr(error, "field", ""), code=1, attempt=attempt)
