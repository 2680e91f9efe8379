"""Calls grpc_server.py in every way and checks each answer. Argument: the address. Prints a line for each check."""

import queue
import sys

import grpc

channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_http_proxy", 0)])
DEADLINE = 60


def method(kind, name):
    return getattr(channel, kind)(f"/weft.Test/{name}")


def unary():
    binary = bytes(range(256)) * 3
    metadata = [("x-client", "a value"), ("x-client-several", "1"), ("x-client-several", "2"), ("x-client-bin", binary)]
    for message in [b"", b"hello", b"m" * (3 << 20)]:
        answer, call = method("unary_unary", "Unary").with_call(message, metadata=metadata, timeout=DEADLINE)
        assert answer == message, len(answer)
        assert call.code() is grpc.StatusCode.OK
        initial = [pair for pair in call.initial_metadata() if pair[0].startswith("x-client")]
        assert sorted(initial) == sorted(metadata), initial
        trailing = dict(call.trailing_metadata())
        assert trailing["x-client-bin"] == binary, trailing["x-client-bin"]
        assert trailing["x-end"] == "of the call"
        assert trailing["x-end-bin"] == bytes(range(256)), trailing["x-end-bin"]


def server_stream():
    got = list(method("unary_stream", "ServerStream")(b"1000", timeout=DEADLINE))
    assert got == [b"%d" % number for number in range(1000)], len(got)
    assert list(method("unary_stream", "ServerStream")(b"0", timeout=DEADLINE)) == []


def client_stream():
    parts = (b"x" * size for size in range(200))
    assert method("stream_unary", "ClientStream")(parts, timeout=DEADLINE) == b"19900 in 200"
    assert method("stream_unary", "ClientStream")(iter([]), timeout=DEADLINE) == b"0 in 0"


def bidirectional():
    """Each message is answered before the next is sent: nobody on the way may wait for more."""
    asked = queue.Queue()
    call = method("stream_stream", "Bidirectional")(iter(asked.get, None), timeout=DEADLINE)
    for number in range(50):
        asked.put(b"ab%d" % number)
        assert next(call) == (b"ab%d" % number)[::-1]
    asked.put(None)
    assert list(call) == []
    assert call.code() is grpc.StatusCode.OK


def error(of, code, details):
    try:
        of()
    except grpc.RpcError as failure:
        assert (failure.code(), failure.details()) == (code, details), (failure.code(), failure.details())
        return failure
    raise AssertionError("no error")


def errors():
    call = lambda: method("unary_unary", "Fail")(b"", timeout=DEADLINE)
    failure = error(call, grpc.StatusCode.FAILED_PRECONDITION, "100 % broken: ein Geräusch\n")
    trailing = dict(failure.trailing_metadata())
    assert trailing["grpc-status-details-bin"] == b"\x08\x09\x00\xff", trailing
    assert trailing["x-reason"] == "a fuse", trailing


def error_in_stream():
    call = method("unary_stream", "FailInStream")(b"", timeout=DEADLINE)
    assert [next(call), next(call)] == [b"one", b"two"]
    error(lambda: next(call), grpc.StatusCode.DATA_LOSS, "after two")


def unimplemented():
    call = lambda: method("unary_unary", "Nothing")(b"", timeout=DEADLINE)
    error(call, grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


def deadline():
    """The caller's deadline ends the call at both ends."""
    call = method("unary_stream", "Endless")(b"deadline", timeout=1)
    try:
        assert next(call) == b"first"
        next(call)
    except grpc.RpcError as failure:
        assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED, failure
    assert method("unary_unary", "Ended")(b"deadline", timeout=DEADLINE) == b"yes"


def cancel():
    """A call that the caller gives up ends at the server too, which has no deadline to go by."""
    call = method("unary_stream", "Endless")(b"cancel")
    assert next(call) == b"first"
    call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED
    assert method("unary_unary", "Ended")(b"cancel", timeout=DEADLINE) == b"yes"


grpc.channel_ready_future(channel).result(timeout=DEADLINE)
for check in [
    unary, server_stream, client_stream, bidirectional, errors, error_in_stream, unimplemented, deadline, cancel,
]:
    check()
    print("ok", check.__name__, flush=True)
