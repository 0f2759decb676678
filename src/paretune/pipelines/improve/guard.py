"""Runs a command and ends it, its children too, when whoever started this is gone or closes its pipe.

python -I guard.py COMMAND [ARGUMENT ...]      # a program of its own, without imports of ours: it must start at once
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

_PATIENCE = 10.0  # seconds between being asked to end and being ended


def main() -> int:
    """The command's exit status."""
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_watch, args=(process,), daemon=True).start()
    return process.wait()


def _watch(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):  # until the other end is closed, by will or by a kill; sys.stdin would lock our exit
        pass
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)


if __name__ == "__main__":
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # ctrl-C comes here too: the pipe decides
        signal.signal(sign, lambda *_: None)  # a handler, not SIG_IGN, which the command would inherit
    sys.exit(main())
