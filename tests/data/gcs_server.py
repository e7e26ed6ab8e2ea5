"""A Cloud Storage in a thread: as much of its JSON API as Google's client and ArrayRecord use."""

import base64
import contextlib
import http.server
import json
import re
import threading
import urllib.parse
import uuid
from email import message_from_bytes

# Where, bucket, object, and the bucket and object to copy to.
_OBJECTS = re.compile(r"(.*)/storage/v1/b/([^/]+)/o(?:/([^/]+)(?:/copyTo/b/([^/]+)/o/(.+))?)?")
NOW = "2026-01-01T00:00:00.000000Z"


class Server(http.server.ThreadingHTTPServer):
    """`objects` is {(bucket, name): contents}; `requests` what was asked, in order."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects, self.uploads, self.requests = {}, {}, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving():
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.path))
        status, headers, answer = self._answer(self.command, self.path, self.headers, body)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_DELETE = _any

    def log_message(self, *_):
        pass

    def _answer(self, method, path, headers, body):
        parsed = urllib.parse.urlsplit(path)
        query = dict(urllib.parse.parse_qsl(parsed.query))
        if parsed.path == "/batch/storage/v1":
            return self._batch(headers, body)
        found = _OBJECTS.fullmatch(parsed.path)
        if found is None:
            return 404, {}, b"{}"
        where, bucket, name, bucket2, name2 = map(_unquoted, found.groups())
        if where.endswith("/upload"):
            return self._upload(method, bucket, query, headers, body)
        if name is None:
            return self._list(bucket, query.get("prefix", ""))
        key = (bucket, name)
        if key not in self.server.objects:
            return 404, {}, json.dumps({"error": {"code": 404, "message": f"No {name}"}}).encode()
        if method == "DELETE":
            del self.server.objects[key]
            return 204, {}, b""
        if name2 is not None:
            self.server.objects[bucket2, name2] = self.server.objects[key]
            return self._metadata(bucket2, name2)
        if query.get("alt") == "media":
            return self._media(self.server.objects[key], headers.get("Range"))
        return self._metadata(*key)

    def _media(self, data, wanted):
        headers = {"Content-Type": "application/octet-stream", "x-goog-generation": "1"}
        if wanted is None:
            return 200, headers, data
        first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted).groups()
        begin = int(first) if first else max(len(data) - int(last), 0)
        end = int(last) + 1 if first and last else len(data)
        part = data[begin:end]
        headers["Content-Range"] = f"bytes {begin}-{begin + len(part) - 1}/{len(data)}"
        return (206, headers, part) if part else (416, {}, b"")

    def _upload(self, method, bucket, query, headers, body):
        if query["uploadType"] == "multipart":
            info, media = _parts(headers, body)
            return self._store(bucket, json.loads(info.get_payload())["name"], _payload(media))
        if method == "POST":
            upload = uuid.uuid4().hex
            name = query.get("name") or json.loads(body)["name"]
            self.server.uploads[upload] = (name, b"")
            place = f"{self.server.url}{urllib.parse.urlsplit(self.path).path}"
            return 200, {"Location": f"{place}?uploadType=resumable&upload_id={upload}"}, b""
        name, before = self.server.uploads[query["upload_id"]]
        data = before + body
        self.server.uploads[query["upload_id"]] = (name, data)
        if headers["Content-Range"].endswith("/*"):
            return 308, {"Range": f"bytes=0-{len(data) - 1}"}, b""
        return self._store(bucket, name, data)

    def _store(self, bucket, name, data):
        self.server.objects[bucket, name] = data
        return self._metadata(bucket, name)

    def _metadata(self, bucket, name):
        return (
            200,
            {"Content-Type": "application/json"},
            json.dumps(self._item(bucket, name)).encode(),
        )

    def _item(self, bucket, name):
        import google_crc32c  # comes with the client

        data = self.server.objects[bucket, name]
        crc = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
        about = {"size": str(len(data)), "crc32c": crc, "updated": NOW, "timeCreated": NOW}
        return {"kind": "storage#object", "bucket": bucket, "name": name, **about}

    def _list(self, bucket, prefix):
        names = sorted(n for b, n in self.server.objects if b == bucket and n.startswith(prefix))
        items = [self._item(bucket, name) for name in names]
        answer = json.dumps({"kind": "storage#objects", "items": items}).encode()
        return 200, {"Content-Type": "application/json"}, answer

    def _batch(self, headers, body):
        boundary = uuid.uuid4().hex
        answer = b""
        for part in _parts(headers, body):
            request, _, rest = _payload(part).replace(b"\r\n", b"\n").partition(b"\n")
            inner, _, content = rest.partition(b"\n\n")
            method, path, _ = request.decode().split(" ")
            asked = message_from_bytes(inner)
            path = re.sub(r"^https?://[^/]+", "", path)
            status, _, said = self._answer(method, path, asked, content)
            answer += (
                f"--{boundary}\r\nContent-Type: application/http\r\n\r\n"
                f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n\r\n"
            ).encode() + said + b"\r\n"  # fmt: skip
        answer += f"--{boundary}--".encode()
        return 200, {"Content-Type": f"multipart/mixed; boundary={boundary}"}, answer


def _unquoted(text):
    return text if text is None else urllib.parse.unquote(text)


def _parts(headers, body):
    text = b"Content-Type: " + headers["Content-Type"].encode() + b"\r\n\r\n" + body
    return message_from_bytes(text).get_payload()


def _payload(part):
    return part.get_payload(decode=True)
