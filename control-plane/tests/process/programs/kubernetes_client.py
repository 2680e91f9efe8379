"""The operator API through the official Python client: typed, custom objects and dynamic.

Usage: kubernetes_client.py URL. Prints `ok STEP` for each step; a step that fails ends it with what it saw.
"""

import sys

from kubernetes import client, dynamic, watch
from kubernetes.client.rest import ApiException

NAMESPACE = "shop"
MERGE = "application/merge-patch+json"
JSON = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"

configuration = client.Configuration()
configuration.host = sys.argv[1]
configuration.retries = False
api = client.ApiClient(configuration)
core = client.CoreV1Api(api)
discovery = client.DiscoveryV1Api(api)
custom = client.CustomObjectsApi(api)

ROUTES = ("gateway.networking.k8s.io", "v1", NAMESPACE, "httproutes")
POLICIES = ("weft.dev", "v1alpha1", NAMESPACE, "trafficpolicies")


def is_equal(found, expected):
    if found != expected:
        raise AssertionError(f"found {found!r}, expected {expected!r}")


def refused(code, reason, call, *args, **kwargs):
    """The Status of a call that must fail so."""
    try:
        answer = call(*args, **kwargs)
    except ApiException as error:
        status = api.deserialize(error.body, "object", "application/json")
        is_equal((error.status, status["kind"], status["reason"]), (code, "Status", reason))
        return status
    raise AssertionError(f"taken, but {code} was expected: {answer}")


def service(name, tier="back"):
    return client.V1Service(
        metadata=client.V1ObjectMeta(name=name, labels={"app": name, "tier": tier}),
        spec=client.V1ServiceSpec(selector={"app": name}, ports=[client.V1ServicePort(port=80, name="http")]),
    )


def endpoint_slice(name, address):
    return client.V1EndpointSlice(
        address_type="IPv4",
        metadata=client.V1ObjectMeta(name=name, labels={"kubernetes.io/service-name": "cart"}),
        endpoints=[client.V1Endpoint(addresses=[address], conditions=client.V1EndpointConditions(ready=True))],
        ports=[client.DiscoveryV1EndpointPort(name="http", port=8080, protocol="TCP")],
    )


def route(name):
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "hostnames": ["cart.example"],
            "parentRefs": [{"kind": "Service", "group": "", "name": "cart", "port": 80}],
            "rules": [{"backendRefs": [{"name": "cart", "port": 80}]}],
        },
    }


def policy(name):
    return {
        "apiVersion": "weft.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"targetRefs": [{"kind": "Service", "name": "cart"}], "retries": {"attempts": 2}},
    }


def names(listed):
    items = listed["items"] if isinstance(listed, dict) else listed.items
    return [item["metadata"]["name"] if isinstance(item, dict) else item.metadata.name for item in items]


def discovery_lists_groups_and_resources():
    groups = {group.name for group in client.ApisApi(api).get_api_versions().groups}
    assert {"discovery.k8s.io", "gateway.networking.k8s.io", "weft.dev"} <= groups, groups
    resources = {resource.name for resource in core.get_api_resources().resources}
    assert {"namespaces", "services"} <= resources, resources
    assert client.VersionApi(api).get_code().git_version.startswith("v"), "a version"


def changed(read, change, replace):
    """Reads, changes and replaces, anew when somebody was faster: statuses are written beside, as in any cluster."""
    for _ in range(20):
        found = read()
        change(found)
        try:
            return found, replace(found)
        except client.ApiException as error:
            if error.status != 409:
                raise
    raise AssertionError("somebody was faster each time")


