"""The directory of a detection run: the files and the habits of a classification run.

recipe.json, records.jsonl, last.ckpt and previous.ckpt while it runs, outcome.json when it is over.
predictions.png is the sheet of the last evaluation.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mambaout.code_version import CODE_VERSION, said_version
from mambaout.detect_recipe import (
    DetectRecipe,
    detect_recipe_from_json,
    detect_recipe_json,
    differing_fields,
)
from mambaout.durable import (
    DamagedLine,
    append_lines,
    read_whole,
    sync_lines,
    write_whole,
)
from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.train import checkpoint
from mambaout.train.facts import host_facts
from mambaout.train.metrics import Record, read_records
from mambaout.train.outcomes import Diverged, Finished

log = logging.getLogger(__name__)

SHEET = "predictions.png"


class DetectDirectory:
    """The files of one run. Each tells which run it is: recipe, seed, data, first weights, code."""

    def __init__(self, out: Path, recipe: DetectRecipe, identity: Mapping[str, Any]) -> None:
        """`identity` are the facts that make the run another one if they differ.

        Raises WrongRequest if `out` holds another run.
        """
        self.out, self.recipe = out, recipe
        self.identity = {**identity, "code_version": CODE_VERSION}
        self.last_record: Record | None = None
        self._claim()

    @property
    def records(self) -> Path:
        return self.out / "records.jsonl"

    @property
    def outcome(self) -> Finished | Diverged | None:
        """The outcome if the run is over, else None."""
        path = self.out / "outcome.json"
        text = read_whole(path)
        if text is None:
            return None
        try:
            body = json.loads(text)
            facts, status = body["facts"], Ending(body["status"])
            kept = {name: facts[name] for name in self.identity}
            ended = (
                Diverged(facts["step"])
                if status is Ending.DIVERGED
                else Finished(dict(body["metrics"]))
            )
        except (ValueError, KeyError, TypeError) as error:
            raise WrongRequest(
                f"{path} is not what a detection run writes ({error}); give another --out or "
                "remove it"
            ) from None
        self._require_same(kept)
        return ended

    def _claim(self) -> None:
        """Write recipe.json, or check that the one that is there holds the same recipe."""
        path = self.out / "recipe.json"
        text = read_whole(path)
        is_written = text is not None
        if text is None and (saved := checkpoint.load_latest(self.out)) is not None:
            text = saved["recipe"]  # a power loss emptied the file
        if text is not None:
            kept = detect_recipe_from_json(text, str(path))
            if kept != self.recipe:
                raise WrongRequest(
                    f"{self.out} holds a run of another recipe "
                    f"({differing_fields(kept, self.recipe)}); give another --out or remove it"
                )
        if not is_written:
            self.out.mkdir(parents=True, exist_ok=True)
            write_whole(path, detect_recipe_json(self.recipe))

    def _require_same(self, kept: Mapping[str, Any]) -> None:
        kept = {**kept, "code_version": said_version(kept)}
        other = [
            f"{name} {kept.get(name)}, not {value}"
            for name, value in self.identity.items()
            if kept.get(name) != value
        ]
        if other:
            raise WrongRequest(
                f"{self.out} holds another run, of {' and '.join(other)}; give another --out or "
                "remove it"
            )

    def latest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint; None at the start. Records after it are dropped, because
        the run makes them again."""
        saved = checkpoint.load_latest(self.out)
        if saved is not None:
            self._require_same(saved["identity"])
        step = 0 if saved is None else saved["step"]
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
        return saved

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint of `state`, which has the step; the records go to the disk first."""
        sync_lines(self.records)
        said = {"recipe": detect_recipe_json(self.recipe), "identity": self.identity}
        checkpoint.save(self.out, {**said, **host_facts(), **state})

    def keep(self, record: Record) -> None:
        self.last_record = record
        append_lines(self.records, [record.to_json()])

    def end(self, ending: Ending, metrics: Mapping[str, float], facts: Mapping[str, Any]) -> None:
        """Write outcome.json; the directory's run is then over."""
        sync_lines(self.records)
        body = {
            "status": ending,
            "metrics": dict(metrics),
            "facts": {
                **facts,
                **host_facts(),
                **self.identity,
                "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
        }
        write_whole(self.out / "outcome.json", json.dumps(body, indent=1) + "\n")
