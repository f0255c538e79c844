"""Layouts of published data sets, each read into the one form that is measured."""
