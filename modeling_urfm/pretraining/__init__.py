# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Pre-training by masked image modelling: arguments, teachers and their cache, engines, checkpoints."""
