"""Measurement: what an edit changed, beside the unedited model and controls."""
