"""A whole tiny search for each task of labels, with real training, as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nasd.contract import tasks
from nasd.export import answer as oracle
from nasd.export.export import export
from nasd.record import lookup, snapshot
from nasd.record.lifecycle import State
from nasd.views.report import write as report
from tests.labelled import LABELLED, rows, search_text, write


def ran(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "nasd", *arguments, "--config", str(folder / "config.toml")],
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", LABELLED)
def test_a_search_for_labels_ends_with_a_model_that_can_be_taken_home(
    tmp_path: Path, name: str
) -> None:
    write(tmp_path, name)
    (tmp_path / "config.toml").write_text(search_text(name))
    ran(tmp_path, "run")
    state = tmp_path / "state"
    with snapshot.opened(state) as connection:
        found = snapshot.read(connection)
    assert found.experiment.state == "complete"
    task = tasks.of(name)
    for one in found.individuals:
        assert one.state is State.SCORED
        scores = found.scores(one.id)
        assert scores is not None
        assert scores.keys() == set(task.metrics)
        assert found.quality(one.id) == scores["quality"]
    assert found.controls
    log = (state / "attempts").glob("*/worker.log")
    said = "\n".join(path.read_text() for path in log)
    assert "is asked about" in said  # a teacher, once
    assert "mutants tried" in said
    assert "packed, so that nothing is computed for padding" in said
    done = export(state, lookup.BEST, tmp_path / "home")
    card = (done.folder / "README.md").read_text()
    assert task.card is not None and task.card.does in card
    assert all(title in card for _, title in task.shown)
    row = rows(name, 1)[0]
    text = row.get("text") or " ".join(row.get("tokens", ()))
    (told,) = oracle.predict(done.folder, [text or f"{row['sentence1']}\t{row['sentence2']}"])
    assert isinstance(told, list) == (task is tasks.TAG)
    page = report.write(report.read(state), tmp_path / "report")
    assert task.shown[0][1] in page.read_text()
    status = json.loads(ran(tmp_path, "status", "--json"))
    assert status["experiment"]["state"] == "complete"
    ran(tmp_path, "status")
    assert task.shown[0][1] in ran(tmp_path, "show", "best")
