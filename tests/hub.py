"""A hub on this machine: as much of the Hugging Face hub's API as a push asks for."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Repositories in memory: name -> path -> bytes. fail: requests whose path has this in it are refused."""

    def __init__(self):
        self.repos, self.private, self.objects, self.asked = {}, {}, {}, []
        self.fail = None

    def create(self, body):
        name = f"{body['organization']}/{body['name']}"
        if name in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        self.repos[name], self.private[name] = (
            {},
            "private" in (body.get("visibility"), body.get("private") and "private"),
        )
        return 200, {"url": f"{self.url}/{name}"}

    def preupload(self, repo, body):
        paths = [file["path"] for file in body["files"]]
        large = [path for path in paths if path.endswith(".safetensors")]
        modes = {True: "lfs", False: "regular"}
        files = [
            {
                "path": file["path"],
                "uploadMode": modes[file["path"] in large],
                "shouldIgnore": False,
                "oid": None,
            }
            for file in body["files"]
        ]
        return 200, {"files": files}

    def batch(self, body):
        objects = [
            one | {"actions": {"upload": {"href": f"{self.url}/put/{one['oid']}", "header": {}}}}
            for one in body["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def commit(self, repo, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repos[repo][value["path"]] = self.objects[value["oid"]]
        url = f"{self.url}/{repo}/commit/{'0' * 40}"
        return 200, {"commitUrl": url, "commitOid": "0" * 40, "success": True}

    def answer(self, method, path, data):
        """Status and body for one request."""
        self.asked.append(f"{method} {path}")
        if self.fail and self.fail in path:
            return 403, {"error": "You have no right to write here"}
        if path.startswith("/put/"):
            self.objects[path.removeprefix("/put/")] = data
            return 200, {}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if path == "/api/repos/create":
            return self.create(json.loads(data))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(data))
        repo, _, rest = path.removeprefix("/api/models/").partition("/")
        name, _, rest = rest.partition("/")
        repo = f"{repo}/{name}"
        if rest == "preupload/main":
            return self.preupload(repo, json.loads(data))
        if rest == "commit/main":
            return self.commit(repo, [json.loads(line) for line in data.splitlines()])
        if method == "GET" and repo in self.repos and not rest:
            return 200, {"_id": "0", "id": repo, "private": self.private[repo], "siblings": []}
        return 404, {"error": f"this hub has no {method} {path}"}


@contextmanager
def serving():
    """A hub that listens on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = hub.answer(self.command, self.path.partition("?")[0], data)
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = reply

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
