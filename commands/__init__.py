"""The commands, a file for each family. Bodies parse, call one library function and print."""
