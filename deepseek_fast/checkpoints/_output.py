"""New files: NAME.part becomes NAME when it is whole and on the disk; the threads that read and write."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deepseek_fast.checkpoints._refuse import refuse

PART = ".part"
STEP = 1 << 18  # bytes a copy reads at a time; they are still in the core's cache when it writes them
WAITING = 2  # calls that wait for each thread at most


class PartFile:
    """A file of a known size that has its name only once `finish` was called; any thread writes to it."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._part = path, part_of(path)
        self._fd = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            if size:
                os.posix_fallocate(self._fd, 0, size)  # no space: now, not in an hour
        except OSError as error:
            self.discard()
            raise OSError(error.errno, error.strerror, str(self._part)) from None

    def write(self, data: Any, offset: int) -> None:
        """Bytes to their place."""
        data = memoryview(data)
        while data:
            written = os.pwrite(self._fd, data, offset)
            data, offset = data[written:], offset + written

    def copy(self, source: "InputFile", start: int, size: int, offset: int) -> None:
        """Bytes of another file to their place."""
        buffer = memoryview(bytearray(min(STEP, size)))
        for done in range(0, size, STEP):
            piece = buffer[: min(STEP, size - done)]
            source.read_into(piece, start + done)
            self.write(piece, offset + done)

    def finish(self) -> None:
        """Brings everything to the disk, then gives the file its name."""
        try:
            os.fsync(self._fd)
            os.close(self._fd)
            os.replace(self._part, self._path)
            sync_folder(self._path.parent)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Removes what was written."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
        with contextlib.suppress(OSError):
            self._part.unlink()


class InputFile:
    """A file that is read at offsets, by any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_into(self, buffer: Any, offset: int) -> None:
        """Fills the buffer. Raises ValueError where the file has become shorter than its header says."""
        buffer = memoryview(buffer)
        while buffer:
            count = os.preadv(self._fd, [buffer], offset)
            if not count:
                refuse(self._path.name, f"stay as it is while it is read: it has no byte {offset} any more", "its end")
            buffer, offset = buffer[count:], offset + count

    def close(self) -> None:
        os.close(self._fd)


class Workers:
    """Threads that make calls; a few calls wait for each, so that what they hold is bounded."""

    def __init__(self, threads: int, prepare: Callable[[], None] | None = None) -> None:
        self._pool = ThreadPoolExecutor(threads, initializer=prepare)
        self._room = threads * WAITING
        self._pending: deque[Future[None]] = deque()

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Waits for room. Raises what an earlier call raised."""
        while len(self._pending) >= self._room:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(function, *args))

    def wait(self) -> None:
        """Until all calls are made. Raises what one of them raised."""
        while self._pending:
            self._pending.popleft().result()

    def stop(self, *, drop: bool = True) -> None:
        """Until the calls that were started are made, and the others too unless they are dropped. Raises nothing."""
        self._pool.shutdown(wait=True, cancel_futures=drop)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[InputFile]:
    """The file, closed at the end."""
    file = InputFile(path)
    try:
        yield file
    finally:
        file.close()


def part_of(path: Path) -> Path:
    """NAME.part of a file."""
    return path.with_name(path.name + PART)


def write_file(path: Path, data: bytes) -> None:
    """A small file, whole or not at all."""
    file = PartFile(path, len(data))
    try:
        file.write(data, 0)
    except BaseException:
        file.discard()
        raise
    file.finish()


def copy_file(source: Path, target: Path) -> None:
    """A copy, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    size = source.stat().st_size
    file = PartFile(target, size)
    try:
        with opened(source) as start:
            file.copy(start, 0, size, 0)
    except BaseException:
        file.discard()
        raise
    file.finish()


def sync_folder(folder: Path) -> None:
    """Brings a folder's names to the disk, where its file system can."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)
