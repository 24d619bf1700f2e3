"""The operator's side of a catalogue: a TUF repository in a folder, its keys in files, and the command for both."""
