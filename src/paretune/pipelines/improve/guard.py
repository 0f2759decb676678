"""Runs a command, hands on what it says without the keys in it, and ends it, its children too, when whoever started
this is gone or closes its pipe.

python -I guard.py NAMES COMMAND [ARGUMENT ...]      # a program of its own: it must start at once
NAMES: of the environment variables that hold the keys, with commas between them.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

_PATIENCE = 10.0  # seconds between being asked to end and being ended
_LAST_WORDS = 2.0  # seconds until what an ended command said is handed on


def main() -> int:
    """The command's exit status."""
    names, *command = sys.argv[1:]
    source, target = os.pipe()
    # a process, not a thread: a command that has ended may leave a server that goes on talking into the pipe
    filtering = os.fork()
    if filtering == 0:
        os.close(target)
        _hand_on(source, [os.environ[name] for name in names.split(",") if os.environ.get(name)])
        os._exit(0)
    os.close(source)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=target, stderr=target, start_new_session=True)
    os.close(target)
    threading.Thread(target=_watch, args=(process,), daemon=True).start()
    status = process.wait()
    end = time.monotonic() + _LAST_WORDS
    while os.waitpid(filtering, os.WNOHANG) == (0, 0) and time.monotonic() < end:
        time.sleep(0.02)
    return status


def _hand_on(source: int, secrets: list[str]) -> None:
    """Whole lines, in which no key can be cut in two, until nobody is left to say one."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from paretune.preferences.secrets import without_key

    def say(said: bytes) -> None:
        text = said.decode("utf-8", "surrogateescape")
        for secret in secrets:
            text = without_key(text, secret)
        with contextlib.suppress(OSError):  # a full disk: the command must not wait for it
            os.write(1, text.encode("utf-8", "surrogateescape"))

    rest = b""
    while more := os.read(source, 1 << 16):
        rest += more
        end = max(rest.rfind(b"\n"), rest.rfind(b"\r")) + 1
        say(rest[:end])
        rest = rest[end:]
    say(rest)


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
