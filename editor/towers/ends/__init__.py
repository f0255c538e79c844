"""What follows the last block of a tower: pools, norms, readouts and final maps."""