def typed_services():
    made = core.create_namespaced_service(NAMESPACE, service("cart"))
    is_equal((made.metadata.namespace, made.spec.ports[0].target_port), (NAMESPACE, 80))
    assert made.metadata.uid and made.metadata.creation_timestamp and made.metadata.resource_version, made
    read = core.read_namespaced_service("cart", NAMESPACE)
    is_equal((read.spec, read.metadata.uid), (made.spec, made.metadata.uid))
    is_equal(names(core.list_namespaced_service(NAMESPACE)), ["cart"])
    read, replaced = changed(
        lambda: core.read_namespaced_service("cart", NAMESPACE),
        lambda found: found.metadata.labels.update(tier="front"),
        lambda found: core.replace_namespaced_service("cart", NAMESPACE, found),
    )
    assert int(replaced.metadata.resource_version) > int(read.metadata.resource_version), replaced
    is_equal(replaced.metadata.labels["tier"], "front")


def patches_of_a_service():
    def patch(body, kind):
        return core.patch_namespaced_service("cart", NAMESPACE, body, _content_type=kind)

    merged = patch({"metadata": {"labels": {"tier": None, "zone": "a"}}}, MERGE)
    is_equal(merged.metadata.labels, {"app": "cart", "zone": "a"})
    operations = [
        {"op": "test", "path": "/spec/ports/0/port", "value": 80},
        {"op": "replace", "path": "/spec/ports/0/name", "value": "web"},
    ]
    is_equal(patch(operations, JSON).spec.ports[0].name, "web")
    added = patch({"spec": {"ports": [{"port": 90, "name": "grpc"}]}}, STRATEGIC)
    is_equal([port.port for port in added.spec.ports], [80, 90])
    removed = patch({"spec": {"ports": [{"port": 90, "$patch": "delete"}]}}, STRATEGIC)
    is_equal([port.port for port in removed.spec.ports], [80])
    operations[0]["value"] = 7
    status = refused(422, "Invalid", patch, operations, JSON)
    assert "test" in status["message"] and "/spec/ports/0/port" in status["message"], status


def typed_endpoint_slices():
    made = discovery.create_namespaced_endpoint_slice(NAMESPACE, endpoint_slice("cart-1", "10.0.0.1"))
    is_equal(made.endpoints[0].addresses, ["10.0.0.1"])
    made.endpoints[0].addresses = ["10.0.0.2"]
    replaced = discovery.replace_namespaced_endpoint_slice("cart-1", NAMESPACE, made)
    is_equal(discovery.read_namespaced_endpoint_slice("cart-1", NAMESPACE), replaced)
    patch = {"endpoints": [{"addresses": ["10.0.0.3"]}]}
    patched = discovery.patch_namespaced_endpoint_slice("cart-1", NAMESPACE, patch, _content_type=MERGE)
    is_equal([endpoint.addresses for endpoint in patched.endpoints], [["10.0.0.3"]])
    selector = "kubernetes.io/service-name=cart"
    listed = discovery.list_endpoint_slice_for_all_namespaces(label_selector=selector)
    is_equal(names(listed), ["cart-1"])
    discovery.delete_namespaced_endpoint_slice("cart-1", NAMESPACE)
    is_equal(names(discovery.list_namespaced_endpoint_slice(NAMESPACE)), [])


def custom_objects():
    for kind, new, change in (
        (ROUTES, route("cart"), {"hostnames": ["shop.example"]}),
        (POLICIES, policy("cart"), {"retries": {"attempts": 3}}),
    ):
        made = custom.create_namespaced_custom_object(*kind, new)
        assert made["metadata"]["uid"], made
        is_equal(names(custom.list_namespaced_custom_object(*kind)), ["cart"])
        patched = custom.patch_namespaced_custom_object(*kind, "cart", {"spec": change}, _content_type=MERGE)
        for field, value in change.items():
            is_equal(patched["spec"][field], value)
        is_equal(patched["metadata"]["generation"], 2)
        operations = [{"op": "add", "path": "/metadata/labels/tier", "value": "back"}]
        custom.patch_namespaced_custom_object(*kind, "cart", operations, _content_type=JSON)
        read = custom.get_namespaced_custom_object(*kind, "cart")
        is_equal((read["metadata"]["labels"]["tier"], read["metadata"]["generation"]), ("back", 2))
        _, replaced = changed(
            lambda: custom.get_namespaced_custom_object(*kind, "cart"),
            lambda found: found.update(spec=new["spec"]),
            lambda found: custom.replace_namespaced_custom_object(*kind, "cart", found),
        )
        is_equal(replaced["metadata"]["generation"], 3)
        status = refused(415, "UnsupportedMediaType", custom.patch_namespaced_custom_object, *kind, "cart", {}, _content_type=STRATEGIC)
        assert "no strategic merge patch" in status["message"], status


