/* The functions that differ between IPv4 and IPv6, for IPv6. They decide no verdict on a valid packet. */
#pragma once
#include "parse.h"
#include "checksum.h"
#include "answer.h"

#define ICMP_PROTOCOL_v6 IPPROTO_ICMPV6
#define NEIGHBOUR_SOLICITATION 135

struct neighbour_solicitation {
	u8 type;
	u8 code;
	__be16 checksum;
	__be32 reserved;
	struct addr_v6 target;
};

#define MAX_HEADER_BYTES 16384 /* a power of two above the length of MAX_IPV6_EXTENSIONS headers */
_Static_assert(sizeof(struct ipv6hdr) + MAX_IPV6_EXTENSIONS * (8 + 255 * 8) < MAX_HEADER_BYTES, "MAX_HEADER_BYTES");

/* Zero, of which the verifier knows nothing. */
static __always_inline u32 opaque_zero(u32 any)
{
	u32 same = any;

	asm volatile("" : "+r"(any));
	asm volatile("" : "+r"(same));
	return any - same;
}

/* A header behind the IP header, of whose offset the verifier then knows only the upper bound. Otherwise it would verify the
 * rest of the program once for each number of extension headers. */
static __always_inline void *forget_bounds(struct packet *packet, void *header)
{
	u32 offset = header - packet->network;

	return packet->network + ((offset + opaque_zero(packet->ip_bytes)) & (MAX_HEADER_BYTES - 1));
}

#define FRAGMENT_PROTOCOL_v6(protocol) IPPROTO_FRAGMENT /* a later fragment may name another header than the first (RFC 8200) */

struct fragment_header {
	u8 next_header;
	u8 reserved;
	__be16 offset; /* in units of 8 bytes, in the upper 13 bits; the lowest bit: more fragments */
	__be32 identification;
};

/* One of its kind, without offset, is ignored (RFC 6946). */
static __always_inline void read_fragment_header(struct packet *packet, struct fragment_header *fragment)
{
	u32 offset = ntohs(fragment->offset);

	packet->fragment_id = fragment->identification;
	packet->fragment = htons(offset >> 3 | (offset & 1) << 13);
}

static __always_inline bool is_extension(u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_DSTOPTS || protocol == IPPROTO_ROUTING ||
	       protocol == IPPROTO_FRAGMENT;
}

/* Skip the extension headers that do not affect forwarding. CONTINUE, or the verdict on the packet if it is for a VIP. */
static __always_inline u32 skip_extensions(struct packet *packet, struct ipv6hdr *ip)
{
	void *header = ip + 1;
	u8 protocol = ip->nexthdr;

	/* both always unknown, so that the verifier does not distinguish packets by them */
	packet->fragment = opaque_zero(packet->ip_bytes);
	packet->fragment_id = packet->ip_bytes;
#pragma unroll
	for (int i = 0; i <= MAX_IPV6_EXTENSIONS; i++) {
		u8 *extension = header;

		packet->protocol = protocol;
		if (!is_extension(protocol)) {
			packet->transport = forget_bounds(packet, header);
			return CONTINUE;
		}
		if (header + 8 > packet->end)
			return COUNTER_DROP_MALFORMED;
		if (protocol == IPPROTO_ROUTING && extension[3]) /* segments left: not the final destination */
			return COUNTER_DROP_IPV6_EXTENSION;
		header += 8 + extension[1] * 8;
		if (protocol == IPPROTO_FRAGMENT) {
			if (extension[1]) /* reserved; sent as zero */
				return COUNTER_DROP_IPV6_EXTENSION;
			read_fragment_header(packet, (void *)extension);
			packet->protocol = extension[0];
			packet->transport = packet->network;
			if (is_later_fragment(packet))
				return COUNTER_DROP_FRAGMENT;
		}
		protocol = extension[0];
	}
	return COUNTER_DROP_IPV6_EXTENSION;
}

