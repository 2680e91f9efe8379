"""An OTLP collector that takes what sidecars export and says, a line of JSON for each span, what it has read with
opentelemetry-proto's own types. What came is passed on byte by byte. Arguments: the address to listen at, and where
another receiver listens."""

import json
import sys
import threading
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.trace.v1 import trace_pb2 as trace

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
lock = threading.Lock()


def text(value):
    """The value of an attribute as the text that the other receiver's JSON has for it."""
    kind = value.WhichOneof("value")
    assert kind in ("string_value", "int_value", "bool_value", "double_value"), kind
    return str(getattr(value, kind))


def pairs(attributes):
    keys = [pair.key for pair in attributes]
    assert len(keys) == len(set(keys)), f"a key is there twice: {keys}"
    return {pair.key: text(pair.value) for pair in attributes}


def told(span, scope, resource):
    return {
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "name": span.name,
        "kind": trace.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        "start": str(span.start_time_unix_nano),
        "end": str(span.end_time_unix_nano),
        "status": trace.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        "attributes": pairs(span.attributes),
        "events": [[event.name, pairs(event.attributes)] for event in span.events],
        "scope": scope.name,
        "resource": pairs(resource.attributes),
    }


def main():
    listen, onwards = sys.argv[1:]
    pass_on = grpc.insecure_channel(onwards).unary_unary(EXPORT)

    def export(raw, context):
        request = service.ExportTraceServiceRequest.FromString(raw)
        # Nothing that these types do not know.
        assert len(request.SerializeToString()) == len(raw), "unknown fields"
        lines = [
            json.dumps(told(span, scoped.scope, resource.resource))
            for resource in request.resource_spans
            for scoped in resource.scope_spans
            for span in scoped.spans
        ]
        answer = pass_on(raw, timeout=10)
        with lock:
            print("\n".join(lines), flush=True)
        return answer

    handler = grpc.unary_unary_rpc_method_handler(export)
    methods = grpc.method_handlers_generic_handler("opentelemetry.proto.collector.trace.v1.TraceService", {"Export": handler})
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((methods,))
    assert server.add_insecure_port(listen) > 0
    server.start()
    server.wait_for_termination()


main()
