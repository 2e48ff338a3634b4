"""Worker processes that fill each batch together, directly in shared memory.

A batch is one slot of a small ring of slots. Every worker writes its own share of the rows. The
consumer gets the slot itself as an array, and the slot is free again when that array is garbage
collected. Slots are memory without a name (slots.py). Each worker has one pipe, which carries the
keys to it and its reports back. Nothing else is shared, so a killed worker leaves no lock behind. A
worker ends when its pipe closes, whatever it is doing.

This file imports only numpy and slots.py, so a worker imports little besides its maker.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import pickle
import select
import signal
import socket
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from multiprocessing import forkserver, resource_tracker, spawn
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from mambaout.data.batches.slots import FileDescriptors, SlotLayout, nameless, packed, unpacked

SPARE_SLOTS = 4  # a consumer may hold so many uncopied: the last batch, this one, two on the way
END_SECONDS = 2.0  # the time that workers get to end by themselves; they take milliseconds


class FillReport(NamedTuple):
    """The result of one call of `fill`; the notes are short texts for the log."""

    num_valid: int
    notes: tuple[str, ...] = ()


class BatchMaker(Protocol):
    """Makes the batch of any key, one share at a time.

    It must be picklable, and its class must not be defined in the main script.
    """

    @property
    def num_rows(self) -> int: ...

    @property
    def image_size(self) -> int: ...

    def open(self) -> object:
        """Called once in each process, before the first `fill`."""

    def fill(
        self, key: int, images: np.ndarray, labels: np.ndarray, worker: int, num_workers: int
    ) -> FillReport:
        """Write every row of this worker's share of batch `key`, padding too, and no other row.

        images is uint8 (num_rows, S, S, 3), labels is int64 (num_rows,); both still hold an older
        batch. Every worker must report the same num_valid.
        """
        ...


class FilledBatch(NamedTuple):
    """A batch. Its images are the slot itself; the slot is reused when nobody holds them."""

    images: np.ndarray  # uint8 (num_rows, S, S, 3)
    labels: np.ndarray  # int64 (num_rows,)
    num_valid: int
    notes: tuple[str, ...]


def made_in_order(
    make: BatchMaker,
    keys: Iterable[int],
    num_workers: int,
    *,
    look_ahead: int = 2,
    preload: Sequence[str] = (),
) -> Generator[FilledBatch, None, None]:
    """The batches of `keys`, which may be endless; the workers start now, not at the first `next`.

    Besides the batches that the consumer holds, `look_ahead` batches are ready or being made. An
    error in a worker is raised here, at the batch that it belongs to. A worker that dies raises
    RuntimeError. The workers' server imports the modules of `preload`, and the maker's module,
    before it forks the workers.
    """
    if look_ahead < 1:
        raise ValueError(f"look_ahead={look_ahead}: at least one batch has to be in the making")
    if num_workers == 0:
        return _made_here(make, keys)
    return _Ring(make, keys, num_workers, look_ahead, preload).batches()


def warm(preload: Sequence[str]) -> None:
    """Start the server process from which workers are forked; return while it imports `preload`.

    To fork this process instead can hang, because of the threads of CUDA, Ray or Arrow in it. A
    process has one server for its whole life, so only the first call has an effect.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([*preload])
    # Ctrl-C goes to all processes of a terminal. The server and its workers start with it blocked,
    # so that none of them prints a traceback. The tracker starts first, because starting it would
    # end the block.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _made_here(make: BatchMaker, keys: Iterable[int]) -> Generator[FilledBatch, None, None]:
    make.open()
    for key in keys:
        yield _made(make, key)  # a variable would hold the batch while the next one is made


def _made(make: BatchMaker, key: int) -> FilledBatch:
    images = np.empty(_shape(make), np.uint8)
    labels = np.empty(make.num_rows, np.int64)
    return FilledBatch(images, labels, *make.fill(key, images, labels, 0, 1))


def _shape(make: BatchMaker) -> tuple[int, int, int, int]:
    return (make.num_rows, make.image_size, make.image_size, 3)


# -- the consumer's side ---------------------------------------------------------------------------


