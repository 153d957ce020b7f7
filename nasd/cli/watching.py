"""`nasd run --watch`: the daemon in the main thread, the live view beside it."""

import logging
import queue
import sys
import threading
from pathlib import Path

from nasd.contract.config import Config
from nasd.control import daemon
from nasd.record.folders import StateFolder
from nasd.views.board import Board
from nasd.views.forecast.planning import check_budget
from nasd.views.status.watch import watch


def run_watched(config: Config, config_path: Path, state: Path, fresh: bool) -> bool:
    """As daemon.run; what it logs goes to daemon.log in the state folder.

    The view has the second thread, because workers must be started from the main one: they die
    with the thread that started them. Asked to leave, it gives the terminal back first.
    """
    ended = threading.Event()
    began = threading.Event()
    words: queue.SimpleQueue[str] = queue.SimpleQueue()  # which a signal handler may put into

    def view() -> None:
        began.wait()
        if not ended.is_set():
            watch(state, 0.5, ended.is_set)
        while text := words.get():
            print(f"nasd: {text}", file=sys.stderr, flush=True)

    def tell(text: str) -> None:
        ended.set()
        words.put(text)

    def begin() -> None:
        logging.basicConfig(
            level=logging.INFO,
            format="%(asctime)s %(levelname)s %(message)s",
            filename=StateFolder(state).log,
            force=True,
        )
        logging.getLogger("apscheduler").setLevel(logging.WARNING)
        began.set()

    viewer = threading.Thread(target=view, daemon=True)
    viewer.start()
    try:
        return daemon.run(config, config_path, fresh, begin, tell, Board, check_budget)
    finally:
        ended.set()
        began.set()
        words.put("")
        viewer.join(timeout=5)
