# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Publishing against a Hub that fails: only what differs is sent, and a repository is old or new, never a mix."""

import hashlib
import json
import random
import time
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download
from huggingface_hub.utils import _http
from transformers import AutoModel

from modeling_urfm import URFMConfig, URFMImageProcessor, URFMModel
from modeling_urfm.hub import publishing
from modeling_urfm.hub.publishing import PublishingError, publish
from modeling_urfm.hub.publishing_errors import check_repo_id, check_tag
from modeling_urfm.hub.saving import save_model_folder
from modeling_urfm.hub.staging import Publication
from tests.hub.running_hub import running_hub


WEIGHTS = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Pauses as short as can be: ours, and the client's own between its tries of one request."""
    monkeypatch.setattr(publishing, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, 0.01))))


@pytest.fixture(scope="module", params=["the Hub", "a minimal one"])
def hub(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    options = {"minimal": request.param != "the Hub", "tokens": ("hf_reader=reader:elsewhere",)}
    with running_hub(folder / "hub", **options) as hub, hub.connected(folder / "home"):
        yield hub


@pytest.fixture
def quiet(hub):
    hub.clear_faults()
    hub.forget_requests()
    yield hub
    hub.clear_faults()


# What goes wrong goes wrong alike at both.
one_server = pytest.mark.parametrize("hub", ["the Hub"], indirect=True, scope="module")


@pytest.fixture
def make(tmp_path):
    """A publication of files with these contents."""

    def make(repo_id, repo_type="model", kind="encoder", **contents):
        names = {"weights": "model.safetensors", "config": "config.json", "card": "README.md"}
        files = {}
        for name, content in contents.items():
            name = names.get(name, name)
            files[name] = tmp_path / f"{len(list(tmp_path.iterdir()))}-{name.replace('/', '-')}"
            files[name].write_bytes(content)
        return Publication(repo_id, repo_type, kind, files)

    return make


def standing(hub, repo_id, kind="models"):
    """What is in the main branch, straight from the server's disk: name to content."""
    folder = hub.root / "repos" / kind / repo_id
    commit = json.loads((folder / "repo.json").read_text())["branches"]["main"]
    files = json.loads((folder / "commits" / f"{commit}.json").read_text())["files"] if commit else {}
    found = {name: (hub.root / "objects" / file["sha256"]).read_bytes() for name, file in files.items()}
    found.pop(".gitattributes", None)
    return found


def sent_paths(hub, method="PUT"):
    return [line["path"] for line in hub.requests() if line["method"] == method]


def test_only_what_differs_is_sent_and_nothing_where_nothing_does(quiet, make):
    first = publish(make("lab/sync", weights=WEIGHTS, config=b"{}", card=b"---\nlicense: mit\n---\n"), progress=False)
    assert sorted(first.sent) == ["README.md", "config.json", "model.safetensors"] and not first.unchanged
    assert first.url == f"{quiet.url}/lab/sync"
    quiet.forget_requests()
    again = publish(make("lab/sync", weights=WEIGHTS, config=b"{}", card=b"---\nlicense: mit\n---\n"), progress=False)
    assert again.sent == again.removed == [] and again.commit == first.commit and len(again.unchanged) == 3
    assert not sent_paths(quiet) and not sent_paths(quiet, "POST")
    third = publish(
        make("lab/sync", weights=WEIGHTS, config=b'{"a": 1}', card=b"---\nlicense: mit\n---\n"), progress=False
    )
    assert third.sent == ["config.json"] and not sent_paths(quiet)
    assert standing(quiet, "lab/sync")["config.json"] == b'{"a": 1}'


@one_server
def test_private_unless_asked_otherwise(quiet, make):
    for name, private in (("closed", True), ("open", False)):
        publish(make(f"lab/{name}", config=b"{}"), private=private, progress=False)
        assert HfApi().model_info(f"lab/{name}").private is private
    with pytest.raises(PublishingError, match="public already.*--public"):  # images never go there by default
        publish(make("lab/open", repo_type="model", kind="corpus", config=b"1"), progress=False)
    publish(make("lab/open", repo_type="model", kind="corpus", config=b"{}"), progress=False)  # nothing is sent


def test_weights_of_an_older_version_go_in_the_same_commit(quiet, make):
    index = json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    )
    parts = {f"model-0000{i}-of-00002.safetensors": WEIGHTS + b"%d" % i for i in (1, 2)}
    sharded = {**parts, "model.safetensors.index.json": index.encode(), "config.json": b"2", "provenance.json": b"{}"}
    publish(make("lab/shards", weights=WEIGHTS, config=b"1"), progress=False)
    HfApi().create_commit("lab/shards", [CommitOperationAdd("mine.txt", b"keep me")], commit_message="by hand")
    done = publish(make("lab/shards", **sharded), progress=False)
    assert done.removed == ["model.safetensors"]  # which would be loaded instead of the shards
    done = publish(make("lab/shards", weights=WEIGHTS, config=b"1"), progress=False)
    assert done.removed == sorted([*parts, "model.safetensors.index.json", "provenance.json"])
    assert standing(quiet, "lab/shards") == {"model.safetensors": WEIGHTS, "config.json": b"1", "mine.txt": b"keep me"}
    assert len([path for path in sent_paths(quiet, "POST") if "/commit/" in path]) == 4


