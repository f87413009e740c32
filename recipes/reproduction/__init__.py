# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The parts of `recipes/reproduce.py`: the paper's claims, tested on phantoms."""
