# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""From a pre-trained encoder to a diagnostic model: heads, adapters, training, and what is said of the result.

`adapters` is imported with `modeling_urfm` and light; all else needs the `train` extra.
"""
