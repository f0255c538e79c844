"""One file per architecture. A tower knows where an architecture keeps what the other stages need."""
