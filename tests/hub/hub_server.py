# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A stand-in for the Hub, for tests with the real client over real HTTP. It prints its address, then serves.

    python tests/hub/hub_server.py --root DIR --port 0 --token hf_test
    python tests/hub/hub_server.py --root DIR --port 0 --token hf_test --token hf_other=reader:lab \\
        --fault '{"path": "/commit/", "status": 503}'

`--token TOKEN[=USER[:NAMESPACE,NAMESPACE]]`: who it is, and where it may write; with no namespaces, everywhere. Faults are
those of hub_faults.py; `POST` and `DELETE /_control/faults` change them while it runs. `ROOT/requests.jsonl` has a line a
request: method, path, bytes of its body, status, and "fault" where one was met. `--minimal` serves only what
huggingface_hub needs to publish and to load: no trees, no refs, no list of files, nothing in an empty repository.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import sys
import threading
import uuid
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import yaml
from hub_faults import Faults
from hub_http import RequestHandler
from hub_store import HubError, Store


KINDS = "(models|datasets|spaces)"
LARGE, MOMENT = 10 * 2**20, "2026-01-01T00:00:00.000Z"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pt2", ".ckpt", ".onnx", ".parquet", ".npz", ".arrow", ".zip")
SPACE_SDKS = ("gradio", "docker", "static")


