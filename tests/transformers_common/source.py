# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Makes transformers' own `tests/test_*_common.py` importable, from its source distribution.

They ship there and nowhere else, without the few helper modules that they import; those stand-ins are made here.
`URFM_TRANSFORMERS_TESTS` names the unpacked source distribution (`.ci/run` fetches the one of the installed version):

    pip download --no-deps --no-binary :all: transformers==$(python -c 'import transformers as t; print(t.__version__)')
"""

import importlib
import os
import sys
import types
from pathlib import Path
from unittest import mock

import pytest
import transformers


ALIAS = "transformers_common_tests"  # `tests` would be our own folder


def load(module: str) -> types.ModuleType:
    """Import `tests/<module>.py` of transformers' source distribution; skips the caller where there is none."""
    root = os.environ.get("URFM_TRANSFORMERS_TESTS")
    if not root:
        pytest.skip("URFM_TRANSFORMERS_TESTS is not set to transformers' source distribution", allow_module_level=True)
    folder = Path(root) / "tests"
    if not (folder / f"{module}.py").is_file():
        raise FileNotFoundError(f"URFM_TRANSFORMERS_TESTS={root}: no tests/{module}.py there")
    if ALIAS not in sys.modules:
        package = types.ModuleType(ALIAS)
        package.__path__ = [str(folder)]
        sys.modules[ALIAS] = package
        _stand_in("exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
        _stand_in("generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
        # A sample of what every PreTrainedConfig takes; the original lists more of the same kind.
        common = {"return_dict": False, "output_hidden_states": True, "output_attentions": True, "chunk_size_feed_forward": 5,
                  "architectures": ["BertModel"], "id2label": {0: "label"}, "label2id": {"label": 0}, "dtype": "float16",
                  "problem_type": "regression"}  # fmt: skip
        _stand_in("utils.test_configuration_utils", config_common_kwargs=common)
        sys.modules["fetch_hub_objects_for_ci"] = _module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)
    # They look for transformers' sources beside them; the installed ones are the same.
    with mock.patch.object(transformers.utils, "direct_transformers_import", lambda *_: transformers):
        return importlib.import_module(f"{ALIAS}.{module}")


def _stand_in(name: str, **contents):
    parent = f"{ALIAS}.{name.split('.')[0]}"
    sys.modules.setdefault(parent, types.ModuleType(parent))
    sys.modules[f"{ALIAS}.{name}"] = _module(f"{ALIAS}.{name}", **contents)


def _module(name: str, **contents) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(contents)
    return module
