"""A gRPC server without generated code: messages are bytes. Argument: the address to listen at."""

import sys
import threading
from concurrent import futures

import grpc

ended = {"deadline": threading.Event(), "cancel": threading.Event()}


def unary(request, context):
    """Gives message and metadata back: `x-client*` as initial, the same and more as trailing metadata."""
    own = [(key, value) for key, value in context.invocation_metadata() if key.startswith("x-client")]
    context.send_initial_metadata(own)
    context.set_trailing_metadata(own + [("x-end", "of the call"), ("x-end-bin", bytes(range(256)))])
    return request


def server_stream(request, _context):
    for number in range(int(request)):
        yield b"%d" % number


def client_stream(requests, _context):
    total = count = 0
    for request in requests:
        total, count = total + len(request), count + 1
    return b"%d in %d" % (total, count)


def bidirectional(requests, _context):
    for request in requests:
        yield request[::-1]


def fail(_request, context):
    context.set_trailing_metadata([("grpc-status-details-bin", b"\x08\x09\x00\xff"), ("x-reason", "a fuse")])
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "100 % broken: ein Geräusch\n")


def fail_in_stream(_request, context):
    yield b"one"
    yield b"two"
    context.abort(grpc.StatusCode.DATA_LOSS, "after two")


def endless(request, context):
    """Sends one message and nothing more; how it ends is told to `Ended`."""
    gone = ended[request.decode()]
    stop = threading.Event()
    context.add_callback(lambda: (gone.set(), stop.set()))
    yield b"first"
    stop.wait(60)


def was_ended(request, _context):
    return b"yes" if ended[request.decode()].wait(30) else b"no"


def main(address):
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "Bidirectional": grpc.stream_stream_rpc_method_handler(bidirectional),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "FailInStream": grpc.unary_stream_rpc_method_handler(fail_in_stream),
        "Endless": grpc.unary_stream_rpc_method_handler(endless),
        "Ended": grpc.unary_unary_rpc_method_handler(was_ended),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("weft.Test", handlers),))
    if not server.add_insecure_port(address):
        raise SystemExit(f"{address}: not free")
    server.start()
    server.wait_for_termination()


main(sys.argv[1])
