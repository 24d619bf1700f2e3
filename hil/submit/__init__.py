"""`driveway-hil submit`: puts work in, and collects what came of it."""
