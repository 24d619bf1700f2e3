"""The command `driveway`: one file per group of verbs; it talks to the control socket."""
