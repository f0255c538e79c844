"""Scans: images to the statistics that all later stages live on."""
