# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What the stand-in Hub of the tests keeps on disk: repositories with real commits, branches, tags and objects.

    ROOT/objects/SHA256                        every content, once
    ROOT/repos/TYPEs/ORG/NAME/repo.json        {private, branches: {name: sha}, tags: {name: sha}}
    ROOT/repos/TYPEs/ORG/NAME/commits/SHA.json {parent, summary, files: {path: {sha256, oid, size, lfs}}}

Everything is written beside its place and moved there, so that a server that is killed leaves whole commits.
"""

import hashlib
import json
import os
import re
import shutil
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path


COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass
class HubError(Exception):
    """An answer that is no success: status, the Hub's `X-Error-Code` if it has one, and its message."""

    status: int
    message: str
    code: str | None = None


def git_blob_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


class Store:
    """Repositories under `root`. `kind` is "models", "datasets" or "spaces", `repo_id` is ORG/NAME."""

    def __init__(self, root: Path, first_commit: bool):
        self.root, self.first_commit, self.lock = root, first_commit, threading.RLock()
        (root / "objects").mkdir(parents=True, exist_ok=True)

    # Repositories
    def folder(self, kind: str, repo_id: str) -> Path:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) or ".." in repo_id:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return self.root / "repos" / kind / repo_id

    def exists(self, kind: str, repo_id: str) -> bool:
        return (self.folder(kind, repo_id) / "repo.json").is_file()

    def repo(self, kind: str, repo_id: str) -> dict:
        if not self.exists(kind, repo_id):
            raise HubError(404, "Repository not found", "RepoNotFound")
        return json.loads((self.folder(kind, repo_id) / "repo.json").read_text())

    def save(self, kind: str, repo_id: str, repo: dict) -> None:
        write(self.folder(kind, repo_id) / "repo.json", json.dumps(repo, indent=1).encode())

    def create(self, kind: str, repo_id: str, private: bool) -> None:
        with self.lock:
            if self.exists(kind, repo_id):
                raise HubError(409, "You already created this repo")
            self.save(kind, repo_id, {"private": private, "branches": {"main": None}, "tags": {}})
            if self.first_commit:  # as the Hub does it
                files = {".gitattributes": self.put(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", lfs=False)}
                self._record(kind, repo_id, "main", {"parent": None, "summary": "initial commit", "files": files})

    def delete(self, kind: str, repo_id: str) -> None:
        with self.lock:
            self.repo(kind, repo_id)
            shutil.rmtree(self.folder(kind, repo_id))

    # Revisions
    def resolve(self, kind: str, repo_id: str, revision: str) -> str | None:
        """The commit of a branch, a tag or a sha; None is the empty main branch."""
        repo = self.repo(kind, repo_id)
        for names in (repo["branches"], repo["tags"]):
            if revision in names:
                return names[revision]
        if COMMIT.fullmatch(revision) and (self.folder(kind, repo_id) / "commits" / f"{revision}.json").is_file():
            return revision
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def files(self, kind: str, repo_id: str, commit: str | None) -> dict[str, dict]:
        if commit is None:
            return {}
        return json.loads((self.folder(kind, repo_id) / "commits" / f"{commit}.json").read_text())["files"]

    def history(self, kind: str, repo_id: str) -> list[str]:
        """Commits of main, newest first."""
        found, commit = [], self.repo(kind, repo_id)["branches"]["main"]
        while commit:
            found.append(commit)
            commit = json.loads((self.folder(kind, repo_id) / "commits" / f"{commit}.json").read_text())["parent"]
        return found

    def name(self, kind: str, repo_id: str, what: str, name: str, commit: str | None) -> None:
        """Make a tag or a branch; 409 if there is one of that name, wherever it points."""
        with self.lock:
            repo = self.repo(kind, repo_id)
            if name in repo["branches"] or name in repo["tags"]:
                raise HubError(409, f"Reference {name} exists already")
            if commit is None:
                raise HubError(404, "Nothing to point to: the repository is empty", "RevisionNotFound")
            repo[what][name] = commit
            self.save(kind, repo_id, repo)

    def unname(self, kind: str, repo_id: str, what: str, name: str) -> None:
        with self.lock:
            repo = self.repo(kind, repo_id)
            if repo[what].pop(name, None) is None:
                raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
            self.save(kind, repo_id, repo)

    # Contents
    def object(self, sha256: str) -> Path:
        return self.root / "objects" / sha256

    def put(self, content: bytes, lfs: bool) -> dict:
        digest = hashlib.sha256(content).hexdigest()
        if not self.object(digest).is_file():
            write(self.object(digest), content)
        oid = digest if lfs else git_blob_sha1(content)
        return {"sha256": digest, "oid": oid, "size": len(content), "lfs": lfs}

    def commit(self, kind: str, repo_id: str, branch: str, lines: list[dict]) -> str:
        """Apply the lines of a commit request to a branch, all or nothing, and return its sha."""
        with self.lock:
            repo = self.repo(kind, repo_id)
            if branch not in repo["branches"]:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            parent = repo["branches"][branch]
            header = next((line["value"] for line in lines if line["key"] == "header"), {})
            expected = header.get("parentCommit")
            if expected is not None and expected != parent:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(self.files(kind, repo_id, parent))
            for line in lines:
                self._apply(files, line["key"], line["value"])
            return self._record(
                kind, repo_id, branch, {"parent": parent, "summary": header.get("summary", ""), "files": files}
            )

    def _apply(self, files: dict, key: str, value: dict) -> None:
        import base64

        if key == "header":
            return
        path = value["path"]
        if path.startswith("/") or any(part in ("", ".", "..", ".git") for part in path.rstrip("/").split("/")):
            raise HubError(400, f"Invalid path: {path}")
        if key == "file":
            files[path] = self.put(base64.b64decode(value["content"], validate=True), lfs=False)
        elif key == "lfsFile":
            stored = self.object(value["oid"])
            if not stored.is_file():
                raise HubError(400, f"LFS pointer of {path} points to an object that was not uploaded: {value['oid']}")
            size = stored.stat().st_size
            files[path] = {"sha256": value["oid"], "oid": value["oid"], "size": size, "lfs": True}
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        elif key == "deletedFolder":
            for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                del files[name]
        else:
            raise HubError(400, f"Unknown operation: {key}")

    def _record(self, kind: str, repo_id: str, branch: str, commit: dict) -> str:
        text = json.dumps(commit, sort_keys=True, indent=1).encode()
        sha = hashlib.sha1(text).hexdigest()
        write(self.folder(kind, repo_id) / "commits" / f"{sha}.json", text)
        repo = self.repo(kind, repo_id)
        repo["branches"][branch] = sha
        self.save(kind, repo_id, repo)
        return sha
