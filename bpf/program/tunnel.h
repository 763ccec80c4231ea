/* Modes dsr and ipip: the packet that a backend gets is the client's, unchanged; backends answer past this node.
 *
 * A connection has a forward entry only, which is called one way. ipip puts an IP header of either family before the packet
 * (RFC 2003, RFC 2473, RFC 4213): from an address of this node to the backend, with a hop limit of its own. The inner hop limit
 * stays as it is, because for the client this node is the host that has the VIP, and no router before it.
 */
#pragma once
#include "parse.h"
#include "checksum.h"

#ifdef DSR
#define DSR_FLAG FLOW_FLAG_DSR
#else
#define DSR_FLAG 0
#endif
#ifdef IPIP
#define IPIP_FLAG FLOW_FLAG_IPIP
#else
#define IPIP_FLAG 0
#endif

/* Without the two features both are constant, and what depends on them is not compiled. */
static __always_inline bool is_one_way(u8 flow_flags)
{
	return flow_flags & (DSR_FLAG | IPIP_FLAG);
}

static __always_inline bool is_tunnelled(u8 flow_flags)
{
	return flow_flags & IPIP_FLAG;
}

static __always_inline u8 flags_of_mode(u8 mode)
{
	if (DSR_FLAG && mode == MODE_DSR)
		return DSR_FLAG;
	if (IPIP_FLAG && mode == MODE_IPIP)
		return IPIP_FLAG;
	return 0;
}

/* Can this program forward connections of a mode? The maps follow the configuration before the compiler has ended. */
static __always_inline bool is_compiled_mode(u8 mode)
{
	return mode == MODE_SNAT || mode == MODE_DNAT || flags_of_mode(mode);
}

#define MIN_MTU_v4 68   /* RFC 791 */
#define MIN_MTU_v6 1280 /* RFC 8200: a sender ignores a smaller one */

static __always_inline u32 inner_mtu(u32 mtu, u32 overhead, u32 minimum)
{
	return mtu < minimum + overhead ? minimum : mtu - overhead;
}

#ifdef IPIP

#define OUTER_HOPS 64
#define FLOW_LABEL 0x000fffff
#define IS_V6_v4 false
#define IS_V6_v6 true

/* What the outer header takes from the inner one. */
struct outer {
	u32 inner_bytes;
	u32 flow_label;
	u16 id;
	__be16 fragment; /* DONT_FRAGMENT or 0 */
	u8 traffic_class;
	u8 protocol;
};

/* RFC 2983 (one DSCP for both headers) and RFC 6040 (ECN is copied, and merged where the packet is unwrapped). */
static __always_inline void write_outer_v4(struct iphdr *ip, struct outer *outer, __be32 *source, struct addr_v4 *destination)
{
	/* whole words: a load of what was just stored in parts would wait for the stores */
	__be32 words[5] = {
		htonl(0x45 << 24 | outer->traffic_class << 16 | (u16)(sizeof(*ip) + outer->inner_bytes)),
		outer->id | (u32)outer->fragment << 16,
		OUTER_HOPS | outer->protocol << 8,
		source[0],
		destination->word[0],
	};

	words[2] |= (u32)(u16)~fold(sum_words(words, 5)) << 16;
	__builtin_memcpy(ip, words, sizeof(words));
}

static __always_inline void write_outer_v6(struct ipv6hdr *ip, struct outer *outer, __be32 *source, struct addr_v6 *destination)
{
	*(__be32 *)ip = htonl(6 << 28 | outer->traffic_class << 20 | outer->flow_label);
	ip->payload_len = htons(outer->inner_bytes);
	ip->nexthdr = outer->protocol;
	ip->hop_limit = OUTER_HOPS;
	__builtin_memcpy(&ip->saddr, source, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, destination, sizeof(ip->daddr));
}

/* May the path fragment the outer packet? Only if it may fragment the inner one (RFC 2003); its identification is then made
 * from the inner one, so that a client's datagrams differ. */
static __always_inline void describe_inner_v4(struct packet *packet, struct outer *outer)
{
	struct iphdr *ip = packet->network;

	outer->protocol = IPPROTO_IPIP;
	outer->traffic_class = ip->tos;
	outer->fragment = ip->frag_off & DONT_FRAGMENT;
	outer->id = outer->fragment ? 0 : fold(ip->id + sum_words(&ip->saddr, 1));
	outer->flow_label = 0;
}

static __always_inline void describe_inner_v6(struct packet *packet, struct outer *outer)
{
	u32 first = ntohl(*(__be32 *)packet->network);

	outer->protocol = IPPROTO_IPV6;
	outer->traffic_class = first >> 20;
	outer->fragment = DONT_FRAGMENT;
	outer->id = 0;
	outer->flow_label = first & FLOW_LABEL;
}

/* The backend's address in an entry of each family; see FLOW_FLAG_OTHER_FAMILY. */
_Static_assert(__builtin_offsetof(struct flow_v4, destination_mac) == sizeof(struct addr_v6),
	       "the rewrite has room for an address");

static __always_inline void set_other_destination_v4(struct flow_v4 *flow, __be32 *address)
{
	__builtin_memcpy(flow, address, sizeof(struct addr_v6));
}

static __always_inline void set_other_destination_v6(struct flow_v6 *flow, __be32 *address)
{
	flow->destination = (struct addr_v6){ .word = { address[0] } };
}

static __always_inline struct addr_v4 *outer_destination_v4_v4(struct flow_v4 *flow)
{
	return &flow->destination;
}

static __always_inline struct addr_v6 *outer_destination_v6_v4(struct flow_v4 *flow)
{
	return (void *)flow;
}

static __always_inline struct addr_v4 *outer_destination_v4_v6(struct flow_v6 *flow)
{
	return (void *)&flow->destination;
}

static __always_inline struct addr_v6 *outer_destination_v6_v6(struct flow_v6 *flow)
{
	return &flow->destination;
}

/* The address of this node that is the source of outer headers of a family; NULL: it has none. */
static __always_inline __be32 *find_outer_source(bool is_v6)
{
	u32 index = is_v6;
	struct tunnel_source *source = tunnel_sources.lookup(&index);

	if (!source || !(source->address[0] | source->address[1] | source->address[2] | source->address[3]))
		return NULL;
	return source->address;
}

/* Put `bytes` between the Ethernet header and the packet, and leave the MACs to the caller. NULL: there is no space. */
static __always_inline struct ethhdr *prepend(struct packet *packet, const u32 bytes)
{
	struct xdp_md *context = packet->context;
	struct ethhdr *ethernet;

	if (bpf_xdp_adjust_head(context, -(int)bytes))
		return NULL;
	ethernet = (void *)(long)context->data;
	if ((void *)(ethernet + 1) + bytes > (void *)(long)context->data_end)
		return NULL;
	packet->ethernet = ethernet;
	return ethernet;
}

#endif