static __always_inline u32 parse_v6(struct packet *packet, struct flow_key_v6 *key)
{
	struct ipv6hdr *ip = packet->network;
	u32 header_bytes, verdict;

	if ((void *)(ip + 1) > packet->end)
		return COUNTER_DROP_MALFORMED;
	__builtin_memcpy(&key->source, &ip->saddr, 2 * sizeof(ip->saddr));
	packet->ip_bytes = sizeof(*ip) + ntohs(ip->payload_len);
	if (ip->version != 6 || packet->ip_bytes + sizeof(struct ethhdr) > packet->frame_bytes)
		return COUNTER_DROP_MALFORMED;
	verdict = skip_extensions(packet, ip);
	set_protocol(&key->protocol, packet->protocol);
	if (verdict != CONTINUE)
		return verdict;
	header_bytes = packet->transport - packet->network;
	if (packet->ip_bytes < header_bytes)
		return COUNTER_DROP_MALFORMED;
	return parse_transport(packet, packet->ip_bytes - header_bytes);
}

/* A group of the link's nodes (RFC 4291): neighbour solicitations are sent to one. */
static __always_inline bool is_link_multicast_v6(struct addr_v6 *address)
{
	return (address->word[0] & htonl(0xff0f0000)) == htonl(0xff020000);
}

/* Source and destination in the packet. */
static __always_inline struct addr_v6 *addresses_v6(struct packet *packet)
{
	return (void *)&((struct ipv6hdr *)packet->network)->saddr;
}

static __always_inline u8 hop_limit_v6(struct packet *packet)
{
	return ((struct ipv6hdr *)packet->network)->hop_limit;
}

static __always_inline u16 header_delta_v6(u16 addresses)
{
	return 0;
}

static __always_inline void write_addresses(struct ipv6hdr *ip, struct addr_v6 *source, struct addr_v6 *destination)
{
	__builtin_memcpy(&ip->saddr, source, sizeof(*source));
	__builtin_memcpy(&ip->daddr, destination, sizeof(*destination));
}

static __always_inline void rewrite_network_v6(struct packet *packet, struct flow_v6 *flow, bool decrement_ttl)
{
	struct ipv6hdr *ip = packet->network;

	ip->hop_limit -= decrement_ttl;
	write_addresses(ip, &flow->source, &flow->destination);
}

static __always_inline void fill_fib_addresses_v6(struct bpf_fib_lookup *fib_params, struct addr_v6 *source,
						  struct addr_v6 *destination)
{
	fib_params->family = 10; /* AF_INET6 */
	__builtin_memcpy(fib_params->ipv6_src, source, sizeof(*source));
	__builtin_memcpy(fib_params->ipv6_dst, destination, sizeof(*destination));
}

static __always_inline void fill_fib_params_v6(struct bpf_fib_lookup *fib_params, struct packet *packet, struct flow_v6 *flow)
{
	fill_fib_addresses_v6(fib_params, &flow->source, &flow->destination);
	fib_params->flowinfo = *(__be32 *)packet->network & htonl(0x0fffffff);
}

static __always_inline void read_fib_source_v6(struct bpf_fib_lookup *fib_params, struct addr_v6 *source)
{
	__builtin_memcpy(source, fib_params->ipv6_src, sizeof(*source));
}

/* Routers do not fragment IPv6 packets. */
static __always_inline bool may_be_fragmented_v6(struct packet *packet)
{
	return false;
}

/* --- ICMPv6 ------------------------------------------------------------------------------------------------ */

/* Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443). */
static __always_inline bool is_icmp_error_v6(u8 type)
{
	return type >= 1 && type <= 4;
}

static __always_inline bool is_too_big_v6(struct icmp_header *icmp)
{
	return icmp->type == 2;
}

/* The transport header behind a quoted IP header, NULL if it cannot be found. */
static __always_inline void *skip_quoted_extensions(struct packet *packet, struct ipv6hdr *ip, u8 *protocol)
{
	void *header = ip + 1;

	*protocol = ip->nexthdr;
#pragma unroll
	for (int i = 0; i <= MAX_IPV6_EXTENSIONS; i++) {
		u8 *extension = header;

		if (!is_extension(*protocol))
			return forget_bounds(packet, header);
		if (header + 8 > packet->end || header - packet->network > MAX_HEADER_BYTES / 2)
			return NULL;
		if (*protocol == IPPROTO_FRAGMENT && *(__be16 *)(extension + 2) & htons(0xfff8))
			return NULL; /* not the first fragment: there are no ports */
		if (*protocol == IPPROTO_FRAGMENT && extension[1])
			return NULL;
		header += 8 + extension[1] * 8;
		*protocol = extension[0];
	}
	return NULL;
}

