"""What this worker can offer: GPU rows where NVML is present, CPU slots everywhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pynvml

from webapp.runs.models import Gpu, Worker
from webapp.settings import env_int

log = logging.getLogger(__name__)

IN_USE = 1 << 30  # bytes; a free GPU holds less, whatever its driver keeps


@dataclass(frozen=True)
class Device:
    """A GPU as NVML sees it."""

    index: int
    uuid: str
    name: str
    memory_bytes: int
    used_bytes: int


def slots() -> int:
    """Return how many CPU runs this worker takes at the same time: ISENTROPE_WORKER_SLOTS, or half the cores."""
    return max(0, env_int("ISENTROPE_WORKER_SLOTS", max(1, (os.cpu_count() or 1) // 2)))


def devices() -> list[Device]:
    """Return the GPUs of this machine; none without a driver."""
    with _nvml() as found:
        return [_device(index) for index in range(pynvml.nvmlDeviceGetCount())] if found else []


def register(worker: Worker) -> None:
    """Bring the worker's GPU rows up to date; a GPU that vanished loses its row."""
    found = devices()
    worker.gpus.exclude(index__in=[device.index for device in found]).delete()
    for device in found:
        Gpu.objects.update_or_create(
            worker=worker,
            index=device.index,
            defaults={"uuid": device.uuid, "name": device.name[:120], "memory_bytes": device.memory_bytes},
        )


def check(worker: Worker) -> None:
    """Mark free GPUs whose memory is still in use as suspect, so that nothing starts there, and clear the others."""
    free = list(worker.gpus.filter(run=None))
    if not free:
        return
    used = {device.index: device.used_bytes for device in devices()}
    for gpu in free:
        suspect = used.get(gpu.index, IN_USE) >= IN_USE
        # Only while free: the scheduler may lease it meanwhile.
        if suspect != gpu.suspect and Gpu.objects.filter(pk=gpu.pk, run=None).update(suspect=suspect):
            log.warning("%s is %s", gpu, "suspect: its memory is in use" if suspect else "free again")


@contextmanager
def _nvml() -> Iterator[bool]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


def _device(index: int) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    uuid, name = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
    return Device(index, str(uuid), str(name), int(memory.total), int(memory.used))
