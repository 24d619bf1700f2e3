"""What systemd is given of Driveway, and the package that brings it to a vehicle."""
