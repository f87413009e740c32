# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Ultrasound data: reading, cleaning and de-identifying it, corpora, labelled sets, simulated images."""
