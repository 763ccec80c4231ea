/* Where a packet's headers are. Nothing here decides what happens to the packet. */
#pragma once

#define GO_ON COUNTER_COUNT /* what a step answers, instead of a verdict, when the next one is to be taken */

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

/* ICMP and ICMPv6; linux/icmp.h would need the C library's headers. */
struct icmp_header {
	u8 type;
	u8 code;
	u16 checksum;
	__be32 rest; /* of an error: MTU, pointer or nothing; the quoted packet follows */
};

struct packet {
	struct xdp_md *context;
	struct ethhdr *ethernet;
	void *network;   /* IP header */
	void *transport; /* TCP, UDP or ICMP header; at least its fixed part lies within the frame */
	void *end;       /* first byte behind the frame */
	u64 clock_ns;    /* CLOCK_MONOTONIC, coarse; 0: not read yet */
	u32 frame_bytes;
	u32 ip_bytes;  /* IP header and all behind it, padding of the frame excluded */
	u32 farm;      /* whose drop it would be; 0: nobody's yet */
	u32 interface; /* the way out, once a step has found it */
	u8 protocol;
	u8 tcp_flags; /* 0 for UDP */
	bool lasting; /* its flow is in `flows` */
};

struct ports {
	__be16 source;
	__be16 destination;
};

static u64 (*clock_coarse_ns)(void) = (void *)160; /* bpf_ktime_get_coarse_ns, which bcc's headers may not have */

static __always_inline u64 now_ns(struct packet *packet)
{
	if (!packet->clock_ns)
		packet->clock_ns = clock_coarse_ns();
	return packet->clock_ns;
}

/* A new connection's first segment. */
static __always_inline bool is_syn(struct packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static __always_inline bool is_midstream(struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP && !is_syn(packet);
}

/* Check the TCP or UDP header against the payload_bytes the IP header leaves for it. GO_ON or drop_malformed. */
static __always_inline u32 parse_transport(struct packet *packet, u32 payload_bytes)
{
	void *header = packet->transport;

	if (packet->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = header;

		if ((void *)(tcp + 1) > packet->end || tcp->doff < 5 || payload_bytes < tcp->doff * 4)
			return COUNTER_DROP_MALFORMED;
		packet->tcp_flags = ((u8 *)header)[13];
	} else if (packet->protocol == IPPROTO_UDP) {
		struct udphdr *udp = header;

		if ((void *)(udp + 1) > packet->end || ntohs(udp->len) < sizeof(*udp) || payload_bytes < ntohs(udp->len))
			return COUNTER_DROP_MALFORMED;
	}
	return GO_ON;
}
