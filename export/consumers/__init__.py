"""Consumers: what several of them share: how one is run, the files they read, and the shape of a target."""
