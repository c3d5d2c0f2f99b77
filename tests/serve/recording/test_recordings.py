"""A real server of two workers, asked over two protocols while it records; and what comes of it."""

import asyncio
import hashlib
import io
import json
import os
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc

from mlserve.runs.trace import SCHEMA, STARTED_KEY, VERSION_KEY
from mlserve.serve.batching.batcher import Ticket
from mlserve.serve.recording.recorder import LOOK_EVERY_S, Recorder
from mlserve.serve.recording.recordings import RecordingFolder, Wish
from mlserve.wire import messages
from mlserve.wire.signature import Signature


def x_of(rows):
    return np.arange(30 * rows, dtype=np.float32).reshape(rows, 30)


@pytest.fixture(scope="module")
def server(serving, tiny_onnx, tokens_onnx):
    with serving(tiny_onnx, tokens_onnx, "--workers", "2") as started:
        yield started


@pytest.fixture
def recording(server):
    """Begins a recording, and ends it: `begin(...)` -> number, `end(number)` -> (what it tells, table)."""
    numbers = []

    def begin(**wish):
        status, _, body = server.request("POST", "/recording", json.dumps({"for_s": 60, **wish}))
        assert status == 200, body
        numbers.append(json.loads(body)["number"])
        time.sleep(0.6)  # every worker has noticed
        return numbers[-1]

    def end(number):
        status, _, body = server.request("DELETE", f"/recording/{number}")
        assert status == 200, body
        status, _, trace = server.request("GET", f"/recording/{number}/trace")
        assert status == 200
        return json.loads(body), pq.read_table(io.BytesIO(trace))

    yield begin, end
    for number in numbers:
        server.request("DELETE", f"/recording/{number}")


def ask_rest(server, rows, model="tiny"):
    status, answer = server.infer(model, {"x": ("FP32", rows.tolist())})
    assert status == 200, answer


def ask_grpc(server, rows):
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        tensor = tritonclient.grpc.InferInput("x", rows.shape, "FP32")
        tensor.set_data_from_numpy(rows)
        client.infer("tiny", [tensor])


def test_what_is_asked_while_it_goes_on_is_recorded_whichever_worker_answers(server, recording):
    begin, end = recording
    rows = x_of(2)
    ask_rest(server, rows)  # before it began
    number = begin()
    for _ in range(6):
        ask_rest(server, rows)
    ask_grpc(server, rows[:1])
    told, table = end(number)
    ask_rest(server, rows)  # after it ended
    assert told == {"number": number, "going_on": False, "requests": 7, "full": False}
    assert table.schema.names == SCHEMA.names
    assert table.schema.metadata[VERSION_KEY] == b"1"
    assert table.schema.metadata[STARTED_KEY].startswith(b"20")
    assert table["protocol"].to_pylist() == ["v2-rest"] * 6 + ["v2-grpc"]
    assert table["rows"].to_pylist() == [2] * 6 + [1]
    assert json.loads(table["shapes"][0].as_py()) == {"x": list(rows.shape)}
    at_ns = table["at_ns"].to_pylist()
    assert at_ns == sorted(at_ns)
    assert 0 < at_ns[0] < at_ns[-1] < 60e9
    assert table["body"].null_count == table["body_hash"].null_count == len(table)


def test_bodies_are_kept_as_tensors_that_any_protocol_can_send_again(server, recording):
    begin, end = recording
    number = begin(bodies="keep")
    ask_rest(server, x_of(2))
    ask_grpc(server, x_of(2))
    _, table = end(number)
    first, second = table["body"].to_pylist()
    assert first == second
    assert table["body_hash"].to_pylist() == [hashlib.sha256(first).hexdigest()] * 2
    message = messages.ModelInferRequest.FromString(first)
    assert message.raw_input_contents[0] == x_of(2).tobytes()


def test_hashes_tell_equal_requests_and_keep_nothing(server, recording):
    begin, end = recording
    number = begin(bodies="hash")
    for rows in (x_of(1), x_of(1), x_of(1) + 1):
        ask_rest(server, rows)
    _, table = end(number)
    one, same, other = table["body_hash"].to_pylist()
    assert one == same != other
    assert table["body"].null_count == 3