def status_subresource():
    parent = {
        "parentRef": {"kind": "Service", "group": "", "name": "cart", "port": 80},
        "controllerName": "example.com/test",
        "conditions": [
            {
                "type": "Accepted",
                "status": "True",
                "reason": "Accepted",
                "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
    }
    patch = {"status": {"parents": [parent]}, "spec": {"hostnames": ["ignored.example"]}}
    custom.patch_namespaced_custom_object_status(*ROUTES, "cart", patch, _content_type=MERGE)
    read = custom.get_namespaced_custom_object_status(*ROUTES, "cart")
    assert any(of["controllerName"] == "example.com/test" for of in read["status"]["parents"]), read
    is_equal((read["spec"]["hostnames"], read["metadata"]["generation"]), (["cart.example"], 3))
    # And the other way round: the status is not changed with the object.
    _, replaced = changed(
        lambda: custom.get_namespaced_custom_object_status(*ROUTES, "cart"),
        lambda found: found.update(status={"parents": []}),
        lambda found: custom.replace_namespaced_custom_object(*ROUTES, "cart", found),
    )
    assert replaced["status"]["parents"], replaced


def selectors():
    for name, tier in (("web", "front"), ("stock", "back")):
        core.create_namespaced_service(NAMESPACE, service(name, tier))
    core.create_namespaced_service("bank", service("vault"))
    labels = lambda selector: names(core.list_namespaced_service(NAMESPACE, label_selector=selector))
    is_equal(labels("tier in (front, back)"), ["stock", "web"])
    is_equal(labels("tier=front"), ["web"])
    is_equal(labels("tier!=front,app"), ["cart", "stock"])
    is_equal(labels("!tier"), ["cart"])
    fields = lambda selector: names(core.list_service_for_all_namespaces(field_selector=selector))
    is_equal(fields("metadata.name=web"), ["web"])
    is_equal(fields("metadata.namespace!=shop"), ["vault"])
    is_equal(names(custom.list_namespaced_custom_object(*POLICIES, label_selector="app=none")), [])
    status = refused(400, "BadRequest", core.list_namespaced_service, NAMESPACE, label_selector="a b")
    assert "a b" in status["message"], status


def pages():
    first = core.list_namespaced_service(NAMESPACE, limit=2)
    is_equal((names(first), first.metadata.remaining_item_count), (["cart", "stock"], 1))
    core.create_namespaced_service(NAMESPACE, service("tea"))
    # In this client the continue parameter has an underscore, as the word is one of Python's own.
    second = core.list_namespaced_service(NAMESPACE, limit=2, _continue=first.metadata._continue)
    is_equal((names(second), second.metadata._continue), (["web"], None))
    is_equal(second.metadata.resource_version, first.metadata.resource_version)
    core.delete_namespaced_service("tea", NAMESPACE)


def watch_from_a_revision():
    since = core.list_namespaced_service(NAMESPACE).metadata.resource_version
    core.create_namespaced_service(NAMESPACE, service("late"))
    core.create_namespaced_service("bank", service("elsewhere"))
    core.patch_namespaced_service("late", NAMESPACE, {"metadata": {"labels": {"tier": "x"}}}, _content_type=MERGE)
    core.delete_namespaced_service("late", NAMESPACE)
    seen = []
    watching = watch.Watch()
    for event in watching.stream(
        core.list_namespaced_service, NAMESPACE, resource_version=since, timeout_seconds=60
    ):
        told = (event["type"], event["object"].metadata.name)
        # Its status is written beside.
        if seen[-1:] != [told]:
            seen.append(told)
        if event["type"] == "DELETED":
            watching.stop()
    is_equal(seen, [("ADDED", "late"), ("MODIFIED", "late"), ("DELETED", "late")])
    assert int(watching.resource_version) > int(since), watching.resource_version
    future = str(int(watching.resource_version) + 1000)
    try:
        list(watch.Watch().stream(core.list_namespaced_service, NAMESPACE, resource_version=future, timeout_seconds=60))
    except ApiException as error:
        is_equal(error.status, 410)
    else:
        raise AssertionError("a watch from the future was taken")


def custom_watch_sees_what_comes():
    listed = custom.list_namespaced_custom_object(*POLICIES)
    watching, seen = watch.Watch(), []
    stream = watching.stream(
        custom.list_namespaced_custom_object, *POLICIES, resource_version=listed["metadata"]["resourceVersion"],
        timeout_seconds=60,
    )
    custom.create_namespaced_custom_object(*POLICIES, policy("seen"))
    for event in stream:
        if event["type"] == "MODIFIED":
            continue  # Its status is written beside.
        seen.append((event["type"], event["object"]["metadata"]["name"]))
        if event["type"] == "ADDED":
            custom.delete_namespaced_custom_object(*POLICIES, "seen")
        else:
            watching.stop()
    is_equal(seen, [("ADDED", "seen"), ("DELETED", "seen")])


def conflicts():
    old = core.read_namespaced_service("web", NAMESPACE)
    core.patch_namespaced_service("web", NAMESPACE, {"metadata": {"labels": {"n": "1"}}}, _content_type=MERGE)
    status = refused(409, "Conflict", core.replace_namespaced_service, "web", NAMESPACE, old)
    assert "the object has been modified" in status["message"], status
    stale = {"metadata": {"resourceVersion": old.metadata.resource_version, "labels": {"n": "2"}}}
    refused(409, "Conflict", core.patch_namespaced_service, "web", NAMESPACE, stale, _content_type=MERGE)
    status = refused(409, "AlreadyExists", core.create_namespaced_service, NAMESPACE, service("web"))
    is_equal((status["details"]["kind"], status["details"]["name"]), ("services", "web"))
    preconditions = client.V1Preconditions(uid="another")
    options = client.V1DeleteOptions(preconditions=preconditions)
    refused(409, "Conflict", core.delete_namespaced_service, "web", NAMESPACE, body=options)


def invalid_objects():
    bad = service("bad")
    bad.spec.ports[0].port = 99999
    bad.spec.ports.append(client.V1ServicePort(port=0, name="zero"))
    status = refused(422, "Invalid", core.create_namespaced_service, NAMESPACE, bad)
    fields = {cause["field"]: cause["message"] for cause in status["details"]["causes"]}
    assert "99999 is not a port (1 to 65535)" in fields["spec.ports[0].port"], fields
    assert "spec.ports[1].port" in fields, fields
    wrong = policy("bad")
    wrong["spec"]["retries"]["attempts"] = "many"
    status = refused(422, "Invalid", custom.create_namespaced_custom_object, *POLICIES, wrong)
    is_equal([cause["field"] for cause in status["details"]["causes"]], ["spec.retries.attempts"])
    wrong = policy("bad")
    wrong["spec"]["retries"]["atempts"] = 2
    status = refused(400, "BadRequest", custom.create_namespaced_custom_object, *POLICIES, wrong, field_validation="Strict")
    assert 'did you mean "attempts"?' in status["message"], status


def absent_objects():
    status = refused(404, "NotFound", core.read_namespaced_service, "none", NAMESPACE)
    is_equal(status["message"], 'services "none" not found')
    refused(404, "NotFound", custom.get_namespaced_custom_object, *ROUTES, "none")
    refused(404, "NotFound", core.delete_namespaced_service, "none", NAMESPACE)
    refused(404, "NotFound", core.replace_namespaced_service, "none", NAMESPACE, service("none"))
    refused(404, "NotFound", custom.list_namespaced_custom_object, "weft.dev", "v1alpha1", NAMESPACE, "trafikpolicies")


def dry_run():
    before = core.list_namespaced_service(NAMESPACE).metadata.resource_version
    made = core.create_namespaced_service(NAMESPACE, service("dry"), dry_run="All")
    is_equal(made.spec.ports[0].target_port, 80)
    patch = {"metadata": {"labels": {"dry": "yes"}}}
    patched = core.patch_namespaced_service("web", NAMESPACE, patch, dry_run="All", _content_type=MERGE)
    is_equal(patched.metadata.labels["dry"], "yes")
    core.delete_namespaced_service("web", NAMESPACE, dry_run="All")
    bad = policy("dry")
    bad["spec"]["retries"]["attempts"] = 99
    refused(422, "Invalid", custom.create_namespaced_custom_object, *POLICIES, bad, dry_run="All")
    listed = core.list_namespaced_service(NAMESPACE)
    assert int(listed.metadata.resource_version) >= int(before), listed
    is_equal(names(listed), ["cart", "stock", "web"])
    assert "dry" not in core.read_namespaced_service("web", NAMESPACE).metadata.labels


def dynamic_client():
    cluster = dynamic.DynamicClient(api)
    services = cluster.resources.get(api_version="v1", kind="Service")
    policies = cluster.resources.get(api_version="weft.dev/v1alpha1", kind="TrafficPolicy")
    is_equal((services.namespaced, policies.name), (True, "trafficpolicies"))
    made = policies.create(body=policy("dynamic"), namespace=NAMESPACE)
    is_equal(made.spec.retries.attempts, 2)
    change = {"spec": {"retries": {"attempts": 4}}}
    patched = policies.patch(name="dynamic", namespace=NAMESPACE, body=change, content_type=MERGE)
    is_equal(patched.spec.retries.attempts, 4)
    policies.delete(name="dynamic", namespace=NAMESPACE)
    is_equal([item.metadata.name for item in services.get(namespace=NAMESPACE, label_selector="app=web").items], ["web"])
    try:
        services.get(name="none", namespace=NAMESPACE)
    except dynamic.exceptions.NotFoundError:
        return
    raise AssertionError("an object that is not there was found")


def deletions():
    since = core.list_service_for_all_namespaces().metadata.resource_version
    gone = core.delete_namespaced_service("web", NAMESPACE)
    assert gone is not None
    refused(404, "NotFound", core.read_namespaced_service, "web", NAMESPACE)
    core.delete_collection_namespaced_service(NAMESPACE, label_selector="app=stock")
    is_equal(names(core.list_namespaced_service(NAMESPACE)), ["cart"])
    for kind in (ROUTES, POLICIES):
        is_equal(custom.delete_namespaced_custom_object(*kind, "cart")["status"], "Success")
        is_equal(names(custom.list_namespaced_custom_object(*kind)), [])
    assert int(core.list_service_for_all_namespaces().metadata.resource_version) > int(since)


STEPS = (
    discovery_lists_groups_and_resources,
    typed_services,
    patches_of_a_service,
    typed_endpoint_slices,
    custom_objects,
    status_subresource,
    selectors,
    pages,
    watch_from_a_revision,
    custom_watch_sees_what_comes,
    conflicts,
    invalid_objects,
    absent_objects,
    dry_run,
    dynamic_client,
    deletions,
)

for step in STEPS:
    step()
    print("ok", step.__name__, flush=True)
