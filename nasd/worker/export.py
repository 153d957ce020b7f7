"""`python -m nasd.worker.export`: a trained model as a folder that transformers loads by itself.

Reads one JSON object from standard input, {"model", "tokenizer", "folder", "task", "settings",
"source", "base", "onnx", "native", "scoring"}: the folders of the model and of the tokenizer, the
one to write, the task that it was trained for, how it is asked (see pretrained.NasdConfig), the
seed and where its relative paths start, whether for ONNX Runtime and as one of transformers' own
classes, and for int8 the spec by which it is scored, or null. Prints one JSON line: the fields of
nasd.views.card.Files but for the sizes, what nasd.worker.int8 compared, or
{"error": one sentence}.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nasd.contract import digests, tasks
from nasd.contract.errors import NasdError
from nasd.contract.leash import die_with_parent
from nasd.worker.caches import sync_tree

CARD = "README.md"
ONNX, INT8 = "model.onnx", "model-int8.onnx"
TOKENIZER = "PreTrainedTokenizerFast"
ONNX_TOLERANCE = 1e-4  # of a logit, or of the largest one above 1, as a regressor's may be


def main() -> None:
    die_with_parent(os.getppid())
    question = json.load(sys.stdin)
    try:
        print(json.dumps(answer_to(question)))
    except NasdError as error:
        print(json.dumps({"error": str(error)}))


def answer_to(question: dict[str, Any]) -> dict[str, Any]:
    folder = Path(question["folder"])
    parameters = write(
        Path(question["model"]),
        Path(question["tokenizer"]),
        folder,
        question["settings"],
        question["task"],
    )
    native = write_native(folder, question["task"]) if question["native"] else None
    difference = write_onnx(folder, question["task"]) if question["onnx"] else None
    scoring = question["scoring"]
    compared = None if scoring is None else write_int8(folder, scoring)
    sync_tree(folder)
    return {
        "parameters": parameters,
        "onnx_difference": difference,
        "compared": compared,
        "native": native,
        **about_seed(question["source"], Path(question["base"])),
    }


def write(
    model: Path,
    tokenizer: Path,
    folder: Path,
    settings: dict[str, Any],
    task: str = tasks.QA.name,
) -> int:
    """Writes model, tokenizer, config and modelling code; returns the number of parameters.

    Raises NasdError where the model is not there or damaged, or came out other than it went in.
    """
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    from nasd.worker.model import phenotype, pretrained
    from nasd.worker.model.architecture import CONFIG
    from nasd.worker.model.pretrained import NasdConfig
    from nasd.worker.model.seed_heads import model_of

    kind = model_of(task)
    ours = getattr(pretrained, f"NasdFor{kind.__name__}")
    try:
        if digests.sealed(model):
            digests.check(model, (CONFIG, phenotype.WEIGHTS))
        source: phenotype.AnyModel = phenotype.load(kind, model)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise NasdError(f"the model in {model} is missing or damaged: {error}") from error
    copy = ours(NasdConfig(**source.architecture.to_json(), **settings))
    copy.load_state_dict(source.state_dict())
    # What transformers then puts beside the weights: auto_map, and the files of the classes.
    NasdConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
    ours.register_for_auto_class(f"AutoModelFor{kind.__name__}")
    if not (tokenizer / "tokenizer.json").is_file():
        raise NasdError(f"the tokenizer in {tokenizer} is missing")
    if digests.sealed(tokenizer):
        digests.check(tokenizer, ("tokenizer.json",))
    words = AutoTokenizer.from_pretrained(tokenizer)
    words.model_max_length = min(words.model_max_length, source.architecture.positions)
    try:
        copy.save_pretrained(folder)
        words.save_pretrained(folder)
        name_the_tokenizer(folder)
        written = phenotype.load_state(folder)
    except (OSError, SafetensorError) as error:
        raise NasdError(f"{folder} cannot be written: {error}") from error
    wanted = source.state_dict()
    if written.keys() != wanted.keys() or any(
        not written[name].equal(wanted[name]) for name in wanted
    ):
        raise NasdError(f"what stands in {folder} is not what was written: check the disk")
    return sum(parameter.numel() for parameter in source.parameters())


def name_the_tokenizer(folder: Path) -> None:
    """Gives the tokenizer the class name that transformers 4 and 5 both know: 5 writes one of its
    own, which 4 refuses. All that it is stands in tokenizer.json."""
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told["tokenizer_class"] = TOKENIZER
    path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def about_seed(source: str, base: Path) -> dict[str, Any]:
    """Whether the seed is of the hub, and the licence in its model card where that is at hand."""
    from huggingface_hub import try_to_load_from_cache

    from nasd.worker.model.seed import resolve

    try:
        home = resolve(source, base)
    except NasdError:  # it may be gone since
        return {"seed_of_hub": False, "seed_licence": None}
    if isinstance(home, Path):
        return {"seed_of_hub": False, "seed_licence": _licence(home / CARD)}
    cached = try_to_load_from_cache(home, CARD)
    known = _licence(Path(cached)) if isinstance(cached, str) else None
    return {"seed_of_hub": True, "seed_licence": known}


def _licence(card: Path) -> str | None:
    """`license` in the front matter of a model card."""
    try:
        front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL)
    except (OSError, UnicodeDecodeError):
        return None
    found = front and re.search(r"^license: *([\w.-]+)", front[1], re.MULTILINE)
    return found[1] if found else None


def write_native(folder: Path, task: str = tasks.QA.name) -> dict[str, Any]:
    """Writes the model that stands in `folder` below it, as one of transformers' own classes; the
    fields of nasd.worker.native.Native. Raises NasdError where there is none for it."""
    from dataclasses import asdict

    from transformers import AutoTokenizer

    from nasd.worker import native
    from nasd.worker.model import phenotype
    from nasd.worker.model.seed_heads import model_of

    model: phenotype.AnyModel = phenotype.load(model_of(task), folder)
    below = folder / native.FOLDER
    found = native.write(model, AutoTokenizer.from_pretrained(folder), below, task)
    name_the_tokenizer(below)
    return asdict(found)


def write_onnx(folder: Path, task: str = tasks.QA.name) -> float:
    """Writes model.onnx beside the model; returns the largest difference of a logit.

    Inputs input_ids and attention_mask [b, l]; outputs start_logits and end_logits [b, l], or of
    a classifier logits. Raises NasdError where a logit differs by more than ONNX_TOLERANCE.
    """
    import torch

    from nasd.worker.examples import example
    from nasd.worker.model import phenotype
    from nasd.worker.model.seed_heads import model_of

    loaded: phenotype.AnyModel = phenotype.load(model_of(task), folder)
    model = loaded.eval()
    positions = model.architecture.positions
    answers = isinstance(model, phenotype.QuestionAnswering)
    outputs = ["start_logits", "end_logits"] if answers else ["logits"]
    names = ["input_ids", "attention_mask"], outputs
    sizes = {0: torch.export.Dim("examples"), 1: torch.export.Dim("tokens", max=positions)}
    with _nothing_where_all_is_masked():
        torch.onnx.export(
            model,
            example(model.architecture, 2, min(8, positions)),
            str(folder / ONNX),
            input_names=names[0],
            output_names=names[1],
            dynamic_shapes=(sizes, sizes),
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    worst, largest = 0.0, 1.0
    for examples, tokens in ((1, 2), (1, positions), (3, max(2, positions // 2))):
        shown = example(model.architecture, examples, tokens)
        with torch.no_grad():
            said = model(*shown)
        expected = said if answers else (said,)
        feed = {name: tensor.numpy() for name, tensor in zip(names[0], shown, strict=True)}
        for one, other in zip(session.run(names[1], feed), expected, strict=True):
            worst = max(worst, float((torch.from_numpy(one) - other).abs().max()))
            largest = max(largest, float(other.abs().max()))
    if not worst <= ONNX_TOLERANCE * largest:
        raise NasdError(f"the ONNX model's logits differ from the model's by {worst:.1e}")
    return worst


def write_int8(folder: Path, scoring: dict[str, Any]) -> dict[str, Any]:
    """Writes model-int8.onnx beside model.onnx; what nasd.worker.int8 tells of the two."""
    from nasd.worker import int8

    int8.quantise(folder / ONNX, folder / INT8)
    return int8.compared(folder, {**scoring, "weights": str(folder)})


@contextlib.contextmanager
def _nothing_where_all_is_masked() -> Iterator[None]:
    """Meanwhile attention says itself that a row masked everywhere attends to nothing: so it is in
    torch, but the graph of torch's own attention gives the mean of the values there."""
    from nasd.worker.model import attention

    plain = attention.attend

    def attend(q: Any, k: Any, v: Any, mask: Any, dropout: float) -> Any:
        attended = plain(q, k, v, mask, dropout)
        return attended if mask is None else attended * mask.any(-1, keepdim=True)

    attention.attend = attend
    try:
        yield
    finally:
        attention.attend = plain


if __name__ == "__main__":
    main()
