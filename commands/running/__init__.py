"""How every command runs: its exit code, what it says on stderr, and the options that all of them take."""
