# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""recipes/dicom_to_lora.ipynb: short, kept without outputs, and executed from DICOM files to an adapter on a Hub."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from modeling_urfm import URFMForPreTraining, URFMImageProcessor
from modeling_urfm.data.phantom_dicom import write_phantom_export
from modeling_urfm.data.reading import ultrasound_examples
from modeling_urfm.hub.saving import save_model_folder

from ..finetuning.tiny import SIDE, tiny_config
from ..hub.running_hub import running_hub


NOTEBOOK = Path(__file__).resolve().parents[2] / "recipes" / "dicom_to_lora.ipynb"


def code_cells() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_ten_cells_with_text_between_them_and_no_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert len(code_cells()) == 10
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code"] * 10
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells())
    assert all(len(cell["source"]) <= 36 for cell in cells)


def test_what_a_user_changes_is_in_the_first_two_lines():
    first = "".join(code_cells()[0]["source"]).splitlines()
    assert first[0].startswith("DICOM_FOLDER = ") and first[1].startswith("HUB_NAME = ")


def as_excel_writes_it(table: Path) -> None:
    """With semicolons, a mark at the start, Windows' paths, a further column, a row twice, one of no file, one without label."""
    rows = [line.split(",") for line in table.read_text().splitlines()]
    lines = ["file;label;birads", *(f"{file};{label};3".replace("/", "\\") for file, label in rows[1:])]
    lines += [lines[2], "P9999\\1.dcm;benign;3", "P0001\\9.dcm;;"]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")


@pytest.mark.slow
def test_it_runs_from_dicom_files_to_an_adapter_that_loads_by_its_id(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    torch.manual_seed(0)
    processor = URFMImageProcessor(size={"height": SIDE, "width": SIDE})
    save_model_folder(URFMForPreTraining(tiny_config()), processor, tmp_path / "urfm")
    folder = write_phantom_export(tmp_path / "my files", patients=40, images=1, image_size=96)
    shutil.copy(ultrasound_examples()[0], folder / "P0001")  # a real one, which the table doesn't name
    as_excel_writes_it(folder / "labels.csv")

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    at = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    given = {"DICOM_FOLDER": str(folder), "HUB_NAME": "clinic", "ENCODER": str(tmp_path / "urfm"),
             "OUTPUT": str(tmp_path / "out"), "EPOCHS": 1}  # fmt: skip
    lines = "\n".join(f"{name} = {value!r}" for name, value in given.items())
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(lines))
    with running_hub(tmp_path / "hub") as hub:
        # The key decides who is in which split.
        environment = hub.environment(tmp_path / "home") | {"URFM_KEY": "0123456789abcdef0123456789abcdef"}
        client = nbclient.NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
        )
        client.execute(env=environment)
        written = {request["path"] for request in hub.requests() if request["method"] in ("POST", "PUT")}

    said = "".join(
        str(output.get("text", "")) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "1 files of labels.csv are not in the folder: ['P9999/1.dcm']" in said
    assert "Berg^Anna" in said and "macro_f1" in said and "the adapter says" in said
    assert any("clinic/lesion-lora" in path for path in written) and any("clinic/urfm-demo" in path for path in written)
    assert not any("corpus" in path or "labelled" in path for path in written)
    pictures = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
                if "image/png" in output.get("data", {}) or "image/jpeg" in output.get("data", {})]  # fmt: skip
    assert len(pictures) >= 4