class Handler(RequestHandler):
    server: "HubServer"

    def route(self, path: str):
        for methods, pattern, action in ROUTES if self.server.minimal else ROUTES + MORE_ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in methods.split():
                return action(self, *found.groups())
        raise HubError(404, f"No such endpoint: {self.command} {path}")

    # Rights
    def who(self) -> dict | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.server.tokens.get(token)

    def need_read(self, kind: str, repo_id: str) -> dict:
        who = self.who()
        repo = self.server.store.repo(kind, repo_id) if self.server.store.exists(kind, repo_id) else None
        if repo is None or (repo["private"] and not self.may(who, repo_id)):
            status = 404 if who else 401  # who is nobody isn't told whether there is such a repository
            raise HubError(status, "Repository not found" if who else "Invalid username or password.", "RepoNotFound")
        return repo

    def need_write(self, kind: str, repo_id: str):
        who = self.who()
        if who is None:
            raise HubError(401, "Invalid username or password.")
        self.need_read(kind, repo_id)
        if not self.may(who, repo_id):
            raise HubError(403, f"You don't have the rights to write to {repo_id} as {who['user']}")

    @staticmethod
    def may(who: dict | None, repo_id: str) -> bool:
        namespace = repo_id.split("/")[0]
        return bool(who) and (not who["namespaces"] or namespace in (who["user"], *who["namespaces"]))

    # The endpoints that publishing and loading need
    def create(self):
        content, who = self.body_json(), self.who()
        if who is None:
            raise HubError(401, "Invalid username or password.")
        kind = (content.get("type") or "model") + "s"
        repo_id = f"{content.get('organization') or who['user']}/{content.get('name')}"
        if not self.may(who, repo_id):
            raise HubError(403, f"You don't have the rights to create a {kind[:-1]} under {repo_id.split('/')[0]!r}")
        if kind == "spaces" and content.get("sdk") not in SPACE_SDKS:
            raise HubError(400, f"A Space needs an sdk of {SPACE_SDKS}")
        private = content.get("visibility") == "private" or content.get("private") is True
        answer = {"url": f"{self.base()}/{prefix(kind)}{repo_id}", "name": repo_id, "id": uuid.uuid4().hex[:24]}
        try:
            self.server.store.create(kind, repo_id, private)
        except HubError as error:  # with the address, which the client reads where it may exist
            answer |= {"error": error.message}
            return self.json(error.status, answer)
        self.json(200, answer)

    def validate_yaml(self):
        content = self.body_json()
        errors = card_errors(content.get("content", ""), content.get("repoType", "model"))
        self.json(400 if errors else 200, {"errors": [{"message": text} for text in errors], "warnings": []})

    def preupload(self, kind, repo_id, revision):
        self.need_write(kind, repo_id)
        content, store = self.body_json(), self.server.store
        there = store.files(kind, repo_id, store.resolve(kind, repo_id, revision))
        files = []
        for file in content["files"]:
            binary = b"\0" in base64.b64decode(file.get("sample", ""))
            large = binary or file["size"] > LARGE or file["path"].endswith(LFS_SUFFIXES)
            files.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False} | (
                {"oid": there[file["path"]]["oid"]} if file["path"] in there and not self.server.minimal else {}))  # fmt: skip
        self.json(200, {"files": files})

    def lfs_batch(self, kind_prefix, repo_id):
        self.need_write(kind_of(kind_prefix), repo_id)
        objects = []
        for wanted in self.body_json()["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if not self.server.store.object(wanted["oid"]).is_file():
                place = f"{self.base()}/_lfs/{wanted['oid']}"
                answer["actions"] = {"upload": {"href": place}}
                if not self.server.minimal:
                    answer["actions"]["verify"] = {"href": f"{place}/verify"}
            objects.append(answer)
        self.json(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        target = self.server.store.object(oid)
        temporary, digest = target.with_name(f".tmp-{uuid.uuid4().hex}"), hashlib.sha256()
        try:
            with open(temporary, "wb") as file:
                for piece in self.pieces():
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != oid:
                raise HubError(400, f"The content has the sha256 {digest.hexdigest()}, not {oid}")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        self.json(200, {})

    def lfs_verify(self, oid):
        wanted, stored = self.body_json(), self.server.store.object(oid)
        if not stored.is_file() or stored.stat().st_size != wanted["size"]:
            raise HubError(404, f"{oid} was not uploaded")
        self.json(200, {})

    def commit(self, kind, repo_id, branch):
        self.need_write(kind, repo_id)
        try:
            lines = [json.loads(line) for line in self.body().splitlines() if line.strip()]
        except json.JSONDecodeError as error:
            raise HubError(400, f"A line of the commit is no JSON: {error}") from error
        sha = self.server.store.commit(kind, repo_id, branch, lines)
        self.json(200, {"success": True, "commitOid": sha,
                        "commitUrl": f"{self.base()}/{prefix(kind)}{repo_id}/commit/{sha}"})  # fmt: skip

    def tag(self, kind, repo_id, revision):
        self.need_write(kind, repo_id)
        name = revision if self.command == "DELETE" else self.body_json()["tag"]
        store = self.server.store
        if self.command == "DELETE":
            store.unname(kind, repo_id, "tags", name)
        else:
            store.name(kind, repo_id, "tags", name, store.resolve(kind, repo_id, revision))
        self.json(200, {})

    def info(self, kind, repo_id, revision="main"):
        repo, store = self.need_read(kind, repo_id), self.server.store
        sha = store.resolve(kind, repo_id, revision)
        content = {"id": repo_id, "sha": sha, "private": repo["private"]}
        if not self.server.minimal:
            files = store.files(kind, repo_id, sha)
            card = front_matter(store.object(files["README.md"]["sha256"]).read_text()) if "README.md" in files else {}
            content |= {"author": repo_id.split("/")[0], "cardData": card, "tags": card.get("tags") or [], "likes": 0,
                        "downloads": 0, "gated": False, "disabled": False, "lastModified": MOMENT, "createdAt": MOMENT,
                        "siblings": [{"rfilename": name} for name in sorted(files)]}  # fmt: skip
            if kind == "models":
                content |= {"modelId": repo_id, "pipeline_tag": card.get("pipeline_tag"),
                            "library_name": card.get("library_name")}  # fmt: skip
        self.json(200, content)

    def resolve(self, kind_prefix, repo_id, revision, name):
        kind, store = kind_of(kind_prefix), self.server.store
        self.need_read(kind, repo_id)
        sha = store.resolve(kind, repo_id, revision)
        file = store.files(kind, repo_id, sha).get(name)
        headers = {"X-Repo-Commit": sha} if sha else {}
        if file is None:
            text = json.dumps({"error": "Entry not found"}).encode()
            self.start(404, headers | {"X-Error-Code": "EntryNotFound", "Content-Length": len(text)})
            return self.command == "HEAD" or self.answer_file.write(text)
        etag = file["oid"] if self.server.minimal else f'"{file["oid"]}"'
        headers |= {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if file["lfs"] and not self.server.minimal:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": file["size"]}
        self.content(store.object(file["sha256"]), file["size"], headers)

    # What other calls of the client ask for
    def whoami(self):
        who = self.who()
        if who is None:
            raise HubError(401, "Invalid username or password.")
        self.json(200, {"type": "user", "name": who["user"], "fullname": who["user"],
                        "orgs": [{"name": name, "type": "org"} for name in who["namespaces"]],
                        "auth": {"accessToken": {"role": "write", "displayName": "tests"}}})  # fmt: skip

    def delete_repo(self):
        content, who = self.body_json(), self.who()
        kind, repo_id = (content.get("type") or "model") + "s", f"{content.get('organization') or ''}/{content['name']}"
        repo_id = f"{who['user']}{repo_id}" if who and repo_id.startswith("/") else repo_id
        self.need_write(kind, repo_id)
        self.server.store.delete(kind, repo_id)
        self.json(200, {})

    def refs(self, kind, repo_id):
        repo = self.need_read(kind, repo_id)
        self.json(200, {"converts": []} | {
            what: [{"name": name, "ref": f"refs/{short}/{name}", "targetCommit": sha} for name, sha in repo[what].items()]
            for what, short in (("branches", "heads"), ("tags", "tags"))})  # fmt: skip

    def branch(self, kind, repo_id, name):
        self.need_write(kind, repo_id)
        store = self.server.store
        if self.command == "DELETE":
            store.unname(kind, repo_id, "branches", name)
        else:
            start = self.body_json().get("startingPoint") or "main"
            store.name(kind, repo_id, "branches", name, store.resolve(kind, repo_id, start))
        self.json(200, {})

    def settings(self, kind, repo_id):
        self.need_write(kind, repo_id)
        repo, wanted = self.server.store.repo(kind, repo_id), self.body_json()
        repo["private"] = wanted.get("private", wanted.get("visibility") == "private")
        self.server.store.save(kind, repo_id, repo)
        self.json(200, {"private": repo["private"]})

    def tree(self, kind, repo_id, revision, path=None):
        self.need_read(kind, repo_id)
        store, folder = self.server.store, f"{path.strip('/')}/" if path else ""
        files = store.files(kind, repo_id, store.resolve(kind, repo_id, revision))
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        found = {}
        for name, file in sorted(files.items()):
            if name.startswith(folder):
                parts = name[len(folder) :].split("/")
                for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                    parent = folder + "/".join(parts[:depth])
                    found[parent] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": parent}
                if recursive or len(parts) == 1:
                    found[name] = entry(name, file)
        if folder and not found:
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        self.json(200, list(found.values()))

    def paths_info(self, kind, repo_id, revision):
        self.need_read(kind, repo_id)
        text = self.body()
        as_form = self.headers.get("Content-Type", "").startswith("application/x-www-form")
        paths = parse_qs(text.decode()).get("paths", []) if as_form else json.loads(text or b"{}").get("paths", [])
        files = self.server.store.files(kind, repo_id, self.server.store.resolve(kind, repo_id, revision))
        found = [entry(name, files[name]) for name in paths if name in files]
        folders = [name for name in paths if any(file.startswith(f"{name}/") for file in files)]
        self.json(200, found + [{"type": "directory", "oid": "0" * 40, "size": 0, "path": n} for n in folders])

    def history(self, kind, repo_id, revision):
        self.need_read(kind, repo_id)
        self.json(200, [{"id": sha, "title": "", "message": "", "authors": [], "date": MOMENT}
                        for sha in self.server.store.history(kind, repo_id)])  # fmt: skip

    def control(self):
        if self.command == "DELETE":
            self.server.faults.clear()
        else:
            self.server.faults.add(self.body_json())
        self.json(200, {})

    def base(self) -> str:
        return f"http://{self.headers.get('Host')}"


REPO = "([^/]+/[^/]+)"
API = f"/api/{KINDS}/{REPO}"
ROUTES = (
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"{API}/preupload/(.+)", Handler.preupload),
    ("POST", f"/(datasets/|spaces/|){REPO}.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/_lfs/([0-9a-f]{64})", Handler.lfs_put),
    ("POST", "/_lfs/([0-9a-f]{64})/verify", Handler.lfs_verify),
    ("POST", f"{API}/commit/(.+)", Handler.commit),
    ("POST DELETE", f"{API}/tag/(.+)", Handler.tag),
    ("GET", API, Handler.info),
    ("GET", f"{API}/revision/(.+)", Handler.info),
    ("GET HEAD", f"/(datasets/|spaces/|){REPO}/resolve/(refs/[^/]+/[^/]+|[^/]+)/(.+)", Handler.resolve),
    ("POST DELETE", "/_control/faults", Handler.control),
)
MORE_ROUTES = (
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("DELETE", "/api/repos/delete", Handler.delete_repo),
    ("GET", f"{API}/refs", Handler.refs),
    ("POST DELETE", f"{API}/branch/(.+)", Handler.branch),
    ("PUT", f"{API}/settings", Handler.settings),
    ("GET", f"{API}/tree/([^/]+)(?:/(.*))?", Handler.tree),
    ("POST", f"{API}/paths-info/(.+)", Handler.paths_info),
    ("GET", f"{API}/commits/(.+)", Handler.history),
)


def prefix(kind: str) -> str:
    return "" if kind == "models" else f"{kind}/"


def kind_of(kind_prefix: str) -> str:
    return kind_prefix.strip("/") or "models"


def entry(name: str, file: dict) -> dict:
    found = {"type": "file", "oid": file["oid"][:40], "size": file["size"], "path": name}
    return found | ({"lfs": {"oid": file["oid"], "size": file["size"], "pointerSize": 130}} if file["lfs"] else {})


def front_matter(text: str) -> dict:
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.DOTALL)
    try:
        content = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError:
        return {}
    return json.loads(json.dumps(content, default=str)) if isinstance(content, dict) else {}


def card_errors(text: str, repo_type: str) -> list[str]:
    """What the Hub would say against the metadata of a card, as far as it is known."""
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.DOTALL)
    try:
        content = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {error}"]
    if not isinstance(content or {}, dict):
        return ["The metadata are no mapping"]
    content, errors = content or {}, []
    for name in ("tags", "datasets", "metrics", "model-index"):
        if not isinstance(content.get(name, []), list):
            errors.append(f'"{name}" must be an array')
    if content.get("license") == "other" and not content.get("license_name"):
        errors.append('"license_name" is required where the license is "other"')
    if repo_type == "space":
        if content.get("sdk") not in SPACE_SDKS:
            errors.append(f'"sdk" must be one of {SPACE_SDKS}')
        if len(str(content.get("short_description", ""))) > 60:
            errors.append('"short_description" length must be less than or equal to 60 characters')
    return errors