def test_only_the_model_asked_for_is_recorded(server, recording):
    begin, end = recording
    number = begin(model="tokens")
    ask_rest(server, x_of(1))
    told, table = end(number)
    assert (told["requests"], len(table)) == (0, 0)


def test_a_recording_ends_by_itself_when_a_worker_has_enough(server, recording, until):
    begin, end = recording
    number = begin(most_requests=2)
    for _ in range(8):
        ask_rest(server, x_of(1))
    assert until(lambda: not server.get_json(f"/recording/{number}")["going_on"])
    told, table = end(number)
    assert told["full"]
    assert 2 <= len(table) <= 4  # of each of two workers


def test_a_recording_can_be_fetched_while_the_next_one_goes_on(server, recording):
    begin, end = recording
    first = begin()
    ask_rest(server, x_of(1))
    told, _ = end(first)
    begin()
    assert told["requests"] == 1
    told, table = end(first)
    assert (told["going_on"], len(table)) == (False, 1)
    second = server.get_json(f"/recording/{first + 1}")
    assert second["going_on"]


def test_a_worker_that_has_kept_as_much_as_it_may_ends_the_recording(server, recording, until):
    begin, end = recording
    number = begin(bodies="keep", most_bytes=1000)
    for _ in range(30):
        ask_rest(server, x_of(1))
    assert until(lambda: not server.get_json(f"/recording/{number}")["going_on"])
    told, table = end(number)
    assert told["full"]
    assert 1 <= sum(body is not None for body in table["body"].to_pylist()) < 30


def test_there_is_one_at_a_time_and_a_bad_wish_is_refused(server, recording):
    begin, _ = recording
    number = begin()
    status, _, body = server.request("POST", "/recording", "{}")
    assert (status, b"goes on already" in body) == (400, True)
    server.request("DELETE", f"/recording/{number}")
    for wish in ('{"for_s": 0}', '{"for_s": "x"}', '{"bodies": "all"}', '{"unknown": 1}', "[", '{"keep_share": 2}'):
        status, _, body = server.request("POST", "/recording", wish)
        assert status == 400, (wish, body)
    status, _, body = server.request("GET", "/recording/999")
    assert (status, b"no recording 999" in body) == (400, True)


@pytest.mark.parametrize("full", [True, False])
def test_a_full_disk_ends_a_recording_and_not_the_worker(tmp_path, full):
    folder = RecordingFolder(tmp_path)
    number = folder.begin(Wish()).number
    folder.stream_of(number).symlink_to("/dev/full" if full else tmp_path / "stream")
    recorder = Recorder(folder)

    async def follow():
        following = asyncio.create_task(recorder.follow())
        await asyncio.sleep(1.5 * LOOK_EVERY_S)
        recorder.take(Signature("m", "1", [], []), [Taken()])
        await asyncio.sleep(2.5 * LOOK_EVERY_S)
        ended.append(folder.now() is None)
        folder.end(number)
        await asyncio.sleep(1.5 * LOOK_EVERY_S)
        assert not following.done()
        following.cancel()

    ended = []
    asyncio.run(follow())
    assert ended == [full]
    assert folder.parts(number)[os.getpid()].full == full


def test_a_recording_that_was_filled_to_its_last_place_ends_with_the_next_request(tmp_path):
    folder = RecordingFolder(tmp_path)
    number = folder.begin(Wish(most_requests=2)).number
    recorder = Recorder(folder)

    async def follow():
        following = asyncio.create_task(recorder.follow())
        await asyncio.sleep(1.5 * LOOK_EVERY_S)
        for _ in range(2):
            recorder.take(Signature("m", "1", [], []), [Taken(), Taken()])
            await asyncio.sleep(2.5 * LOOK_EVERY_S)
            goes_on.append((folder.now() is not None, folder.parts(number)[os.getpid()].full))
        assert not following.done()
        assert recorder.recording is None
        following.cancel()

    goes_on = []
    asyncio.run(follow())
    assert goes_on == [(True, False), (False, True)]
    assert folder.parts(number)[os.getpid()].requests == 2


class Taken(Ticket):
    """A request that was answered."""

    __slots__ = ()

    def __init__(self):
        self.arrived_s, self.rows, self.protocol, self.inputs = time.perf_counter(), 1, "rest", {}

    def answer(self, outputs, batch): ...

    def fail(self, error): ...
