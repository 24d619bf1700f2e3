"""`driveway-hil sim`: whole fleets of nights in virtual time, every promise checked after every event."""
