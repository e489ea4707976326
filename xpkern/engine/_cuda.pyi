"""Memory, streams and kernels of a GPU, by the CUDA runtime (csrc/cuda/module.cpp); there only if XPKERN_CUDA=1."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

#: Version of the CUDA toolkit that built it: 13000 is 13.0.
toolkit: int

class OutOfMemory(MemoryError):
    """No room for that many bytes; nothing else is wrong."""

class Failure(RuntimeError):
    """Any other error of the runtime; it starts with CUDA's name of it."""

class Memory:
    """Bytes on the GPU, freed with the object."""

    def __init__(self, size: int) -> None: ...
    @property
    def pointer(self) -> int: ...

class HostMemory(Buffer):
    """Pinned bytes of the host: a writable buffer."""

    def __init__(self, size: int) -> None: ...

class Stream:
    """A queue that waits for no other."""

    def __init__(self) -> None: ...
    def synchronise(self) -> None: ...

class Graph:
    """What a stream was told, as one unit."""

    def launch(self, stream: Stream) -> None: ...

class Event:
    """A moment in a stream."""

    def __init__(self) -> None: ...
    def record(self, stream: Stream) -> None: ...
    def seconds_since(self, begin: Event) -> float: ...

class Kernels:
    """Those of a fat binary, by name."""

    def __init__(self, image: bytes) -> None: ...
    def launch(
        self,
        name: str,
        grid: int,
        block: int,
        parameters: Sequence[NDArray[np.uint8]],
        stream: Stream,
        shared: int = 0,
    ) -> None: ...
    def attributes(self, name: str) -> dict[str, int]: ...

def to_device(pointer: int, array: np.ndarray, stream: Stream) -> None: ...
def to_host(array: np.ndarray, pointer: int, stream: Stream) -> None: ...
def clear(pointer: int, size: int, stream: Stream) -> None: ...
def is_pinned(pointer: int) -> bool: ...
def record(work: Callable[[Stream], None], stream: Stream) -> Graph: ...
def device_count() -> int: ...
def facts() -> dict[str, int | str]: ...
def free_memory() -> int: ...
