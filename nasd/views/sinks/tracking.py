"""MLflow, by its tracking server or its files.

It appends what it is given, so each time it is asked first what it has: a step that stands stays as
it is. Its runs have ids of its own, and are found again by a tag.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from math import isnan
from pathlib import Path
from typing import Any

from nasd.views.sinks.runs import Run
from nasd.views.sinks.sink import Search

# MLflow reports how it is used, waits for minutes where nobody answers, and asks to be told that
# files will do.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

SEARCH, NAME = "nasd.search", "nasd.run"  # tags
CARD = "mlflow.note.content"
AT_ONCE = 1000  # points in one call, as MLflow allows
LAST_TAG = "mlflow.runName"  # that MLflow writes of a new run
RUN = re.compile(r"[0-9a-f]{32}")  # the folder of one
FORBIDDEN = re.compile(r"[^\w./: -]")  # in a name of MLflow's


class Tracking:
    def __init__(self, where: str, experiment: str, key: str) -> None:
        self._client, self._key = MlflowClient(where), key
        found = self._client.get_experiment_by_name(experiment)
        self._experiment: str = (
            self._client.create_experiment(experiment) if found is None else found.experiment_id
        )
        self._ids = dict(self._known())  # by name

    def write(self, run: Run) -> None:
        number = self._ids.get(run.name) or self._begin(run)
        data = self._client.get_run(number).data
        self._log(number, chain(self._new(number, run, data.metrics), _results(run, data.metrics)))
        features, words = _features(run)
        params = [Param(*one) for one in features.items() if one[0] not in data.params]
        words |= {CARD: run.card}
        tags = [RunTag(*one) for one in words.items() if data.tags.get(one[0]) != one[1]]
        self._client.log_batch(number, params=params, tags=tags)
        if run.ended is None:
            self._client.update_run(number, status="RUNNING")
        else:
            status = "FAILED" if run.failed else "FINISHED"
            self._client.set_terminated(number, status, _milliseconds(run.ended))

    def flush(self) -> None:
        pass

    def _known(self) -> Iterator[tuple[str, str]]:
        """Names of this search's runs, and their ids."""
        token = None
        while token != "":
            page = self._client.search_runs(
                [self._experiment], f"tags.`{SEARCH}` = '{self._key}'", page_token=token
            )
            for one in page:
                yield one.data.tags[NAME], one.info.run_id
            token = page.token or ""

    def _begin(self, run: Run) -> str:
        tags = {SEARCH: self._key, NAME: run.name, "group": run.group, "kind": run.kind}
        began = _milliseconds(run.began)
        made = self._client.create_run(self._experiment, began, tags, run.name)
        self._ids[run.name] = made.info.run_id
        return self._ids[run.name]

    def _new(self, number: str, run: Run, known: Mapping[str, float]) -> Iterator[Metric]:
        """Points whose steps it does not have yet."""
        for curves in run.curves.values():
            for tag, curve in curves.items():
                name, there = _legal(tag), set[int]()
                if name in known:
                    there = {p.step for p in self._client.get_metric_history(number, name)}
                for step in sorted(curve.keys() - there):
                    yield Metric(name, curve[step].value, _milliseconds(curve[step].at), step)

    def _log(self, number: str, points: Iterable[Metric]) -> None:
        left = iter(points)
        while some := list(islice(left, AT_ONCE)):
            self._client.log_batch(number, metrics=some)


def _results(run: Run, known: Mapping[str, float]) -> Iterator[Metric]:
    """Those that it has otherwise: of those that changed, the last one counts."""
    for tag, point in run.results.items():
        name, value = _legal(tag), point.value
        there = known.get(name)
        if there is None or not (there == value or (isnan(there) and isnan(value))):
            yield Metric(name, value, _milliseconds(point.at), 0)


def _features(run: Run) -> tuple[dict[str, str], dict[str, str]]:
    """Those that never change, and those that may."""
    fixed = {n: f"{one:.12g}" for n, one in run.features.items() if not isinstance(one, str)}
    return fixed, {name: one for name, one in run.features.items() if isinstance(one, str)}


def _legal(tag: str) -> str:
    return FORBIDDEN.sub("_", tag)


def _milliseconds(at: float) -> int:
    return round(1000 * at)


def mend(runs: Path) -> None:
    """Takes out of MLflow's own files what a kill left half made: it opens a file, and writes into
    it then, and one empty file ends all reading of its experiment."""
    for experiment in runs.glob("[0-9]*/"):
        if not _written(experiment / "meta.yaml"):
            shutil.rmtree(experiment)
            continue
        for run in experiment.iterdir():
            whole = _written(run / "meta.yaml") and _written(run / "tags" / LAST_TAG)
            if RUN.fullmatch(run.name) and not whole:
                shutil.rmtree(run)
    for path in [*runs.rglob("*")]:
        if path.is_file() and not _written(path):
            path.unlink()


def _written(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def open(settings: Mapping[str, Any], search: Search, folder: Path) -> Tracking:
    where = settings["tracking"]
    if not where:  # files that are nobody else's
        mend(runs := folder.resolve() / "runs")
        where = runs.as_uri()
    return Tracking(where, settings["experiment"] or search.name, search.key)
