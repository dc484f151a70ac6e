"""The last decision of a run: the finalists of the search meet on the documents of lm-eval's search tasks."""

from functools import partial
from typing import Any

from typing_extensions import TypedDict

from selfprune.allocations.candidate import Candidate
from selfprune.reports.results import Contest
from selfprune.runs.preparation import PreparedRun
from selfprune.search.sign_test import judge
from selfprune.storage.recorded_files import Score


class Answers(TypedDict):
    """What the journal keeps of a finalist: lm-eval task -> 1 for each document that it answered correctly, 0 for the others."""

    answers: dict[str, list[Score]]


def hold_contest(prepared: PreparedRun, finalists: list[Candidate]) -> Contest:
    """Who wins among the finalists, by `finalists.judge`; the first where there are no search tasks.

    Args:
        prepared: has model, levels and tasks.
        finalists: the best search score first.
    """
    names = prepared.config.harness.search_tasks
    if not names:
        return Contest(finalists, judge([{} for _ in finalists]))
    found = []
    with prepared.display.stage("finalists on lm-eval", total=len(finalists)) as update:
        for i, finalist in enumerate(finalists):
            key = {"finalist": finalist.id, "documents": names}
            found.append(prepared.journal.once(key, partial(_answer, prepared, finalist, names), Answers)["answers"])
            update(i + 1)
    return Contest(finalists, judge(found))


def _answer(prepared: PreparedRun, finalist: Candidate, names: list[str]) -> dict[str, Any]:
    prepared.store.load(finalist.allocation)
    return {"answers": prepared.harness.score_documents(prepared.loaded.model, prepared.loaded.tokenizer, names)}