def test_a_tag_is_made_once_and_never_moved(quiet, make):
    first = publish(make("lab/tagged", config=b"1"), tag="v1", progress=False)
    assert HfApi().model_info("lab/tagged", revision="v1").sha == first.commit and first.tag == "v1"
    assert publish(make("lab/tagged", config=b"1"), tag="v1", progress=False).commit == first.commit
    quiet.forget_requests()
    with pytest.raises(PublishingError, match=r"tag v1 .*differs.*config.json"):
        publish(make("lab/tagged", config=b"2", weights=WEIGHTS), tag="v1", progress=False)
    assert (
        not sent_paths(quiet) and not sent_paths(quiet, "POST") and standing(quiet, "lab/tagged")["config.json"] == b"1"
    )
    second = publish(make("lab/tagged", config=b"2"), tag="v2", progress=False)
    with pytest.raises(PublishingError, match="tag v1 "):
        publish(make("lab/tagged", config=b"2"), tag="v1", progress=False)
    assert HfApi().model_info("lab/tagged", revision="v1").sha == first.commit != second.commit
    third = publish(make("lab/tagged", config=b"2"), tag="v2.1", progress=False)  # nothing to send, a tag to make
    assert third.commit == second.commit and third.sent == []


def test_other_kinds_have_their_own_places(quiet, make):
    shards = {"data/train-00000-of-00001.parquet": b"PAR1" * 9, "README.md": b"---\nlicense: mit\n---\n"}
    publish(make("lab/corpus", repo_type="dataset", kind="corpus", **shards), progress=False)
    assert standing(quiet, "lab/corpus", "datasets") == shards
    space = {"app.py": b"1", "README.md": b"---\nsdk: gradio\n---\n"}
    done = publish(make("lab/space", repo_type="space", kind="space", **space), progress=False)
    assert done.url.endswith("/spaces/lab/space") and standing(quiet, "lab/space", "spaces") == space


@one_server
@pytest.mark.parametrize(
    "fault",
    [
        {"path": "/api/repos/create", "status": 500},
        {"path": "/api/repos/create", "cut_response": 3},
        {"path": "/api/models/", "method": "GET", "status": 429, "headers": {"Retry-After": "0"}},
        {"path": "/resolve/", "method": "HEAD", "status": 503, "times": 2},
        {"path": "/validate-yaml", "status": 500},
        {"path": "/preupload/", "cut_response": 40},
        {"path": "/objects/batch", "status": 500, "times": 8},
        {"path": "/_lfs/", "method": "PUT", "cut_request": 5000},
        {"path": "/_lfs/", "method": "PUT", "status": 503, "times": 7},
        {"path": "/commit/", "cut_request": 50},
        {"path": "/commit/", "cut_response": 0},
        {"path": "/commit/", "status": 504, "after": True},
        {"path": "/commit/", "status": 409},
        {"path": "/tag/", "status": 502, "after": True},
        {"path": "/tag/", "cut_response": 10},
        {"path": "/tag/", "status": 409},
    ],
)
def test_one_fault_is_survived(quiet, make, fault):
    repo_id = f"lab/fault-{hashlib.sha1(json.dumps(fault).encode()).hexdigest()[:8]}"
    card = b"---\nlicense: mit\n---\n"
    quiet.add_fault(**fault)
    done = publish(make(repo_id, weights=WEIGHTS + repo_id.encode(), config=b"{}", card=card), tag="v1", progress=False)
    assert any("fault" in line for line in quiet.requests())
    assert sorted(done.sent) == ["README.md", "config.json", "model.safetensors"] and not done.unchanged
    assert standing(quiet, repo_id)["model.safetensors"] == WEIGHTS + repo_id.encode()
    assert HfApi().model_info(repo_id, revision="v1").sha == done.commit == HfApi().model_info(repo_id).sha


