"""What every run directory has: the records, and the outcome when the run is over."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mambaout.durable import DamagedLine, append_lines, read_whole, sync_lines, write_whole
from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.fields import flat_fields
from mambaout.train.facts import git_commit, host_facts
from mambaout.train.metrics import Record, read_records
from mambaout.train.outcomes import Diverged, Finished

log = logging.getLogger(__name__)


class RunFiles:
    """records.jsonl and outcome.json of the run directory `out`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.last_record: Record | None = None

    @property
    def records(self) -> Path:
        return self.out / "records.jsonl"

    @cached_property
    def commit(self) -> str:
        """The commit of the running code. It is read once, because the files may change later."""
        return git_commit()

    def keep(self, record: Record) -> None:
        self.last_record = record
        append_lines(self.records, [record.to_json()])

    def keep_records_up_to(self, step: int) -> None:
        """Drop the records after the checkpoint, because the run makes them again."""
        kept = []
        try:
            for record in read_records(self.records):
                if record.step <= step:
                    kept.append(record)
        except DamagedLine as error:
            log.warning("%s; the records from there on are dropped", error)
        if self.records.exists():
            write_whole(self.records, "".join(f"{record.to_json()}\n" for record in kept))
        self.last_record = kept[-1] if kept else None

    def sync_records(self) -> None:
        """Sync the records to the disk. It happens before the checkpoint or outcome is written."""
        sync_lines(self.records)

    def read_outcome(
        self, names: Collection[str], kind: str
    ) -> tuple[Finished | Diverged, dict[str, Any]] | None:
        """The outcome of a run that is over, and its facts, which include those called `names`.

        Raises WrongRequest if the file is not what such a run writes; `kind` is "a run".
        """
        path = self.out / "outcome.json"
        text = read_whole(path)
        if text is None:
            return None
        try:
            body = json.loads(text)
            facts, status = body["facts"], Ending(body["status"])
            for name in names:
                facts[name]
            ended = (
                Diverged(facts["step"])
                if status is Ending.DIVERGED
                else Finished(dict(body["metrics"]))
            )
        except (ValueError, KeyError, TypeError) as error:
            raise WrongRequest(
                f"{path} is not what {kind} writes ({error}); give another --out or remove it"
            ) from None
        return ended, facts

    def write_outcome(
        self, ending: Ending, final: Mapping[str, float], facts: Mapping[str, object]
    ) -> None:
        """Write outcome.json; the directory's run is then over."""
        self.sync_records()
        ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        facts = {**host_facts(), **facts, "ended": ended}
        body = {"status": ending, "metrics": dict(final), "facts": facts}
        write_whole(self.out / "outcome.json", json.dumps(body, indent=1) + "\n")


def difference(kept: Any, asked: Any) -> str:
    """What differs between two recipes, in words."""
    old, new = flat_fields(kept), flat_fields(asked)
    return ", ".join(f"{n} {old[n]!r} not {new[n]!r}" for n in old if old[n] != new[n])
