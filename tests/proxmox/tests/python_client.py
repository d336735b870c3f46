"""proxmoxer against the emulator: what it reads and does must be what it expects of the real API."""

import io
import sys
import time

from proxmoxer import AuthenticationError, ProxmoxAPI
from proxmoxer.core import ResourceException
from proxmoxer.tools import Tasks

url, token, user, password = sys.argv[1:]
host = url.removeprefix("https://")
name, secret = token.split("=", 1)
owner, token_id = name.split("!", 1)


def with_token(secret=secret):
    return ProxmoxAPI(host, user=owner, token_name=token_id, token_value=secret, verify_ssl=False, timeout=60)


def with_password(password=password):
    return ProxmoxAPI(host, user=user, password=password, verify_ssl=False, timeout=60)


def done(prox, upid):
    """Waits for a task's end; what it ended with."""
    assert Tasks.decode_upid(upid)["node"] in ("pve1", "pve2"), upid
    return Tasks.blocking_status(prox, upid, timeout=60, polling_interval=0.02)["exitstatus"]


def refused(status, words, call):
    try:
        answer = call()
    except ResourceException as error:
        assert error.status_code == status and words in str(error), error
        return
    raise AssertionError(answer)


def round_trip(prox, vmid):
    node = prox.nodes("pve1")
    clone = node.qemu(9000).clone.post(newid=vmid, name="one", description="first\nsecond", full=0)
    decoded = Tasks.decode_upid(clone)
    assert decoded["type"] == "qmclone" and decoded["id"] == "9000", decoded
    assert done(prox, clone) == "OK"
    log = Tasks.decode_log(node.tasks(clone).log.get())
    assert log.endswith("TASK OK"), log
    config = node.qemu(vmid).config.get()
    assert config["name"] == "one" and config["description"] == "first\nsecond\n" and "lock" not in config, config
    assert config["scsi0"].startswith("local-lvm:base-9000-disk-0/vm-") and len(config["digest"]) == 40

    volume = io.BytesIO(b"\0" * 32768 + b"\1CD001")
    volume.name = "data.iso"
    assert done(prox, node.storage("local").upload.post(content="iso", filename=volume)) == "OK"
    files = {file["volid"]: file["size"] for file in node.storage("local").content.get(content="iso")}
    assert files == {"local:iso/data.iso": 32774}, files

    node.qemu(vmid).config.put(tags="B;a;b", cores=2, digest=config["digest"], ide2="local:iso/data.iso,media=cdrom")
    changed = node.qemu(vmid).config.get()
    assert changed["tags"] == "a;b" and changed["cores"] == 2, changed
    refused(500, "modified configuration", lambda: node.qemu(vmid).config.put(cores=3, digest=config["digest"]))
    refused(400, "tags", lambda: node.qemu(vmid).config.put(tags="a:b"))
    assert done(prox, node.qemu(vmid).config.post(memory=2048, delete="description")) == "OK"
    assert done(prox, node.qemu(vmid).resize.put(disk="scsi0", size="5G")) == "OK"
    assert done(prox, node.qemu(vmid).resize.put(disk="scsi0", size="4G")) == "shrinking disks is not supported"

    assert done(prox, node.qemu(vmid).status.start.post()) == "OK"
    assert done(prox, node.qemu(vmid).status.start.post()) == f"VM {vmid} already running"
    assert node.qemu(vmid).status.current.get()["status"] == "running"
    refused(500, "is running - destroy failed", lambda: node.qemu(vmid).delete(purge=1))
    listed = {vm["vmid"]: vm for vm in prox.cluster.resources.get(type="vm")}
    assert listed[vmid]["status"] == "running" and listed[vmid]["maxmem"] == 2048 << 20, listed[vmid]
    assert listed[9000]["template"] == 1 and listed[103]["type"] == "lxc"
    assert vmid in {vm["vmid"] for vm in node.qemu.get()}

    assert done(prox, node.qemu(vmid).status.stop.post()) == "OK"
    assert done(prox, node.storage("local").content("local:iso/data.iso").delete()) == "OK"
    assert done(prox, node.qemu(vmid).delete(purge=1)) == "OK"
    refused(500, "does not exist", lambda: node.qemu(vmid).config.get())


prox = with_token()
assert prox.version.get()["version"].split(".")[0] == "9"
assert {node["node"] for node in prox.nodes.get()} == {"pve1", "pve2"}
assert "VM.Clone" in prox.access.permissions.get()["/vms"]
assert any("iso" in it["content"] for it in prox.nodes("pve1").storage.get(content="iso"))
first = int(prox.cluster.nextid.get())
assert first >= 100
refused(400, "already exists", lambda: prox.cluster.nextid.get(vmid=9000))
round_trip(prox, first)
# A ticket and its token against forged requests do as well.
prox = with_password()
round_trip(prox, first)

# While it is cloned, a machine says nothing but that; who wants its VMID is told.
slow = prox.nodes("pve1").qemu(9003).clone.post(newid=first, full=1)
seen, until = set(), time.monotonic() + 60
while time.monotonic() < until:
    try:
        config = prox.nodes("pve1").qemu(first).config.get()
    except ResourceException:
        continue
    seen.add(config.get("lock"))
    if "lock" not in config:
        break
assert seen <= {"clone", None} and None in seen, seen
refused(500, "config file already exists", lambda: prox.nodes("pve1").qemu(9000).clone.post(newid=first))
refused(500, "Linked clone feature is not supported", lambda: prox.nodes("pve1").qemu(9004).clone.post(newid=99999, full=0))
ended = done(prox, slow)
assert ended == "OK", ended
# Its template is protected, and so is what was cloned from it.
clone = prox.nodes("pve1").qemu(first)
ended = done(prox, clone.delete())
assert ended == f"can't remove VM {first} - protection mode enabled", ended
clone.config.put(protection=0)
ended = done(prox, clone.delete())
assert ended == "OK", ended

# Pages of tasks, the newest first.
everything = prox.nodes("pve1").tasks.get(limit=500)
pages = [prox.nodes("pve1").tasks.get(start=start, limit=3) for start in range(0, len(everything), 3)]
assert [task["upid"] for page in pages for task in page] == [task["upid"] for task in everything]
assert everything[0]["type"] == "qmdestroy" and everything[0]["status"] == "OK", everything[0]

refused(401, "invalid token value", lambda: with_token("wrong").version.get())
refused(501, "not implemented", lambda: prox.nodes("pve1").qemu(9000).nonsense.get())
refused(500, "lookup 'pve9' failed", lambda: prox.nodes("pve9").qemu.get())
try:
    with_password("wrong")
    raise AssertionError("a wrong password was taken")
except AuthenticationError:
    pass
print("held")
