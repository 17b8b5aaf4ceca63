"""An OpenAI-compatible server on loopback that misbehaves on request, and faces it can tell apart.

Face ``n`` is a grey picture of brightness ``10 n``: the server knows it by its pixels alone.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from data_pipeline.annotate import Options, Questions, annotate, parse_annotators
from data_pipeline.records import FaceRecord, write_dataset

ASKED = ("eyeglasses", "smiling", "beard")
KEY = "sk-secret-4711"
KEY_ENV = "STUB_KEY"
HANG = "hang"


@dataclass
class Step:
    """One response: a status, a body (text or json), headers, seconds to wait before it."""

    body: object = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0


def states(number):
    """What the well-behaved server says of a face."""
    words = ("yes", "no", "unknown")
    return {name: words[(number + place) % 3] for place, name in enumerate(ASKED)}


def said(text, finish="stop", refusal=None, usage=(100, 50)):
    """A completion with this content."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return Step(body)


def good(number, usage=(100, 50), **other):
    text = json.dumps({"caption": f"Face {number}.", **states(number), **other})
    return said(text, usage=usage)


@dataclass
class Stub:
    """The server's memory.

    Args:
        plan: (face number, how often it was asked before) -> Step, or ``HANG``.
    """

    plan: object
    url: str = ""
    asked: Counter = field(default_factory=Counter)
    served: Counter = field(default_factory=Counter)
    bodies: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    hanging: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def step(self, body, headers):
        number = face_number(body)
        with self.lock:
            before = self.asked[number]
            self.asked[number] += 1
            self.bodies.append(body)
            self.headers.append(dict(headers))
        return number, self.plan(number, before)


def face_number(body):
    (url,) = (p["image_url"]["url"] for p in body["messages"][0]["content"] if "image_url" in p)
    data = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))
    return round(Image.open(io.BytesIO(data)).convert("L").getpixel((8, 8)) / 10)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        stub = self.server.stub
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number, step = stub.step(body, self.headers)
        if step == HANG:
            stub.hanging.set()
            stub.closing.wait(60)
            self.close_connection = True
            return
        stub.closing.wait(step.wait)
        data = step.body if isinstance(step.body, str) else json.dumps(step.body)
        self.send_response(step.status)
        for name, value in {"Content-Length": str(len(data.encode())), **step.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data.encode())
        if step.status == 200:
            stub.served[number] += 1

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):  # a client that gave up
        pass


@contextmanager
def serving(plan=lambda number, before: good(number)):
    """Run a stub in a thread; it ends with the block."""
    stub = Stub(plan)
    server = Server(("127.0.0.1", 0), Handler)
    server.stub = stub
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def face_png(number):
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24), (10 * number,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def write_faces(out, count=6, labels=lambda number: {}):
    """A built dataset of unlabelled faces, the last one in test."""
    with write_dataset(out) as writer:
        for number in range(count):
            split = "test" if number == count - 1 else "train"
            key = f"web_{number}"
            record = FaceRecord(key, "web", split, key, face_png(number), labels(number))
            writer.add(record)
    return out


def spec(stub, name="stub", **settings):
    """The words after ``--annotator`` for a stub."""
    pairs = {"base_url": stub.url, "backoff": 0.01, "workers": 2, "timeout": 5, **settings}
    return ",".join([f"openai:{name}", *(f"{key}={value}" for key, value in pairs.items())])


def run(data, out, *annotators, confirm=lambda told, remote: True, caption=True, **options):
    """Annotate as the command would."""
    return annotate(
        data,
        out,
        parse_annotators(list(annotators)),
        Questions(ASKED, caption),
        confirm,
        Options(**options),
    )


def lines(path):
    """The rows of a jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