@one_server
def test_it_gives_up_and_says_what_stands_there(quiet, make):
    publish(make("lab/up", config=b"old"), progress=False)
    quiet.add_fault(path="/commit/", status=500, times=None)
    with pytest.raises(
        PublishingError, match=r"3 attempts .*answered 500.*holds what it held before.*The same command"
    ):
        publish(make("lab/up", config=b"new"), attempts=3, progress=False)
    assert len([line for line in quiet.requests() if "/commit/" in line["path"] and line["status"] == 500]) == 3
    assert standing(quiet, "lab/up") == {"config.json": b"old"}
    quiet.add_fault(path="/api/repos/create", status=500, times=None)
    with pytest.raises(PublishingError, match="Nothing was sent"):
        publish(make("lab/up-new", config=b"new"), attempts=2, progress=False)
    quiet.clear_faults()
    assert publish(make("lab/up", config=b"new"), progress=False).sent == ["config.json"]


@one_server
def test_a_server_that_falls_silent_is_left(quiet, make, monkeypatch):
    monkeypatch.setattr(publishing, "SILENCE", 0.3)
    quiet.add_fault(path="/commit/", delay=1.0)
    assert publish(make("lab/silent", config=b"1"), progress=False).commit
    assert standing(quiet, "lab/silent") == {"config.json": b"1"}


@one_server
def test_no_rights_is_not_tried_again(quiet, make, monkeypatch):
    publish(make("lab/rights", config=b"1"), private=False, progress=False)
    for token, text in (("hf_reader", "no right to write to lab"), ("hf_wrong", "hf auth login"), (None, "no token")):
        monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
        for repo_id in ("lab/rights", "lab/rights-new"):
            quiet.forget_requests()
            with pytest.raises(PublishingError, match=text):
                publish(make(repo_id, config=b"2", weights=WEIGHTS), progress=False)
            assert len([line for line in quiet.requests() if line["status"] in (401, 403)]) <= 2
    assert standing(quiet, "lab/rights") == {"config.json": b"1"}


@one_server
def test_a_name_that_is_taken_out_of_sight(quiet, make):
    quiet.add_fault(path="/api/repos/create", status=409)
    with pytest.raises(PublishingError, match="lab/theirs is taken"):
        publish(make("lab/theirs", config=b"1"), progress=False)


@one_server
def test_somebody_commits_in_between(quiet, make, monkeypatch):
    publish(make("lab/both", config=b"1"), progress=False)
    real = HfApi.create_commit

    def late(api, *args, **options):
        monkeypatch.setattr(HfApi, "create_commit", real)
        HfApi().create_commit("lab/both", [CommitOperationAdd("theirs.txt", b"t")], commit_message="theirs")
        return real(api, *args, **options)

    monkeypatch.setattr(HfApi, "create_commit", late)
    assert publish(make("lab/both", config=b"2"), progress=False).sent == ["config.json"]
    assert standing(quiet, "lab/both") == {"config.json": b"2", "theirs.txt": b"t"}


@one_server
def test_offline_is_said_at_once(quiet, make, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishingError, match="HF_HUB_OFFLINE"):
        publish(make("lab/offline", config=b"1"), progress=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PublishingError, match="127.0.0.1:9.*can't be reached.*Nothing was sent"):
        publish(make("lab/offline", config=b"1"), attempts=2, progress=False)


def test_names_that_the_hub_would_not_take():
    for name, near in (("urfm", "YOUR_NAME/urfm"), ("lab/a b", "lab/a-b"), ("a/b/c", "b/c"), ("lab/x.git", "lab/x")):
        with pytest.raises(ValueError, match=f"Did you mean '{near}'"):
            check_repo_id(name)
        check_repo_id(near)
    for name, near in (("main", "v-main"), ("a b", "a-b"), ("-x", "x"), ("0123abcd", "v-0123abcd"), ("", "1")):
        with pytest.raises(ValueError, match=f"Did you mean '{near}'"):
            check_tag(name)
        check_tag(near)


