# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The one address that takes a file: what it answers, what it refuses, and that it keeps nothing."""

import re
from pathlib import Path

import numpy as np
import pytest
import scans

from tests.data.raw_inputs import image_bytes


gradio = pytest.importorskip("gradio", reason="the Space needs gradio: pip install 'urfm[demo]'")
server = pytest.importorskip("server")
ROOT = Path(__file__).resolve().parents[2]


class Reader:
    """`ScanReader` without its process, which takes seconds to start."""

    def __call__(self, data: bytes) -> scans.Scan:
        try:
            return scans.scan_of(data)
        except scans.UnreadableFile as error:
            raise scans.Refused(scans.refusal(error.code)) from None

    def close(self):
        pass


@pytest.fixture(scope="module")
def client(onlooker, examples, tmp_path_factory):
    from starlette.testclient import TestClient

    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
    app = server.build_app(onlooker, Reader(), {"fetus": examples["fetus"]})
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
    patch.undo()


def test_a_file_is_answered_and_nothing_is_written(client, phantom, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = []
    plain = open

    def watched(file, mode="r", *args, **kwargs):
        if any(letter in mode for letter in "wax+"):
            opened.append(file)
        return plain(file, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", watched)
    answer = client.post("/look", content=image_bytes(phantom))
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
    assert set(answer.json()) == {"html", "frames", "model", "strange"} and not opened and not list(tmp_path.iterdir())


@pytest.mark.parametrize("data, words", [(b"", "no bytes"), (b"hello", "not an image"), (b"GIF89a", "contradicts")])
def test_a_bad_file_is_refused_in_words_and_the_app_lives_on(client, data, words, phantom):
    answer = client.post("/look", content=data)
    assert answer.status_code == 422 and words in answer.json()["error"]
    assert client.post("/look", content=image_bytes(phantom)).status_code == 200


def test_too_large_is_refused_by_what_is_declared_and_by_what_comes(client, monkeypatch):
    monkeypatch.setattr(server, "MAX_UPLOAD_MB", 1)
    answer = client.post("/look", content=b"x" * (1 << 20) + b"x")
    assert answer.status_code == 422 and "too large" in answer.json()["error"]
    answer = client.post("/look", content=(b"x" * 65536 for _ in range(17)))  # no length is declared
    assert answer.status_code == 422 and "too large" in answer.json()["error"]


def test_a_failure_tells_and_logs_nothing_of_the_file(client, monkeypatch, caplog, phantom):
    def fails(scan, onlooker):
        raise RuntimeError("Mustermann^Erika")

    monkeypatch.setattr(server, "look_at", fails)
    answer = client.post("/look", content=image_bytes(phantom))
    assert answer.status_code == 500 and answer.json()["error"] == server.UNEXPECTED
    assert "RuntimeError" in caplog.text and "Mustermann" not in caplog.text


def test_examples_are_looked_at_once(client, monkeypatch):
    first = client.post("/look?example=fetus")
    monkeypatch.setattr(server, "look_at", lambda *_: pytest.fail("looked at again"))
    assert first.status_code == 200 and client.post("/look?example=fetus").json() == first.json()
    assert client.post("/look?example=../../etc/passwd").status_code == 404


def test_gradio_takes_no_file_and_the_browser_loads_nothing_from_elsewhere(client):
    for path in (
        "/gradio_api/upload",
        "/gradio_api/component_server",
        "/gradio_api/queue/join",
        "/gradio_api/run/predict",
    ):
        assert client.post(path, files={"files": ("Mustermann.dcm", b"x")}).status_code == 403, path
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/config").json()["title"].startswith("URFM")


def test_who_went_away_costs_no_look(onlooker, phantom):
    """Another file was dropped while this one waited for its turn."""
    import asyncio

    class Gone:
        query_params, headers = {}, {}

        async def stream(self):
            yield image_bytes(phantom)

        async def is_disconnected(self):
            return True

    desk = server.Desk(onlooker, lambda data: pytest.fail("looked at"), {})
    assert asyncio.run(desk(Gone())).status_code == 499 and desk.inside == 0


def test_too_many_at_once_are_asked_to_come_again(client, monkeypatch, phantom):
    monkeypatch.setattr(server, "WAITING", 0)
    answer = client.post("/look", content=image_bytes(phantom))
    assert answer.status_code == 503 and "Try again" in answer.json()["error"]


def test_the_front_matter_is_what_the_hub_wants():
    import yaml
    from packaging.requirements import Requirement
    from packaging.version import Version

    text = (server.HERE / "README.md").read_text(encoding="utf-8")
    facts = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.S)[1])
    assert facts["sdk"] == "gradio" and (server.HERE / facts["app_file"]).is_file() and facts["license"] == "apache-2.0"
    assert (
        len(facts["short_description"]) <= 60
        and Version(facts["sdk_version"]).major == Version(gradio.__version__).major
    )
    project = (ROOT / "pyproject.toml").read_text()
    for line in (server.HERE / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            Requirement(line)
            assert f'"{line}"' in project, f"{line} is not what pyproject.toml says"


def test_colours_have_contrast():
    """Text on its ground, in light and dark: at least 4.5 (WCAG AA)."""
    css = (server.HERE / "page.css").read_text()
    light, dark = (dict(re.findall(r"--u-([a-z-]+): (#[0-9a-f]{6})", block)) for block in
                   (css[css.index(":root") : css.index(".dark")], css[css.index(".dark") : css.index("/* Gradio")]))  # fmt: skip
    for colours in (light, dark):
        for ink, paper in (("ink", "paper"), ("ink", "card"), ("quiet", "paper"), ("quiet", "card"), ("quiet", "soft"),
                           ("ink", "soft"), ("warn", "warn-paper"), ("accent-ink", "accent")):  # fmt: skip
            assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)


def contrast(one: str, other: str) -> float:
    """Of two sRGB colours, by WCAG 2.2."""
    shares = [np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255 for c in (one, other)]
    linear = [
        np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722] for s in shares
    ]
    return (max(linear) + 0.05) / (min(linear) + 0.05)
