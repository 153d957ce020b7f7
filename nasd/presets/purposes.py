"""A preset for another task than questions, or for several at once."""

from collections.abc import Sequence
from typing import Any

from nasd.contract import tasks
from nasd.contract.errors import NasdError

TOKENS = 128
QUALITY = 'of the tasks\' qualities; or "worst", or that of one, by its name'
ROWS = {  # what a row of each holds, in columns that are found by themselves
    tasks.CLASSIFY.name: "a text (or two: sentence1, sentence2), and its label",
    tasks.REGRESS.name: "a text (or two: sentence1, sentence2), and its score",
    tasks.TAG.name: "tokens, a list of words, and ner_tags, a label of each in BIO form",
}


def for_tasks(text: str, preset: str, names: Sequence[str], files: Sequence[str] = ()) -> str:
    """The preset's text for these tasks; raises NasdError where there is none. files: of the data
    of a single one; () leaves the preset's questions, and of labels a name to be replaced."""
    import tomlkit

    _check(preset, names, files)
    document: Any = tomlkit.parse(text)
    questions = tasks.QA.name
    stages, data = document["stages"], document["data"]
    own = [one for one in stages if one["task"] == questions]
    if questions not in names:
        del data[tasks.QA.data]
    elif files:
        data[tasks.QA.data].pop("hub", None)
        data[tasks.QA.data]["files"] = list(files)
    for name in names:
        if name != questions:
            data[tasks.of(name).data] = _section(name, files)
    first = questions if questions in names else names[0]
    for one in own:
        one["task"] = first
    for name in names:
        if name != first:
            stages.extend(_stage(one, name) for one in own)
    if len(names) > 1:
        document["experiment"].add("quality", tomlkit.item("mean").comment(QUALITY))
        document["experiment"].add(tomlkit.nl())
    head = (
        f"# For {' and '.join(tasks.of(name).words for name in names)}, by `nasd init --task`.\n#\n"
    )
    return head + tomlkit.dumps(document)


def _check(preset: str, names: Sequence[str], files: Sequence[str]) -> None:
    known = [one.name for one in tasks.scoring()]
    for name in names:
        if name not in known:
            raise NasdError(f"--task {name}: there is no such task; take of {', '.join(known)}")
        if names.count(name) > 1:
            raise NasdError(f"--task {name} stands there twice: give each once")
    if files and len(names) != 1:
        raise NasdError("--data: name the one --task that it is for; of several fill in the config")
    if preset.startswith("demo"):
        raise NasdError(f"--task: the data of the preset {preset} is of questions: take another")


def _section(name: str, files: Sequence[str]) -> Any:
    """Of a task that learns labels."""
    import tomlkit

    found = tomlkit.table()
    found.add(tomlkit.comment(f"CSV, JSON lines or Parquet; in a row {ROWS[name]}."))
    found.add("files", list(files) or [f"{name}.csv" if name != tasks.TAG.name else "tag.jsonl"])
    found.add(tomlkit.comment('test_files = ["test.csv"]; without them a fifth is held out'))
    found.add("tokens", TOKENS)
    found.add(tomlkit.nl())
    return found


def _stage(one: Any, name: str) -> Any:
    """A stage as that, of another task."""
    import tomlkit

    found = tomlkit.table()
    for key, value in {**one, "name": f"{one['name']}_{name}", "task": name}.items():
        found.add(key, value)
    found.add(tomlkit.nl())
    return found
