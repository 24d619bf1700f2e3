#!/usr/bin/python3
"""In the vehicle: makes its TPM bear power cuts, as whoever provisions a vehicle has to (docs/install.md).

A TPM that loses its power without having been shut down takes that for an attack on a secret, and counts it; after so
many (as few as three) it opens nothing for hours. TPM2_DictionaryAttackParameters (TPM 2.0 part 3, 25.2) with the
lockout authorisation, which nobody has set here: 1,000 tries, and one of them is forgotten every ten minutes.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

DEVICE = Path("/dev/tpmrm0")
TPM_ST_SESSIONS, TPM_CC_DICTIONARY_ATTACK_PARAMETERS = 0x8002, 0x13A
TPM_RH_LOCKOUT, TPM_RS_PW = 0x4000000A, 0x40000009
MAX_TRIES, RECOVERY_S, LOCKOUT_RECOVERY_S = 1_000, 600, 600
FORMAT = ">HIIIIIHBHIII"
"""Header; handle; a password session of nine bytes with an empty nonce and an empty password; three parameters."""


def main() -> int:
    """Send it; 1 with the TPM's response code where it refuses."""
    head = (TPM_ST_SESSIONS, struct.calcsize(FORMAT), TPM_CC_DICTIONARY_ATTACK_PARAMETERS, TPM_RH_LOCKOUT)
    command = struct.pack(FORMAT, *head, 9, TPM_RS_PW, 0, 0, 0, MAX_TRIES, RECOVERY_S, LOCKOUT_RECOVERY_S)
    with DEVICE.open("r+b", buffering=0) as tpm:
        tpm.write(command)
        code = int.from_bytes(tpm.read(4096)[6:10], "big")
    if code:
        print(f"the TPM refuses: 0x{code:x}", file=sys.stderr)
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
