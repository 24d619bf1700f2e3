"""The pure core: it decides, and touches nothing. Standard library and msgspec only."""
