"""The daemon's figures for a monitoring system on this computer: their names, their text, and where it can be had."""
