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
	u64 clock_ns;    /* CLOCK_MONOTONIC, up to CLOCK_LAG_NS old; 0: not read yet */
	u32 frame_bytes;
	u32 ip_bytes; /* IP header and payload, without the frame's padding */
	u32 farm;     /* the farm that a drop is counted for; 0: not known */
#ifdef VLANS
	u32 ingress; /* interface that the packet came in by: of a tagged frame the VLAN device */
	bool tagged; /* the tag is in its place, between MAC addresses and `network`; it does not count as frame_bytes */
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

static __always_inline bool is_tagged(struct packet *packet)
{
#ifdef VLANS
	return packet->tagged;
#else
	return false;
#endif
}

#define FRAGMENT_OFFSET htons(0x1fff)
#define FRAGMENT_MORE htons(0x2000)

struct ports {
	__be16 source;
	__be16 destination;
};

/* Four bytes of a header or of a map's key. A lookup reads its key in such words: a word that was written in parts a moment
 * before makes the processor wait until all parts have reached its cache.
 */
typedef u32 __attribute__((may_alias)) word;

/* Source and destination port. */
static __always_inline void copy_ports(void *to, const void *from)
{
	*(word *)to = *(const word *)from;
}

/* Destination and source address of a frame, 12 bytes. */
static __always_inline void copy_macs(void *to, const void *from)
{
#pragma unroll
	for (u32 i = 0; i < 3; i++)
		((word *)to)[i] = ((const word *)from)[i];
}

/* A key's protocol, and the three zero bytes after it. */
static __always_inline void set_protocol(u8 *field, u8 protocol)
{
	*(word *)field = htonl((u32)protocol << 24);
}

#ifdef TEST_CLOCK
/* The time is what a test has written. */
static __always_inline u64 read_clock(void)
{
	u32 zero = 0;
	u64 *clock_ns = test_clock.lookup(&zero);

	return clock_ns ? *clock_ns : 0;
}

static __always_inline u64 read_precise_clock(void)
{
	return read_clock();
}
#else
static u64 (*read_coarse_clock)(void) = (void *)160; /* bpf_ktime_get_coarse_ns, which bcc's headers may not have */

/* The coarse clock, which steps with the timer interrupt. It is read once in each jiffy: a call of the kernel costs as much as a
 * quarter of a known flow's packet, and the jiffies cost nothing. Between the two steps of one interrupt the old time is
 * read, so the result is up to CLOCK_LAG_NS old: two steps more than the coarse clock itself.
 */
static __always_inline u64 read_clock(void)
{
	u32 zero = 0;
	u64 jiffy = bpf_jiffies64();
	struct clock *clock = clocks.lookup(&zero);

	if (!clock)
		return read_coarse_clock();
	if (clock->jiffy != jiffy) {
		clock->coarse_ns = read_coarse_clock();
		clock->jiffy = jiffy;
	}
	return clock->coarse_ns;
}

static __always_inline u64 read_precise_clock(void)
{
	return bpf_ktime_get_ns();
}
#endif

static __always_inline u64 now_ns(struct packet *packet)
{
	if (!packet->clock_ns)
		packet->clock_ns = read_clock();
	return packet->clock_ns;
}

/* Is it before the deadline? Exact, but only close to the deadline does that cost more than now_ns. */
static __always_inline bool is_before(struct packet *packet, u64 deadline_ns)
{
	if (now_ns(packet) + CLOCK_LAG_NS < deadline_ns)
		return true;
	return read_precise_clock() < deadline_ns;
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
