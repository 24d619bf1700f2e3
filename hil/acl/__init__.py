"""Who may do what on a broker: a guarded Mosquitto, and a probe that runs a hostile car's attacks on any broker."""
