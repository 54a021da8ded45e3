"""The program of rank 1 and above: `python -m steps.training.rank <rank> <world> <meeting> <starter> <threads> <timeout>`.

`starter` is the process id of who started it: rank 0, or a node that follows. Its work comes by standard input; its end says
that the starter is gone. Standard output carries JSON lines to the starter: {} when it is ready, and an error.
"""

import json
import os
import pickle  # nosec B403
import signal
import sys
import threading
from contextlib import suppress
from typing import TextIO

from steps.training.interruption import STOP_SIGNALS


def main() -> None:
    """Steps to the end of the training."""
    number, world, meeting, starter, threads, timeout = sys.argv[1:]
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    threading.Thread(target=_pass_on_signals, args=(int(starter),), daemon=True).start()
    try:
        _work(int(number), int(world), meeting, threads=int(threads), timeout_s=float(timeout), answer=answer)
    except Exception as error:
        with suppress(BrokenPipeError):
            answer.write(json.dumps({"error": type(error).__name__, "message": str(error)}) + "\n")
        os._exit(1)
    os._exit(0)  # nothing is left to do, and a thread waits for what will not come


def _work(number: int, world: int, meeting: str, *, threads: int, timeout_s: float, answer: TextIO) -> None:
    import torch

    from steps.training.group import joined
    from steps.training.placement import set_deterministic
    from steps.training.stepping import Stepper, Work

    torch.set_num_threads(threads)
    # A pipe of the starter's own making, which nobody else can write to.
    work: Work = pickle.load(sys.stdin.buffer)  # noqa: S301 # nosec B301
    threading.Thread(target=_end_with_starter, daemon=True).start()
    set_deterministic(work.deterministic)
    stepper = Stepper(work)
    answer.write("{}\n")
    with joined(number, world, work.device, meeting, timeout_s=timeout_s):
        stepper.connect()
        while stepper.iteration < work.part.iterations.stop:
            stepper.step(threading.Event())  # rank 0 alone stops a training


def _pass_on_signals(starter: int) -> None:
    """Have rank 0 stop the training: it alone writes the checkpoint. A thread, since the main one waits in collectives."""
    while True:
        signal.sigwait(STOP_SIGNALS)
        if os.getppid() == starter:
            os.kill(starter, signal.SIGTERM)


def _end_with_starter() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
