# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The version, apart so that building the package does not import torch."""

__version__ = "0.1.0"
