# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The stand-in Hub behaves as the Hub does, as far as the real client can tell."""

import hashlib
import json
import urllib.error
import urllib.request

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.running_hub import running_hub


LARGE, SMALL = bytes(range(256)) * 300, b'{"a": 1}'


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with running_hub(folder / "hub", tokens=("hf_reader=reader:elsewhere",)) as hub, hub.connected(folder / "home"):
        yield hub


@pytest.fixture(scope="module")
def first(hub):
    """A private repository with a large and a small file; the sha of its commit."""
    HfApi().create_repo("lab/one", private=True)
    return commit("lab/one", model=LARGE, config=SMALL)


def commit(repo_id, parent=None, **files):
    names = {"model": "model.safetensors", "config": "config.json"}
    operations = [CommitOperationAdd(names.get(name, name), content) for name, content in files.items()]
    return HfApi().create_commit(repo_id, operations, commit_message="m", parent_commit=parent).oid


def get(url, **headers):
    request = urllib.request.Request(url, headers={"Authorization": "Bearer hf_test", **headers})
    return urllib.request.urlopen(request, timeout=10)


def test_etags_are_those_of_git_and_lfs(hub, first):
    small = HfApi().get_hf_file_metadata(url=hf_hub_url("lab/one", "config.json", revision=first))
    assert small.etag == hashlib.sha1(b"blob 8\0" + SMALL).hexdigest() and small.commit_hash == first
    large = HfApi().get_hf_file_metadata(url=hf_hub_url("lab/one", "model.safetensors"))
    assert large.etag == hashlib.sha256(LARGE).hexdigest() and large.size == len(LARGE)


def test_parts_of_files(hub, first):
    url = f"{hub.url}/lab/one/resolve/main/model.safetensors"
    for wanted, content in (("bytes=10-19", LARGE[10:20]), ("bytes=76790-", LARGE[76790:]), ("bytes=-5", LARGE[-5:])):
        answer = get(url, Range=wanted)
        assert answer.status == 206 and answer.read() == content
    with pytest.raises(urllib.error.HTTPError, match="416"):
        get(url, Range="bytes=99999999-")


def test_every_commit_keeps_its_tree_and_tags_stay(hub, tmp_path):
    api = HfApi()
    api.create_repo("lab/two")
    old = commit("lab/two", model=LARGE, config=b"old")
    api.create_tag("lab/two", tag="v1")
    api.create_branch("lab/two", branch="try")
    new = commit("lab/two", parent=old, config=b"new")
    assert api.model_info("lab/two", revision="v1").sha == old != new == api.model_info("lab/two").sha
    for revision, content in (("v1", b"old"), (old, b"old"), ("try", b"old"), ("main", b"new")):
        path = hf_hub_download("lab/two", "config.json", revision=revision, cache_dir=tmp_path)
        assert open(path, "rb").read() == content
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("lab/two", tag="v1")
    with pytest.raises(HfHubHTTPError, match="412"):
        commit("lab/two", parent=old, config=b"late")
    delete = [CommitOperationDelete("model.safetensors")]
    api.create_commit("lab/two", delete, commit_message="m")
    assert {file.rfilename for file in api.model_info("lab/two").siblings} == {".gitattributes", "config.json"}
    assert snapshot_download("lab/two", cache_dir=tmp_path)
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("lab/two", "model.safetensors", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.model_info("lab/two", revision="v9")


def test_private_is_private_and_rights_are_rights(hub, first):
    for token in (False, "hf_reader"):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token).model_info("lab/one")
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token).get_hf_file_metadata(url=hf_hub_url("lab/one", "config.json"))
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token="hf_wrong").model_info("lab/one")
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(token="hf_reader").create_repo("lab/theirs")
    HfApi(token="hf_reader").create_repo("elsewhere/theirs")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("lab/none")


@pytest.mark.filterwarnings("ignore:It seems that you are about to commit a data file")
def test_datasets_and_spaces_have_their_own_names(hub, tmp_path):
    for kind, options in (("dataset", {}), ("space", {"space_sdk": "gradio"})):
        HfApi().create_repo("lab/same", repo_type=kind, **options)
        add = [CommitOperationAdd("data/train-00000-of-00001.parquet", kind.encode() + LARGE)]
        HfApi().create_commit("lab/same", add, commit_message="m", repo_type=kind)
        path = hf_hub_download("lab/same", "data/train-00000-of-00001.parquet", repo_type=kind, cache_dir=tmp_path)
        assert open(path, "rb").read().startswith(kind.encode())
    bad = [CommitOperationAdd("README.md", b"---\nsdk: flask\n---\n")]
    with pytest.raises(ValueError, match="sdk"):
        HfApi().create_commit("lab/same", bad, commit_message="m", repo_type="space")


def test_a_pointer_to_what_was_not_uploaded_is_refused(hub, first):
    line = {"key": "lfsFile", "value": {"path": "x", "algo": "sha256", "oid": "0" * 64, "size": 3}}
    request = urllib.request.Request(
        f"{hub.url}/api/models/lab/one/commit/main", json.dumps(line).encode(), {"Authorization": "Bearer hf_test"}
    )
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)
    assert HfApi().model_info("lab/one").sha == first


def test_faults_are_met_and_recorded(hub, first):
    hub.forget_requests()
    hub.add_fault(path="/commit/", status=503)
    hub.add_fault(path="/commit/", nth=2, cut_request=10)
    hub.add_fault(path="/commit/", nth=3, cut_response=20)
    before = first
    for _ in range(2):  # refused, then cut in the request: nothing has happened
        with pytest.raises(Exception, match="503|disconnected|reset|Broken"):
            commit("lab/one", other=b"x" * 5000)
        assert HfApi().model_info("lab/one").sha == before
    with pytest.raises(Exception, match="disconnected|reset|peer|bytes"):  # cut in the answer: it has happened
        commit("lab/one", other=b"x" * 5000)
    assert HfApi().model_info("lab/one").sha != before
    met = [line["fault"] for line in hub.requests() if "fault" in line]
    assert [set(fault) & {"status", "cut_request", "cut_response"} for fault in met] == [
        {"status"}, {"cut_request"}, {"cut_response"},
    ]  # fmt: skip
    hub.clear_faults()


def test_what_it_keeps_outlives_it(tmp_path):
    with running_hub(tmp_path / "hub", minimal=True) as hub, hub.connected(tmp_path / "home"):
        HfApi().create_repo("lab/three")
        assert HfApi().model_info("lab/three").sha is None  # as little as another server may have
        sha = commit("lab/three", model=LARGE)
    with running_hub(tmp_path / "hub", minimal=True) as hub, hub.connected(tmp_path / "home"):
        info = HfApi().model_info("lab/three")
        assert info.sha == sha and info.siblings is None
