#!/usr/bin/env python3
"""A plugin of calve in one file: its machines are files in a directory, and nothing runs in them. They are simulated, and say so.

    NAME /path/to/directory.py DIRECTORY        in ~/.config/calve/providers; then: calve run --on exec/NAME …

The protocol is described in docs/plugins.md. What a real plugin does instead: `create` makes a machine that boots calve's cloud image
and finds `user_data` at its metadata service; `destroy` ends it; `list` asks whoever has the machines, and keeps nothing itself.
"""

import fcntl
import json
import os
import sys
import time
from pathlib import Path

VERSION = 1


class Refused(Exception):
    """Why something was not done; `kind` says whether asking again helps."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


class Directory:
    """Machines as files, each written at once or not at all."""

    def __init__(self, path):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def machines(self):
        for file in sorted(self.path.glob("*.json")):
            try:
                yield json.loads(file.read_text())
            except FileNotFoundError:
                pass  # It went in this moment.

    def write(self, machine):
        file = self.path / f"{machine['id']}.json"
        aside = file.with_suffix(f".new-{os.getpid()}")
        aside.write_text(json.dumps(machine))
        aside.rename(file)

    def remove(self, id):
        (self.path / f"{int(id)}.json").unlink(missing_ok=True)

    def locked(self):
        """Held while something is read and then changed: calve may ask for several things at once."""
        lock = open(self.path / "lock", "w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        return lock


class Plugin:
    """One method for each thing that calve asks for."""

    def __init__(self, directory):
        self.directory = directory

    def describe(self, _):
        return {"about": "simulated machines in a directory", "does": ["tag", "sizes"]}

    def list(self, ask):
        """Every machine that carries the tag, of all that there are."""
        machines = [shown(machine) for machine in self.directory.machines() if ask["tag"] in machine["tags"]]
        return {"machines": machines, "unix_s": int(time.time())}

    def create(self, ask):
        """Makes the machine. Asked for a second time, it finds the first by its key."""
        with self.directory.locked():
            machines = list(self.directory.machines())
            for machine in machines:
                if ask["key"] in machine["tags"]:
                    return {"machine": shown(machine)}
            if ask["size"] not in ("", "small"):
                raise Refused("refused", f"there is no size {ask['size']!r}, only small")
            taken = max((int(machine["id"]) for machine in machines), default=0)
            number = self.directory.path / "last-id"
            id = max(taken, int(number.read_text()) if number.exists() else 0) + 1
            number.write_text(str(id))
            machine = {member: ask[member] for member in ("name", "tags", "region", "user_data")}
            machine.update(id=str(id), size="small", status="simulated", created_at=time.strftime("%FT%TZ", time.gmtime()))
            self.directory.write(machine)
        return {"machine": shown(machine)}

    def destroy(self, ask):
        """Absence is success."""
        self.directory.remove(ask["id"])
        return {}

    def tag(self, ask):
        with self.directory.locked():
            for machine in self.directory.machines():
                if machine["id"] == ask["id"]:
                    tags = [tag for tag in machine["tags"] if tag not in ask["remove"]]
                    machine["tags"] = tags + [tag for tag in ask["add"] if tag not in tags]
                    self.directory.write(machine)
                    return {}
        raise Refused("not-found", f"there is no machine {ask['id']}")

    def sizes(self, _):
        return {"sizes": [{"slug": "small", "cpus": 1, "memory_mib": 256, "dollars_per_hour": 0.0}]}


def shown(machine):
    """What calve may see of it: user data holds a token."""
    return {member: machine[member] for member in machine if member != "user_data"} | {"dollars_per_hour": 0.0}


def answer(plugin, request):
    if request.get("calve") != VERSION:
        raise Refused("refused", f"this plugin speaks version {VERSION} of the protocol")
    done = {"describe": plugin.describe, "list": plugin.list, "create": plugin.create, "destroy": plugin.destroy,
            "tag": plugin.tag, "sizes": plugin.sizes}.get(request["do"])
    if done is None:
        raise Refused("refused", f"this plugin does not know {request['do']!r}")
    return done(request["with"])


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: directory.py DIRECTORY")
    plugin = Plugin(Directory(sys.argv[1]))
    # calve sends one line and waits for one; a plugin that takes more serves whoever comes later as well.
    for line in sys.stdin:
        request = json.loads(line)
        said = {"calve": VERSION, "id": request["id"]}
        try:
            said["ok"] = answer(plugin, request)
        except Refused as refused:
            said["error"] = {"kind": refused.kind, "message": str(refused)}
        except OSError as error:
            said["error"] = {"kind": "failed", "message": str(error)}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
