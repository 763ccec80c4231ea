"""What a capture shows of packets: records, pcapng, lines for people. Pure."""
