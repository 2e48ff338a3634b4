"""The records that a running trial has added since the last reading."""

from __future__ import annotations

from pathlib import Path

from mambaout.durable import parsed
from mambaout.train.metrics import Record


class Tail:
    """Reads a records.jsonl from the end of the last accepted reading.

    If a resume has shortened the file, or if it was replaced, it is read from its start again.
    Records may then come twice, but none is missed.
    """

    def __init__(self) -> None:
        self._offset, self._last_line = 0, b""  # of the accepted reading
        self._read: tuple[int, bytes] = (0, b"")

    def new(self, path: Path) -> list[Record]:
        """The complete lines after the accepted ones. A line still being written is left."""
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
        """Mark the records of the last `new` as done."""
        self._offset, self._last_line = self._read
