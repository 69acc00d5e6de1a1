"""The command line. Each command's module, and all it needs, is imported when the command is used."""
