# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The Hugging Face Hub: folders that load anywhere, cards, publishing, conversion and export."""
