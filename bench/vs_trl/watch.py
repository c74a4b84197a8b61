"""Seconds that named methods take, by wall clock and of CPU. Standard library only: both sides use it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any


class Watch:
    """What watched methods have taken since `begin`; one inside another counts for both."""

    def __init__(self, settle: Callable[[], Any]) -> None:
        """`settle` waits for what a device still computes."""
        self.settle = settle
        self.begin()

    def begin(self) -> None:
        self.wall: defaultdict[str, float] = defaultdict(float)
        self.cpu: defaultdict[str, float] = defaultdict(float)

    def method(self, owner: Any, method: str, name: str) -> None:
        """Count a method of an object under a name from here on."""
        plain = getattr(owner, method)

        def watched(*args: Any, **options: Any) -> Any:
            return self.call(name, plain, *args, **options)

        setattr(owner, method, watched)

    def call(self, name: str, function: Any, *args: Any, **options: Any) -> Any:
        began = time.perf_counter(), time.process_time()
        try:
            return function(*args, **options)
        finally:
            self.settle()
            self.wall[name] += time.perf_counter() - began[0]
            self.cpu[name] += time.process_time() - began[1]
