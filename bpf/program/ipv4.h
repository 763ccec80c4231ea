/* The functions that differ between IPv4 and IPv6, for IPv4. They decide no verdict on a valid packet. */
#pragma once
#include "parse.h"
#include "checksum.h"
#include "answer.h"

#define ICMP_PROTOCOL_v4 IPPROTO_ICMP
#define ONE_HOP htons(0x0100) /* a TTL of one in the header's 16-bit word of TTL and protocol */
#define FRAGMENT_PROTOCOL_v4(protocol) (protocol)
#define DONT_FRAGMENT htons(0x4000)

/* Fill in the addresses and protocol of `key`. CONTINUE, or the verdict on the packet if it is for a VIP. */
static __always_inline u32 parse_v4(struct packet *packet, struct flow_key_v4 *key)
{
	struct iphdr *ip = packet->network;
	u32 header_bytes;

	if ((void *)(ip + 1) > packet->end)
		return COUNTER_DROP_MALFORMED;
	key->source.word[0] = ip->saddr;
	key->destination.word[0] = ip->daddr;
	packet->protocol = ip->protocol;
	set_protocol(&key->protocol, packet->protocol);
	header_bytes = ip->ihl * 4;
	packet->ip_bytes = ntohs(ip->tot_len);
	if (ip->version != 4 || header_bytes < sizeof(*ip) || packet->ip_bytes < header_bytes ||
	    packet->ip_bytes + sizeof(struct ethhdr) > packet->frame_bytes)
		return COUNTER_DROP_MALFORMED;
	packet->transport = packet->network + header_bytes;
	packet->fragment = ip->frag_off & (FRAGMENT_MORE | FRAGMENT_OFFSET);
	packet->fragment_id = ip->id;
	if (is_later_fragment(packet))
		return COUNTER_DROP_FRAGMENT;
	return parse_transport(packet, packet->ip_bytes - header_bytes);
}

static __always_inline bool is_link_multicast_v4(struct addr_v4 *address)
{
	return false; /* ARP is no IP */
}

/* Source and destination in the packet. */
static __always_inline struct addr_v4 *addresses_v4(struct packet *packet)
{
	return (void *)&((struct iphdr *)packet->network)->saddr;
}

static __always_inline u8 hop_limit_v4(struct packet *packet)
{
	return ((struct iphdr *)packet->network)->ttl;
}

/* l3_delta from the delta of the addresses. */
static __always_inline u16 header_delta_v4(u16 addresses)
{
	return fold(addresses + (u32)(u16)~ONE_HOP);
}

/* Write the flow's addresses. decrement_ttl: false if the kernel will forward the packet, and decrement it itself. */
static __always_inline void rewrite_network_v4(struct packet *packet, struct flow_v4 *flow, bool decrement_ttl)
{
	struct iphdr *ip = packet->network;

	if (decrement_ttl) {
		ip->ttl--;
		ip->check = changed_checksum(ip->check, flow->l3_delta);
	} else {
		ip->check = changed_checksum(ip->check, flow->l3_delta + ONE_HOP);
	}
	ip->saddr = flow->source.word[0];
	ip->daddr = flow->destination.word[0];
}

static __always_inline void fill_fib_addresses_v4(struct bpf_fib_lookup *fib_params, struct addr_v4 *source,
						  struct addr_v4 *destination)
{
	fib_params->family = 2; /* AF_INET */
	fib_params->ipv4_src = source->word[0];
	fib_params->ipv4_dst = destination->word[0];
}

static __always_inline void fill_fib_params_v4(struct bpf_fib_lookup *fib_params, struct packet *packet, struct flow_v4 *flow)
{
	fill_fib_addresses_v4(fib_params, &flow->source, &flow->destination);
	fib_params->tos = ((struct iphdr *)packet->network)->tos;
}

static __always_inline void read_fib_source_v4(struct bpf_fib_lookup *fib_params, struct addr_v4 *source)
{
	source->word[0] = fib_params->ipv4_src;
}

static __always_inline bool may_be_fragmented_v4(struct packet *packet)
{
	return !(((struct iphdr *)packet->network)->frag_off & DONT_FRAGMENT);
}

/* --- ICMP -------------------------------------------------------------------------------------------------- */

/* Destination unreachable, time exceeded, parameter problem (RFC 792). */
static __always_inline bool is_icmp_error_v4(u8 type)
{
	return type == 3 || type == 11 || type == 12;
}

static __always_inline bool is_too_big_v4(struct icmp_header *icmp)
{
	return icmp->type == 3 && icmp->code == 4;
}

