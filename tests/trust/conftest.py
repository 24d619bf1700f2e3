"""What the trust tests share: a key, and a statement that is right in every field."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from agent.trust.keys import FileSigner
from agent.trust.statement import (
    Agent,
    Device,
    Energy,
    Engine,
    Gate,
    Lease,
    Package,
    SelfTest,
    Slice,
    Statement,
    Times,
    equivalence_class,
)


@pytest.fixture(scope="session")
def signer() -> FileSigner:
    return FileSigner(generate_private_key(SECP256R1()))


@pytest.fixture(scope="session")
def stranger() -> FileSigner:
    return FileSigner(generate_private_key(SECP256R1()))


@pytest.fixture(scope="session")
def statement() -> Statement:
    return sample_statement()


def sample_statement() -> Statement:
    """Right in every field."""
    engine = Engine(
        executor="onnxruntime",
        version="1.24.1",
        plan_sha256="e5" * 32,
        kernels_sha256="d4" * 32,
        precision="float32",
        batch=(1, 8),
    )
    device = Device(class_="cpu-x86_64", driver="")
    return Statement(
        outcome="result",
        lease=Lease(job="job-1", epoch=3, nonce="0123456789abcdef", ticket_sha256="a1" * 32),
        unit="unit-7",
        package=Package(name="ocr", sha256="b2" * 32),
        model_sha256="c3" * 32,
        engine=engine,
        device=device,
        equivalence_class=equivalence_class("c3" * 32, engine, device),
        agent=Agent(version="0.1.0", sha256="e5" * 32),
        input_sha256="f6" * 32,
        slices=(
            Slice(
                index=0,
                items=4,
                failed_items=0,
                output_sha256="07" * 32,
                raw_sha256="18" * 32,
                raw_form="int32[60]",
                compute_ms=900,
            ),
            Slice(
                index=2,
                items=4,
                failed_items=1,
                output_sha256="29" * 32,
                raw_sha256="3a" * 32,
                raw_form="int32[60]",
                compute_ms=950,
            ),
        ),
        times=Times(
            started_boot_ms=1_000, finished_boot_ms=3_000, boot_id="4b" * 16, finished_wall_ms=1_700_000_000_000
        ),
        energy=Energy(micro_wh=12_345, sensor="simulated"),
        gate=Gate(state="open", policy_sha256="5c" * 32),
        key_protection="file",
        session=3,
        log_index=80,
        counter=41,
        self_test=SelfTest(outcome="passed", raw_sha256="6d" * 32, age_ms=60_000),
    )
