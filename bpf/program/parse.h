/* Finds a packet's headers and checks their lengths. Decides nothing about a valid packet. */
#pragma once
#include "verdict.h"

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

/* ICMP and ICMPv6; linux/icmp.h would need the C library's headers. */
struct icmp_header {
	u8 type;
	u8 code;
	u16 checksum;
	__be32 rest; /* in an error: MTU, pointer or unused; the quoted packet follows */
};

struct packet {
	struct xdp_md *context;
	struct ethhdr *ethernet;
	void *network;   /* IP header */
	void *transport; /* TCP, UDP or ICMP header; its fixed part is within the frame */
	void *end;       /* first byte after the frame */
	u64 clock_ns;    /* CLOCK_MONOTONIC, coarse; 0: not read yet */
	u32 frame_bytes;
	u32 ip_bytes;       /* IP header and payload, without the frame's padding */
	u32 farm;           /* the farm that a drop is counted for; 0: not known */
#ifdef VLANS
	u32 ingress; /* interface that the packet came in by: of a tagged frame the VLAN device */
#endif
	u32 egress_ifindex; /* set by the step that forwards the packet */
	u32 mtu;            /* of the egress; set with the verdict drop_too_big */
	u32 fragment_id;    /* identification, in network order; valid if `fragment` is set */
	__be16 fragment;    /* more fragments, or an offset, as in the IPv4 header; 0: a whole packet */
	u8 protocol;
	u8 tcp_flags;     /* 0 for UDP */
	bool established; /* its flow is in `flows` */
	bool answered;    /* dropped, and the frame is an answer to its sender now */
};

/* The interface that the packet came in by, as the kernel's FIB knows it. */
static __always_inline u32 ingress_of(struct packet *packet)
{
#ifdef VLANS
	return packet->ingress;
#else
	return packet->context->ingress_ifindex;
#endif
}

#define FRAGMENT_OFFSET htons(0x1fff)
#define FRAGMENT_MORE htons(0x2000)

struct ports {
	__be16 source;
	__be16 destination;
};

#ifdef TEST_CLOCK
/* The time is what a test has written. */
static __always_inline u64 read_clock(void)
{
	u32 zero = 0;
	u64 *clock_ns = test_clock.lookup(&zero);

	return clock_ns ? *clock_ns : 0;
}
#else
static u64 (*read_clock)(void) = (void *)160; /* bpf_ktime_get_coarse_ns, which bcc's headers may not have */
#endif

static __always_inline u64 now_ns(struct packet *packet)
{
	if (!packet->clock_ns)
		packet->clock_ns = read_clock();
	return packet->clock_ns;
}

/* A fragment without ports. */
static __always_inline bool is_later_fragment(struct packet *packet)
{
	return packet->fragment & FRAGMENT_OFFSET;
}

/* The first segment of a connection. */
static __always_inline bool is_syn(struct packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static __always_inline bool is_midstream(struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP && !is_syn(packet);
}

/* Check the TCP or UDP header against the IP header's payload_bytes. CONTINUE or drop_malformed. */
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

		if ((void *)(udp + 1) > packet->end || payload_bytes < sizeof(*udp) || ntohs(udp->len) < sizeof(*udp) ||
		    (!packet->fragment && payload_bytes < ntohs(udp->len)))
			return COUNTER_DROP_MALFORMED;
	}
	return CONTINUE;
}
