# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What stands in a repository of the Hub, and what of it differs from ours, without downloading it."""

import hashlib
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import get_session, hf_raise_for_status
from tqdm import tqdm


PIECE = 8 * 2**20
LOOKS_AT_ONCE = 8
INDEX = "model.safetensors.index.json"
# What an older version may have left that would be loaded, shown or believed along with the new one.
RECORDS = ("results.json", "provenance.json", "conversion.json", ".eval_results/test.yaml")
WEIGHTS = (
    "model.safetensors", INDEX, "adapter_model.safetensors", "adapter_config.json", "adapter_model.bin",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
STALE = {
    "model": re.compile(
        r"(adapter_)?model(-\d+-of-\d+)?\.(safetensors|bin)|pytorch_model(-\d+-of-\d+)?\.bin|adapter_config\.json|"
        r"(pytorch_)?model\.(safetensors|bin)\.index\.json|" + "|".join(re.escape(name) for name in RECORDS)
    ),
    "dataset": re.compile(r"data/[^/]+\.parquet|(manifest|exclusions)\.parquet|corpus\.html|results\.json"),
    "space": re.compile(r"(urfm|modeling_urfm)/.+"),
}


@dataclass
class Look:
    """A repository against our files: names that differ or are missing, that are equal, that are to go."""

    changed: list[str]
    unchanged: list[str]
    stale: list[str]


def fingerprints(files: dict[str, Path], progress: bool) -> dict[str, set[str]]:
    """Of every file, what a server may call it in an ETag.

    These are the SHA-256 (large files), git's SHA-1 of the blob (small ones), git's SHA-1 of the pointer to a large file,
    and the plain SHA-1.

    Raises:
        FileNotFoundError: a file that is not there.
    """
    found = {}
    with tqdm(total=sum(path.stat().st_size for path in files.values()), desc="reading", unit="B", unit_scale=True,
              disable=not progress, leave=False) as bar:  # fmt: skip
        for name, path in files.items():
            size = path.stat().st_size
            sha256, plain, blob = hashlib.sha256(), hashlib.sha1(), hashlib.sha1(b"blob %d\0" % size)
            with path.open("rb") as file:
                while piece := file.read(PIECE):
                    for digest in (sha256, plain, blob):
                        digest.update(piece)
                    bar.update(len(piece))
            pointer = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256.hexdigest()}\nsize {size}\n".encode()
            )
            linked = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer)
            found[name] = {digest.hexdigest() for digest in (sha256, plain, blob, linked)}
    return found


def repository(api: HfApi, repo_id: str, repo_type: str, revision: str | None = None):
    """What the Hub says of a repository or of a branch, tag or commit of it (`sha`, `siblings`, ...); None: not there."""
    try:
        return api.repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=60)
    except RepositoryNotFoundError as error:
        # 401 is what the Hub says of nobody's business, and of a token that it doesn't know.
        if error.response is not None and error.response.status_code == 401 and not api.token:
            raise
        return None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == 404:
            return None
        raise


def look(
    api: HfApi, repo_id: str, repo_type: str, info, ours: dict[str, set[str]], progress: bool
) -> Look:  # fmt: skip
    """Compare every one of our files with what stands at `info.sha`, and find what an older version left there.

    Args:
        info: what `repository` said. ours: what `fingerprints` found.
    """
    if info is None or not info.sha:  # nothing was ever committed
        return Look(list(ours), [], [])
    where = {"api": api, "repo_id": repo_id, "repo_type": repo_type, "commit": info.sha}
    there = etags(list(ours), **where, progress=progress)
    changed = [name for name in ours if there[name] not in ours[name]]
    unchanged = [name for name in ours if name not in changed]
    names = [file.rfilename for file in getattr(info, "siblings", None) or []]
    if not names and repo_type == "model":  # a server that lists nothing: ask for what would do harm
        probed = [name for name in (*WEIGHTS, *RECORDS) if name not in ours]
        names = [name for name, etag in etags(probed, **where, progress=False).items() if etag is not None]
        names += shards(**where) if INDEX in names or INDEX in ours and there[INDEX] is not None else []
    stale = sorted({name for name in names if STALE[repo_type].fullmatch(name)} - set(ours))
    return Look(changed, unchanged, stale)


def etags(names: Iterable[str], *, api, repo_id, repo_type, commit, progress: bool) -> dict[str, str | None]:
    """The ETag of each file at a commit, without its quotes; None: no such file."""

    def ask(name: str) -> str | None:
        url = hf_hub_url(repo_id, name, repo_type=repo_type, revision=commit, endpoint=api.endpoint)
        try:
            return (api.get_hf_file_metadata(url=url, timeout=60).etag or "").lower()
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code == 404:
                return None
            raise

    names = list(names)
    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        looked = tqdm(pool.map(ask, names), total=len(names), desc="looking", unit="file", leave=False,
                      disable=not progress)  # fmt: skip
        return dict(zip(names, looked))


def shards(*, api, repo_id, repo_type, commit) -> list[str]:
    """The weight files that the index at a commit names, as far as they are there."""
    url = hf_hub_url(repo_id, INDEX, repo_type=repo_type, revision=commit, endpoint=api.endpoint)
    headers = {"Authorization": f"Bearer {api.token}"} if api.token else {}
    response = get_session().get(url, headers=headers)
    hf_raise_for_status(response)
    try:
        names = sorted(set(json.loads(response.content).get("weight_map", {}).values()))
    except (ValueError, AttributeError):  # somebody else's index: nothing that we know
        return []
    found = etags(names, api=api, repo_id=repo_id, repo_type=repo_type, commit=commit, progress=False)
    return [name for name, etag in found.items() if etag is not None]
