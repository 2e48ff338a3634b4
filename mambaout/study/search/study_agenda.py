"""Makes the agenda of a study from its trials, its searches and their memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mambaout.errors import WrongRequest
from mambaout.study.search.chain import Chain
from mambaout.study.search.ledger import Ledger
from mambaout.study.search.memory import OPTUNA_FILE, Memory, open_store
from mambaout.study.search.more_seeds import MoreSeeds
from mambaout.study.search.search_agenda import SearchAgenda
from mambaout.study.search.space import check_all
from mambaout.study.study import Study, StudyFolder, Trial
from mambaout.train.metrics import MINIVAL_TOP1


def agenda(
    study: Study,
    folder: StudyFolder,
    data: str,
    trials: Sequence[Trial],
    *,
    before_predicted: Callable[[], None] | None = None,
    more_seeds: Callable[[Sequence[Trial], Ledger], MoreSeeds] | None = None,
) -> Chain:
    """What the study runs next: `trials` in their order, the searches, the predicted recipe.

    `before_predicted` is called once: when all else is over, before the first predicted trial
    starts. `more_seeds` makes the part that adds seeds to `trials`. ValueError if a search cannot
    be run, or cannot be run in this folder.
    """
    check_all(study.searches, study.recipes)
    for search in study.searches:
        if search.early_stop and search.goals[0][0] != MINIVAL_TOP1:
            raise WrongRequest(
                f"search {search.label!r} stops early on {search.goals[0][0]}, and what trials "
                f"report while they run is {MINIVAL_TOP1}; make that the goal, or set "
                "early_stop=False"
            )
    predicted = [trial for trial in trials if trial.is_predicted]
    fixed = [trial for trial in trials if not trial.is_predicted]
    ledger = Ledger(trials={trial.key: trial for trial in folder.trials()})
    ledger.given |= {trial.key for trial in fixed}
    ledger.reserved |= {trial.key for trial in predicted}
    parts: list[SearchAgenda] = []
    if study.searches:
        store = open_store(folder.path / OPTUNA_FILE)
        parts = [
            SearchAgenda(search, Memory(store, search, data), folder, data, ledger)
            for search in study.searches
        ]
    more = None if more_seeds is None else more_seeds(fixed, ledger)
    return Chain(folder, fixed, parts, predicted, ledger, before_predicted, more)
