"""The fleet's side of the daemon: the MQTT link, the messages on it, and the transfer of objects."""