# ---------------------------------------------------------------- fifty publications


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Three models of different shapes, so that a mix of two would not load; the second in several files."""
    folders = []
    for version, (hidden, shard) in enumerate(((16, "5GB"), (32, "10KB"), (24, "5GB"))):
        torch.manual_seed(version)
        config = URFMConfig(image_size=32, patch_size=8, hidden_size=hidden, num_hidden_layers=1, num_attention_heads=2,
                            intermediate_size=16)  # fmt: skip
        folder = tmp_path_factory.mktemp("versions") / str(version)
        model = URFMModel(config).eval()
        save_model_folder(model, URFMImageProcessor(size={"height": 32, "width": 32}), folder)
        if shard != "5GB":
            (folder / "model.safetensors").unlink()
            model.save_pretrained(folder, max_shard_size=shard)
        (folder / "README.md").write_text(f"---\nlicense: mit\n---\nversion {version}\n")
        folders.append(folder)
    return folders


def some_faults(draw: random.Random) -> list[dict]:
    """One to four faults somewhere in the forty or so requests of a publication."""
    kinds = (
        lambda: {"status": draw.choice([500, 502, 503, 429, 409])},
        lambda: {"status": draw.choice([401, 403])},
        lambda: {"status": 504, "after": True},
        lambda: {"cut_request": int(10 ** draw.uniform(0, 4))},
        lambda: {"cut_response": int(10 ** draw.uniform(0, 3)) - 1},
        lambda: {"delay": 0.05},
    )
    places = ("", "", "/commit/", "/_lfs/", "/objects/batch", "/preupload/", "/tag/", "/resolve/")
    return [
        {"path": draw.choice(places), "times": draw.choice([1, 1, 2, 8, 30]), "nth": draw.randint(1, 12)} | draw.choice(kinds)()
        for _ in range(draw.randint(1, 4))
    ]  # fmt: skip


@pytest.mark.slow
def test_fifty_publications_under_faults_never_leave_a_broken_repository(quiet, versions, tmp_path, request):
    """25 on each kind of server: after each, whatever its end, the repository is the old or the new version, and loads."""
    draw, outcomes = random.Random(request.node.name), {"published": 0, "given up": 0, "old": 0, "new": 0}
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in versions]
    publications = [
        Publication("lab/fifty", "model", "encoder", {path.name: path for path in folder.iterdir()})
        for folder in versions
    ]
    publish(publications[0], progress=False)
    old = 0
    for turn in range(25):
        new = (old + draw.choice([1, 2])) % 3
        quiet.forget_requests()
        for fault in some_faults(draw):
            quiet.add_fault(**fault)
        tag = f"v{turn}"
        try:
            done = publish(publications[new], tag=tag, attempts=4, progress=False)
            outcomes["published"] += 1
        except PublishingError as error:
            done = None
            outcomes["given up"] += 1
            assert "lab/fifty" in str(error) or "Nothing was sent" in str(error)
        quiet.clear_faults()
        there = standing(quiet, "lab/fifty")
        assert there in (contents[old], contents[new]), (turn, sorted(there))
        assert done is None or there == contents[new]
        outcomes["new" if there == contents[new] else "old"] += 1
        if "model.safetensors" in there:
            model = AutoModel.from_pretrained("lab/fifty", cache_dir=tmp_path / str(turn))
        else:  # for several files transformers asks for the list of files, which not every server has
            for name in there:
                hf_hub_download("lab/fifty", name, local_dir=tmp_path / str(turn))
            model = AutoModel.from_pretrained(tmp_path / str(turn))
        hidden = 24 if there == contents[2] else 32 if there == contents[1] else 16
        assert model.config.hidden_size == hidden

        quiet.forget_requests()
        after = publish(publications[new], tag=tag, progress=False)  # the same again goes on
        assert standing(quiet, "lab/fifty") == contents[new]
        assert bool(after.sent) == (there != contents[new])
        assert HfApi().model_info("lab/fifty", revision=tag).sha == after.commit
        quiet.forget_requests()
        assert publish(publications[new], tag=tag, progress=False).sent == []
        assert not sent_paths(quiet) and not sent_paths(quiet, "POST")
        old = new
    print(outcomes)
    assert outcomes["published"] >= 5 and outcomes["given up"] >= 3