/* Read the header that an ICMP error quotes: its addresses go, swapped, into `key`. Returns the quoted transport header, NULL
 * if it cannot be used. */
static __always_inline void *parse_quoted_v4(struct packet *packet, void *quoted, struct flow_key_v4 *key)
{
	struct iphdr *ip = quoted;

	if ((void *)(ip + 1) > packet->end || ip->version != 4 || ip->ihl < 5 || ip->frag_off & FRAGMENT_OFFSET)
		return NULL;
	key->source.word[0] = ip->daddr;
	key->destination.word[0] = ip->saddr;
	key->protocol = ip->protocol;
	return quoted + ip->ihl * 4;
}

/* Write the addresses of the original packet into the quoted header. Returns the delta for the ICMP checksum, which is 0: the
 * quoted header's own checksum compensates for the change. */
static __always_inline u32 restore_quoted_v4(void *quoted, struct flow_v4 *flow)
{
	struct iphdr *ip = quoted;

	ip->check = changed_checksum(ip->check, flow->l3_delta + ONE_HOP);
	ip->saddr = flow->destination.word[0];
	ip->daddr = flow->source.word[0];
	return 0;
}

/* Address the outer header. Returns the delta for the ICMP checksum, which covers no addresses in IPv4. */
static __always_inline u32 rewrite_outer_v4(struct packet *packet, struct addr_v4 *source, struct addr_v4 *destination,
					    bool decrement_ttl)
{
	struct iphdr *ip = packet->network;
	u32 before = sum_words(&ip->saddr, 2);
	u32 after = sum_words(source->word, 1) + sum_words(destination->word, 1);

	u16 addresses = difference(before, after);

	ip->check = changed_checksum(ip->check, decrement_ttl ? header_delta_v4(addresses) : addresses);
	ip->ttl -= decrement_ttl;
	ip->saddr = source->word[0];
	ip->daddr = destination->word[0];
	return 0;
}

/* The payload has more bytes. */
static __always_inline void lengthen_v4(struct packet *packet, u16 bytes)
{
	struct iphdr *ip = packet->network;

	ip->tot_len = htons(ntohs(ip->tot_len) + bytes);
	ip->check = changed_checksum(ip->check, htons(bytes));
}

/* --- answering --------------------------------------------------------------------------------------------- */

#define HANDLER_OPEN_v4 HANDLER_OPEN_V4
#define FAMILY_v4 0
#define IP_HEADER_BYTES_v4 sizeof(struct iphdr)
#define QUOTE_BYTES_v4 68       /* the longest header and 8 bytes; a packet longer than an MTU has that many (RFC 791: 68) */
#define SHORT_QUOTE_BYTES_v4 28 /* the shortest header and 8 bytes; every TCP and UDP packet has that many */

/* A source that no single host can have (RFC 1812 5.3.7): "this network", loopback, multicast, reserved, broadcast. */
static __always_inline bool is_impossible_v4(struct addr_v4 *address)
{
	u32 first = ntohl(address->word[0]) >> 24;

	return first == 0 || first == 127 || first >= 224;
}

static __always_inline void write_ip_v4(struct iphdr *ip, struct addr_v4 *source, struct addr_v4 *destination, u8 protocol,
					u16 payload_bytes)
{
	*ip = (struct iphdr){
		.version = 4,
		.ihl = sizeof(*ip) / 4,
		.tot_len = htons(sizeof(*ip) + payload_bytes),
		.frag_off = protocol == IPPROTO_TCP ? DONT_FRAGMENT : 0,
		.ttl = 64,
		.protocol = protocol,
		.saddr = source->word[0],
		.daddr = destination->word[0],
	};
	ip->check = ~fold(sum_words((__be32 *)ip, sizeof(*ip) / 4));
}

static __always_inline u16 icmp_checksum_v4(struct icmp_header *icmp, const u32 bytes, struct addr_v4 *source,
					    struct addr_v4 *destination)
{
	return ~fold(sum_words((__be32 *)icmp, bytes / 4));
}

/* RFC 792, RFC 1191, RFC 1812. */
static __always_inline void describe_error_v4(struct icmp_header *error, u32 answer, u32 mtu)
{
	error->type = answer == ANSWER_TIME_EXCEEDED ? 11 : 3;
	if (answer == ANSWER_TOO_BIG) {
		error->code = 4;
		error->rest = htonl(mtu & 0xffff);
	} else if (answer != ANSWER_TIME_EXCEEDED) {
		error->code = answer == ANSWER_NO_PORT ? 3 : 1; /* port or host unreachable */
	}
}
