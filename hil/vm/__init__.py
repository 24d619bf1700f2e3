"""A vehicle in a VM: systemd, SocketCAN, a TPM and the package as installed by OTA, in QEMU on the rig's machine."""
