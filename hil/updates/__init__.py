"""Updates of a vehicle that is a folder: the real update program, real small daemons, and cuts at every step."""
