"""`make package`: a vehicle's .deb, its bill of materials, and the same tree as a signed bundle for two slots."""