static __always_inline void *parse_quoted_v6(struct packet *packet, void *quoted, struct flow_key_v6 *key)
{
	struct ipv6hdr *ip = quoted;

	if ((void *)(ip + 1) > packet->end || ip->version != 6)
		return NULL;
	__builtin_memcpy(&key->source, &ip->daddr, sizeof(ip->daddr));
	__builtin_memcpy(&key->destination, &ip->saddr, sizeof(ip->saddr));
	return skip_quoted_extensions(packet, ip, &key->protocol);
}

/* Delta of replacing a header's addresses. */
static __always_inline u32 address_delta(struct ipv6hdr *ip, struct addr_v6 *source, struct addr_v6 *destination)
{
	return difference(sum_words((__be32 *)&ip->saddr, 8), sum_words(source->word, 4) + sum_words(destination->word, 4));
}

static __always_inline u32 restore_quoted_v6(void *quoted, struct flow_v6 *flow)
{
	u32 change = address_delta(quoted, &flow->source, &flow->destination);

	write_addresses(quoted, &flow->destination, &flow->source);
	return change;
}

static __always_inline u32 rewrite_outer_v6(struct packet *packet, struct addr_v6 *source, struct addr_v6 *destination,
					    bool decrement_ttl)
{
	struct ipv6hdr *ip = packet->network;
	u32 change = address_delta(ip, source, destination);

	ip->hop_limit -= decrement_ttl;
	write_addresses(ip, source, destination);
	return change;
}

/* The payload has more bytes. */
static __always_inline void lengthen_v6(struct packet *packet, u16 bytes)
{
	struct ipv6hdr *ip = packet->network;

	ip->payload_len = htons(ntohs(ip->payload_len) + bytes);
}

/* --- answering --------------------------------------------------------------------------------------------- */

#define HANDLER_OPEN_v6 HANDLER_OPEN_V6
#define FAMILY_v6 1
#define IP_HEADER_BYTES_v6 sizeof(struct ipv6hdr)
#define QUOTE_BYTES_v6 504      /* with the ICMP header the limit of bpf_csum_diff on any kernel; every MTU is 1280 or more */
#define SHORT_QUOTE_BYTES_v6 48 /* the header and 8 bytes; every TCP and UDP packet has that many */

/* A source that no single host can have (RFC 4291, RFC 6890): unspecified, loopback, IPv4 in IPv6, multicast. */
static __always_inline bool is_impossible_v6(struct addr_v6 *address)
{
	const __be32 *word = address->word;

	if ((word[0] & htonl(0xff000000)) == htonl(0xff000000))
		return true;
	return !word[0] && !word[1] && (!word[2] || word[2] == htonl(0xffff));
}

static __always_inline void write_ip_v6(struct ipv6hdr *ip, struct addr_v6 *source, struct addr_v6 *destination, u8 protocol,
					u16 payload_bytes)
{
	*ip = (struct ipv6hdr){ .version = 6, .payload_len = htons(payload_bytes), .nexthdr = protocol, .hop_limit = 64 };
	write_addresses(ip, source, destination);
}

static __always_inline u16 icmp_checksum_v6(struct icmp_header *icmp, const u32 bytes, struct addr_v6 *source,
					    struct addr_v6 *destination)
{
	u64 sum = bpf_csum_diff(NULL, 0, (__be32 *)icmp, bytes, 0);

	sum = (sum & 0xffff) + (sum >> 16); /* the helper returns a 32-bit sum */
	return ~fold(sum + sum_words(source->word, 4) + sum_words(destination->word, 4) + htons(bytes) + htons(IPPROTO_ICMPV6));
}

/* RFC 4443. */
static __always_inline void describe_error_v6(struct icmp_header *error, u32 answer, u32 mtu)
{
	if (answer == ANSWER_TOO_BIG) {
		error->type = 2;
		error->rest = htonl(mtu);
	} else if (answer == ANSWER_TIME_EXCEEDED) {
		error->type = 3;
	} else {
		error->type = 1;
		error->code = answer == ANSWER_NO_PORT ? 4 : 0; /* port unreachable, or no route */
	}
}