class HubServer(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 64

    def __init__(self, port: int, root: Path, tokens: dict[str, dict], faults: list[dict], minimal: bool):
        self.store, self.tokens, self.minimal = Store(root, first_commit=not minimal), tokens, minimal
        self.faults, self.log_file, self.log_lock = Faults(faults), root / "requests.jsonl", threading.Lock()
        super().__init__(("127.0.0.1", port), Handler)

    def log(self, handler: Handler) -> None:
        if "/_control/" in handler.path:
            return
        line = {"method": handler.command, "path": handler.path, "bytes": handler.body_bytes, "status": handler.status}
        with self.log_lock, open(self.log_file, "a") as file:
            file.write(json.dumps(line | ({"fault": handler.fault} if handler.fault else {})) + "\n")

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def parse_token(text: str) -> tuple[str, dict]:
    token, _, rest = text.partition("=")
    user, _, namespaces = rest.partition(":")
    return token, {"user": user or "tester", "namespaces": [name for name in namespaces.split(",") if name]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="Folder for all that is stored.")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free.")
    parser.add_argument("--token", action="append", default=[], help="TOKEN[=USER[:NAMESPACE,...]]")
    parser.add_argument("--fault", action="append", default=[], type=json.loads, help="JSON; see hub_faults.py.")
    parser.add_argument("--minimal", action="store_true", help="Only what publishing and loading need.")
    args = parser.parse_args()
    tokens = dict(parse_token(text) for text in args.token)
    server = HubServer(args.port, args.root, tokens, args.fault, args.minimal)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    try:
        server.serve_forever(poll_interval=0.1)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
