"""One plugin of clipedit of each kind; `pyproject.toml` names them."""
