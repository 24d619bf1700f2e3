"""The rigs: a simulated car, a broker, a dispatcher and what proves the daemon against them."""
