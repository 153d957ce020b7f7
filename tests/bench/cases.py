"""What `bin/bench training` measures, as tables: shapes, cases, and which side against which.

Light: the process that only starts the others and counts imports no torch.
"""

from dataclasses import dataclass
from pathlib import Path

BLOCKS = 6
FFN_BLOCK = 3  # in the middle: three blocks lie below it
MASK_SHARE = 0.15
EVALUATION_BATCH = 32  # nasd.worker.tasks.task's
# Tokens of the features of SQuAD v1.1 at 384 tokens, stride 128, with BERT's vocabulary: the 32
# midpoints of equal shares of 9,331 features (40 articles of the development set; mean 177).
SQUAD_TOKENS = 384
SQUAD_LENGTHS = (
    58, 83, 98, 110, 117, 122, 127, 130, 134, 138, 141, 145, 149, 153, 157, 162,
    166, 171, 176, 181, 186, 192, 199, 206, 213, 221, 232, 247, 262, 283, 316, 384,
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A DistilBERT of six blocks, and the batches it trains on.

    tokens, batch: of an MLM batch. qa_tokens, qa_batch: the most of a SQuAD feature, and how many.
    """

    name: str
    width: int
    heads: int
    hidden: int
    tokens: int
    batch: int
    vocabulary: int = 30522
    positions: int = 512
    qa_tokens: int = SQUAD_TOKENS
    qa_batch: int = 8

    def __str__(self) -> str:
        return f"{self.name}: {BLOCKS} x {self.width}, {self.batch} x {self.tokens} tokens"

    @property
    def masks(self) -> int:
        """Of a sequence, as MlmTask counts them."""
        return max(1, round(MASK_SHARE * (self.tokens - 2)))

    @property
    def qa_lengths(self) -> tuple[int, ...]:
        return tuple(max(8, length * self.qa_tokens // SQUAD_TOKENS) for length in SQUAD_LENGTHS)


SHAPES = {
    "base": Shape("base", 768, 12, 3072, tokens=512, batch=4),
    "minilm": Shape("minilm", 384, 12, 1536, tokens=128, batch=8),
    # Only shows that it runs.
    "tiny": Shape("tiny", 32, 4, 64, 16, 2, vocabulary=101, positions=64, qa_tokens=48, qa_batch=4),
}


@dataclass(frozen=True)
class Case:
    """What is trained, by which stage. new: names of our modules that train where not all do.

    theirs: beginnings of the same modules' names in transformers' DistilBERT.
    """

    task: str
    train: str
    new: tuple[str, ...] = ("",)
    theirs: tuple[str, ...] = ("",)


CASES = {
    "pretrain_1": Case("mlm", "all"),
    "ffn": Case(
        "mlm",
        "new",
        (f"encoder.blocks.{FFN_BLOCK}.ffns.0.",),
        (f"distilbert.transformer.layer.{FFN_BLOCK}.ffn.",),
    ),
    "last_block": Case(
        "mlm",
        "new",
        (f"encoder.blocks.{BLOCKS - 1}.",),
        (f"distilbert.transformer.layer.{BLOCKS - 1}.",),
    ),
    "head": Case(
        "mlm", "head", ("head.",), ("vocab_transform.", "vocab_layer_norm.", "vocab_projector.bias")
    ),
    "finetune": Case("qa", "all"),
    "evaluate": Case("qa", "none", (), ()),
    "overhead": Case("mlm", "all"),
}


@dataclass(frozen=True)
class Side:
    """Who does the work of a case, and how: one process.

    who: nasd (a worker's attempt), trainer (transformers' Trainer) or bare (our step without its
    loop). cached: the frozen prefix's activations. padded: to the longest of a batch, not to all.
    """

    who: str
    precision: str = "float32"
    cached: bool = False
    padded: str = "most"

    def __str__(self) -> str:
        words = [self.who, self.precision]
        words += ["cached"] if self.cached else []
        words += ["longest"] if self.padded == "longest" else []
        return "-".join(words)


@dataclass(frozen=True)
class Row:
    """One comparison. asked, asked_gpu: the least ratio that is demanded, where there is one.

    asked_share: likewise of a GPU's measured bfloat16 matrix products a second.
    """

    case: str
    label: str
    ours: Side
    theirs: Side
    asked: float | None = None
    asked_gpu: float | None = None
    asked_share: float | None = None


def _rows(
    case: str,
    label: str,
    asked: float | None = None,
    asked_bfloat16: float | None = None,
    asked_gpu: float | None = None,
    asked_share: float | None = None,
    cached: bool = False,
    padded: str = "most",
) -> tuple[Row, ...]:
    """In float32; in bfloat16 against the Trainer's float32, and against its bfloat16."""

    def row(ours: str, theirs: str, *asked: float | None) -> Row:
        sides = Side("nasd", ours, cached), Side("trainer", theirs, padded=padded)
        return Row(case, label, *sides, *asked)

    return (
        row("float32", "float32", asked),
        row("bfloat16", "float32", asked_bfloat16),
        row("bfloat16", "bfloat16", None, asked_gpu, asked_share),
    )


LEAST_LOOP_SPEED = 0.97  # of the bare step's: an overhead of 3 %
ROWS = (
    *_rows("pretrain_1", "pretrain_1", 1.7, 2.6, 2.0, 0.45),
    *_rows("ffn", f"pretrain_0, FFN of block {FFN_BLOCK}", 2.2),
    *_rows("ffn", "same, prefix cached", 2.8, 4.5, 5.0, cached=True),
    *_rows("last_block", "pretrain_0, last block"),
    *_rows("head", "pretrain_0, head"),
    *_rows("finetune", "finetune, against 384", 2.9),
    *_rows("finetune", "finetune, against longest", 1.5, padded="longest"),
    *_rows("evaluate", "evaluate"),
    *(
        Row("overhead", "loop, against the bare step", *sides, LEAST_LOOP_SPEED, LEAST_LOOP_SPEED)
        for sides in (
            (Side("nasd"), Side("bare")),
            (Side("nasd", "bfloat16"), Side("bare", "bfloat16")),
        )
    ),
)


@dataclass(frozen=True)
class Job:
    """What the process of one side is told. steps: in all, so that no epoch ends before them.

    guest: a side that takes its turns in the same process and on the same model. Two processes of
    the same code differ by a few percent, by where their memory lies: too much for some rows.
    """

    folder: Path
    shape: Shape
    case: str
    side: Side
    device: str
    threads: int
    warmup: int
    steps: int
    log_steps: int
    guest: Side | None = None
