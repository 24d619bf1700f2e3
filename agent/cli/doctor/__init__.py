"""`driveway doctor`: what is well, what is not, what that means, and how to mend it; one file a group of checks."""
