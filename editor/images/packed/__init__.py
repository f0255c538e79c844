"""Images that lie in one file: tars, Parquet, Arrow."""
