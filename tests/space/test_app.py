# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""app.py: which model it takes, and what it says where there is none."""

import socket
import subprocess
import sys

import app
import pytest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(app, "HERE", tmp_path / "space")
    monkeypatch.setattr(app, "CLONE", tmp_path / "clone")
    for name in ("URFM_MODEL", "URFM_INDEX", "SPACE_ID", "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_flags_and_variables(monkeypatch, capsys):
    args = app.parse_arguments([])
    assert (args.model, args.index, args.host, args.port) == (None, None, "127.0.0.1", 7860)
    monkeypatch.setenv("SPACE_ID", "ORG/urfm")
    monkeypatch.setenv("URFM_MODEL", "ORG/urfm-base")
    args = app.parse_arguments([])
    assert (args.model, args.host) == ("ORG/urfm-base", "0.0.0.0")
    assert app.parse_arguments(["--model", "other"]).model == "other"
    with pytest.raises(SystemExit):
        app.parse_arguments(["--port", "70000"])
    assert "--port 70000: from 0 to 65535" in capsys.readouterr().err


def test_the_nearest_folder_is_taken(tmp_path):
    assert app.find_model("ORG/urfm-base") == "ORG/urfm-base"
    for folder in ("clone/urfm", "urfm", "space/urfm"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
        assert (tmp_path / app.find_model(None)).resolve() == (tmp_path / folder).resolve()


def test_without_model_and_without_clone_it_says_what_to_set():
    with pytest.raises(FileNotFoundError, match="set the variable URFM_MODEL"):
        app.find_model(None)


def test_in_a_clone_the_demo_is_trained(tmp_path, monkeypatch, capsys):
    (tmp_path / "clone" / "recipes").mkdir(parents=True)
    (tmp_path / "clone" / "recipes" / "pretrain.py").write_text("")
    commands, code = [], 0

    def run(command, cwd):
        commands.append(command)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(app.subprocess, "run", run)
    assert app.find_model(None) == str(tmp_path / "clone" / "urfm")
    assert (
        commands[0][:3] == [sys.executable, "-m", "accelerate.commands.launch"]
        and "training the demo" in capsys.readouterr().out
    )
    code = 1
    with pytest.raises(FileNotFoundError, match="training failed"):
        app.find_model(None)


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["app.py", "--port", str(port)])
        monkeypatch.setattr(app, "find_model", lambda named: pytest.fail("looked for a model first"))
        with pytest.raises(
            ValueError, match=rf"--port {port} can't be had: Address already in use. Another one: --port"
        ):
            app.main()
    with app.bind("127.0.0.1", 0) as free:
        assert free.getsockname()[1] > 0


def test_other_scripts_keep_the_names_of_their_flags():
    error = ValueError("--encoder urfm: no such folder. Or: python recipes/embed.py --encoder urfm")
    assert app.in_our_words(error) == "--model urfm: no such folder. Or: python recipes/embed.py --encoder urfm"