class _Ring:
    """The workers and their slots. The workers end when it is closed or garbage collected."""

    def __init__(
        self,
        make: BatchMaker,
        keys: Iterable[int],
        num_workers: int,
        look_ahead: int,
        preload: Sequence[str],
    ) -> None:
        self.keys, self.look_ahead = iter(keys), look_ahead
        self.layout = SlotLayout(_shape(make))
        # A stack: the slot that was freed last is used first, so a slot that is never needed is
        # never touched and takes no memory. Arrays can be collected in any thread, at any point of
        # this code. That is safe, because append and pop are atomic.
        self.free = deque(range(look_ahead + SPARE_SLOTS))
        self.pending: deque[tuple[int, int]] = deque()  # (key, slot), the oldest first
        self.slots: list[mmap.mmap] = []
        self.connections: list[Connection] = []
        self.processes: list[BaseProcess] = []
        self.end = weakref.finalize(self, _end, self.processes, self.connections, os.getpid())
        try:
            self._start(make, num_workers, preload)
            self._send_ahead()
        except BaseException:
            self.close()
            raise

    def batches(self) -> Generator[FilledBatch, None, None]:
        try:
            while self.pending:
                yield self._next()
        finally:
            self.close()

    def close(self) -> None:
        self.end()
        self.slots = []  # arrays that the consumer holds keep their slots alive

    def _start(self, make: BatchMaker, num_workers: int, preload: Sequence[str]) -> None:
        # pickle would look for a class of the main script in the server's own __main__.
        if type(make).__module__ == "__main__":
            raise ValueError(f"{type(make).__name__} is defined in a script; move it to a module")
        warm([__name__, type(make).__module__, *preload])
        context = multiprocessing.get_context("forkserver")
        with contextlib.ExitStack() as files, _main_left_out():
            slots = [files.enter_context(nameless(self.layout.num_bytes)) for _ in self.free]
            pickled, spans = files.enter_context(packed(make))
            self.slots = [mmap.mmap(slot, self.layout.num_bytes) for slot in slots]
            for worker in range(num_workers):
                ours, theirs = (Connection(end.detach()) for end in socket.socketpair())
                self.connections.append(ours)
                files_and_part = (
                    FileDescriptors([pickled, *slots]),
                    spans,
                    self.layout.shape,
                    worker,
                )
                with theirs:
                    process = context.Process(
                        target=_work, args=(theirs, *files_and_part, num_workers), daemon=True
                    )
                    process.start()
                self.processes.append(process)

    def _send_ahead(self) -> None:
        while len(self.pending) < self.look_ahead:
            try:
                key = next(self.keys)
            except StopIteration:
                return
            task = (key, self.free.pop())  # `free` is never empty here: see _handed_out
            self.pending.append(task)
            for connection in self.connections:
                # A dead worker is reported later, at the batch that it should have filled.
                with contextlib.suppress(ConnectionError):
                    connection.send(task)

    def _next(self) -> FilledBatch:
        key, slot = self.pending[0]
        # Every worker answers its tasks in order, so the next answer of each is for this batch.
        replies = [self._reply(worker, key) for worker in range(len(self.processes))]
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        self.pending.popleft()
        images, labels = self._handed_out(slot)
        self._send_ahead()
        notes = tuple(note for filled in replies for note in filled.notes)
        return FilledBatch(images, labels, replies[0].num_valid, notes)

    def _reply(self, worker: int, key: int) -> Any:
        try:
            return self.connections[worker].recv()
        except (EOFError, OSError):
            pass  # it died, perhaps in the middle of a message
        process = self.processes[worker]
        process.join(END_SECONDS)
        code = process.exitcode
        if code is not None and code < 0:
            how = f"was killed by signal {-code} ({signal.strsignal(-code)})"
        else:
            how = f"ended with exit code {code}"
        raise RuntimeError(
            f"data worker {worker} of {len(self.processes)} (process {process.pid}) {how} while it"
            f" made batch {key}; the machine may be short of memory: try fewer workers"
        )

    def _handed_out(self, slot: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self.layout.arrays(self.slots[slot])
        num_held = len(self.slots) - len(self.free) - len(self.pending)  # including this one
        if num_held > SPARE_SLOTS:  # copy, or fewer than look_ahead slots would be left to fill
            images = images.copy()
            self.free.append(slot)
        else:
            # Every numpy view and every torch tensor of this array keeps it alive. So when it is
            # collected, nobody can read the slot any more.
            weakref.finalize(images, self.free.append, slot).atexit = False
        return images, labels.copy()


def _end(processes: list[BaseProcess], connections: list[Connection], owner: int) -> None:
    for connection in connections:
        connection.close()  # this ends the workers
    if os.getpid() != owner:
        return  # this is a fork of the consumer, and the workers are not its children
    deadline = time.monotonic() + END_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join(END_SECONDS)
        if process.exitcode is not None:
            process.close()


@contextlib.contextmanager
def _main_left_out() -> Iterator[None]:
    """A context in which the processes that this thread starts do not import the main script.

    multiprocessing runs that script in each process, because it may define classes. A script
    without `if __name__ == "__main__"` would train again in every worker, and Ray's script would
    import Ray.
    """
    thread = threading.get_ident()
    with _STARTING:
        prepared = spawn.get_preparation_data

        def without_main(name: str) -> dict[str, Any]:
            data = prepared(name)
            if threading.get_ident() == thread:
                data.pop("init_main_from_name", None)
                data.pop("init_main_from_path", None)
            return data

        spawn.get_preparation_data = without_main
        try:
            yield
        finally:
            spawn.get_preparation_data = prepared


_STARTING = threading.Lock()


# -- a worker's side -------------------------------------------------------------------------------


def _work(
    connection: Connection,
    files: list[int],
    spans: list[tuple[int, int]],
    shape: tuple[int, int, int, int],
    worker: int,
    num_workers: int,
) -> None:
    """Fill this worker's share of each slot that the pipe names, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the consumer decides when a worker ends
    threading.Thread(target=_end_with, args=(connection.fileno(),), daemon=True).start()
    layout = SlotLayout(shape)
    pickled, *slot_files = files
    slots = [layout.arrays(mmap.mmap(file, layout.num_bytes)) for file in slot_files]
    for file in slot_files:
        os.close(file)
    make: BatchMaker | None = None
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            key, slot = connection.recv()
            try:
                if make is None:
                    make = cast(BatchMaker, unpacked(pickled, spans))
                    make.open()
                images, labels = slots[slot]
                reply = make.fill(key, images, labels, worker, num_workers)
            except Exception as error:
                reply = _portable(error, f"in data worker {worker} of {num_workers}, batch {key}")
            connection.send(reply)


def _end_with(pipe: int) -> None:
    """End this process when the other end of its pipe is closed, or its consumer was killed.

    It ends at once, even during a fill and with tasks in the pipe, because nobody waits for them.
    """
    poll = select.poll()
    poll.register(pipe, select.POLLHUP)
    poll.poll()
    os._exit(0)


def _portable(error: Exception, where: str) -> Exception:
    """`error` with its traceback as a note. An error that cannot be pickled becomes its text."""
    error.add_note(f"{where}:\n{traceback.format_exc()}")
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:
        pass
    text = RuntimeError(f"{type(error).__name__}: {error}")
    text.__notes__ = error.__notes__
    return text
