"""The directory of a detection or segmentation run, with the files of a classification run.

recipe.json, records.jsonl, last.ckpt and previous.ckpt while it runs, outcome.json when it is over.
predictions.png is the sheet of the last evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mambaout.code_version import CODE_VERSION, said_version
from mambaout.durable import read_whole, write_whole
from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.recipe import canonical_json
from mambaout.train import checkpoint
from mambaout.train.facts import host_facts
from mambaout.train.outcomes import Diverged, Finished
from mambaout.train.run_files import RunFiles, difference


class DenseDirectory(RunFiles):
    """The files of one run. Each tells which run it is: recipe, seed, data, first weights, code."""

    def __init__(
        self,
        out: Path,
        recipe: Any,
        read_recipe: Callable[[str, str], Any],
        identity: Mapping[str, Any],
    ) -> None:
        """`read_recipe(text, where)` is the recipe in the text of a recipe.json.

        `identity` are the facts that make the run another one if they differ; "task" is one of
        them. Raises WrongRequest if `out` holds another run.
        """
        super().__init__(out)
        self.recipe, self._read_recipe = recipe, read_recipe
        self.identity = {**identity, "code_version": CODE_VERSION}
        self._claim()

    @property
    def outcome(self) -> Finished | Diverged | None:
        """The outcome if the run is over, else None."""
        found = self.read_outcome(self.identity, f"a run of --task {self.identity['task']}")
        if found is None:
            return None
        ended, facts = found
        self._require_same({name: facts[name] for name in self.identity})
        return ended

    @property
    def _recipe_text(self) -> str:
        return json.dumps(json.loads(canonical_json(self.recipe)), indent=1) + "\n"

    def _claim(self) -> None:
        """Write recipe.json, or check that the one that is there holds the same recipe."""
        path = self.out / "recipe.json"
        text = read_whole(path)
        is_written = text is not None
        if text is None and (saved := checkpoint.load_latest(self.out)) is not None:
            text = saved["recipe"]  # a power loss emptied the file
        if text is not None:
            kept = self._read_recipe(text, str(path))
            if kept != self.recipe:
                raise WrongRequest(
                    f"{self.out} holds a run of another recipe "
                    f"({difference(kept, self.recipe)}); give another --out or remove it"
                )
        if not is_written:
            self.out.mkdir(parents=True, exist_ok=True)
            write_whole(path, self._recipe_text)

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
        """The newest whole checkpoint; None at the start. Records after it are dropped."""
        saved = checkpoint.load_latest(self.out)
        if saved is not None:
            self._require_same(saved["identity"])
        self.keep_records_up_to(0 if saved is None else saved["step"])
        return saved

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint of `state`, which has the step; the records go to the disk first."""
        self.sync_records()
        said = {"recipe": self._recipe_text, "identity": self.identity, "git_commit": self.commit}
        checkpoint.save(self.out, {**said, **host_facts(), **state})

    def end(self, ending: Ending, final: Mapping[str, float], facts: Mapping[str, Any]) -> None:
        """Write outcome.json."""
        more = {"precision": self.recipe.precision, "git_commit": self.commit}
        self.write_outcome(ending, final, {**facts, **more, **self.identity})
