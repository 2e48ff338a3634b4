"""The records that a running trial has added since they were last taken."""

from __future__ import annotations

from pathlib import Path

from mambaout.durable import parsed
from mambaout.train.metrics import Record


class Tail:
    """Reads a records.jsonl from where the last accepted reading ended.

    A file that a resume has cut back, or that was replaced, is read from its start again: records
    may come twice, none is missed.
    """

    def __init__(self) -> None:
        self._offset, self._last_line = 0, b""  # of what was accepted
        self._read: tuple[int, bytes] = (0, b"")

    def new(self, path: Path) -> list[Record]:
        """The whole lines after the accepted ones; a line still being written is left."""
        self._read = (self._offset, self._last_line)
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self._offset - len(self._last_line))
            if file.read(len(self._last_line)) != self._last_line:
                file.seek(0)
            start = file.tell()
            body = file.read()
        end = body.rfind(b"\n") + 1
        lines = body[:end].splitlines(keepends=True)
        if lines:
            self._read = (start + end, lines[-1])
        return [parsed(line, Record.from_json, path) for line in lines]

    def accept(self) -> None:
        """The records of the last `new` are dealt with."""
        self._offset, self._last_line = self._read
