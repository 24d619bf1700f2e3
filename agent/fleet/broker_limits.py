"""What a broker allows on this connection, as its CONNACK says, and whether a message keeps to it.

paho looks at none of it: it would send what the broker has to refuse, at best by hanging up (MQTT 5, section 3.2.2.3).
Beyond that, a topic keeps to the tightest rules of the brokers in use: 256 bytes and 7 slashes (AWS IoT Core).
"""

from __future__ import annotations

from dataclasses import dataclass

from paho.mqtt.properties import Properties

MAX_TOPIC_BYTES = 256
MAX_TOPIC_SLASHES = 7
NOT_IN_TOPICS = frozenset("+#\0")
PACKET_OVERHEAD_BYTES = 1 + 4 + 2 + 2
"""Of a PUBLISH besides topic, properties and payload: type, longest length, the topic's length, packet identifier."""


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """The defaults are those of MQTT 5 for what a CONNACK leaves out."""

    receive_maximum: int = 65_535
    maximum_packet_bytes: int | None = None
    maximum_qos: int = 2
    retain_available: bool = True

    @classmethod
    def of(cls, connack: Properties | None) -> BrokerLimits:
        """The limits in a CONNACK. One of zero, which MQTT does not allow, is taken for the least there is."""
        told: dict[str, int] = {} if connack is None else vars(connack)
        packet_bytes = told.get("MaximumPacketSize")
        return cls(
            receive_maximum=max(1, told.get("ReceiveMaximum", 65_535)),
            maximum_packet_bytes=None if packet_bytes is None else max(1, packet_bytes),
            maximum_qos=told.get("MaximumQoS", 2),
            retain_available=bool(told.get("RetainAvailable", 1)),
        )

    def refusal(self, topic: str, payload_bytes: int, properties_bytes: int, *, retain: bool) -> str:
        """Why this message must not be sent to this broker; empty when it may be."""
        topic_bytes = len(topic.encode("utf-8", "replace"))
        packet_bytes = PACKET_OVERHEAD_BYTES + topic_bytes + properties_bytes + payload_bytes
        if self.maximum_packet_bytes is not None and packet_bytes > self.maximum_packet_bytes:
            return f"a packet of {packet_bytes} bytes, more than the {self.maximum_packet_bytes} that this broker takes"
        if retain and not self.retain_available:
            return "this broker retains nothing"
        if not topic or topic_bytes > MAX_TOPIC_BYTES or topic.count("/") > MAX_TOPIC_SLASHES:
            return f"a topic is 1 to {MAX_TOPIC_BYTES} bytes long and has at most {MAX_TOPIC_SLASHES} slashes"
        if NOT_IN_TOPICS.intersection(topic) or not topic.isprintable():
            return "a topic has no wildcards and no control characters"
        return ""
