"""What benchmarks of others measure, and many data sets at once."""
