"""`driveway bundle`: what support needs to see, in one archive, of which only what is known to be harmless is taken."""
