"""The example plugin, with a token that may be unknown and faults that a test has planned: plugin.py EXAMPLE DIRECTORY TOKEN."""

import contextlib
import io
import json
import os
import runpy
import signal
import sys
from pathlib import Path

example, directory, token = sys.argv[1:]
directory = Path(directory)
asked = sys.stdin.readline()
request = json.loads(asked)


def refuse(kind, message, **more):
    error = {"kind": kind, "message": message, **more}
    print(json.dumps({"calve": 1, "id": request["id"], "error": error}))
    sys.exit()


def planned():
    """The next fault of such a request, as its words."""
    for plan in sorted((directory / "faults").glob(f"{request['do']}-*")):
        words = plan.read_text().split()
        try:
            plan.unlink()
        except FileNotFoundError:
            continue  # Another call meets it.
        return words
    return ["none", "0"]


if not directory.is_dir():
    refuse("unreachable", "nobody is there")
if token != "known":
    refuse("credentials", "the token is not known")
fault, number = planned()
if fault == "before":
    sys.exit(int(number))
if fault == "rate":
    refuse("rate", "too many requests", wait_ms=1000 * int(number))
said = io.StringIO()
sys.argv = [example, str(directory / "machines")]
sys.stdin = io.StringIO(asked)
with contextlib.redirect_stdout(said):
    runpy.run_path(example, run_name="__main__")
if fault == "after":
    sys.exit(int(number))
if fault == "lose":
    # In the middle of its answer.
    print(said.getvalue()[:20], end="", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
print(said.getvalue(), end="")
