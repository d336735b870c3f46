"""The vendor's own client (pydo) against the emulator: what it reads and does must be what it expects of the real API."""

import sys

from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.policies import _authentication
from pydo import Client

# The emulator speaks HTTP on this host's loopback; everything else of the client is as it comes.
_authentication._enforce_https = lambda request: None

url, token = sys.argv[1:]
client = Client(token=token, endpoint=url)

account = client.account.get()["account"]
assert account["status"] == "active" and account["droplet_limit"] > 0, account
sizes = {size["slug"]: size for size in client.sizes.list(per_page=200)["sizes"]}
assert sizes["s-1vcpu-1gb"]["price_hourly"] > 0 and "ams3" in sizes["s-1vcpu-1gb"]["regions"]
assert any(region["slug"] == "ams3" and region["available"] for region in client.regions.list()["regions"])
assert all(not image["public"] for image in client.images.list(private=True)["images"])
assert client.images.get("debian-13-x64")["image"]["distribution"] == "Debian"

# An image of the account's own, fetched from an address.
fetched = client.images.create_custom(
    {"name": "mine", "url": "https://example.org/x.qcow2", "region": "fra1", "distribution": "Unknown"}
)["image"]
shown = client.images.get(fetched["id"])["image"]
assert shown["status"] == "available" and shown["regions"] == ["fra1"] and not shown["public"], shown
assert fetched["id"] in [image["id"] for image in client.images.list(private=True)["images"]]
client.images.delete(fetched["id"])
assert fetched["id"] not in [image["id"] for image in client.images.list(private=True)["images"]]

request = {
    "name": "one", "region": "ams3", "size": "s-1vcpu-1gb", "image": "debian-13-x64",
    "user_data": "#!x", "tags": ["calve", "calve:machine:1"],
}
answer = client.droplets.create(request)
one = answer["droplet"]
action = client.actions.get(answer["links"]["actions"][0]["id"])["action"]
assert action["type"] == "create" and action["resource_id"] == one["id"], action
assert client.droplets.get(one["id"])["droplet"]["tags"] == request["tags"]

many = client.droplets.create({**request, "name": None, "names": [f"n{n}" for n in range(10)], "tags": ["many"]})
assert len(many["droplets"]) == 10 and "droplet" not in many

# Pages are followed by their links, as pydo's documentation shows.
seen, page = [], 1
while True:
    listed = client.droplets.list(per_page=4, page=page, tag_name="many")
    seen += [droplet["id"] for droplet in listed["droplets"]]
    if "next" not in listed["links"].get("pages", {}):
        break
    page += 1
assert page == 3 and len(set(seen)) == 10 == listed["meta"]["total"], (page, seen)
assert [droplet["id"] for droplet in client.droplets.list(name="one")["droplets"]] == [one["id"]]

off = client.droplet_actions.post(one["id"], body={"type": "power_off"})["action"]
assert client.droplet_actions.get(one["id"], off["id"])["action"]["type"] == "power_off"
assert client.droplets.get(one["id"])["droplet"]["status"] == "off"

client.tags.create({"name": "late"})
client.tags.assign_resources("late", {"resources": [{"resource_id": str(one["id"]), "resource_type": "droplet"}]})
assert client.tags.get("late")["tag"]["resources"]["droplets"]["count"] == 1
client.tags.unassign_resources("late", {"resources": [{"resource_id": str(one["id"]), "resource_type": "droplet"}]})
client.tags.delete("late")
assert {tag["name"] for tag in client.tags.list()["tags"]} == {"calve", "calve:machine:1", "many"}

client.droplets.destroy_by_tag(tag_name="many")
client.droplets.destroy(one["id"])
assert client.droplets.list()["droplets"] == []


def refused(status, call):
    try:
        answer = call()
    except HttpResponseError as error:
        assert error.status_code == status, error
        return
    # Where its own types know the status, pydo answers with the problem.
    assert answer["id"] and answer["message"], answer


refused(404, lambda: client.droplets.get(1))
refused(422, lambda: client.droplets.create({**request, "size": "huge"}))
refused(401, lambda: Client(token="wrong", endpoint=url).account.get())
print("held")
